"""The made-up world's size, its people's ways and its catalogue; `synthetic_people` lives in it, `synthetic` writes it.

Shapes: N items.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import DAY_MS, HOUR_MS

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

    # What changes from day to day; all 0 is a world that stays as it is.
    likes_companion: float = 0.0
    """Each topic has a companion of the day, the same for everyone: what goes with it now. It appeals this much to who
    wants the topic."""
    shown_companion: float = 0.0
    """Share of the intent's places that the logging feed gives to its companion."""
    companion_changes_per_day: float = 0.0
    """A topic's companion is another one on the next day this often: trends that come and go."""
    topic_drift_per_day: float = 0.0
    """Deviation of the daily step of each topic's appeal to everyone: seasons."""
    interest_drift_per_day: float = 0.0
    """Share of a user's long-term mixture that a day replaces by one of the user's later self."""

    # What news has; all 0 is a world whose items stay and appeal alike at every age.
    item_life_hours: float = 0.0
    """An item is shown for so long after it appeared; 0 is for ever."""
    staleness: float = 0.0
    """What each doubling of an item's age, from an hour on, takes from its appeal."""
    burst_share: float = 0.0
    """Share of items that everyone wants at once, from a moment in the first half of their life on."""
    burst_appeal: float = 0.0
    burst_hours: float = 3.0
    """Half-life of a burst, and of a trend."""
    trends_per_day: float = 0.0
    """How often a day a topic begins to trend for everyone."""
    trend_appeal: float = 0.0

    # What a shop has; 0 is a world where what was saved once is like any other item.
    likes_again: float = 0.0
    """A saved (bought) item appeals this much less right after, as usual after `again_days`, and up to this much more
    later, when it is one that is used up; any other stays this much less appealing."""
    again_days: float = 14.0
    used_up: float = 0.0
    """Share of items that are used up and bought again."""
    shown_again: float = 0.0
    """Share of places that the logging feed fills with what the user bought before."""

    @property
    def num_chunks(self) -> int:
        return -(-self.num_users // USERS_PER_CHUNK)


def drifting(world: World) -> World:
    """With trends, seasons and people that change. A trend lives two weeks on average, a topic's appeal moves by 0.3
    (in log-odds) within two weeks, people by a quarter. Set on 2026-11-25, before any model saw such a world."""
    return replace(
        world,
        likes_companion=2.2,
        shown_companion=0.5,
        companion_changes_per_day=0.07,
        topic_drift_per_day=0.08,
        interest_drift_per_day=0.02,
    )


NEWS: Final = World(
    num_items=4_000,
    num_days=10,
    sessions_per_day=1.0,
    requests_per_session=3.0,
    cold_users=0.3,
    new_items=1.0,
    interest_concentration=0.4,
    likes_intent=1.4,
    likes_interest=0.8,
    quality_spread=0.8,
    item_life_hours=30.0,
    staleness=0.35,
    burst_share=0.15,
    burst_appeal=2.0,
    trends_per_day=0.4,
    trend_appeal=1.2,
    save_bias=-2.0,
    hide_bias=-4.4,
    click_bias=-0.4,
)
"""News: an item lives for about a day and fades within it; some burst, topics trend for hours, many readers are new.
Set on 2026-11-30, before any model saw such a world."""

SHOP: Final = World(
    num_users=2_000,
    num_days=90,
    sessions_per_day=0.06,
    requests_per_session=1.5,
    new_items=0.15,
    intent_kept=0.2,
    likes_again=2.0,
    used_up=0.4,
    shown_again=0.2,
)
"""A shop: two weeks between visits, few lists, and what is used up is bought again. Set on 2026-11-30, before any model
saw such a world."""

WORLDS: Final = {"feed": World(), "drifting": drifting(World()), "news": NEWS, "shop": SHOP}


@dataclass(frozen=True, slots=True)
class Items:
    """All items, by topic and then by age, so that what a topic offers at a time is a range."""

    id_N: NDArray[np.str_]
    topic_N: Ints
    second_N: Ints
    style_N: Ints
    quality_N: Floats
    created_ms_N: Ints
    burst_ms_N: Ints
    """When everyone begins to want the item; later than the world where that never happens."""
    used_up_N: NDArray[np.bool_]
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
    more = np.random.default_rng([world.seed, 5])  # what came later draws apart, so that older worlds stay as they are
    bursts_N = more.random(n) < world.burst_share
    delay_ms_N = (more.random(n) * world.item_life_hours * HOUR_MS / 2).astype(np.int64)
    burst_ms_N = np.where(bursts_N, created_ms_N + delay_ms_N, world.start_ms + 2 * world.num_days * DAY_MS)
    used_up_N = more.random(n) < world.used_up
    order = np.lexsort((created_ms_N, topic_N))
    return Items(
        np.array([f"i{i}" for i in range(n)])[order],
        topic_N[order],
        second_N[order],
        style_N[order],
        quality_N[order],
        created_ms_N[order],
        burst_ms_N[order],
        used_up_N[order],
        np.r_[0.0, np.cumsum(weight_N[order])],
    )
