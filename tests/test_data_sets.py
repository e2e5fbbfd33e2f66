"""The list of data sets is what commands offer and documents tell; and the recipe for adding one, followed."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rayapp.importing.domains import BUILT_IN, load_domain
from rayapp.loop.first_import import import_once
from rayapp.pipeline.tasks import run_tasks
from rayapp.root.logs import read_log
from rayapp.sources import Size, SourceError
from rayapp.sources.data_sets import DATA_SETS, DataSet, data_set
from rayapp.sources.synthetic_world import USERS_PER_CHUNK
from tests.conftest import Command

TOML = """
name = "tiny"
positive_head = "like"
[[actions]]
name = "like"
kind = "positive"
[[heads]]
name = "like"
[items]
title = "title"
text = ["title"]
columns = { item_id = "id" }
[[events]]
user_id = "user"
item_id = "item"
timestamp = { column = "at", unit = "ms" }
action = "action"
[[requests]]
user_id = "user"
item_ids = { column = "items", separator = " " }
timestamp = { column = "at", unit = "ms" }
"""
MODULE = """
from rayapp.sources import Files


def write_files(directory, size, run_parts):
    directory.mkdir(parents=True)
    at = 1_767_225_600_000
    files = Files(directory / "events.csv", directory / "lists.csv", directory / "items.csv")
    files.events.write_text(f"user,item,at,action\\nu{size.seed},i1,{at + 1},like\\n")
    files.requests.write_text(f"user,items,at\\nu{size.seed},i0 i1,{at}\\n")
    files.items.write_text("id,title\\ni0,Zero\\ni1,One\\n")
    return files
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    """What a team adds: a module and a domain file. The line in the list is each test's."""
    (tmp_path / "tiny_data_set.py").write_text(MODULE)
    (tmp_path / "tiny.toml").write_text(TOML)
    monkeypatch.syspath_prepend(tmp_path)
    return DataSet("tiny", "tiny_data_set", str(tmp_path / "tiny.toml"), "two people")


@pytest.mark.slow
def test_one_line_makes_commands_offer_it(tiny: DataSet, tmp_path: Path) -> None:
    def rayapp(*arguments: str) -> str:
        program = (
            "import sys; from rayapp.sources import data_sets\n"
            f"sys.path.insert(0, {str(tmp_path)!r})\n"
            f"data_sets.DATA_SETS.append(data_sets.DataSet{dataclasses.astuple(tiny)!r})\n"
            "from rayapp.cli.main import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return " ".join(done.stdout.split())

    offered = "|".join([*(known.name for known in DATA_SETS), "tiny"])
    for command in ("demo", "fetch"):
        told = rayapp(command, "--help")
        assert offered in told
        assert "tiny: two people" in told
    files = tmp_path / "out"
    told = rayapp("fetch", "tiny", "--out", "out", "--seed", "1")
    assert told == (
        f"rayapp import --domain {tmp_path / 'tiny.toml'} --events {files / 'events.csv'} "
        f"--requests {files / 'lists.csv'} --items {files / 'items.csv'}"
    )
    assert "u1,i0 i1" in (files / "lists.csv").read_text(), "the seed came through"


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_session")
def test_it_is_imported_like_any_other(tiny: DataSet, tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert import_once(root, load_domain(tiny.domain), lambda: tiny.fetch(tmp_path / "raw", Size(seed=1), run_tasks))
    assert read_log(root, "events", ["user_id", "item_id"]).to_pylist() == [{"user_id": "u1", "item_id": "i1"}]
    assert read_log(root, "requests", ["user_id", "item_ids"]).to_pylist() == [
        {"user_id": "u1", "item_ids": ["i0", "i1"]}
    ]


@pytest.mark.cluster
def test_one_that_is_made_in_parts_is_made_on_ray(rayapp_here: Command, tmp_path: Path) -> None:
    out = tmp_path / "raw"
    size = ("--users", USERS_PER_CHUNK + 1, "--items", 20, "--days", 2, "--seed", 3)
    done = rayapp_here("fetch", "synthetic", "--out", out, *size)
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        f"rayapp import --domain synthetic --events {out / 'events'} --requests {out / 'requests'} "
        f"--items {out / 'items.parquet'} --users {out / 'users'}\n"
    )
    users = pq.read_table(out / "users", partitioning=None)["user_id"].to_pylist()
    assert len(set(users)) == USERS_PER_CHUNK + 1


def test_every_data_set_has_its_module_its_domain_file_and_its_row_in_the_documents() -> None:
    text = (Path(__file__).parents[1] / "docs/data.md").read_text()
    row = r"^\| \[`([a-z]+)`\]\([^)]+/([a-z_]+)\.toml\) \| `rayapp fetch ([a-z]+)`: (.+) \|$"
    rows = re.findall(row, text, flags=re.M)
    assert rows == [(known.domain, known.domain, known.name, known.summary) for known in DATA_SETS]
    for known in DATA_SETS:
        assert known.domain in BUILT_IN
        assert load_domain(known.domain).domain.name == known.domain
    assert set(re.findall(r"^\| \[`([a-z]+)`\]", text, flags=re.M)) == set(BUILT_IN)


def test_a_name_that_nothing_has_is_told_with_those_that_there_are() -> None:
    with pytest.raises(SourceError, match=r"no data set 'movies'; there are movielens, synthetic"):
        data_set("movies")
