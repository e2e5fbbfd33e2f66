"""A made-up world of any size whose every probability is known: the oracle that no real log has.

What makes it worth a sequence model: within a session a user wants one topic, the next session may want another, and
only the last actions tell which. Around that, what real feeds have: position bias, satiation, hides that last for the
session, items that appear over time, users who come late, events that arrive late, lists chosen by a feed that is a
little reactive itself.

Chunks of users are made independently of each other, each from (seed, chunk), so the same seed gives the same rows
whoever makes which chunk. Within a chunk all users take their n-th request together.

Shapes: U users of a chunk, T topics, S styles, N items, R requests of a chunk, A users that have an n-th request,
C places of a list.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayapp.sources import Files, RunParts, Size
from rayapp.sources.synthetic_people import People, SessionState, Visits, make_visits
from rayapp.sources.synthetic_world import (
    ACTIONS,
    COUNTRIES,
    DEVICES,
    STYLES,
    TOPICS,
    USERS_PER_CHUNK,
    Items,
    World,
    drifting,
    make_items,
)

__all__ = [
    "ACTIONS",
    "World",
    "drifting",
    "files_in",
    "make_chunk",
    "make_items",
    "write_chunk",
    "write_files",
    "write_items",
    "write_world",
]


def write_files(directory: Path, size: Size, run_parts: RunParts) -> Files:
    """The world of that size as files that `domains/synthetic.toml` reads."""
    return write_world(of_size(World(), size), directory, run_parts)


def of_size(world: World, size: Size) -> World:
    """The world with another seed, and with what the size says of it."""
    told = asdict(size)
    del told["original_times"]  # a made-up world has no others
    return replace(world, **{name: value for name, value in told.items() if value is not None})


def write_world(world: World, directory: Path, run_parts: RunParts) -> Files:
    """The files of any world, its chunks of users being the parts."""
    write_items(world, directory)
    run_parts(world.num_chunks, lambda chunk: write_chunk(world, directory, chunk))
    return files_in(directory)


def write_items(world: World, directory: Path) -> Path:
    """The catalogue as one Parquet file."""
    items = make_items(world)
    pairs = zip(items.topic_N, items.second_N, strict=True)
    titles = zip(items.style_N, items.topic_N, items.id_N, strict=True)
    table = pa.table(
        {
            "item_id": pa.array(items.id_N.tolist()),
            "created_at_ms": items.created_ms_N,
            "title": pa.array([f"{STYLES[s]} {TOPICS[t]} {i[1:]}" for s, t, i in titles]),
            "topics": pa.array([[TOPICS[a]] if a == b else [TOPICS[a], TOPICS[b]] for a, b in pairs]),
            "style": pa.array([STYLES[s] for s in items.style_N]),
            "quality": items.quality_N,
        }
    )
    path = directory / "items.parquet"
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")
    return path


def files_in(directory: Path) -> Files:
    """Where `write_items` and `write_chunk` put things; `truth/` lies beside them."""
    return Files(directory / "events", directory / "requests", directory / "items.parquet", directory / "users")


def write_chunk(world: World, directory: Path, chunk: int) -> dict[str, int]:
    """Writes one chunk of users: events, requests, users and the true probabilities; rows of each."""
    tables = make_chunk(world, make_items(world), chunk)
    for name, table in tables.items():
        path = directory / name / f"part-{chunk:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        pq.write_table(table, temporary, compression="zstd")
        temporary.replace(path)
    return {name: table.num_rows for name, table in tables.items()}


def make_chunk(world: World, items: Items, chunk: int) -> dict[str, pa.Table]:
    """`events`, `requests`, `users` and `truth` of one chunk. `truth` has a row per request: for each of its items the
    probability of each action, given all that had happened, as this world rolled its dice."""
    rng = np.random.default_rng([world.seed, 1, chunk])
    first_user = chunk * USERS_PER_CHUNK
    people = People(world, min(USERS_PER_CHUNK, world.num_users - first_user), chunk, rng)
    visits = make_visits(world, people, rng)
    state = SessionState(world, people, rng)
    shown: list[dict[str, Any]] = []
    for n in range(int(visits.number_R.max(initial=-1)) + 1):
        rows = np.flatnonzero(visits.number_R == n)
        shown.append({"row": rows, **state.show(items, visits, rows)})
    return _tables(items, people, visits, shown, first_user, rng, world)


def _tables(
    items: Items,
    people: People,
    visits: Visits,
    shown: list[dict[str, Any]],
    first_user: int,
    rng: np.random.Generator,
    world: World,
) -> dict[str, pa.Table]:
    names = ("row", "item", "valid", "did", "probability")
    row_R, item_RC, valid_RC, did_RC, probability_RCK = (np.concatenate([s[n] for s in shown]) for n in names)
    some = valid_RC.any(axis=1)
    row_R, item_RC, valid_RC, did_RC = row_R[some], item_RC[some], valid_RC[some], did_RC[some]
    probability_RCK = probability_RCK[some]
    user_R = np.char.add("u", (first_user + visits.user_R[row_R]).astype(str))
    request_R = np.char.add(np.char.add(user_R, "-"), visits.number_R[row_R].astype(str))
    offsets = pa.array(np.r_[0, np.cumsum(valid_RC.sum(axis=1))].astype(np.int64))
    item_ids = pa.LargeListArray.from_arrays(offsets, pa.array(items.id_N[item_RC[valid_RC]].tolist()))
    requests = {
        "request_id": pa.array(request_R.tolist()),
        "user_id": pa.array(user_R.tolist()),
        "timestamp_ms": visits.time_ms_R[row_R],
        "item_ids": item_ids,
        "device": pa.array(np.array(DEVICES)[visits.device_R[row_R]].tolist()),
    }
    truth = {
        f"p_{action}": pa.LargeListArray.from_arrays(offsets, pa.array(probability_RCK[valid_RC][:, k]))
        for k, action in enumerate(ACTIONS)
    }
    place_RC = np.cumsum(valid_RC, axis=1) - 1
    r, c = np.nonzero(did_RC >= 0)
    place_E = place_RC[r, c]
    happened_E = visits.time_ms_R[row_R][r] + 2_000 + 1_500 * place_E + rng.integers(1_000, size=len(r))
    lag_E = rng.integers(40, 400, len(r)).astype(np.float64)
    late_E = rng.random(len(r)) < world.late_events
    lag_E += late_E * rng.exponential(world.late_minutes * 60_000, len(r))
    events = {
        "event_id": pa.array(np.char.add(np.char.add(request_R[r], "-"), place_E.astype(str)).tolist()),
        "user_id": pa.array(user_R[r].tolist()),
        "item_id": pa.array(items.id_N[item_RC[r, c]].tolist()),
        "action": pa.array(np.array(ACTIONS)[did_RC[r, c]].tolist()),
        "timestamp_ms": happened_E,
        "received_at_ms": happened_E + lag_E.astype(np.int64),
        "request_id": pa.array(request_R[r].tolist()),
        "position": pa.array(place_E.astype(np.int32)),
    }
    users = {
        "user_id": [f"u{first_user + u}" for u in range(len(people))],
        "effective_at_ms": people.first_ms_U,
        "country": [COUNTRIES[k] for k in people.country_U],
    }
    return {
        "events": pa.table(events),
        "requests": pa.table(requests),
        "users": pa.table(users),
        "truth": pa.table({"request_id": requests["request_id"], "item_ids": item_ids, **truth}),
    }
