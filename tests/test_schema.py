"""Vocabulary, ids and hashes."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayapp.contracts.config import (
    FOREVER,
    HALF_LIVES_MS,
    LATER_FIELDS,
    CalibratedRanking,
    Cap,
    Domain,
    version_values,
)
from rayapp.contracts.hashing import hash64, hash64_column
from rayapp.contracts.json_values import from_json, to_json
from rayapp.contracts.presets import PRESETS, Preset
from rayapp.contracts.schema import (
    PAD,
    UNKNOWN,
    Action,
    ActionKind,
    Vocabulary,
    bucket_of,
    content_event_id,
    fingerprint,
    id_problem,
)
from rayapp.importing.domains import BUILT_IN, load_domain


def test_no_action_shares_its_id_with_padding(domain: Domain) -> None:
    """Defect of the reference code: its first action was read as padding."""
    ids = [domain.vocabulary.id_of(name) for name in domain.vocabulary.names]
    assert ids == [2, 3, 4, 5]
    assert PAD not in ids
    assert UNKNOWN not in ids


def test_unknown_names_become_unknown_one_by_one_and_in_columns(domain: Domain) -> None:
    names = ["save", "no such action", "click"]
    assert [domain.vocabulary.id_of(n) for n in names] == [3, UNKNOWN, 2]
    assert domain.vocabulary.ids_of(pa.chunked_array([names])).tolist() == [3, UNKNOWN, 2]
    assert domain.vocabulary.ids_of(pa.array([], pa.string())).tolist() == []


def test_a_vocabulary_may_only_grow_at_its_end(domain: Domain) -> None:
    old = domain.vocabulary
    grown = Vocabulary((*old.actions, Action(name="share", kind=ActionKind.POSITIVE)))
    assert grown.extends(old)
    assert not old.extends(grown)
    assert not Vocabulary(old.actions[::-1]).extends(old)


def test_a_vocabulary_names_each_action_once() -> None:
    action = Action(name="like", kind=ActionKind.POSITIVE)
    with pytest.raises(ValueError, match="twice"):
        Vocabulary((action, action))


def test_domain_round_trips_through_json(domain: Domain) -> None:
    assert from_json(Domain, to_json(domain)) == domain
    with pytest.raises(ValueError, match="lacks"):
        dataclasses.replace(domain, vocabulary=Vocabulary(domain.vocabulary.actions[:1]))


def test_a_setting_that_came_later_is_in_the_json_where_it_is_set(domain: Domain) -> None:
    """So versions of a domain that leaves it alone keep their names, and older roots open."""
    changed: dict[str, Any] = {"half_lives_ms": (FOREVER,), "statistics_step_ms": 60_000, "flag_delay_ms": 1}
    changed["time_zone"] = "Asia/Kathmandu"
    feeds = {"seen_ms": {"save": FOREVER}, "seen_again_after_ms": None, "caps": {"genres": Cap(most=2, of=10)}}
    feeds["mix"] = {"nearest": 0.5}
    feeds["calibration"] = CalibratedRanking(attribute="genres", weight=0.5)
    feeds |= {"rest_ms": 5, "rest_items": 9}
    assert not set(LATER_FIELDS) & set(to_json(domain))
    assert from_json(Domain, to_json(domain)).half_lives_ms == HALF_LIVES_MS
    for name, value in {**changed, **feeds}.items():
        other = dataclasses.replace(domain, **{name: value})
        assert set(LATER_FIELDS) & set(to_json(other)) == {name}
        assert from_json(Domain, to_json(other)) == other
        same = fingerprint(version_values(other)) == fingerprint(version_values(domain))
        assert same is (name in feeds), "what only feeds go by is no part of what was trained"


@given(st.lists(st.text(max_size=5), max_size=30))
def test_column_hash_equals_the_hash_of_each_value(values: list[str]) -> None:
    assert hash64_column(pa.array(values, pa.string())).tolist() == [hash64(v) for v in values]


def test_hashes_and_buckets_never_change() -> None:
    """They are stored: another value would lose every user's history."""
    assert hash64("u1") == 0x06E8_417D_0FE6_613F
    assert bucket_of("u1", 16) == hash64("u1") % 16


@pytest.mark.parametrize(
    ("value", "says"),
    [("", "empty"), ("a" * 129, "129 bytes"), ("a\nb", "control"), ("\ud800", "Unicode"), ("é" * 65, "130 bytes")],
)
def test_bad_ids_say_why(value: str, says: str) -> None:
    assert says in (id_problem(value) or "")


def test_good_ids_pass_and_content_ids_tell_content_apart() -> None:
    assert id_problem("user-42 ✓") is None
    assert content_event_id("u", "i", "save", 1) == content_event_id("u", "i", "save", 1)
    assert content_event_id("u", "i", "save", 1) != content_event_id("u", "is", "ave", 1)


def test_versions_and_files_keep_their_names() -> None:
    """An existing root goes on: domains as every earlier version named them, presets as since models read weekdays."""
    golden = json.loads((Path(__file__).parent / "golden" / "names.json").read_text())
    domains = [load_domain(name).domain for name in BUILT_IN]
    named_by = {d.name: version_values(d) for d in domains} | {n: to_json(p()) for n, p in PRESETS.items()}
    values = {d.name: to_json(d) for d in domains} | {n: to_json(p()) for n, p in PRESETS.items()}
    texts = {name: json.dumps(value) for name, value in values.items()}
    assert golden == {n: {"named_by": fingerprint(named_by[n]), "json": fingerprint(texts[n])} for n in golden}
    assert set(golden) == set(texts)
    assert all(from_json(Domain, json.loads(texts[d.name])) == d for d in domains)
    assert all(from_json(Preset, json.loads(texts[name])) == preset() for name, preset in PRESETS.items())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": {"depth": 3}}, "Preset: model depth is unknown to this version"),
        ({"model": {"num_layers": "two"}}, "Preset: model num_layers: input should be a valid integer"),
        ({"model": {"readout": "mean"}}, "Preset: model: readout names ['mean']"),
        ({"name": None}, "Preset: name: input should be a valid string, not None"),
    ],
)
def test_json_of_another_version_is_refused_in_words(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        from_json(Preset, {"name": "mine", **values})
