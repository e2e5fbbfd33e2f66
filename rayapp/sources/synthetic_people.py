"""The people of the made-up world: when they come, what they want now, what they are shown and what they do.

Shapes: U users of a chunk, T topics, S styles, R requests of a chunk, A users that have an n-th request, C places of a
list, K purchases that are remembered, H hours.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import DAY_MS, HOUR_MS
from rayapp.sources.synthetic_world import (
    ACTIONS,
    COUNTRIES,
    DEVICES,
    STYLES,
    TOPICS,
    Floats,
    Ints,
    Items,
    World,
)

REMEMBERED = 30
"""Purchases of a user that count for what is bought again."""


class Fashion:
    """What changes for everyone, by day, from the seed alone."""

    def __init__(self, world: World) -> None:
        rng, topics = np.random.default_rng([world.seed, 3]), len(TOPICS)
        self._start_ms, self._last = world.start_ms, world.num_days - 1
        step_DT = rng.normal(0.0, world.topic_drift_per_day, (world.num_days, topics))
        self.appeal_DT = np.cumsum(step_DT, axis=0) - step_DT[0]
        companion_T, companion_DT = np.zeros(topics, np.int64), []
        for day in range(world.num_days):
            another_T = (np.arange(topics) + rng.integers(1, topics, topics)) % topics
            changes_T = (rng.random(topics) < world.companion_changes_per_day) | (day == 0)
            companion_T = np.where(changes_T, another_T, companion_T)
            companion_DT.append(companion_T)
        self.companion_DT = np.stack(companion_DT)
        hours = 24 * world.num_days + 1
        begins_HT = np.random.default_rng([world.seed, 6]).random((hours, topics)) < world.trends_per_day / 24
        self._trend_HT, fades = np.zeros((hours, topics)), 0.5 ** (1 / world.burst_hours)
        for hour in range(hours):
            self._trend_HT[hour] = np.maximum(begins_HT[hour], fades * self._trend_HT[hour - 1])

    def trend(self, time_ms_A: Ints, topic_AC: Ints) -> Floats:
        """How much each topic trends in that hour, in [0, 1]."""
        hour_A = ((time_ms_A - self._start_ms) // HOUR_MS).clip(0, len(self._trend_HT) - 1)
        return np.asarray(self._trend_HT[hour_A[:, None], topic_AC])

    def day(self, time_ms_A: Ints) -> Ints:
        return np.asarray(((time_ms_A - self._start_ms) // DAY_MS).clip(0, self._last))


class People:
    def __init__(self, world: World, size: int, chunk: int, rng: np.random.Generator) -> None:
        topics = len(TOPICS)
        self.country_U = rng.integers(len(COUNTRIES), size=size)
        local_KT = np.random.default_rng([world.seed, 2]).dirichlet(np.full(topics, 2.0), len(COUNTRIES)) * topics
        # Gamma draws, normalised, are a Dirichlet with a parameter of its own for each user.
        raw_UT = rng.gamma(world.interest_concentration * local_KT[self.country_U]) + 1e-9
        self._interest_UT = raw_UT / raw_UT.sum(axis=1, keepdims=True)
        later = np.random.default_rng([world.seed, 4, chunk])
        raw_UT = later.gamma(world.interest_concentration * local_KT[self.country_U]) + 1e-9
        self._later_UT = raw_UT / raw_UT.sum(axis=1, keepdims=True)
        self._drift_per_day = world.interest_drift_per_day
        self.style_US = rng.normal(0.0, world.likes_style, (size, len(STYLES)))
        span_ms = world.num_days * DAY_MS
        late_U = rng.random(size) < world.cold_users
        self.first_ms_U = world.start_ms + np.where(late_U, rng.integers(span_ms // 2, span_ms, size), 0)

    def __len__(self) -> int:
        return len(self.country_U)

    def interest(self, user_A: Ints, day_A: Ints) -> Floats:
        """Long-term mixtures `[A, T]` of these users on these days."""
        moved_A1 = np.minimum(self._drift_per_day * day_A, 1.0)[:, None]
        return np.asarray((1 - moved_A1) * self._interest_UT[user_A] + moved_A1 * self._later_UT[user_A])


@dataclass(frozen=True, slots=True)
class Visits:
    """Requests of a chunk, by user and time."""

    user_R: Ints
    number_R: Ints
    """How many requests this user made before."""
    session_R: Ints
    time_ms_R: Ints
    device_R: Ints


def make_visits(world: World, people: People, rng: np.random.Generator) -> Visits:
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
    return Visits(user_R, number_R, session_R, time_R, device_V[session_R])


class Purchases:
    """What each user bought last, newest first, and when."""

    def __init__(self, world: World, size: int) -> None:
        self._world = world
        self._item_UK = np.full((size, REMEMBERED), -1)
        self._ms_UK = np.zeros((size, REMEMBERED), np.int64)

    def record(self, user_B: Ints, item_B: Ints, time_ms_B: Ints) -> None:
        """Purchases of users, each user's in any order."""
        for user, item, time_ms in zip(user_B.tolist(), item_B.tolist(), time_ms_B.tolist(), strict=True):
            for row, value in ((self._item_UK[user], item), (self._ms_UK[user], time_ms)):
                row[1:] = row[:-1].copy()
                row[0] = value

    def one_of(self, user_A: Ints, draw_AC: Floats) -> Ints:
        """One purchase of the user for each draw from [0, 1); -1 where there is none."""
        num_A = (self._item_UK[user_A] >= 0).sum(axis=1)
        place_AC = (draw_AC * num_A[:, None]).astype(np.int64)
        return np.asarray(np.take_along_axis(self._item_UK[user_A], place_AC, axis=1))

    def appeal(self, items: Items, user_A: Ints, item_AC: Ints, time_ms_A: Ints) -> Floats:
        """What having bought an item before does to its appeal."""
        same_ACK = item_AC[:, :, None] == self._item_UK[user_A][:, None, :]
        bought_AC, last_AC = same_ACK.any(axis=2), same_ACK.argmax(axis=2)  # the newest stands first
        since_AC = time_ms_A[:, None] - np.take_along_axis(self._ms_UK[user_A], last_AC, axis=1)
        wanted_AC = 1 - 2 * 0.5 ** (since_AC / DAY_MS / self._world.again_days)
        change_AC = self._world.likes_again * bought_AC * np.where(items.used_up_N[item_AC], wanted_AC, -1.0)
        return np.asarray(change_AC)


