"""A shop without shown lists, from files to a feed and through a retraining, by the commands that its team types."""

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from rayapp.cli.retrain import NOT_PROMOTED_EXIT
from rayapp.contracts.config import DAY_MS, day_name
from rayapp.contracts.presets import COUNTS, NO_SEQUENCE
from rayapp.pipeline.made_lists import is_made_up
from rayapp.registry.aliases import CHAMPION, read_aliases
from rayapp.registry.models import model_manifest
from rayapp.root.facts import read_root
from rayapp.root.places import ITEM_TABLES, RETRAININGS, WINDOWS
from rayapp.root.publish import read_manifest
from rayapp.sources.synthetic import files_in, write_chunk, write_items
from rayapp.sources.synthetic_world import SHOP
from rayapp.statistics.known import EVERYTHING, load_newest
from rayapp.training.baselines import COVISITATION, POPULARITY
from tests.api_in_process import running
from tests.conftest import Command

pytestmark = [pytest.mark.cluster, pytest.mark.extended]
WORLD = dataclasses.replace(SHOP, num_users=300, num_items=150, num_days=12, sessions_per_day=0.6)


def test_a_shop_without_lists_from_files_to_a_feed(tmp_path: Path, rayapp_here: Command) -> None:
    raw, root = tmp_path / "raw", tmp_path / "root"
    write_items(WORLD, raw)
    write_chunk(WORLD, raw, 0)
    files = files_in(raw)
    given = ("--events", files.events, "--items", files.items, "--users", files.users)
    brought = rayapp_here("import", "--root", root, "--domain", "synthetic", *given)
    assert "shown lists: none, so `rayapp train` makes them" in brought.output
    trained = rayapp_here("train", "--root", root, "--preset", "nano", "--epochs", "1")
    assert trained.exit_code == 0, trained.output
    assert "made-up lists, since the log has no shown ones" in trained.output
    assert "goes live: recall@20 of" in trained.output
    domain, aliases = read_root(root)[0], read_aliases(root)
    assert aliases.keys() == {CHAMPION, COUNTS, POPULARITY, COVISITATION, NO_SEQUENCE}
    manifest = model_manifest(root, aliases[COVISITATION])
    windows = [*manifest["train_windows"], manifest["validation_window"], manifest["test_window"]]
    assert manifest["made_up_lists"] == windows
    assert all(is_made_up(root, window) for window in windows)
    assert (root / ITEM_TABLES / manifest["item_table"]).exists()
    statistics = load_newest(root, domain)
    end = np.array([(WORLD.start_ms + 100 * DAY_MS) // domain.statistics_step_ms])
    everything_SA = statistics.counted[0].everything.at(EVERYTHING, end)[0]
    assert everything_SA[-1, 0] == 0, "no impression was counted"
    assert everything_SA[-1, 1:].any(), "actions were"
    for model in (CHAMPION, COVISITATION):
        said = rayapp_here("evaluate", "--root", root, model)
        assert "Nobody saw the lists of this window" in said.output

    assert rayapp_here("models", "promote", "--root", root, aliases[COVISITATION]).exit_code == 0

    async def session() -> None:
        async with running(root, domain) as graph:
            feed = await graph.feed("u1", num_results=20)
            assert feed["model_version"] == aliases[COVISITATION]
            assert any("beside" in row["sources"] for row in feed["items"])

    asyncio.run(session())

    limits = "min_requests = 5\nmin_labels = 5\n"
    (root / "retrain.toml").write_text(limits)
    at = day_name(WORLD.start_ms + (WORLD.num_days + 3) * DAY_MS)
    again = rayapp_here("retrain", "--root", root, "--as-of", at, "--train-window-days", "3", "--again")
    assert again.exit_code in (0, NOT_PROMOTED_EXIT), again.output
    assert "recall@20" in next((root / RETRAININGS).glob("*/report.md")).read_text()
    days = {path.name for path in (root / WINDOWS).glob("[!.]*")} - set(windows)
    assert days, "each day has a window of its own"
    assert all(read_manifest(root / WINDOWS / day)["lists"]["kind"] == "made-up" for day in days)
