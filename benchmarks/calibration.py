"""What calibrated re-ranking costs and brings, through the served path: the next item that people engaged with.

Each question is a feed as a person would have got it just before a positive action of theirs: the very stages and the
very feed, with what the store then held. The item of that action is the answer that a feed should have had.
"""

import asyncio
import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayapp.contracts.config import CalibratedRanking, Domain
from rayapp.contracts.schema import ActionKind, AttributeKind
from rayapp.experiments.assignment import ExperimentBook
from rayapp.record import Bars, say, tell
from rayapp.registry.aliases import read_aliases
from rayapp.root.facts import read_root
from rayapp.root.logs import read_log
from rayapp.root.places import EVENTS
from rayapp.root.publish import PublishError
from rayapp.serving.candidate_stage import CandidateStage
from rayapp.serving.feed import Ask, Feed
from rayapp.serving.live import Live
from rayapp.serving.paging import Page
from rayapp.serving.ranking_stage import RankingStage
from rayapp.serving.stages import Stages
from rayapp.store import Store, UserSequence
from rayapp.store.opening import open_store

TOP = 10
ACTIONS_A_PERSON = 3
"""Newest positive actions of each person that are asked about."""
FEWEST_BEFORE = 5
"""Actions before one that is asked about."""
PATIENCE_MS = 60_000.0


@dataclass(frozen=True, slots=True)
class Question:
    """A person just before a positive action on an item that was new to them."""

    user_id: str
    before: UserSequence
    at_ms: int
    item_id: str


@dataclass(frozen=True, slots=True)
class Row:
    """One weight; 0 is the feed without re-ranking."""

    weight: float
    recall: float
    kept_categories: float
    """Share of the TOP that has a category of one of the five newest likes."""
    categories: float
    """Different categories in the TOP."""
    difference: float = 0.0
    """Of the recall from that without re-ranking."""
    half_width: float = 0.0
    """Of the difference's 95 % interval, over pairs of feeds."""


class Past:
    """The sequences stage, as of each question."""

    def __init__(self) -> None:
        self.user = UserSequence.unknown()

    async def lookup(self, _user_id: str) -> UserSequence:
        """The person who is asked about."""
        return self.user


