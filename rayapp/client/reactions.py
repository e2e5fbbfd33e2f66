"""Does the ranking follow the user? Five saves, and five dislikes, of a genre; 200 fixed candidates; ten genres.

Only `/v1/rank` is asked, with the same 200 items each time, so what moves is the model's doing and not the
candidates'. The ranker without the sequence answers the same questions through its alias. For each genre 20 people act
on different films, new ones and ones who did 20 things before, and shares are means over them: one top 10 alone moves
in steps of a tenth.
"""

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import httpx

from rayapp.client.session import Genres, Session, SessionError, strongest
from rayapp.contracts.json_values import to_json
from rayapp.contracts.schema import ActionKind
from rayapp.launch.graph import running_graph
from rayapp.launch.ports import free_port
from rayapp.launch.runtime import local_ray
from rayapp.record import Bars, say, tell
from rayapp.registry.aliases import BASELINE, CHAMPION, read_aliases
from rayapp.registry.item_tables import load_table
from rayapp.root.facts import read_root
from rayapp.root.places import MODELS, SERVING
from rayapp.root.publish import PublishError, exclusive, read_manifest

NUM_GENRES: Final = 10
NUM_CANDIDATES: Final = 200
"""The most liked items; the probed genres are the ones that most of them have."""
NUM_USERS: Final = 20
"""People a genre, each with films of their own; as many again who have a past."""
PAST_ACTIONS: Final = 20
"""Saves of any items but the candidates, of people with a past."""
NUM_ACTIONS: Final = 5
TOP: Final = 10


@dataclass(frozen=True, slots=True)
class Probe:
    """Shares of one genre in the top 10."""

    genre: str
    before: float
    after_saves: float
    after_dislikes: float
    after_saves_then_dislikes: float
    past_before: float
    """Of people who did PAST_ACTIONS before, as the next two."""
    past_after_saves: float
    past_after_dislikes: float
    no_sequence_before: float
    no_sequence_after_saves: float
    seconds: float
    """From the last POST of the saves to the changed answer."""