class SessionState:
    """What users want now, and what this session has done to it."""

    def __init__(self, world: World, people: People, rng: np.random.Generator) -> None:
        self.world, self.people, self.rng, self.fashion = world, people, rng, Fashion(world)
        self.intent_U = np.full(len(people), -1)
        self.session_U = np.full(len(people), -1)
        self.seen_UT = np.zeros((len(people), len(TOPICS)))
        self.aversion_UT = np.zeros((len(people), len(TOPICS)))
        self.purchases = Purchases(world, len(people))

    def show(self, items: Items, visits: Visits, rows: Ints) -> dict[str, Any]:
        """One list for each of these requests, what it made its user do, and with which probabilities."""
        user_A, world, rng = visits.user_R[rows], self.world, self.rng
        time_ms_A = visits.time_ms_R[rows]
        day_A = self.fashion.day(time_ms_A)
        interest_AT = self.people.interest(user_A, day_A)
        self._want(user_A, visits.session_R[rows], interest_AT)
        intent_A = self.intent_U[user_A]
        companion_A = self.fashion.companion_DT[day_A, intent_A]
        item_AC, valid_AC = self._choose(items, user_A, intent_A, companion_A, interest_AT, time_ms_A)
        topic_AC, second_AC = items.topic_N[item_AC], items.second_N[item_AC]
        at_AC = user_A[:, None]
        wanted_AC = (topic_AC == intent_A[:, None]) | (second_AC == intent_A[:, None])
        goes_AC = ((topic_AC == companion_A[:, None]) | (second_AC == companion_A[:, None])) & ~wanted_AC
        interest_AC = np.take_along_axis(interest_AT, topic_AC, axis=1)
        interest_AC = np.log(interest_AC * len(TOPICS) + 0.05).clip(-2, 2) / 2
        appeal_AC = (
            world.likes_intent * wanted_AC
            + world.likes_interest * interest_AC
            + self.people.style_US[at_AC, items.style_N[item_AC]]
            + items.quality_N[item_AC]
            - world.satiation * self.seen_UT[at_AC, topic_AC]
            - world.aversion * self.aversion_UT[at_AC, topic_AC]
            + world.desktop_appeal * (visits.device_R[rows] == DEVICES.index("desktop"))[:, None]
            + world.likes_companion * goes_AC
            + self.fashion.appeal_DT[day_A[:, None], topic_AC]
            + world.trend_appeal * self.fashion.trend(time_ms_A, topic_AC)
            + self._of_the_moment(items, item_AC, time_ms_A)
            + self.purchases.appeal(items, user_A, item_AC, time_ms_A)
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
        if world.likes_again:
            a, c = np.nonzero(did_AC == ACTIONS.index("save"))
            self.purchases.record(user_A[a], item_AC[a, c], time_ms_A[a])
        return {
            "item": item_AC,
            "valid": valid_AC,
            "did": did_AC,
            "probability": np.stack([save_AC, hide_AC, click_AC], axis=2),
        }

    def _of_the_moment(self, items: Items, item_AC: Ints, time_ms_A: Ints) -> Floats:
        """What an item's age and its burst do to its appeal."""
        age_h_AC = ((time_ms_A[:, None] - items.created_ms_N[item_AC]) / HOUR_MS).clip(0)
        burst_h_AC = (time_ms_A[:, None] - items.burst_ms_N[item_AC]) / HOUR_MS
        burst_AC = (burst_h_AC >= 0) * 0.5 ** (burst_h_AC.clip(0) / self.world.burst_hours)
        return np.asarray(self.world.burst_appeal * burst_AC - self.world.staleness * np.log2(1 + age_h_AC))

    def _want(self, user_A: Ints, session_A: Ints, interest_AT: Floats) -> None:
        """The intent of this request: a new session's, or the last one's, which may drift."""
        world, rng = self.world, self.rng
        new_A = self.session_U[user_A] != session_A
        self.session_U[user_A] = session_A
        self.seen_UT[user_A[new_A]] = 0.0
        self.aversion_UT[user_A[new_A]] = 0.0
        draw_A = rng.random(len(user_A))
        change_A = np.where(new_A, draw_A >= world.intent_kept, draw_A < world.intent_switch)
        change_A |= self.intent_U[user_A] < 0
        by_interest_A = _draw(interest_AT, rng)
        anything_A = rng.integers(len(TOPICS), size=len(user_A))
        fresh_A = np.where(rng.random(len(user_A)) < world.intent_from_interest, by_interest_A, anything_A)
        self.intent_U[user_A] = np.where(change_A, fresh_A, self.intent_U[user_A])

    def _choose(
        self, items: Items, user_A: Ints, intent_A: Ints, companion_A: Ints, interest_AT: Floats, time_A: Ints
    ) -> tuple[Ints, NDArray[np.bool_]]:
        """Items of the lists, and which places are filled: a topic may have nothing yet, and no item shows twice."""
        world, rng = self.world, self.rng
        shape = (len(intent_A), world.list_size)
        by_AC = rng.random(shape)
        interest_AC = _draw(np.repeat(interest_AT, world.list_size, axis=0), rng).reshape(shape)
        topic_AC = np.where(
            by_AC < world.shown_by_intent,
            np.where(by_AC < world.shown_by_intent * world.shown_companion, companion_A[:, None], intent_A[:, None]),
            np.where(
                by_AC < world.shown_by_intent + world.shown_by_interest,
                interest_AC,
                rng.integers(len(TOPICS), size=shape),
            ),
        )
        # Items are sorted by (topic, age): what topic t offers at a time is [first of t that lives, first newer).
        span = np.int64(1) << 45
        key_N = items.topic_N * span + (items.created_ms_N - world.start_ms + 400 * DAY_MS)
        now_AC = np.broadcast_to((time_A - world.start_ms + 400 * DAY_MS)[:, None], shape)
        life_ms = int(world.item_life_hours * HOUR_MS) or span
        first_AC = np.searchsorted(key_N, topic_AC * span + np.maximum(now_AC - life_ms, 0))
        end_AC = np.searchsorted(key_N, topic_AC * span + now_AC)
        low_AC, high_AC = items.weight_up_to_N[first_AC], items.weight_up_to_N[end_AC]
        drawn_AC = low_AC + rng.random(shape) * (high_AC - low_AC)
        item_AC = np.searchsorted(items.weight_up_to_N, drawn_AC, side="right") - 1
        item_AC = item_AC.clip(first_AC, np.maximum(end_AC - 1, first_AC)).clip(0, len(items.id_N) - 1)
        exists_AC = end_AC > first_AC
        if world.shown_again:
            again_AC = self.purchases.one_of(user_A, rng.random(shape))
            again_AC = np.where(rng.random(shape) < world.shown_again, again_AC, -1)
            item_AC, exists_AC = np.where(again_AC >= 0, again_AC, item_AC), exists_AC | (again_AC >= 0)
        twice_AC = (np.tril(item_AC[:, :, None] == item_AC[:, None, :], -1)).any(axis=2)
        return item_AC, exists_AC & ~twice_AC


def _draw(weights_AT: Floats, rng: np.random.Generator) -> Ints:
    """One topic a row, by its weights."""
    up_to_AT = np.cumsum(weights_AT, axis=1)
    drawn: Ints = (up_to_AT < rng.random((len(weights_AT), 1)) * up_to_AT[:, -1:]).sum(axis=1)
    return drawn.clip(0, weights_AT.shape[1] - 1)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))
