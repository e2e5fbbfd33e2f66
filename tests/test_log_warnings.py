"""What an import says of the whole: the measures that its warnings are drawn from, and when each is said."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayapp.contracts.config import DAY_MS
from rayapp.contracts.json_values import from_json, to_json
from rayapp.contracts.schema import request_schema
from rayapp.importing.domains.parse import parse_domain
from rayapp.importing.log_counts import LogCounts, Summary
from rayapp.importing.log_shape import IdSketch, LogShape, count_labelled
from rayapp.importing.log_warnings import warnings_of
from tests.conftest import T0

DOMAIN = parse_domain("""
name = "shop"
positive_head = "buy"
attribution = "1h"
actions = [
    { name = "view", kind = "neutral" },
    { name = "buy", kind = "positive" },
    { name = "impression", kind = "neutral", in_sequence = false },
]
heads = [{ name = "buy" }]
items = { title = "title", text = ["title"] }

[[events]]
user_id = "user"
item_id = "item"
action = "action"
timestamp = "time"
""")


def shape(users: Sequence[str], items: Sequence[str], step_ms: int = DAY_MS) -> LogShape:
    time_N = T0 + np.arange(len(users), dtype=np.int64) * step_ms
    return LogShape.of(pa.chunked_array([pa.array(users)]), pa.chunked_array([pa.array(items)]), time_N, 16)


def counts(users: Sequence[str], items: Sequence[str], days: dict[str, int] | None = None) -> LogCounts:
    return LogCounts(
        read=len(users),
        accepted=len(users),
        users=len(set(users)),
        items=len(items),
        days=Counter(days or {"2026-05-01": len(users)}),
        shape=shape(users, items),
        is_first=True,
    )


def of(events: LogCounts, actions: Sequence[str] = ("view", "buy"), **more: LogCounts) -> list[str]:
    return warnings_of(Summary(events=events, actions=Counter(actions), **more), DOMAIN)


MANY = [f"u{n}" for n in range(100)]
ITEMS = [f"i{n}" for n in range(100)]


def test_a_log_without_fault_gets_no_warning() -> None:
    assert of(counts(MANY, ITEMS), requests=counts(MANY, ITEMS)) == []
    assert of(LogCounts()) == [], "items alone were imported"


def test_items_that_the_catalogue_lacks() -> None:
    events, shown = counts(MANY, ITEMS), counts(MANY, ITEMS)
    events.unknown_items, events.unknown_item, shown.unknown_items, shown.unknown_item = 90, "sku-1", 30, "['a']"
    first, second = of(events, requests=shown)
    assert first.startswith("the catalogue knows the item of only 10% of the events (10 of 100), and lacks 'sku-1'")
    assert second.startswith("the catalogue knows the item of only 70% of the shown items (70 of 100)")


@pytest.mark.parametrize("alike", [("u1", "U1"), ("u1", "u1 "), ("7", "007"), ("a b", "ab")])
def test_ids_that_differ_only_by_case_blanks_or_leading_zeros(alike: tuple[str, str]) -> None:
    one, other = alike
    (said,) = of(counts([*MANY, other, one], [*ITEMS, "i0", "i1"]))
    assert said.startswith("1 users have ids that differ only by case, blanks or leading zeros, as ")
    assert repr(one) in said
    assert repr(other) in said
    summary = Summary(events=counts(MANY, ["a1", *ITEMS[1:]]), actions=Counter(["view", "buy"]))
    summary.catalogue_ids = IdSketch.of(pa.array(["A1", *ITEMS]))
    (said,) = warnings_of(summary, DOMAIN)
    assert said.startswith("1 items have ids that differ only by case")


def test_one_user_or_item_with_much_of_the_log() -> None:
    user, item = of(counts([*MANY, *["bot"] * 20], [*ITEMS, *["i7"] * 20]))
    assert user.startswith("one user, 'bot', has 17% of the events (20 of 120)")
    assert item.startswith("one item, 'i7', has 18% of the events (21 of 120)")
    few = ["a", "b", "c"] * 10
    assert of(counts(few, ITEMS[:30])) == [], "of three users each has a third"


def test_time_spans_that_cannot_be() -> None:
    events = counts(MANY, ITEMS, {"2001-09-09": 2, "2026-05-01": 50, "2026-05-02": 48})
    assert of(events) == ["2 of 100 events lie years apart from the others, as those of 2001-09-09"]
    events = counts(MANY, ITEMS)
    events.shape = shape(MANY, ITEMS, step_ms=0)
    (said,) = of(events)
    assert said.startswith("all 100 events have one time, of 20")
    events.shape = shape(MANY, ITEMS, step_ms=365 * DAY_MS)
    (said,) = of(events)
    assert "more than a log can" in said


def test_declared_actions_that_never_occur_are_told_of_a_first_import() -> None:
    events = counts(MANY, ITEMS)
    (said,) = of(events, ["view"])
    assert said.startswith("declared, and never in the events: buy;")
    events.is_first = False
    assert of(events, ["view"]) == []


def requests(rows: Sequence[tuple[str, Sequence[str], int]], labels: Sequence[float] | None = None) -> pa.Table:
    schema = request_schema(())
    columns = {field.name: pa.nulls(len(rows), field.type) for field in schema}
    columns["request_id"] = pa.array([str(n) for n in range(len(rows))])
    columns["user_id"] = pa.array([user for user, _, _ in rows])
    columns["item_ids"] = pa.array([list(items) for _, items, _ in rows], pa.large_list(pa.string()))
    columns["timestamp_ms"] = pa.array([at for _, _, at in rows], pa.int64())
    if labels is not None:
        columns["labels"] = pa.array([list(labels)] * len(rows), pa.large_list(pa.float32()))
    return pa.table(columns, schema=schema)


def acted(*rows: tuple[str, str, str, int]) -> list[pa.Table]:
    return [pa.table(dict(zip(("user_id", "item_id", "action", "timestamp_ms"), zip(*rows, strict=True), strict=True)))]


def test_lists_with_a_label_are_those_on_which_somebody_acted_in_time() -> None:
    lists = requests([("u", ["a", "b"], T0), ("u", ["c"], T0), ("v", ["a"], T0)])
    domain = DOMAIN.domain
    assert count_labelled(lists, acted(("u", "b", "buy", T0 + 1)), domain) == (3, 1)
    late = ("u", "b", "buy", T0 + 2 * domain.attribution_ms)
    assert count_labelled(lists, acted(("u", "b", "view", T0 + 1), ("w", "a", "buy", T0 + 1), late), domain) == (3, 0)
    assert count_labelled(lists, [], domain) == (3, 0)
    assert count_labelled(requests([("u", ["a"], T0)], [1.0]), [], domain) == (1, 1)
    assert count_labelled(requests([("u", ["a"], T0)], [0.0]), [], domain) == (1, 0)
    shown = counts(MANY, ITEMS)
    shown.shape.lists_looked_at = 100
    (said,) = of(counts(MANY, ITEMS), requests=shown)
    assert said.startswith("no shown list has a label (of 100 looked at)")


IDS = st.lists(
    st.sampled_from([f"{zero}{n}{end}" for n in range(8) for zero in ("", "0") for end in ("", " ", "A", "a")])
)


@given(IDS, st.integers(1, 4), st.integers(1, 8))
def test_a_sketch_of_parts_holds_whole_groups_of_ids_alike(ids: list[str], num_parts: int, most: int) -> None:
    parts = [IdSketch.of(pa.array(ids[n::num_parts], pa.string()), most) for n in range(num_parts)]
    total = IdSketch()
    for part in parts:
        total += from_json(IdSketch, to_json(part))
    whole = IdSketch.of(pa.array(ids, pa.string())).form_by_id
    assert total.form_by_id == {id_: form for id_, form in whole.items() if form <= total.limit}
    assert set(total.alike) <= set(IdSketch(whole).alike)
