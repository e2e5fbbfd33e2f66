"""The import graph is the architecture: this table is its drawing, and these tests keep it true."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rayapp.root import places

ROOT = Path(__file__).parents[1]

# room -> the rooms it imports, all of them and no other. Read downwards, it is the data flow.
IMPORTS: dict[str, set[str]] = {
    "contracts": set(),
    "revision": set(),
    "picture": set(),
    "launch": {"contracts"},
    "features": {"contracts"},
    "root": {"contracts"},
    "sources": {"contracts"},
    "record": {"picture", "revision", "root"},
    "store": {"contracts", "features", "root"},
    "statistics": {"contracts", "features", "root"},
    "pipeline": {"contracts", "features", "root", "statistics", "store"},
    "importing": {"contracts", "pipeline", "retrieval", "root"},
    "model": {"contracts", "features"},
    "registry": {"contracts", "features", "model", "root"},
    "training": {
        *("contracts", "features", "model", "picture", "pipeline", "registry", "revision", "root"),
        "statistics",
    },
    "retrieval": {"contracts", "features", "model"},
    "experiments": {"contracts", "pipeline", "registry", "retrieval", "root"},
    "serving": {
        *("contracts", "experiments", "features", "model", "registry", "retrieval", "root", "statistics", "store"),
    },
    "batch": {
        *("contracts", "features", "importing", "model", "pipeline", "registry", "retrieval", "root", "statistics"),
        "store",
    },
    "loop": {
        *("contracts", "experiments", "features", "importing", "launch", "model", "pipeline", "record", "registry"),
        *("root", "sources", "store", "training"),
    },
    "client": {"contracts", "features", "launch", "model", "record", "registry", "root"},
    "preflight": {"contracts", "launch", "registry", "root", "serving", "store"},
    "deployments": {"contracts", "experiments", "model", "registry", "root", "serving", "store"},
    "cli": {
        *("batch", "client", "contracts", "experiments", "importing", "launch", "loop", "pipeline", "preflight"),
        *("record", "registry", "root", "serving", "sources", "store", "training"),
    },
    "benchmarks": {
        *(
            "batch",
            "cli",
            "client",
            "contracts",
            "deployments",
            "experiments",
            "features",
            "importing",
            "launch",
            "loop",
        ),
        *(
            "model",
            "picture",
            "pipeline",
            "record",
            "registry",
            "retrieval",
            "root",
            "serving",
            "sources",
            "statistics",
            "store",
        ),
        "training",
    },
}
NO_RAY = {
    *("contracts", "revision", "picture", "features", "root", "sources", "record", "store", "model", "registry"),
    *("retrieval", "serving", "statistics"),
}
FILES = sorted(path for top in ("rayapp", "deployments", "benchmarks") for path in ROOT.glob(f"{top}/**/*.py"))


def room(path: Path) -> str:
    top, *rest = path.relative_to(ROOT).parts
    return rest[0].removesuffix(".py") if top == "rayapp" else top


def imports(path: Path) -> set[str]:
    """Dotted names imported by a file, e.g. {"ray", "rayapp.contracts.schema"}."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: use absolute imports"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_of(names: set[str]) -> set[str]:
    """The rooms that dotted names lie in."""
    parts = [name.split(".") for name in names]
    ours = {p[1] for p in parts if p[0] == "rayapp" and not p[1].startswith("__")}
    return ours | {p[0] for p in parts if p[0] in ("deployments", "benchmarks")}


@pytest.mark.parametrize("name", IMPORTS)
def test_a_room_imports_what_its_line_lists_and_nothing_else(name: str) -> None:
    used = {path: rooms_of(imports(path)) - {name} for path in FILES if room(path) == name}
    for path, rooms in used.items():
        assert rooms <= IMPORTS[name], f"{path} imports {sorted(rooms - IMPORTS[name])}"
    assert set().union(*used.values()) == IMPORTS[name], "a line lists only what its room uses"


def test_every_error_is_of_the_one_tree() -> None:
    """The command line catches `RayappError`; another base would end in a traceback."""
    nodes = [node for path in FILES for node in ast.walk(ast.parse(path.read_text()))]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef) and node.name.endswith("Error")]
    errors = {node.name: {ast.unparse(base) for base in node.bases} for node in classes}
    assert len(errors) >= 10
    for name, bases in errors.items():
        assert name == "RayappError" or bases <= set(errors), f"{name} is none"


def test_every_file_lies_in_a_room_and_the_arrows_flow_one_way() -> None:
    assert {room(path) for path in FILES} - {"__init__"} == set(IMPORTS)
    list(graphlib.TopologicalSorter(IMPORTS).static_order())  # raises where there is a circle


def test_the_design_page_lists_the_rooms_and_which_run_without_ray() -> None:
    text = (ROOT / "docs/design.md").read_text()
    rows = [line.split("|")[1:4] for line in text.splitlines() if line.startswith("| `")]
    listed = [(name.strip(" `"), no_ray.strip()) for names, _, no_ray in rows for name in names.split(",")]
    assert sorted(name for name, _ in listed) == sorted(IMPORTS)
    assert {name for name, no_ray in listed if no_ray == "yes"} == NO_RAY


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_without_ray_stay_so(path: Path) -> None:
    if room(path) in NO_RAY:
        assert not any(n.split(".")[0] == "ray" for n in imports(path)), f"{path} must stay importable without Ray"


def test_the_logs_have_one_reader() -> None:
    """Past it come repeated rows and erased users. A compaction rewrites the files themselves, and a store that is
    restored takes no event twice."""
    past_it = {f"rayapp.root.{name}" for name in ("logs.read_bucket", "logs.read_log", "erasure.tombstones")}
    rooms = {"pipeline", "experiments", "batch"}
    readers = [path for path in FILES if room(path) in rooms or path.name == "day_counts.py"]
    found = {str(path.relative_to(ROOT / "rayapp")) for path in readers if imports(path) & past_it}
    assert found == {"pipeline/log_view.py", "pipeline/compact.py", "pipeline/restore.py"}


@pytest.mark.slow
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


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda p: p.name)
def test_no_test_module_is_imported_by_another(path: Path) -> None:
    """What they share is a fixture in conftest.py, or a module beside it."""
    assert not any(name.startswith("tests.test_") for name in imports(path))


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
