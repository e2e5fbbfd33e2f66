"""Events as clients send them: every bad one is named by field, the good ones beside it stay."""

import dataclasses
import json
import math
from typing import Any

import pytest

from rayapp.contracts.config import Domain
from rayapp.contracts.schema import Event
from rayapp.serving.attribute_checks import BadAttribute, check_changes, check_item
from rayapp.serving.events import BadBody, RejectedEvent, check_events, parse_body
from tests.conftest import T0

NOW = T0 + 1_000_000


def good(**changes: Any) -> dict[str, Any]:
    return {"event_id": "e1", "user_id": "u1", "item_id": "i1", "action": "save", "timestamp_ms": T0, **changes}


def check(domain: Domain, *values: Any) -> tuple[list[Event], list[RejectedEvent]]:
    accepted, rejected = check_events(values, domain, NOW)
    return [event for _, event in accepted], rejected


@pytest.mark.parametrize(
    ("value", "code", "field"),
    [
        (good(action="nope"), "unknown_action", "action"),
        ({k: v for k, v in good().items() if k != "user_id"}, "missing_field", "user_id"),
        (good(user_id=7), "wrong_type", "user_id"),
        (good(timestamp_ms="today"), "wrong_type", "timestamp_ms"),
        (good(timestamp_ms=True), "wrong_type", "timestamp_ms"),
        (good(timestamp_ms=1.5), "wrong_type", "timestamp_ms"),
        (good(timestamp_ms=T0 // 1000), "bad_timestamp", "timestamp_ms"),
        (good(timestamp_ms=NOW + 6 * 60_000), "bad_timestamp", "timestamp_ms"),
        (good(value=math.nan), "not_finite", "value"),
        (good(value=math.inf), "not_finite", "value"),
        (good(item_id=""), "bad_id", "item_id"),
        (good(user_id="a\nb"), "bad_id", "user_id"),
        (good(event_id="x" * 200), "bad_id", "event_id"),
        (good(user_id="\ud800"), "bad_id", "user_id"),
        (good(position=-1), "wrong_type", "position"),
        (good(itemid="typo"), "unknown_field", "itemid"),
        ("not an object", "wrong_type", None),
        (None, "wrong_type", None),
    ],
)
def test_a_bad_event_is_named_and_its_neighbours_are_kept(
    domain: Domain, value: Any, code: str, field: str | None
) -> None:
    accepted, rejected = check(domain, good(event_id="a"), value, good(event_id="b"))
    assert [e.event_id for e in accepted] == ["a", "b"]
    assert [(r.index, r.code, r.field) for r in rejected] == [(1, code, field)]
    assert rejected[0].message


def test_seconds_are_recognised(domain: Domain) -> None:
    _, rejected = check(domain, good(timestamp_ms=T0 // 1000))
    assert "seconds" in rejected[0].message


def test_live_events_are_held_to_the_domain_s_earliest_day_as_imports_are(domain: Domain) -> None:
    day_2010, day_1995 = 1_262_304_000_000, 788_918_400_000
    events = good(timestamp_ms=day_1995), good(event_id="later", timestamp_ms=day_2010)
    accepted, rejected = check(dataclasses.replace(domain, earliest_ms=day_2010), *events)
    assert [event.event_id for event in accepted] == ["later"]
    assert "2010-01-01" in rejected[0].message
    accepted, rejected = check(dataclasses.replace(domain, earliest_ms=day_1995), *events)
    assert (len(accepted), rejected) == (2, [])


def test_a_clock_a_little_ahead_is_clamped(domain: Domain) -> None:
    (event,), _ = check(domain, good(timestamp_ms=NOW + 60_000))
    assert event.timestamp_ms == event.received_at_ms == NOW


def test_an_event_without_id_is_named_by_its_content(domain: Domain) -> None:
    bare = {k: v for k, v in good().items() if k != "event_id"}
    (first, second, other), _ = check(domain, bare, dict(bare), {**bare, "item_id": "i2"})
    assert first.event_id == second.event_id != other.event_id


@pytest.mark.parametrize("body", [json.dumps(good()), json.dumps([good()]), json.dumps({"events": [good()]})])
def test_one_list_or_envelope(domain: Domain, body: str) -> None:
    values, rejected = parse_body(body.encode(), "application/json")
    assert values == [good()]
    assert not rejected


def test_ndjson_rejects_a_line_and_keeps_the_others(domain: Domain) -> None:
    body = "\n".join([json.dumps(good()), "{oops", "", json.dumps(good(event_id="e2"))]).encode()
    values, unreadable = parse_body(body, "application/x-ndjson; charset=utf-8")
    assert [(r.index, r.code) for r in unreadable] == [(1, "malformed_json")]
    accepted, rejected = check_events(values, domain, NOW, skip=frozenset({1}))
    assert [i for i, _ in accepted] == [0, 2]
    assert not rejected


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"[" * 100_000, json.dumps([{}] * 1001).encode()])
def test_a_body_that_can_t_be_read_says_why(body: bytes) -> None:
    with pytest.raises(BadBody):
        parse_body(body, "application/json")


def test_items_keep_the_domain_s_attributes(domain: Domain) -> None:
    item = check_item("i9", {"title": "New", "genres": ["a"], "year": 2026}, domain.attributes, NOW)
    own = {"item_id": "i9", "created_at_ms": NOW, "available": True}
    assert item == own | {"title": "New", "genres": ["a"], "year": 2026.0}
    nothing = dict.fromkeys(("title", "genres", "year"))
    assert check_item("i9", nothing, domain.attributes, NOW)["genres"] is None
    assert check_item("i9", {**nothing, "available": False}, domain.attributes, NOW)["available"] is False
    with pytest.raises(BadAttribute, match="year is missing: PUT replaces the whole item"):
        check_item("i9", {"title": "New", "genres": []}, domain.attributes, NOW)
    assert check_changes("i9", {"year": 7}, domain.attributes) == {"year": 7.0}
    assert check_changes("i9", {"available": False}, domain.attributes) == {"available": False}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"colour": "red"}, "colour"),
        ({"year": math.nan}, "year"),
        ({"year": True}, "year"),
        ({"genres": "a"}, "genres"),
        ({"genres": [1]}, "genres"),
        ({"title": 3}, "title"),
        ({"created_at_ms": "now"}, "created_at_ms"),
        ({"available": 0}, "available"),
        ({"item_id": "i9"}, "item_id"),
        ([], ""),
    ],
)
def test_bad_items_name_the_field(domain: Domain, body: Any, field: str) -> None:
    with pytest.raises(BadAttribute) as error:
        check_item("i9", body, domain.attributes, NOW)
    assert error.value.field == field
