"""Does the feed follow? Five positive actions on a category, and five negative ones, for every category of a root.

What the graph then shows is measured in three columns: the model over 200 fixed items, the served feed by score alone,
the served feed as it is. The first moves by the model's doing, the second by the candidates' too, the third by
diversity, caps and calibration as well. Each share is a mean over people, since one top 10 moves in steps of a tenth.
"""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import httpx

from rayapp.client.reaction_report import (
    MOST_ELSEWHERE,
    NUM_ACTIONS,
    NUM_FIXED,
    PAST_ACTIONS,
    TOP,
    Probe,
    Reaction,
    Shares,
    report,
)
from rayapp.client.session import Genres, Session, SessionError, strongest
from rayapp.contracts.schema import ActionKind
from rayapp.launch.graph import running_graph
from rayapp.launch.ports import free_port
from rayapp.launch.runtime import local_ray
from rayapp.record import say
from rayapp.registry.aliases import BASELINE, CHAMPION, read_aliases
from rayapp.registry.item_tables import load_table
from rayapp.root.facts import read_root
from rayapp.root.places import MODELS, SERVING
from rayapp.root.publish import PublishError, exclusive, read_manifest

FEWEST_ITEMS: Final = 30
"""Of a category that is probed."""
FEWEST_FIXED: Final = 10
"""Of a category among the fixed items, which hold at most half of its items."""
ENOUGH: Final = 0.3
"""Share of the feed from which negative actions start; less would be a reaction of what was seen alone."""
MOST_TO_START: Final = 10
"""Positive actions of people who wait for that share."""


