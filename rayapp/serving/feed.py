"""One feed, from the question to the answer: look up, fetch, rank, blend. It degrades rather than fails, and says so.

`Feed.recommend` is the request path. Knows neither Ray nor HTTP; its stages, clocks and models are given.

What goes wrong costs, in this order: no ranker in time, and the candidates' own order stands; no candidates, and the
popular items are ranked; no store, and the user is treated as new.

Shapes: C candidates, H heads, P items shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64
from rayapp.experiments.assignment import Assignment
from rayapp.features.seen import Seen
from rayapp.retrieval.candidates import AGAIN, SEEN_AGAIN, SHOWN_AGAIN, Candidates, Query
from rayapp.retrieval.sources import POPULAR, default_mix
from rayapp.serving.blend import Ranked, blend, in_order, shuffled
from rayapp.serving.candidate_stage import Described
from rayapp.serving.explaining import ExplainCall, Explanation
from rayapp.serving.live import Live
from rayapp.serving.paging import Page
from rayapp.serving.ranking import RankCall, Ranking
from rayapp.serving.request_run import Run
from rayapp.serving.stages import Stages
from rayapp.store import UserSequence

STORE_UNTIL: Final = 0.35
CANDIDATES_UNTIL: Final = 0.6
RANKER_UNTIL: Final = 0.95
ITEMS_UNTIL: Final = 0.98
"""Shares of a request's time at which the stages must have answered; the rest is for writing the answer."""
DIVERSITY: Final = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What a client wants."""

    request_id: str
    user_id: str
    at_ms: int
    page: Page
    num_results: int = 20
    num_candidates: int = 200
    surface: str | None = None
    context: dict[str, Any] = field(default_factory=dict)
    exclude: Sequence[str] = ()
    require: Mapping[str, frozenset[str]] = field(default_factory=dict)
    utilities: tuple[float, ...] | None = None
    deadline_ms: float = 2_000.0
    fields: Sequence[str] = ()
    """Of the items, to be answered along with them."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One item of an answer."""

    item_id: str
    place: int
    """Among the candidates."""
    score: float | None
    source: str
    propensity: float
    probability_H: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class Answer:
    """A feed and all that is known about how it came to be."""

    ask: Ask
    shown: list[Shown]
    user: UserSequence
    ranking: Ranking | None
    assignment: Assignment | None
    random_order: bool
    degraded: bool
    reason: str | None
    run: Run
    described: Sequence[Described]
    """Of each shown item the fields that were asked for; empty where none were, or they did not come."""

    @property
    def store_failed(self) -> bool:
        """Whether the user's sequence could not be read."""
        return any(reason.startswith("store_") for reason in self.run.reasons)

    @property
    def next_page_token(self) -> str | None:
        """None where this page was the last one."""
        if len(self.shown) < self.ask.num_results:
            return None
        return self.ask.page.next_token(self.ask.user_id, [item.item_id for item in self.shown])


@dataclass(frozen=True, slots=True)
class RankAnswer:
    """The caller's own items, ranked; `ranking` is None where nothing ranked them in time."""

    user: UserSequence
    ranking: Ranking | None
    run: Run
    described: Sequence[Described]
    """As in `Answer`, of the caller's items."""


@dataclass(frozen=True, slots=True)
class ExplainAnswer:
    """Why items stand where they do; `explanation` is None where nothing scored them in time."""

    user: UserSequence
    explanation: Explanation | None
    run: Run


class Arms(Protocol):
    """Who is in which arm of the running experiment."""

    def arm_of(self, user_id: str, now_ms: int) -> Assignment | None: ...


