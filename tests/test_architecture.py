"""The import graph is the architecture: this table is its drawing, and these tests keep it true."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rayapp import places

ROOT = Path(__file__).parents[1]

# room -> the rooms of rayapp it may import. Read downwards, it is the data flow.
MAY_IMPORT: dict[str, set[str]] = {
    "hashing": set(),
    "schema": {"hashing"},
    "publish": set(),
    "revision": set(),
    "places": set(),
    "config": {"schema"},
    "features": {"hashing", "schema"},
    "presets": {"config"},
    "root": {"config", "publish"},
    "catalogue": {"schema", "config", "publish"},
    "rates": {"hashing", "config", "publish"},
    "erasure": {"hashing", "publish"},
    "domains": {"hashing", "schema", "config"},
    "sources": {"hashing", "schema", "config"},
    "pipeline": {
        "hashing",
        "schema",
        "config",
        "domains",
        "features",
        "publish",
        "root",
        "catalogue",
        "rates",
        "erasure",
        "store",
    },
    "model": {"hashing", "schema", "config", "features"},
    "registry": {"hashing", "schema", "config", "features", "model", "publish", "catalogue"},
    "store": {"hashing", "schema", "features", "publish", "root"},
    "training": {
        "hashing",
        "schema",
        "config",
        "presets",
        "catalogue",
        "features",
        "model",
        "pipeline",
        "publish",
        "registry",
        "root",
        "revision",
    },
    "serving": {
        "hashing",
        "schema",
        "config",
        "features",
        "model",
        "publish",
        "rates",
        "registry",
        "store",
        "catalogue",
    },
    "experiments": {"hashing", "schema", "config", "pipeline", "publish", "registry", "root", "serving", "erasure"},
    "batch": {
        "hashing",
        "schema",
        "config",
        "domains",
        "features",
        "publish",
        "root",
        "catalogue",
        "rates",
        "pipeline",
        "model",
        "registry",
        "serving",
        "store",
        "erasure",
    },
    "workflow": {
        "hashing",
        "schema",
        "config",
        "presets",
        "domains",
        "erasure",
        "pipeline",
        "publish",
        "root",
        "sources",
        "store",
        "training",
    },
    "retraining": {
        "hashing",
        "schema",
        "config",
        "presets",
        "features",
        "catalogue",
        "model",
        "pipeline",
        "publish",
        "registry",
        "root",
        "serving",
        "store",
        "training",
        "workflow",
        "erasure",
    },
    "session": {"hashing", "schema", "config", "features", "model"},
    "ports": set(),
    "runtime": {"ports"},
    "graph": {"ports"},
}
EVERYWHERE = {"places"}
"""Names of what lies under a root; it knows nothing itself."""
COMPOSITION_ROOTS = {"cli", "bench"}  # may import every room; nothing imports them but the command line its benches
NO_RAY = {
    "revision",
    "places",
    "hashing",
    "schema",
    "publish",
    "config",
    "presets",
    "catalogue",
    "rates",
    "erasure",
    "features",
    "root",
    "domains",
    "sources",
    "model",
    "registry",
    "store",
    "serving",
    "session",
}
FILES = sorted([*ROOT.glob("rayapp/**/*.py"), *ROOT.glob("deployments/**/*.py")])


def room(path: Path) -> str:
    top, *rest = path.relative_to(ROOT).parts
    return top if top == "deployments" else rest[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names imported by a file, e.g. {"ray", "rayapp.schema"}."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: use absolute imports"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_flow_one_way(path: Path) -> None:
    here, seen = room(path), imports(path)
    used = {n.split(".")[1] for n in seen if n.startswith("rayapp.") and not n.startswith("rayapp.__")}
    if here == "deployments":
        assert not used & {"cli", "bench", "training", "workflow", "pipeline", "sources"}
        return
    assert not any(n.split(".")[0] == "deployments" for n in seen), "rayapp never imports deployments"
    if here in COMPOSITION_ROOTS | {"__init__"}:
        return
    allowed = MAY_IMPORT[here] | {here} | EVERYWHERE
    assert used <= allowed, f"{here} may import {sorted(allowed)}, but imports {sorted(used - allowed)}"
    if here in NO_RAY:
        assert not any(n.split(".")[0] == "ray" for n in seen), f"{here} must stay importable without Ray"


def test_importing_everything_does_nothing(tmp_path: Path) -> None:
    """Imports make no file, start no process and connect to nothing."""
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in FILES]
    program = (
        "import sys, os, importlib, socket\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "def refuse(*a, **k): raise AssertionError('an import opened a connection')\n"
        "socket.socket.connect = refuse\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "import ray; assert not ray.is_initialized()\n"
        "assert os.listdir('.') == [], os.listdir('.')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "every module says what it is for"
    assert text.count("\n") <= 400, "split it, or say here why it is longer"


def test_the_documents_tell_every_place_under_a_root() -> None:
    text = (ROOT / "docs/data.md").read_text()
    table = text[text.index("| place under the root") : text.index("Immutable directories are written beside")]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    told = [name.strip("`").split("/")[0] for cell in cells for name in cell.strip().split(", ")]
    names = [value for name, value in vars(places).items() if name.isupper()]
    assert sorted(told) == sorted(names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_place_under_a_root_is_spelled_twice(path: Path) -> None:
    if path.name != "places.py":
        names = {value for name, value in vars(places).items() if name.isupper()}
        spelled = re.findall(r"root / [\"']([^\"'/]+)[\"']", path.read_text())
        assert not names & set(spelled)
