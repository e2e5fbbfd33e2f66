"""The made-up world: the same from its seed, with the truth it tells, and defaults that do not change by the way."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rayapp.contracts.config import DAY_MS
from rayapp.sources import Size
from rayapp.sources.synthetic import ACTIONS, World, drifting, make_chunk, make_items, of_size, write_chunk
from rayapp.sources.synthetic_people import REMEMBERED, Fashion, People, Purchases
from rayapp.sources.synthetic_world import HOUR_MS, NEWS, SHOP, TOPICS, WORLDS, Items

SMALL = World(num_users=300, num_items=150, num_days=6)


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_is_the_one_that_was_decided(name: str) -> None:
    """Set before any model saw the world; whoever changes one says why in docs/log.md."""
    golden = json.loads((Path(__file__).parent / "golden" / "synthetic_world.json").read_text())
    assert dataclasses.asdict(WORLDS[name]) == golden["feed"] | golden[name]


def test_a_world_takes_what_a_fetch_says_of_its_size() -> None:
    assert of_size(NEWS, Size(seed=3, num_users=5)) == dataclasses.replace(NEWS, seed=3, num_users=5)


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


def shown(world: World, items: Items) -> pa.Table:
    """Every shown item of a chunk: its row in `items`, time, user, request and true probability of a save."""
    chunk = make_chunk(world, items, 0)
    truth, requests = chunk["truth"], chunk["requests"]
    parent = pc.list_parent_indices(truth["item_ids"]).to_numpy()
    row_of = {item_id: row for row, item_id in enumerate(items.id_N.tolist())}
    return pa.table(
        {
            "row": [row_of[item_id] for item_id in pc.list_flatten(truth["item_ids"]).to_pylist()],
            "timestamp_ms": requests["timestamp_ms"].to_numpy()[parent],
            "user_id": requests["user_id"].take(pa.array(parent)),
            "p_save": pc.list_flatten(truth["p_save"]),
        }
    )


def test_news_is_shown_for_a_day_and_bursts() -> None:
    world = dataclasses.replace(NEWS, num_users=250, num_items=1_000, num_days=4, trends_per_day=0.0)
    items = make_items(world)
    table = shown(world, items)
    row_S, time_S, p_S = (table[name].to_numpy() for name in ("row", "timestamp_ms", "p_save"))
    age_S = time_S - items.created_ms_N[row_S]
    assert age_S.min() >= 0
    assert age_S.max() <= world.item_life_hours * HOUR_MS
    since_S = (time_S - items.burst_ms_N[row_S]) / HOUR_MS
    bursting_S, before_S = (since_S >= 0) & (since_S < 3), (since_S < 0) & (since_S > -3)
    assert min(bursting_S.sum(), before_S.sum()) > 100
    assert p_S[bursting_S].mean() > 1.5 * p_S[before_S].mean()
    old_S, new_S = age_S > 20 * HOUR_MS, age_S < 2 * HOUR_MS
    assert p_S[new_S].mean() > 1.5 * p_S[old_S].mean(), "and it fades"


def test_a_topic_trends_for_hours() -> None:
    world = dataclasses.replace(NEWS, num_days=200)
    fashion, hours = Fashion(world), np.arange(world.num_days * 24)
    time_ms = world.start_ms + hours * HOUR_MS
    trend_HT = fashion.trend(time_ms, np.broadcast_to(np.arange(len(TOPICS)), (len(hours), len(TOPICS))))
    begins_HT = trend_HT[1:] > trend_HT[:-1]
    assert abs(begins_HT.mean() * 24 - world.trends_per_day) < 0.03
    hour, topic = np.argwhere(begins_HT[:-10])[0] + (1, 0)
    assert trend_HT[hour, topic] == 1.0
    assert trend_HT[hour + 3, topic] >= 0.5 - 1e-9
    assert not Fashion(SMALL).trend(time_ms, np.zeros((len(hours), 1), np.int64)).any()


def test_a_shop_sells_again_what_is_used_up() -> None:
    world = dataclasses.replace(SHOP, num_users=250, num_items=300)
    items = make_items(world)
    bought = Purchases(world, 1)
    row = {used_up: int(np.flatnonzero(items.used_up_N == used_up)[0]) for used_up in (True, False)}
    at = np.array([world.start_ms])
    bought.record(np.zeros(2, np.int64), np.array(list(row.values())), np.repeat(at, 2))
    shown_AC = np.array([[row[True], row[False], -5]])
    appeal = [bought.appeal(items, np.array([0]), shown_AC, at + day * DAY_MS)[0].tolist() for day in (0, 14, 140)]
    assert appeal[0] == [-2.0, -2.0, 0.0]
    assert appeal[1] == [0.0, -2.0, 0.0]
    assert appeal[2] == pytest.approx([2.0, -2.0, 0.0], abs=0.01)

    events = make_chunk(world, items, 0)["events"].to_pandas()
    saves = events[events["action"] == "save"]
    used_up = dict(zip(items.id_N.tolist(), items.used_up_N.tolist(), strict=True))
    again = saves[saves.duplicated(["user_id", "item_id"])]["item_id"].map(used_up)
    assert len(again) > 30
    assert again.mean() > 0.7, "mostly what is used up"
    assert pc.list_value_length(make_chunk(world, items, 0)["requests"]["item_ids"]).to_numpy().mean() > 8


def test_purchases_are_remembered_newest_first() -> None:
    bought = Purchases(SHOP, 2)
    assert (bought.one_of(np.array([0]), np.array([[0.0, 0.9]])) == -1).all()
    for item in range(REMEMBERED + 5):
        bought.record(np.array([1]), np.array([item]), np.array([item]))
    assert bought.one_of(np.array([1]), np.array([[0.0, 0.999]])).tolist() == [[REMEMBERED + 4, 5]]