def run_calibration(root: Path, people: int, weights: Sequence[float], as_json: bool, write: Path | None) -> None:
    domain, _ = read_root(root)
    attribute = next((a.name for a in domain.attributes if a.kind is AttributeKind.CATEGORIES), None)
    if attribute is None:
        raise PublishError(f"the items of {root} have no categorical attribute to calibrate by")
    if domain.calibration is not None:
        attribute = domain.calibration.attribute
    rows, count, version = asyncio.run(_measure(root, domain, attribute, people, weights))
    result: dict[str, Any] = {
        "bench": "calibration",
        "model": version,
        "attribute": attribute,
        "questions": count,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    title = "What calibrated re-ranking costs and brings"
    names = ["none" if row.weight == 0 else f"{row.weight:g}" for row in rows]
    bars = Bars(f"of the top {TOP}", names, {f"recall@{TOP}": [row.recall for row in rows]})
    tell(result, _table(rows, attribute, count, version), title, bars, as_json=as_json, write=write)


async def _measure(
    root: Path, domain: Domain, attribute: str, people: int, weights: Sequence[float]
) -> tuple[list[Row], int, str]:
    stores = [open_store(root) for _ in range(3)]
    past, live = Past(), Live.of(read_aliases(root))
    candidates, ranker = CandidateStage(root, stores[0]), RankingStage(root, stores[1])
    stages = Stages(past, candidates, ranker, asyncio.Semaphore(1))  # type: ignore[arg-type]
    try:
        await asyncio.to_thread(candidates.order)
        questions = list(_questions(root, domain, stores[2], people))
        if not questions:
            raise PublishError(f"nobody in {root} has {FEWEST_BEFORE} stored actions before a positive one")
        rows: list[Row] = []
        first: list[bool] = []
        for weight in (0.0, *weights):
            said = CalibratedRanking(attribute=attribute, weight=weight) if weight else None
            own = dataclasses.replace(domain, calibration=said)
            feed = Feed(own, stages, live, ExperimentBook(root, own))
            row, hits = await _row(feed, stages, past, questions, weight, attribute)
            first = first or hits
            rows.append(_compared(row, hits, first))
            say(f"weight {weight:g}: recall@{TOP} {rows[-1].recall:.2%}, own categories {rows[-1].kept_categories:.0%}")
        return rows, len(questions), live.version
    finally:
        candidates.close()
        ranker.close()
        stores[2].close()


def _questions(root: Path, domain: Domain, store: Store, people: int) -> Iterator[Question]:
    users = sorted(read_log(root, EVENTS, ["user_id"]).column("user_id").unique().to_pylist())
    is_positive = domain.vocabulary.flags(kind=ActionKind.POSITIVE)
    for n in np.random.default_rng(0).permutation(len(users))[:people].tolist():
        user = store.lookup(users[n])
        times_E = user.history.timestamp_ms_E
        asked = 0
        for e in np.flatnonzero(is_positive[user.history.action_E]).tolist():
            before = np.flatnonzero(times_E < times_E[e])
            item_ids = tuple(user.item_ids[b] for b in before.tolist())
            if len(before) >= FEWEST_BEFORE and user.item_ids[e] not in item_ids and asked < ACTIONS_A_PERSON:
                asked += 1
                known = UserSequence(user.history.take(before), item_ids, user.watermark)
                yield Question(users[n], known, int(times_E[e]), user.item_ids[e])


async def _row(
    feed: Feed, stages: Stages, past: Past, questions: Sequence[Question], weight: float, attribute: str
) -> tuple[Row, list[bool]]:
    """And for each question whether its item was there."""
    is_positive = feed.domain.vocabulary.flags(kind=ActionKind.POSITIVE)
    hits, kept, different = [], [], []
    for number, question in enumerate(questions):
        past.user = question.before
        liked = [question.before.item_ids[e] for e in np.flatnonzero(is_positive[question.before.history.action_E])[:5]]
        page = Page.first(question.at_ms)
        ask = Ask(
            request_id=f"calibration-{number}",  # the same draws for each weight
            user_id=question.user_id,
            at_ms=question.at_ms,
            page=page,
            num_results=TOP,
            deadline_ms=PATIENCE_MS,
            fields=[attribute],
        )
        answer = await feed.recommend(ask)
        shown = [item.item_id for item in answer.shown]
        has = [set((fields or {}).get(attribute) or ()) for fields in answer.described]
        described = await stages.candidates.describe(feed.live.version, liked, [attribute])
        own = {value for fields in described or [] for value in (fields or {}).get(attribute) or ()}
        hits.append(question.item_id in shown)
        kept.append(statistics.mean([bool(values & own) for values in has]) if has else 0.0)
        different.append(len(set().union(*has)))
    return Row(weight, statistics.mean(hits), statistics.mean(kept), statistics.mean(different)), hits


def _compared(row: Row, hits: Sequence[bool], first: Sequence[bool]) -> Row:
    change = np.array(hits, float) - np.array(first, float)
    half_width = 1.96 * float(change.std()) / len(change) ** 0.5
    return dataclasses.replace(row, difference=float(change.mean()), half_width=half_width)


def _table(rows: Sequence[Row], attribute: str, count: int, version: str) -> str:
    lines = [
        f"| weight | recall@{TOP} of the next engaged item | against none, points | top {TOP} of the last likes' "
        f"{attribute} | different {attribute} |",
        "|---:|---:|---:|---:|---:|",
        *(
            f"| {row.weight or 'none'} | {row.recall:.1%} | {_against(row)} | {row.kept_categories:.0%} | "
            f"{row.categories:.1f} |"
            for row in rows
        ),
        "",
        f"{count:,} positive actions, each asked for just before it happened, through the stages and the feed that "
        f"serve; model `{version}`. After ± half of the 95 % interval over pairs of feeds.",
    ]
    return "\n".join(lines)


def _against(row: Row) -> str:
    return f"{row.difference * 100:+.1f} ± {row.half_width * 100:.1f}" if row.weight else ""
