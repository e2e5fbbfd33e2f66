"""A request that was logged twice counts once, whoever reads the log: the watch, parity, batch scores.

(Windows, statistics and experiments read it by the same function; their own tests have copies too.)
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from rayapp.contracts.config import Domain
from rayapp.loop.artifacts import Prepared
from rayapp.loop.day_counts import count_days, days_with_requests
from rayapp.pipeline.parity import parity
from rayapp.root.logs import read_log
from rayapp.root.places import REQUESTS
from rayapp.root.publish import commit_log, log_manifest
from tests.conftest import Command

pytestmark = pytest.mark.cluster


def log_everything_twice(root: Path) -> None:
    """As after an export of a store that was brought back from a backup."""
    number, manifest = log_manifest(root / REQUESTS)
    again = []
    for file in manifest["files"]:
        path = Path(file["path"])
        copy = path.with_name(f"again-{path.name}")
        shutil.copy(root / REQUESTS / path, root / REQUESTS / copy)
        again.append({**file, "path": str(copy)})
    commit_log(root / REQUESTS, number, {**manifest, "files": [*manifest["files"], *again]})


def seen_by_all(root: Path, domain: Domain) -> dict[str, Any]:
    days = days_with_requests(root, 1 << 62)
    return {"watch": count_days(root, days, domain, now_ms=1 << 50), "parity": parity(root)}


def test_a_request_that_was_logged_twice_counts_once(
    world: tuple[Path, Prepared], rayapp_here: Command, tmp_path: Path
) -> None:
    root, prepared = world
    before = seen_by_all(root, prepared.domain)
    shown = pc.list_flatten(read_log(root, REQUESTS, ["item_ids"])["item_ids"])
    log_everything_twice(root)
    assert seen_by_all(root, prepared.domain) == before
    words = ("batch-score", "--root", root, "--requests", "--model", "champion", "--json", "--workers", 1)
    done = rayapp_here(*words, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    scored = json.loads(done.stdout)
    assert sum(day.requests for day in before["watch"]) == scored["requests"] > 100
    assert scored["rows"] == len(shown)