def run_react(root: Path, people: int, as_json: bool, write: Path | None) -> None:
    domain, _ = read_root(root)
    aliases = read_aliases(root)
    if CHAMPION not in aliases:
        raise PublishError(f"{root} has no model yet; `rayapp train --root {root}` makes one")
    table = load_table(root, read_manifest(root / MODELS / aliases[CHAMPION])["item_table"])
    genres = Genres(domain, table)
    sizes = {name: count for name, count in genres.sizes().items() if count >= FEWEST_ITEMS}
    if not sizes:
        raise PublishError(f"no {genres.attribute} of {root} has {FEWEST_ITEMS} items or more")
    negatives = [a for a in domain.vocabulary.actions if a.kind is ActionKind.NEGATIVE]
    positive = strongest(domain, ActionKind.POSITIVE)
    negative = strongest(domain, ActionKind.NEGATIVE) if negatives else None
    probes: list[Probe] = []
    with (
        exclusive(root / SERVING, "serving"),
        local_ray(),
        running_graph(root, free_port()) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        Session(client).rank(genres.most_liked(NUM_FIXED))  # a replica's first call is slower: it is not measured
        for number, name in enumerate(sizes, 1):
            probe = _Category(client, genres, name, positive, negative, plain=BASELINE in aliases).probe(people)
            probes.append(probe)
            say(
                f"{number} of {len(sizes)}, {name}: {probe.new.before.feed:.0%} -> {probe.new.after.feed:.0%} of new "
                f"people's feeds, {probe.past.before.feed:.0%} -> {probe.past.after.feed:.0%} with a past"
            )
    report(probes, aliases[CHAMPION], people, as_json, write)


class _Category:
    """What is done and asked for one category."""

    def __init__(
        self, client: httpx.Client, genres: Genres, name: str, positive: str, negative: str | None, *, plain: bool
    ) -> None:
        self._client, self._genres, self._name, self._plain = client, genres, name, plain
        self._positive, self._negative = positive, negative
        self._size = genres.sizes()[name]
        self._fixed = genres.mixture(name, NUM_FIXED, min(FEWEST_FIXED, self._size // 2), self._size // 2)
        self._acted = genres.pure(name, self._size, exclude=self._fixed)

    def probe(self, people: int) -> Probe:
        """Everything, for so many people without and with a past."""
        seconds: list[float] = []
        plain: list[tuple[float, float]] = []
        new = [self._person(n, 0, seconds, plain) for n in range(people)]
        past = [self._person(n, PAST_ACTIONS, seconds, []) for n in range(people)]
        return Probe(
            self._name,
            self._size,
            _mean(new),
            _mean(past),
            (statistics.mean(b for b, _ in plain), statistics.mean(a for _, a in plain)) if plain else None,
            max(seconds),
        )

    def _person(self, number: int, past: int, seconds: list[float], plain: list[tuple[float, float]]) -> Reaction:
        """Two people of one past: one does the positive actions, the other the negative ones."""
        at = number * NUM_ACTIONS % len(self._acted)
        mine = (self._acted[at:] + self._acted[:at])[: NUM_ACTIONS + MOST_TO_START]
        liker, hider = (self._with_past(number, past, mine) for _ in range(2))
        before = self._shares(liker)
        plain_before = self._rank_share(liker, BASELINE) if self._plain else 0.0
        for item_id in mine[:NUM_ACTIONS]:
            liker.act(item_id, self._positive)
        posted = time.monotonic()
        answer = liker.rank(self._fixed)
        seconds.append(time.monotonic() - posted)
        if answer["sequence"]["length"] < NUM_ACTIONS:
            raise SessionError(f"the ranking saw {answer['sequence']['length']} of {past + NUM_ACTIONS} actions")
        after = self._shares(liker)
        if self._plain:
            plain.append((plain_before, self._rank_share(liker, BASELINE)))
        twin, hidden = self._hide(hider, mine)
        return Reaction(before, after, twin, hidden, self._feeds_to_half(liker, after.feed, number, mine))

    def _with_past(self, number: int, past: int, mine: Sequence[str]) -> Session:
        session = Session(self._client)
        session.act_on(self._genres.mixed(past, seed=number, exclude=[*self._fixed, *mine]), self._positive)
        return session

    def _hide(self, session: Session, mine: Sequence[str]) -> tuple[Shares, Shares | None]:
        """Five negative actions, on what the feed shows of the category first, and what was there without them."""
        shown = self._of_category(session)
        for item_id in mine[NUM_ACTIONS:]:
            if len(shown) >= ENOUGH * TOP:
                break
            session.act(item_id, self._positive)
            shown = self._of_category(session)
        unseen = [item_id for item_id in mine[:NUM_ACTIONS] if item_id not in shown]
        hidden = (shown + unseen)[:NUM_ACTIONS]
        twin = self._shares(session, without=hidden)
        if self._negative is None:
            return twin, None
        for item_id in hidden:
            session.act(item_id, self._negative)
        return twin, self._shares(session, without=hidden)

    def _feeds_to_half(self, session: Session, peak: float, number: int, mine: Sequence[str]) -> int:
        """Feeds until the share is half of the peak, with one more positive action elsewhere before each."""
        others = [
            item_id
            for item_id in self._genres.mixed(len(self._genres.items), seed=number + 1_000, exclude=mine)
            if not self._genres.has(self._name, item_id)
        ]
        for feeds, item_id in enumerate(others[:MOST_ELSEWHERE]):
            if self._share(session.feed(TOP)) <= peak / 2:
                return feeds
            session.act(item_id, self._positive)
        return MOST_ELSEWHERE

    def _shares(self, session: Session, without: Sequence[str] = ()) -> Shares:
        fixed = [item_id for item_id in self._fixed if item_id not in without]
        ranked = self._share(session.rank(fixed))
        # All candidates with their scores: in their order nothing but the model has a say.
        whole = session.feed(NUM_FIXED, num_candidates=NUM_FIXED, exclude=without)["items"]
        by_score = sorted(whole, key=lambda row: -(row["score"] or 0.0))
        return Shares(ranked, self._share({"items": by_score}), self._share(session.feed(TOP, exclude=without)))

    def _rank_share(self, session: Session, model: str) -> float:
        return self._share(session.rank(self._fixed, model))

    def _share(self, answer: dict[str, list[dict[str, str]]]) -> float:
        return self._genres.share(self._name, [row["item_id"] for row in answer["items"][:TOP]])

    def _of_category(self, session: Session) -> list[str]:
        shown = [row["item_id"] for row in session.feed(TOP)["items"]]
        return [item_id for item_id in shown if self._genres.has(self._name, item_id)]


def _mean(people: Sequence[Reaction]) -> Reaction:
    hidden = [person.hidden for person in people if person.hidden is not None]
    return Reaction(
        _mean_of([person.before for person in people]),
        _mean_of([person.after for person in people]),
        _mean_of([person.twin for person in people]),
        _mean_of(hidden) if hidden else None,
        statistics.mean(person.feeds_to_half for person in people),
    )


def _mean_of(shares: Sequence[Shares]) -> Shares:
    return Shares(*map(statistics.mean, zip(*map(dataclasses.astuple, shares), strict=True)))