def run_react(root: Path, as_json: bool, write: Path | None) -> None:
    domain, _ = read_root(root)
    aliases = read_aliases(root)
    if missing := {CHAMPION, BASELINE} - set(aliases):
        raise PublishError(f"{root} lacks the aliases {sorted(missing)}; `rayapp train --root {root}` makes them")
    table = load_table(root, read_manifest(root / MODELS / aliases[CHAMPION])["item_table"])
    genres = Genres(domain, table)
    candidates = genres.most_liked(NUM_CANDIDATES)
    probed = genres.common_in(candidates, NUM_GENRES)
    save, dislike = strongest(domain, ActionKind.POSITIVE), strongest(domain, ActionKind.NEGATIVE)
    probes: list[Probe] = []
    with (
        exclusive(root / SERVING, "serving"),
        local_ray(),
        running_graph(root, free_port()) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        Session(client).rank(candidates)  # the first call of a replica is slower; it is not what is measured
        for genre in probed:
            probes.append(_probe(client, genres, genre, candidates, save, dislike))
            if not as_json:
                say(f"{genre}: {probes[-1].before:.0%} -> {probes[-1].after_saves:.0%}")
    result = {
        "bench": "react",
        "model": aliases[CHAMPION],
        "candidates": len(candidates),
        "genres": len(probes),
        "rises": sum(p.after_saves > p.before for p in probes),
        "rises_more_than_no_sequence": sum(
            p.after_saves - p.before > p.no_sequence_after_saves - p.no_sequence_before for p in probes
        ),
        "falls_after_dislikes": sum(p.after_dislikes < p.before for p in probes),
        "past_rises": sum(p.past_after_saves > p.past_before for p in probes),
        "past_falls_after_dislikes": sum(p.past_after_dislikes < p.past_before for p in probes),
        "falls_after_saves_then_dislikes": sum(p.after_saves_then_dislikes < p.after_saves for p in probes),
        "mean_before": statistics.mean(p.before for p in probes),
        "mean_after_saves": statistics.mean(p.after_saves for p in probes),
        "mean_after_dislikes": statistics.mean(p.after_dislikes for p in probes),
        "past_mean_before": statistics.mean(p.past_before for p in probes),
        "past_mean_after_dislikes": statistics.mean(p.past_after_dislikes for p in probes),
        "seconds_median": statistics.median(p.seconds for p in probes),
        "seconds_max": max(p.seconds for p in probes),
        "probes": [to_json(p) for p in probes],
    }
    title = "Does the ranking follow the user?"
    tell(result, _table(probes, result), title, _bars(probes), as_json=as_json, write=write)


def _probe(client: httpx.Client, genres: Genres, genre: str, candidates: list[str], save: str, dislike: str) -> Probe:
    films = genres.pure(genre, 2 * NUM_ACTIONS * NUM_USERS, exclude=candidates)
    if len(films) < 2 * NUM_ACTIONS:
        raise PublishError(f"only {len(films)} items outside the candidates have the genre {genre!r}; too few to probe")
    users = [_one_user(client, genres, genre, candidates, save, dislike, films, n) for n in range(NUM_USERS)]
    means = [statistics.mean(values) for values in zip(*users, strict=True)]
    return replace(Probe(genre, *means), seconds=max(user[-1] for user in users))


def _one_user(
    client: httpx.Client,
    genres: Genres,
    genre: str,
    candidates: list[str],
    save: str,
    dislike: str,
    films: list[str],
    number: int,
) -> tuple[float, ...]:
    """The fields of a Probe for one new user (and one who dislikes); the n-th takes every NUM_USERS-th film."""
    mine = films[number::NUM_USERS] if len(films) >= 2 * NUM_ACTIONS * NUM_USERS else films[number:] + films[:number]
    first, second = mine[:NUM_ACTIONS], mine[NUM_ACTIONS : 2 * NUM_ACTIONS]

    def share(session: Session, model: str | None = None) -> float:
        answer = session.rank(candidates, model)
        return genres.share(genre, [row["item_id"] for row in answer["items"][:TOP]])

    def person(with_past: bool) -> Session:
        session = Session(client)
        for item_id in genres.mixed(PAST_ACTIONS, seed=number, exclude=[*candidates, *mine]) if with_past else ():
            session.act(item_id, save)
        return session

    def acted(session: Session, items: list[str], action: str) -> float:
        for item_id in items:
            session.act(item_id, action)
        return share(session)

    saver, disliker = person(with_past=False), person(with_past=False)
    before, plain_before = share(saver), share(saver, BASELINE)
    disliked = acted(disliker, first, dislike)
    for item_id in first:
        saver.act(item_id, save)
    posted = time.monotonic()
    answer = saver.rank(candidates)
    seconds = time.monotonic() - posted
    if answer["sequence"]["length"] != NUM_ACTIONS:
        raise SessionError(f"the ranking saw {answer['sequence']['length']} of {NUM_ACTIONS} acknowledged actions")
    after, plain_after = share(saver), share(saver, BASELINE)
    both = acted(saver, second, dislike)
    past_saver, past_disliker = person(with_past=True), person(with_past=True)
    past = share(past_saver), acted(past_saver, first, save), acted(past_disliker, first, dislike)
    return before, after, disliked, both, *past, plain_before, plain_after, seconds


def _bars(probes: list[Probe]) -> Bars:
    series = {
        "before": [p.before for p in probes],
        "after 5 saves": [p.after_saves for p in probes],
        "after 5 dislikes (new user)": [p.after_dislikes for p in probes],
    }
    return Bars(f"share of the top {TOP}", [p.genre for p in probes], series)


def _table(probes: list[Probe], result: dict[str, object]) -> str:
    lines = [
        "| genre | before | 5 saves | 5 dislikes (new user) | 5 saves, 5 dislikes | with a past: before | 5 saves "
        "| 5 dislikes | no sequence, before → saves |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {p.genre} | {p.before:.0%} | {p.after_saves:.0%} | {p.after_dislikes:.0%} | "
        f"{p.after_saves_then_dislikes:.0%} | {p.past_before:.0%} | {p.past_after_saves:.0%} | "
        f"{p.past_after_dislikes:.0%} | {p.no_sequence_before:.0%} → {p.no_sequence_after_saves:.0%} |"
        for p in probes
    ]
    n = len(probes)
    lines += [
        "",
        f"Share of the top {TOP} of {result['candidates']} fixed candidates (the most liked), mean of {NUM_USERS} "
        f"new users a genre, each acting on other films, and of as many who saved {PAST_ACTIONS} items of any genre "
        f"before; model `{result['model']}`.",
        "",
        f"- rises after saves: {result['rises']} of {n}",
        f"- rises more than with the ranker without the sequence: {result['rises_more_than_no_sequence']} of {n}",
        f"- falls after a new user's dislikes: {result['falls_after_dislikes']} of {n}",
        f"- mean share of new users: {result['mean_before']:.1%}, after saves {result['mean_after_saves']:.1%}, after "
        f"dislikes {result['mean_after_dislikes']:.1%}",
        f"- of people with a past: rises after saves {result['past_rises']} of {n}, falls after dislikes "
        f"{result['past_falls_after_dislikes']} of {n}; mean share {result['past_mean_before']:.1%}, after dislikes "
        f"{result['past_mean_after_dislikes']:.1%}",
        f"- falls when dislikes follow the saves: {result['falls_after_saves_then_dislikes']} of {n}",
        f"- last POST to the changed answer: median {result['seconds_median']:.2f} s, "
        f"longest {result['seconds_max']:.2f} s",
    ]
    return "\n".join(lines)
