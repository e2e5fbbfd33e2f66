"""The people of the made-up world: when they come, what they want now, what they are shown and what they do.

Shapes: U users of a chunk, T topics, S styles, R requests of a chunk, A users that have an n-th request, C places of a
list.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import DAY_MS
from rayapp.sources.synthetic_world import ACTIONS, COUNTRIES, DEVICES, STYLES, TOPICS, Floats, Ints, Items, World


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


class SessionState:
    """What users want now, and what this session has done to it."""

    def __init__(self, world: World, people: People, rng: np.random.Generator) -> None:
        self.world, self.people, self.rng, self.fashion = world, people, rng, Fashion(world)
        self.intent_U = np.full(len(people), -1)
        self.session_U = np.full(len(people), -1)
        self.seen_UT = np.zeros((len(people), len(TOPICS)))
        self.aversion_UT = np.zeros((len(people), len(TOPICS)))

    def show(self, items: Items, visits: Visits, rows: Ints) -> dict[str, Any]:
        """One list for each of these requests, what it made its user do, and with which probabilities."""
        user_A, world, rng = visits.user_R[rows], self.world, self.rng
        day_A = self.fashion.day(visits.time_ms_R[rows])
        interest_AT = self.people.interest(user_A, day_A)
        self._want(user_A, visits.session_R[rows], interest_AT)
        intent_A = self.intent_U[user_A]
        companion_A = self.fashion.companion_DT[day_A, intent_A]
        item_AC, valid_AC = self._choose(items, intent_A, companion_A, interest_AT, visits.time_ms_R[rows])
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
        self, items: Items, intent_A: Ints, companion_A: Ints, interest_AT: Floats, time_A: Ints
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


def _draw(weights_AT: Floats, rng: np.random.Generator) -> Ints:
    """One topic a row, by its weights."""
    up_to_AT = np.cumsum(weights_AT, axis=1)
    drawn: Ints = (up_to_AT < rng.random((len(weights_AT), 1)) * up_to_AT[:, -1:]).sum(axis=1)
    return drawn.clip(0, weights_AT.shape[1] - 1)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))
