"""The made-up world: the same from its seed, with the truth it tells, and defaults that do not change by the way."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayapp.sources.synthetic import ACTIONS, World, make_chunk, make_items, write_chunk

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