class Feed:
    """Answers for one domain, which the ingress keeps to what the root says."""

    def __init__(self, domain: Domain, stages: Stages, live: Live, arms: Arms, random_share: float = 0.0) -> None:
        """`random_share` of the answers are in random order, for evaluation without position or model bias."""
        self.domain, self.live = domain, live
        self._stages, self._arms, self._random_share = stages, arms, random_share

    async def recommend(self, ask: Ask) -> Answer:
        """The user's feed. Never raises for a failing stage."""
        run = Run(ask.deadline_ms / 1000)
        arm = self._arms.arm_of(ask.user_id, ask.at_ms)
        versions = self.live.versions_for(arm.alias if arm else None)
        lookup, rests = self._stages.sequences.lookup, self.domain.rest_ms > 0
        user = await run.stage(
            "store", STORE_UNTIL, lambda: lookup(ask.user_id, True) if rests else lookup(ask.user_id)
        )
        user = user or UserSequence.unknown()
        query = self._query(ask, arm)
        found = await run.with_model(
            "candidates", CANDIDATES_UNTIL, versions, lambda v: self._stages.candidates.fetch(v, user, query)
        )
        if found is None:
            found = self._popular(ask, user)
        call = RankCall(ask.user_id, user, ask.at_ms, found.item_hash_C, ask.context)
        ranking = None
        if found.item_ids:
            ranking = await run.with_model("ranker", RANKER_UNTIL, versions, lambda v: self._stages.rank(v, call))
        if ranking is not None and not ranking.statistics.fresh:
            run.reasons.append("statistics")
        random_order = hash64(f"order/{ask.request_id}") < self._random_share * 2**64
        chosen = self._choose(ask, arm, found, ranking, random_order)
        shown = [_shown(row, found, ranking) for row in chosen]
        described = await self._describe(run, versions, [item.item_id for item in shown], ask.fields)
        degraded = bool(run.reasons)
        if not found.item_ids:
            run.reasons.append("filtered_out")
        elif len(user.history) == 0:
            run.reasons.append("unknown_user")
        reason = run.reasons[0] if run.reasons else None
        return Answer(ask, shown, user, ranking, arm, random_order, degraded, reason, run, described)

    async def rank(
        self,
        user_id: str,
        item_ids: Sequence[str],
        context: dict[str, Any],
        at_ms: int,
        *,
        version: str | None,
        deadline_ms: float,
        fields: Sequence[str] = (),
    ) -> RankAnswer:
        """Ranks the caller's items with `version`, or with the champion."""
        run = Run(deadline_ms / 1000)
        user = await run.stage("store", STORE_UNTIL, lambda: self._stages.sequences.lookup(user_id))
        user = user or UserSequence.unknown()
        call = RankCall.of(user_id, user, at_ms, item_ids, context)
        versions = [version] if version else self.live.versions_for(None)
        ranking = await run.with_model("ranker", RANKER_UNTIL, versions, lambda v: self._stages.rank(v, call))
        described = await self._describe(run, self.live.versions_for(None), item_ids, fields)
        return RankAnswer(user, ranking, run, described)

    async def explain(self, ask: Ask, item_ids: Sequence[str], version: str | None) -> ExplainAnswer:
        """Why the items stand where they do in the feed that `ask` would get: scored by `version`, or by the model that
        the user's feeds have. Without candidates in time they have their ranks among themselves.

        Raises:
            ExplainsFull: too many wait for theirs.
        """
        with self._stages.explains:
            run = Run(ask.deadline_ms / 1000)
            arm = self._arms.arm_of(ask.user_id, ask.at_ms)
            versions = [version] if version else self.live.versions_for(arm.alias if arm else None)
            user = await run.stage("store", STORE_UNTIL, lambda: self._stages.sequences.lookup(ask.user_id))
            user = user or UserSequence.unknown()
            query = self._query(ask, arm)
            found = await run.with_model(
                "candidates", CANDIDATES_UNTIL, versions, lambda v: self._stages.candidates.fetch(v, user, query)
            )
            others = np.zeros(0, np.uint64) if found is None else found.item_hash_C
            call = RankCall.of(ask.user_id, user, ask.at_ms, item_ids, ask.context)
            asked = ExplainCall(call, others, (arm.utilities if arm else None) or self.domain.utilities)
            explanation = await run.with_model(
                "ranker", RANKER_UNTIL, versions, lambda v: self._stages.explain(v, asked)
            )
            if explanation is not None and not explanation.ranking.statistics.fresh:
                run.reasons.append("statistics")
            return ExplainAnswer(user, explanation, run)

    async def _describe(
        self, run: Run, versions: Sequence[str], item_ids: Sequence[str], fields: Sequence[str]
    ) -> list[Described]:
        """What the candidates stage knows of the items; nothing where it does not answer in time."""
        if not fields or not item_ids:
            return []
        described = await run.with_model(
            "items", ITEMS_UNTIL, versions, lambda v: self._stages.candidates.describe(v, item_ids, fields)
        )
        return described or []

    def _query(self, ask: Ask, arm: Assignment | None) -> Query:
        exclude = np.array([hash64(item_id) for item_id in ask.exclude], np.uint64)
        return Query(
            num_candidates=max(ask.num_candidates, ask.num_results),
            mix=(arm.mix if arm else None) or self.domain.mix or default_mix(),
            exclude_hash=np.concatenate([exclude, ask.page.shown_hash_S]),
            require=ask.require,
            seed=hash64(ask.request_id),
            now_ms=ask.at_ms,
            fewest=ask.num_results,
            judged_by=self.domain.calibration.attribute if self.domain.calibration else None,
        )

    def _popular(self, ask: Ask, user: UserSequence) -> Candidates:
        """Popular items without the excluded ones, and without the seen ones while there are enough others; a filter by
        attributes can't be kept here."""
        last_seen = {item_id: -n for n, item_id in reversed(list(enumerate(user.item_ids)))}
        rule = Seen.of(self.domain)
        seen = self._items_of(user, rule.counts(user.history, ask.at_ms))
        lately = self._items_of(user, rule.too_lately(user.history, ask.at_ms))
        hidden = {hash64(item_id) for item_id in ask.exclude} | set(ask.page.shown_hash_S.tolist())
        hashes = {} if ask.require else {item_id: hash64(item_id) for item_id in self.live.popular}
        allowed = [item_id for item_id, item_hash in hashes.items() if item_hash not in hidden]
        rests = {item_hash: -n for n, item_hash in enumerate(rule.resting(user.shown, ask.at_ms).tolist())}
        fresh = [i for i in allowed if i not in seen and hashes[i] not in rests][: ask.num_candidates]
        rested = sorted((i for i in allowed if i not in seen and hashes[i] in rests), key=lambda i: rests[hashes[i]])
        rested = rested[: max(ask.num_results - len(fresh), 0)]
        again = sorted((i for i in allowed if i in seen and i not in lately), key=lambda i: last_seen[i])
        again = again[: max(ask.num_results - len(fresh) - len(rested), 0)]
        sources = [POPULAR] * len(fresh) + [SHOWN_AGAIN] * len(rested) + [SEEN_AGAIN] * len(again)
        chosen = [*fresh, *rested, *again]
        score_C = np.linspace(1.0, 0.0, len(sources), endpoint=False, dtype=np.float32)
        item_hash_C = np.array([hashes[item_id] for item_id in chosen], np.uint64)
        return Candidates(chosen, item_hash_C, sources, score_C, np.ones(len(sources), np.float32))

    @staticmethod
    def _items_of(user: UserSequence, chosen_E: NDArray[np.bool_]) -> set[str]:
        return {user.item_ids[n] for n in np.flatnonzero(chosen_E).tolist()}

    def _choose(
        self, ask: Ask, arm: Assignment | None, found: Candidates, ranking: Ranking | None, random_order: bool
    ) -> list[Ranked]:
        if random_order:
            order = shuffled(len(found.item_ids), hash64(ask.request_id))[0][: ask.num_results]
            return [Ranked(int(c), 0.0) for c in order]
        again_C = np.array([source in AGAIN for source in found.sources], bool)  # new items first
        caps = self.domain.caps
        if ranking is None:
            return in_order(found.score_C, ask.num_results, again_C=again_C, caps=caps, values=found.values)
        return blend(
            ranking.probability_CH,
            ask.utilities or (arm.utilities if arm else None) or self.domain.utilities,
            ask.num_results,
            vectors_CE=ranking.vector_CE.astype(np.float32),
            diversity=DIVERSITY,
            known_C=ranking.known_C,
            again_C=again_C,
            caps=caps,
            values=found.values,
            calibration=self.domain.calibration,
            judged=found.judged,
        )


def _shown(row: Ranked, found: Candidates, ranking: Ranking | None) -> Shown:
    return Shown(
        found.item_ids[row.index],
        row.index,
        row.score if ranking is not None else None,
        found.sources[row.index],
        float(found.propensity_C[row.index]),
        ranking.probability_CH[row.index] if ranking is not None else None,
    )
