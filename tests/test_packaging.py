"""The wheel and the sdist hold every file of the tree, and what is installed from the wheel works without the tree."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.redis_server import free_port, start, stop

ROOT = Path(__file__).parents[1]
PACKAGES = ("rayapp", "deployments")
BUILD = "from setuptools import build_meta as b; print(b.build_sdist('dist')); print(b.build_wheel('dist'))"


def files_of_tree() -> set[str]:
    """What a checkout holds of the packages."""
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """`(sdist, wheel)`, built from a copy: setuptools writes beside the sources."""
    copy = tmp_path_factory.mktemp("build")
    for name in (*PACKAGES, "benchmarks", "tests", "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (sdist,), (wheel,) = (copy / "dist").glob("*.tar.gz"), (copy / "dist").glob("*.whl")
    return sdist, wheel


def test_wheel_and_sdist_hold_the_files_of_the_tree(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    with zipfile.ZipFile(wheel) as file:
        in_wheel = {name for name in file.namelist() if name.split("/")[0] in PACKAGES}
        rest = {name.split("/")[0] for name in file.namelist()} - set(PACKAGES)
    assert in_wheel == files_of_tree()
    assert all(name.endswith(".dist-info") for name in rest), "benches and tests stay out of it"
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert files_of_tree() <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


USE = """
import sys
from pathlib import Path
import rayapp
from rayapp.contracts.schema import Event
from rayapp.importing.domains import BUILT_IN, load_domain
from rayapp.root.facts import make_root
from rayapp.store.opening import open_store

assert Path(rayapp.__file__).is_relative_to(sys.argv[1]), rayapp.__file__
root = Path("root").absolute()
make_root(root, [load_domain(name) for name in BUILT_IN][0].domain)
store = open_store(root, sys.argv[2])
event = Event(event_id="e", user_id="u", item_id="i", action="save", timestamp_ms=1_800_000_000_000,
              received_at_ms=1_800_000_000_000)
store.append([event])
assert store.lookup("u").item_ids == ("i",)
store.close()
"""


@pytest.mark.slow
def test_what_is_installed_from_the_wheel_opens_a_redis_store(built: tuple[Path, Path], tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-index", "-q"]
    subprocess.run([*pip, "--target", str(site), str(built[1])], check=True)
    port = free_port()
    server = start(tmp_path / "redis", port)
    try:
        done = subprocess.run(
            [sys.executable, "-c", USE, str(site), f"redis://127.0.0.1:{port}/0"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        stop(server)
    assert done.returncode == 0, done.stderr
