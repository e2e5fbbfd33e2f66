"""What counts as seen, for how long, and what may come back: a setting of the domain, in feeds and batch jobs alike."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayapp.contracts.config import DAY_MS, FOREVER, HOUR_MS, Cap, Domain
from rayapp.contracts.hashing import hash64
from rayapp.contracts.json_values import to_json
from rayapp.contracts.schema import UNKNOWN
from rayapp.features.seen import EVERYTHING, Seen, ShownItems
from rayapp.features.sequence import History
from rayapp.importing.domains.parse import DomainError, parse_domain
from rayapp.retrieval.candidates import SEEN_AGAIN, SHOWN_AGAIN, Query, fetch
from rayapp.retrieval.index import CandidateIndex
from rayapp.root.places import ROOT_FILE
from rayapp.root.publish import read_json, write_json
from tests.api_in_process import running
from tests.films import by_source, item, table_of

NOW = 100 * DAY_MS
ROOT = Path(__file__).parents[1]
CLICK, SAVE, HIDE = 2, 3, 4


def history(*actions: tuple[int, int, int]) -> History:
    """`(item, action, age in ms)` of each, newest first."""
    hashes = np.array([hash64(f"i{n}") for n, _, _ in actions], np.uint64)
    times = np.array([NOW - age for _, _, age in actions], np.int64)
    return History(times, times, times, hashes, hashes, np.array([action for _, action, _ in actions], np.uint8))


PAST = history((0, CLICK, HOUR_MS), (1, SAVE, 2 * HOUR_MS), (2, HIDE, 3 * HOUR_MS), (3, CLICK, 8 * DAY_MS))


def rule(domain: Domain, again_after_ms: int | None = 0, **seen_ms: int) -> Seen:
    return Seen.of(dataclasses.replace(domain, seen_ms=seen_ms, seen_again_after_ms=again_after_ms))


def far_apart(num_items: int) -> list[dict[str, Any]]:
    """Items of a genre each, so that a hide says nothing of another item."""
    return [item(n, genres=[f"g{n}"]) for n in range(num_items)]


def shown(
    domain: Domain, seen: Seen, *, num_items: int = 8, fewest: int = 0, past: History = PAST
) -> dict[str, list[str]]:
    """What is recommended, and what comes back."""
    index = CandidateIndex(table_of(far_apart(num_items)))
    query = Query(num_candidates=20, now_ms=NOW, mix={}, fewest=fewest)
    return by_source(fetch(index, past, domain.vocabulary, query, seen=seen))


def test_what_was_shown_rests_and_what_was_shown_longest_ago_comes_first_where_little_is_left(domain: Domain) -> None:
    seen = Seen.of(dataclasses.replace(domain, seen_ms={"save": FOREVER}, rest_ms=HOUR_MS))
    ages_ms = {7: 0, 6: 10, 1: 20, 5: HOUR_MS - 1, 4: HOUR_MS}  # item 1 was saved, item 2 was hidden
    lists = ShownItems(
        np.array([hash64(f"i{n}") for n in ages_ms], np.uint64), np.array([NOW - age for age in ages_ms.values()])
    )
    index = CandidateIndex(table_of(far_apart(8)))

    def found(fewest: int, shown: ShownItems | None = lists, rule: Seen = seen) -> dict[str, list[str]]:
        query = Query(num_candidates=20, now_ms=NOW, mix={}, fewest=fewest)
        return by_source(fetch(index, PAST, domain.vocabulary, query, seen=rule, shown=shown))

    assert {source: sorted(items) for source, items in found(0).items()} == {"popular": ["i0", "i3", "i4"]}
    assert found(5)[SHOWN_AGAIN] == ["i5", "i6"], "least recently shown first, and only as many as lack"
    assert found(8)[SHOWN_AGAIN] == ["i5", "i6", "i7"]
    assert found(8)[SEEN_AGAIN] == ["i1"], "what was acted on comes behind"
    assert sorted(found(0, None)["popular"]) == ["i0", "i3", "i4", "i5", "i6", "i7"]
    off = dataclasses.replace(seen, rest_ms=0)
    assert found(0, lists, off) == found(0, None)


def test_unless_told_otherwise_every_action_counts_for_good(domain: Domain) -> None:
    assert Seen.of(domain) == EVERYTHING
    assert sorted(shown(domain, EVERYTHING)["popular"]) == ["i4", "i5", "i6", "i7"]
    without = fetch(
        CandidateIndex(table_of(far_apart(8))),
        PAST,
        domain.vocabulary,
        Query(num_candidates=20, now_ms=NOW, mix={}),
    )
    assert by_source(without) == shown(domain, EVERYTHING)


def test_actions_count_for_as_long_as_the_domain_says(domain: Domain) -> None:
    week = rule(domain, click=7 * DAY_MS, save=FOREVER)
    assert sorted(shown(domain, week)["popular"]) == ["i3", "i4", "i5", "i6", "i7"], "a click of last week is over"
    saves = rule(domain, save=FOREVER)
    assert sorted(shown(domain, saves)["popular"]) == ["i0", "i3", "i4", "i5", "i6", "i7"], "hide counts all the same"
    hides = rule(domain, hide=HOUR_MS)
    assert len(shown(domain, hides)["popular"]) == 8, "unless the domain says otherwise"
    unknown = history((5, UNKNOWN, HOUR_MS))
    assert "i5" not in shown(domain, saves, past=unknown)["popular"], (
        "what an action of another release meant is not known"
    )


def test_what_was_seen_comes_back_no_sooner_than_the_domain_says(domain: Domain) -> None:
    def again(after_ms: int | None) -> list[str]:
        return shown(domain, rule(domain, after_ms), num_items=4, fewest=4).get(SEEN_AGAIN, [])

    assert again(0) == ["i3", "i1", "i0"], "the least recent first, and nothing that was rejected"
    assert again(90 * 60_000) == ["i3", "i1"]
    assert again(DAY_MS) == ["i3"]
    assert again(None) == []


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([CLICK, SAVE, HIDE]), st.integers(0, 20)), max_size=12),
    st.dictionaries(st.sampled_from(["click", "save", "hide"]), st.integers(0, 15), min_size=1),
    st.integers(0, 20),
)
def test_new_and_seen_items_part_the_catalogue(
    domain: Domain, past: list[tuple[int, int, int]], lasts: dict[str, int], after: int
) -> None:
    """The rule once more: an item is new where no action on it lasts, and comes back where none is too young."""
    newest_first = sorted(past, key=lambda row: row[2])
    name = {CLICK: "click", SAVE: "save", HIDE: "hide"}

    def lasting(action: int, age: int) -> bool:
        span = lasts.get(name[action], FOREVER if action == HIDE else None)
        return span is not None and (span == FOREVER or age < span)

    found = shown(domain, rule(domain, after, **lasts), num_items=6, fewest=99, past=history(*newest_first))
    seen = {f"i{n}" for n, action, age in past if lasting(action, age)}
    assert set(found.get("popular", [])) == {f"i{n}" for n in range(6)} - seen
    young = {f"i{n}" for n, _, age in past if age < after}
    rejected = {f"i{n}" for n, action, _ in past if action == HIDE}
    back = seen - young
    liked = back - rejected
    assert set(found.get(SEEN_AGAIN, [])) == (back if not found.get("popular") and not liked else liked)


FILE = (ROOT / "rayapp/importing/domains/movielens.toml").read_text()


def test_the_domain_file_says_what_counts_as_seen_and_what_is_capped() -> None:
    assert parse_domain(FILE).domain.seen_ms == {}
    action = parse_domain(FILE).domain.vocabulary.names[0]
    attribute = next(a.name for a in parse_domain(FILE).domain.attributes if a.kind == "categories")
    text = f"""
