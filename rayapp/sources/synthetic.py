"""A small made-up world for running offline: topics, users whose session intent drifts, lists of five.

The same seed gives the same rows. What makes it worth a sequence model: within a session a user wants one topic,
the next session may want another, and only the last actions tell which.
"""

from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayapp.config import DAY_MS, Domain, Head
from rayapp.schema import (
    EVENT_SCHEMA,
    REQUEST_SCHEMA,
    Action,
    ActionKind,
    Attribute,
    AttributeKind,
    Vocabulary,
    hash64_column,
    item_schema,
)
from rayapp.sources import Source

TOPICS: Final = (
    "Cooking",
    "Travel",
    "Gardening",
    "Fashion",
    "Running",
    "Woodwork",
    "Photography",
    "Camping",
    "Knitting",
    "Astronomy",
    "Cycling",
    "Painting",
)
WORDS: Final = ("Quiet", "Bright", "Simple", "Hidden", "Winter", "Golden", "Small", "Wild", "Modern", "Old")
START_MS: Final = 1_767_225_600_000  # 2026-01-01
NUM_DAYS: Final = 20
LIST_SIZE: Final = 5
MINUTE_MS: Final = 60_000

DOMAIN: Final = Domain(
    name="synthetic",
    vocabulary=Vocabulary(
        (
            Action(name="click", kind=ActionKind.NEUTRAL, priority=0),
            Action(name="save", kind=ActionKind.POSITIVE, priority=2),
            Action(name="hide", kind=ActionKind.NEGATIVE, priority=3),
            Action(name="impression", kind=ActionKind.NEUTRAL, in_sequence=False),
        )
    ),
    heads=(
        Head(name="save", actions=("save",), utility=1.0),
        Head(name="click", actions=("click",), utility=0.2),
        Head(name="hide", actions=("hide",), utility=-1.0),
    ),
    positive_head="save",
    attributes=(Attribute("title", AttributeKind.TEXT), Attribute("genres", AttributeKind.CATEGORIES)),
    title="title",
)


def load(seed: int = 0, num_users: int = 600, num_items: int = 1_200, sessions_per_user: int = 8) -> Source:
    """The world; requests of the last fifth of its days are the test set."""
    rng = np.random.default_rng(seed)
    topic_N2 = np.stack([rng.integers(len(TOPICS), size=num_items), rng.integers(len(TOPICS), size=num_items)], axis=1)
    appeal_N = rng.normal(0.0, 0.6, num_items)
    popularity_N = rng.pareto(1.5, num_items) + 0.2
    items = _items(topic_N2, rng)
    events: list[dict[str, Any]] = []
    requests: list[dict[str, Any]] = []
    for user in range(num_users):
        interest_T = rng.dirichlet(np.full(len(TOPICS), 0.25))
        for start_ms in np.sort(START_MS + rng.integers(NUM_DAYS * DAY_MS, size=rng.poisson(sessions_per_user) + 1)):
            intent = rng.choice(len(TOPICS), p=0.7 * interest_T + 0.3 / len(TOPICS))
            _session(user, int(start_ms), intent, topic_N2, appeal_N, popularity_N, events, requests, rng)
    event_table = pa.Table.from_pylist([{**e, "event_hash": 0} for e in events], schema=EVENT_SCHEMA)
    event_table = event_table.set_column(
        1, EVENT_SCHEMA.field("event_hash"), pa.array(hash64_column(event_table["event_id"]))
    )
    return Source(
        domain=DOMAIN,
        events=event_table,
        requests=pa.Table.from_pylist(requests, schema=REQUEST_SCHEMA),
        items=items,
        split_ms=START_MS + NUM_DAYS * 4 // 5 * DAY_MS,
    )


def _session(
    user: int,
    start_ms: int,
    intent: int,
    topic_N2: NDArray[np.int64],
    appeal_N: NDArray[np.float64],
    popularity_N: NDArray[np.float64],
    events: list[dict[str, Any]],
    requests: list[dict[str, Any]],
    rng: np.random.Generator,
) -> None:
    """Lists shown one after another while one intent lasts; at most one action an item."""
    on_intent_N = (topic_N2 == intent).any(axis=1)
    weight_N = popularity_N * np.where(on_intent_N, 3.0, 1.0)
    weight_N /= weight_N.sum()
    at_ms = start_ms
    for n in range(rng.integers(3, 12)):
        shown = rng.choice(len(weight_N), size=LIST_SIZE, replace=False, p=weight_N)
        request_id = f"r-{user}-{start_ms}-{n}"
        requests.append(
            {
                "request_id": request_id,
                "user_id": f"u{user}",
                "timestamp_ms": at_ms,
                "item_ids": [f"i{i}" for i in shown],
            }
        )
        for position, item in enumerate(shown):
            taste = np.where(on_intent_N[item], 1.2, -1.6) + appeal_N[item] - 0.15 * position
            save, hide, click = 1 / (1 + np.exp(-np.array([taste - 0.8, -taste - 2.2, taste])))
            draw = rng.random(3)
            action = "save" if draw[0] < save else "hide" if draw[1] < hide else "click" if draw[2] < click else None
            if action is not None:
                happened_ms = at_ms + 2_000 + 3_000 * position
                lag_ms = int(rng.choice([50, 400, 30_000], p=[0.8, 0.18, 0.02]))
                events.append(
                    {
                        "event_id": f"{request_id}-{position}",
                        "user_id": f"u{user}",
                        "item_id": f"i{item}",
                        "action": action,
                        "timestamp_ms": happened_ms,
                        "received_at_ms": happened_ms + lag_ms,
                        "commit_seq": 0,
                        "request_id": request_id,
                        "position": position,
                    }
                )
        at_ms += int(rng.integers(MINUTE_MS // 2, 3 * MINUTE_MS))


def _items(topic_N2: NDArray[np.int64], rng: np.random.Generator) -> pa.Table:
    rows = []
    for n, pair in enumerate(topic_N2):
        topics = list(dict.fromkeys(TOPICS[t] for t in pair))
        rows.append(
            {
                "item_id": f"i{n}",
                "created_at_ms": START_MS - int(rng.integers(365)) * DAY_MS,
                "title": f"{rng.choice(WORDS)} {' and '.join(topics)} {n}",
                "genres": topics,
            }
        )
    return pa.Table.from_pylist(rows, schema=item_schema(DOMAIN.attributes))
