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

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayapp.config import DAY_MS
from rayapp.sources import Files

TOPICS: Final = (
    "Cooking", "Travel", "Gardening", "Fashion", "Running", "Woodwork", "Photography", "Camping",
    "Knitting", "Astronomy", "Cycling", "Painting", "Baking", "Surfing", "Chess", "Pottery",
)  # fmt: skip
STYLES: Final = ("Quiet", "Bright", "Simple", "Hidden", "Winter", "Golden")
COUNTRIES: Final = ("AT", "BR", "CA", "DE", "IN", "JP")
DEVICES: Final = ("phone", "tablet", "desktop")
USERS_PER_CHUNK: Final = 250
ACTIONS: Final = ("save", "hide", "click")
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Size first, then how people behave. The defaults were set before any model saw this world, and
    `tests/golden/synthetic_world.json` holds them: to change one is a decision for `docs/log.md`."""

    seed: int = 0
    num_users: int = 600
    num_items: int = 1_200
    num_days: int = 20
    start_ms: int = 1_735_689_600_000
    """2025-01-01."""

    list_size: int = 10
    sessions_per_day: float = 0.4
    requests_per_session: float = 5.0
    cold_users: float = 0.2
    """Share of users who first come in the second half of the time."""
    new_items: float = 0.4
    """Share of items that appear while the log runs; the others were there before."""
    second_topic: float = 0.3
    interest_concentration: float = 0.25
    """Dirichlet parameter of a user's long-term mixture: smaller is narrower."""
    intent_from_interest: float = 0.6
    """A new session's intent comes from the long-term mixture this often, else from anywhere."""
    intent_kept: float = 0.35
    """A session goes on with the intent of the last one this often."""
    intent_switch: float = 0.08
    """Between two requests of a session the intent changes this often."""
    shown_by_intent: float = 0.25
    """Share of places that the logging feed fills with the intent's topic; it sees what was just done."""
    shown_by_interest: float = 0.45
    """Share filled from the long-term mixture; the rest is any topic."""
    likes_intent: float = 2.2
    likes_interest: float = 1.2
    likes_style: float = 0.4
    quality_spread: float = 0.6
    satiation: float = 0.12
    """What each item of a topic shown in this session takes from the next one's appeal."""
    aversion: float = 1.5
    """What a hide takes from its topic for the rest of the session."""
    desktop_appeal: float = -0.4
    position_decay: float = 0.12
    """A place is looked at with probability 1 / (1 + decay x place)."""
    save_bias: float = -2.6
    hide_bias: float = -3.2
    click_bias: float = -1.2
    late_events: float = 0.02
    late_minutes: float = 20.0

    @property
    def num_chunks(self) -> int:
        return -(-self.num_users // USERS_PER_CHUNK)


@dataclass(frozen=True, slots=True)
class Items:
    """All items, by topic and then by age, so that what a topic offers at a time is a range."""

    id_N: NDArray[np.str_]
    topic_N: Ints
    second_N: Ints
    style_N: Ints
    quality_N: Floats
    created_ms_N: Ints
    weight_up_to_N: Floats
    """Running sum of popularity, with a 0 in front: a draw is a search in it."""


def make_items(world: World) -> Items:
    """The catalogue, from the seed alone."""
    rng = np.random.default_rng([world.seed, 0])
    n, topics = world.num_items, len(TOPICS)
    topic_N = rng.integers(topics, size=n)
    second_N = np.where(rng.random(n) < world.second_topic, rng.integers(topics, size=n), topic_N)
    age_ms_N = rng.integers(365 * DAY_MS, size=n)
    born_ms_N = rng.integers(world.num_days * DAY_MS, size=n)
    created_ms_N = world.start_ms + np.where(rng.random(n) < world.new_items, born_ms_N, -age_ms_N)
    style_N, quality_N = rng.integers(len(STYLES), size=n), rng.normal(0.0, world.quality_spread, n)
    weight_N = rng.pareto(1.5, n) + 0.2
    order = np.lexsort((created_ms_N, topic_N))
    return Items(
        np.array([f"i{i}" for i in range(n)])[order],
        topic_N[order],
        second_N[order],
        style_N[order],
        quality_N[order],
        created_ms_N[order],
        np.r_[0.0, np.cumsum(weight_N[order])],
    )


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
    people = _People(world, min(USERS_PER_CHUNK, world.num_users - first_user), rng)
    visits = _visits(world, people, rng)
    state = _State(world, people, rng)
    shown: list[dict[str, Any]] = []
    for n in range(int(visits.number_R.max(initial=-1)) + 1):
        rows = np.flatnonzero(visits.number_R == n)
        shown.append({"row": rows, **state.show(items, visits, rows)})
    return _tables(items, people, visits, shown, first_user, rng, world)


class _People:
    def __init__(self, world: World, size: int, rng: np.random.Generator) -> None:
        topics = len(TOPICS)
        self.country_U = rng.integers(len(COUNTRIES), size=size)
        local_KT = np.random.default_rng([world.seed, 2]).dirichlet(np.full(topics, 2.0), len(COUNTRIES)) * topics
        # Gamma draws, normalised, are a Dirichlet with a parameter of its own for each user.
        raw_UT = rng.gamma(world.interest_concentration * local_KT[self.country_U]) + 1e-9
        self.interest_UT = raw_UT / raw_UT.sum(axis=1, keepdims=True)
        self.style_US = rng.normal(0.0, world.likes_style, (size, len(STYLES)))
        span_ms = world.num_days * DAY_MS
        late_U = rng.random(size) < world.cold_users
        self.first_ms_U = world.start_ms + np.where(late_U, rng.integers(span_ms // 2, span_ms, size), 0)

    def __len__(self) -> int:
        return len(self.country_U)


@dataclass(frozen=True, slots=True)
class _Visits:
    """Requests of a chunk, by user and time."""

    user_R: Ints
    number_R: Ints
    """How many requests this user made before."""
    session_R: Ints
    time_ms_R: Ints
    device_R: Ints


def _visits(world: World, people: _People, rng: np.random.Generator) -> _Visits:
    end_ms = world.start_ms + world.num_days * DAY_MS
    days_U = (end_ms - people.first_ms_U) / DAY_MS
    user_V = np.repeat(np.arange(len(people)), 1 + rng.poisson(days_U * world.sessions_per_day))
    span_V = (end_ms - people.first_ms_U)[user_V]
    start_V = people.first_ms_U[user_V] + (rng.random(len(user_V)) * span_V).astype(np.int64)
    device_V = rng.choice(len(DEVICES), p=[0.7, 0.1, 0.2], size=len(user_V))
    size_V = 1 + rng.poisson(world.requests_per_session - 1, len(user_V))
    session_R = np.repeat(np.arange(len(user_V)), size_V)
    within_R = np.arange(len(session_R)) - np.repeat(np.cumsum(size_V) - size_V, size_V)
    gap_R = np.where(within_R == 0, 0, rng.integers(20_000, 90_000, len(session_R)))
    up_to_R = np.cumsum(gap_R)
    time_R = start_V[session_R] + up_to_R - up_to_R[np.flatnonzero(within_R == 0)][session_R]
    kept = time_R < end_ms
    session_R, time_R = session_R[kept], time_R[kept]
    order = np.lexsort((time_R, user_V[session_R]))
    session_R, time_R = session_R[order], time_R[order]
    user_R = user_V[session_R]
    count_U = np.bincount(user_R, minlength=len(people))
    number_R = np.arange(len(user_R)) - np.repeat(np.cumsum(count_U) - count_U, count_U)
    return _Visits(user_R, number_R, session_R, time_R, device_V[session_R])


class _State:
    """What a user wants now, and what this session has done to it."""

    def __init__(self, world: World, people: _People, rng: np.random.Generator) -> None:
        self.world, self.people, self.rng = world, people, rng
        self.intent_U = np.full(len(people), -1)
        self.session_U = np.full(len(people), -1)
        self.seen_UT = np.zeros((len(people), len(TOPICS)))
        self.aversion_UT = np.zeros((len(people), len(TOPICS)))

    def show(self, items: Items, visits: _Visits, rows: Ints) -> dict[str, Any]:
        """One list for each of these requests, what it made its user do, and with which probabilities."""
        user_A, world, rng = visits.user_R[rows], self.world, self.rng
        self._want(user_A, visits.session_R[rows])
        item_AC, valid_AC = self._choose(items, user_A, visits.time_ms_R[rows])
        topic_AC, second_AC = items.topic_N[item_AC], items.second_N[item_AC]
        at_AC = user_A[:, None]
        wanted_AC = (topic_AC == self.intent_U[at_AC]) | (second_AC == self.intent_U[at_AC])
        interest_AC = np.log(self.people.interest_UT[at_AC, topic_AC] * len(TOPICS) + 0.05).clip(-2, 2) / 2
        appeal_AC = (
            world.likes_intent * wanted_AC
            + world.likes_interest * interest_AC
            + self.people.style_US[at_AC, items.style_N[item_AC]]
            + items.quality_N[item_AC]
            - world.satiation * self.seen_UT[at_AC, topic_AC]
            - world.aversion * self.aversion_UT[at_AC, topic_AC]
            + world.desktop_appeal * (visits.device_R[rows] == DEVICES.index("desktop"))[:, None]
        )
        looked_AC = 1.0 / (1.0 + world.position_decay * (np.cumsum(valid_AC, axis=1) - 1))
        save_AC = looked_AC * _sigmoid(appeal_AC + world.save_bias)
        hide_AC = (1 - save_AC) * looked_AC * _sigmoid(-appeal_AC + world.hide_bias)
        click_AC = (1 - save_AC - hide_AC) * looked_AC * _sigmoid(appeal_AC + world.click_bias)
        draw_AC = rng.random(item_AC.shape)
        did_AC = np.full(item_AC.shape, -1)  # nothing
        did_AC[draw_AC < save_AC + hide_AC + click_AC] = ACTIONS.index("click")
        did_AC[draw_AC < save_AC + hide_AC] = ACTIONS.index("hide")
        did_AC[draw_AC < save_AC] = ACTIONS.index("save")
        did_AC[~valid_AC] = -1
        np.add.at(self.seen_UT, (np.broadcast_to(at_AC, topic_AC.shape)[valid_AC], topic_AC[valid_AC]), 1.0)
        hid_AC = did_AC == ACTIONS.index("hide")
        self.aversion_UT[np.broadcast_to(at_AC, topic_AC.shape)[hid_AC], topic_AC[hid_AC]] = 1.0
        return {
            "item": item_AC,
            "valid": valid_AC,
            "did": did_AC,
            "probability": np.stack([save_AC, hide_AC, click_AC], axis=2),
        }

    def _want(self, user_A: Ints, session_A: Ints) -> None:
        """The intent of this request: a new session's, or the last one's, which may drift."""
        world, rng = self.world, self.rng
        new_A = self.session_U[user_A] != session_A
        self.session_U[user_A] = session_A
        self.seen_UT[user_A[new_A]] = 0.0
        self.aversion_UT[user_A[new_A]] = 0.0
        draw_A = rng.random(len(user_A))
        change_A = np.where(new_A, draw_A >= world.intent_kept, draw_A < world.intent_switch)
        change_A |= self.intent_U[user_A] < 0
        by_interest_A = _draw(self.people.interest_UT[user_A], rng)
        anything_A = rng.integers(len(TOPICS), size=len(user_A))
        fresh_A = np.where(rng.random(len(user_A)) < world.intent_from_interest, by_interest_A, anything_A)
        self.intent_U[user_A] = np.where(change_A, fresh_A, self.intent_U[user_A])

    def _choose(self, items: Items, user_A: Ints, time_A: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Items of the lists, and which places are filled: a topic may have nothing yet, and no item shows twice."""
        world, rng = self.world, self.rng
        shape = (len(user_A), world.list_size)
        by_AC = rng.random(shape)
        interest_AC = _draw(np.repeat(self.people.interest_UT[user_A], world.list_size, axis=0), rng).reshape(shape)
        topic_AC = np.where(
            by_AC < world.shown_by_intent,
            self.intent_U[user_A][:, None],
            np.where(
                by_AC < world.shown_by_intent + world.shown_by_interest,
                interest_AC,
                rng.integers(len(TOPICS), size=shape),
            ),
        )
        # Items are sorted by (topic, age): what topic t offers at a time is [first of t, first newer than the time).
        span = np.int64(1) << 45
        key_N = items.topic_N * span + (items.created_ms_N - world.start_ms + 400 * DAY_MS)
        now_AC = np.broadcast_to((time_A - world.start_ms + 400 * DAY_MS)[:, None], shape)
        first_AC = np.searchsorted(key_N, topic_AC * span)
        end_AC = np.searchsorted(key_N, topic_AC * span + now_AC)
        low_AC, high_AC = items.weight_up_to_N[first_AC], items.weight_up_to_N[end_AC]
        drawn_AC = low_AC + rng.random(shape) * (high_AC - low_AC)
        item_AC = np.searchsorted(items.weight_up_to_N, drawn_AC, side="right") - 1
        item_AC = item_AC.clip(first_AC, np.maximum(end_AC - 1, first_AC)).clip(0, len(items.id_N) - 1)
        twice_AC = (np.tril(item_AC[:, :, None] == item_AC[:, None, :], -1)).any(axis=2)
        return item_AC, (end_AC > first_AC) & ~twice_AC


def _tables(
    items: Items,
    people: _People,
    visits: _Visits,
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


def _draw(weights_AT: Floats, rng: np.random.Generator) -> Ints:
    """One topic a row, by its weights."""
    up_to_AT = np.cumsum(weights_AT, axis=1)
    drawn: Ints = (up_to_AT < rng.random((len(weights_AT), 1)) * up_to_AT[:, -1:]).sum(axis=1)
    return drawn.clip(0, weights_AT.shape[1] - 1)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))
