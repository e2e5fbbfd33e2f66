"""The made-up world: the same from its seed, with the truth it tells, and defaults that do not change by the way."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayapp.contracts.config import DAY_MS
from rayapp.sources.synthetic import ACTIONS, World, drifting, make_chunk, make_items, write_chunk
from rayapp.sources.synthetic_people import Fashion, People
from rayapp.sources.synthetic_world import TOPICS

SMALL = World(num_users=300, num_items=150, num_days=6)


def test_the_default_world_is_the_one_that_was_decided() -> None:
    """Set before any model saw the world; whoever changes one says why in docs/log.md."""
    golden = json.loads((Path(__file__).parent / "golden" / "synthetic_world.json").read_text())
    assert dataclasses.asdict(World()) == golden


def test_a_chunk_is_the_same_whoever_makes_it(tmp_path: Path) -> None:
    items = make_items(SMALL)
    first, second = make_chunk(SMALL, items, 0), make_chunk(SMALL, items, 1)
    write_chunk(SMALL, tmp_path, 1)
    for name, table in second.items():
        assert table.equals(pq.read_table(tmp_path / name / "part-00001.parquet", partitioning=None).cast(table.schema))
    assert not set(first["users"]["user_id"].to_pylist()) & set(second["users"]["user_id"].to_pylist())
    other = make_chunk(dataclasses.replace(SMALL, seed=1), items, 0)
    assert not other["events"].equals(first["events"])


def test_actions_happen_as_often_as_the_truth_says() -> None:
    chunk = make_chunk(SMALL, make_items(SMALL), 0)
    counts = {row["values"]: row["counts"] for row in pc.value_counts(chunk["events"]["action"]).to_pylist()}
    for action in ACTIONS:
        p = pc.list_flatten(chunk["truth"][f"p_{action}"]).to_numpy()
        spread = np.sqrt((p * (1 - p)).sum())
        assert abs(counts[action] - p.sum()) < 5 * spread, action


def test_the_world_has_what_a_feed_has() -> None:
    items, chunk = make_items(SMALL), make_chunk(SMALL, make_items(SMALL), 0)
    events, requests, users = chunk["events"], chunk["requests"], chunk["users"]
    created = dict(zip(items.id_N.tolist(), items.created_ms_N.tolist(), strict=True))
    for request in requests.slice(0, 300).to_pylist():
        assert len(set(request["item_ids"])) == len(request["item_ids"]) > 0
        assert all(created[i] <= request["timestamp_ms"] for i in request["item_ids"]), "nobody is shown the unborn"
    lag = events["received_at_ms"].to_numpy() - events["timestamp_ms"].to_numpy()
    assert lag.min() >= 0
    assert 0.005 < (lag > 60_000).mean() < 0.05
    assert (users["effective_at_ms"].to_numpy() > SMALL.start_ms).any(), "some come late"
    looked = pc.list_element(chunk["truth"]["p_click"], 0).to_numpy().mean()
    long = chunk["truth"].filter(pc.greater_equal(pc.list_value_length(chunk["truth"]["p_click"]), 6))
    assert looked > 1.2 * pc.list_element(long["p_click"], 5).to_numpy().mean(), "the first places are seen most"


def test_without_drift_no_day_differs_from_another() -> None:
    still = Fashion(SMALL)
    assert (still.companion_DT == still.companion_DT[0]).all()
    assert not still.appeal_DT.any()
    people = People(SMALL, 50, 0, np.random.default_rng(0))
    users = np.arange(50)
    assert np.array_equal(people.interest(users, np.full(50, 0)), people.interest(users, np.full(50, 5)))


def test_a_drifting_world_changes_as_fast_as_it_says() -> None:
    world = drifting(dataclasses.replace(SMALL, num_days=400))
    fashion = Fashion(world)
    changes = (np.diff(fashion.companion_DT, axis=0) != 0).mean()
    assert abs(changes - world.companion_changes_per_day * 14 / 15) < 0.015, "a redraw may draw the same again"
    assert not (fashion.companion_DT == np.arange(len(TOPICS))).any(), "nothing is its own companion"
    assert abs(np.diff(fashion.appeal_DT, axis=0).std() - world.topic_drift_per_day) < 0.005
    assert fashion.day(np.array([world.start_ms, world.start_ms + 3 * DAY_MS - 1])).tolist() == [0, 2]
    people = People(world, 50, 0, np.random.default_rng(0))
    moved = people.interest(np.arange(50), np.full(50, 50))
    assert np.allclose(moved.sum(axis=1), 1.0)
    assert np.array_equal(moved, people.interest(np.arange(50), np.full(50, 300))), "after 50 days all has moved"


def test_who_wants_a_topic_saves_what_goes_with_it_today() -> None:
    world = drifting(SMALL)
    items = make_items(world)
    chunk = make_chunk(world, items, 0)
    plain = make_chunk(dataclasses.replace(world, likes_companion=0.0), items, 0)
    p, q = (pc.mean(pc.list_flatten(c["truth"]["p_save"])).as_py() for c in (chunk, plain))
    assert p > 1.05 * q