[seen]
actions = {{ {action} = "7d" }}
again_after = "forever"
[caps]
{attribute} = {{ most = 2, of = 10 }}
"""
    found = parse_domain(FILE + text).domain
    assert (found.seen_ms, found.seen_again_after_ms) == ({action: 7 * DAY_MS}, None)
    assert found.caps == {attribute: Cap(most=2, of=10)}
    for bad, words in (
        ('[seen]\nactions = { nope = "7d" }', "seen names"),
        (f'[seen]\nactions = {{ {action} = "0s" }}', 'must be longer.*"forever" is for good'),
        (f'[seen]\nactions = {{ {action} = "a week" }}', 'a duration like .*, or "forever"'),
        ("[seen]\nagain_after = 5", 'or "forever"'),
        ("[seen]\nviews = 1", "known: actions, again_after"),
        ("[caps]\ntitle = { most = 2, of = 10 }", "caps names .*no categorical attribute"),
        (f"[caps]\n{attribute} = {{ most = 10, of = 2 }}", f"caps {attribute} must be 1 <= most < of"),
        (f"[caps]\n{attribute} = {{ most = 0, of = 2 }}", f"caps {attribute} must be 1 <= most < of"),
        (f"[caps]\n{attribute} = {{ most = 2 }}", "of"),
    ):
        with pytest.raises(DomainError, match=words):
            parse_domain(FILE + "\n" + bad)


def test_a_graph_goes_by_the_rules_of_its_root(models: tuple[Path, Any], domain: Domain) -> None:
    root, store = models
    store.close()
    rules = dataclasses.replace(
        domain, seen_ms={"save": FOREVER}, seen_again_after_ms=None, caps={"genres": Cap(most=1, of=3)}
    )
    write_json(root / ROOT_FILE, {**read_json(root / ROOT_FILE), "domain": to_json(rules)})

    async def test() -> None:
        async with running(root, rules) as graph:
            await graph.act("ann", "i3", "click")
            await graph.act("ann", "i4", "save")
            feed = await graph.feed("ann", num_results=30, deadline_ms=10_000)
            ids = [row["item_id"] for row in feed["items"]]
            assert not feed["degraded"]
            assert "i3" in ids
            assert "i4" not in ids
            genres = [int(i[1:]) % 3 for i in ids]
            assert all(len(set(genres[n : n + 3])) == 3 for n in range(24)), genres
            live = graph.service.live
            live.popular = [f"i{n}" for n in range(6)]
            live.version = live.previous = "a model that nobody holds"
            fallback = await graph.feed("ann", num_results=6, deadline_ms=10_000)
            assert [row["item_id"] for row in fallback["items"]] == ["i0", "i1", "i2", "i3", "i5"]

    asyncio.run(test())
