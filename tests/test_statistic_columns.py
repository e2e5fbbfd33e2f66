"""From counts to what a ranker reads: priors, everybody's rate, and items that nobody knows."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from rayapp.contracts.hashing import hash64, hash64_column
from rayapp.contracts.schema import attribute_fields
from rayapp.features.item_values import ItemValues, mean_by_item
from rayapp.features.statistic_columns import LOG_SCALE, PRIOR_STRENGTH, Columns
from tests.scorers import DOMAIN

S, KINDS = 4, 3
COLUMNS = Columns.of(DOMAIN)
ALL = np.tile([1000.0, 100.0, 50.0], (1, S, 1))
NO_VALUES = (np.zeros((0, S, KINDS)), np.zeros(0, np.int64))


def counts(shown: float, saved: float = 0, hidden: float = 0) -> np.ndarray:
    return np.tile([shown, saved, hidden], (1, S, 1))


def odds(rate: float) -> float:
    return float(np.log(rate / (1 - rate)))


def test_there_are_at_most_48_numbers() -> None:
    many = dataclasses.replace(
        DOMAIN, heads=tuple(dataclasses.replace(DOMAIN.heads[0], name=name) for name in ("save", "a", "b", "c", "d"))
    )
    assert sum(Columns.of(many).widths) == 48
    assert COLUMNS.widths == (4 * 2 * 2 + 8, 4 * 2 + 4)
    assert COLUMNS.kinds_G == (1, 2), "the positive head first"


def test_an_items_rate_is_drawn_towards_everybodys() -> None:
    (found_K,) = COLUMNS.item(counts(100, 30), *NO_VALUES, ALL)
    average = 100.5 / 1001
    own = (30 + PRIOR_STRENGTH * average) / (100 + PRIOR_STRENGTH)
    saved_SG = found_K[: S * 2].reshape(S, 2)
    assert saved_SG[:, 0] == pytest.approx(np.full(S, odds(own) - odds(average)), rel=1e-4)
    assert saved_SG[:, 1].max() < 0, "nobody hid it"
    assert not found_K[S * 2 : S * 4].any(), "it has no category"
    assert found_K[S * 4 :] == pytest.approx(np.repeat(np.log1p([100, 30]) / LOG_SCALE, S), rel=1e-4)


def test_rates_of_one_and_of_nothing_are_finite() -> None:
    always = np.tile([1000.0, 1000.0, 0.0], (1, S, 1))
    (found_K,) = COLUMNS.item(counts(500, 500), counts(500, 500), np.zeros(1, np.int64), always)
    assert np.isfinite(found_K).all()
    assert np.isfinite(COLUMNS.user(counts(500, 500), always)).all()
    more_K = COLUMNS.item(counts(10, 500), *NO_VALUES, ALL)[0]
    assert np.isfinite(more_K).all(), "in a search one may act on what no list showed"
    (stranger_K,) = COLUMNS.item(counts(0), *NO_VALUES, ALL)
    assert stranger_K == pytest.approx(np.zeros(COLUMNS.num_item), abs=1e-6), "never shown: as everybody"
    (first_K,) = COLUMNS.item(counts(0), *NO_VALUES, counts(0))
    assert not first_K.any(), "nothing was shown at all"


def test_an_item_that_nobody_knows_reads_as_its_categories_do() -> None:
    value_VSA = np.concatenate([counts(200, 100), counts(200, 10)])
    (found_K,) = COLUMNS.item(counts(0), value_VSA, np.zeros(2, np.int64), ALL)
    own_K, of_values_K = found_K[: S * 2], found_K[S * 2 : S * 4]
    assert own_K == pytest.approx(of_values_K, abs=1e-5)
    assert of_values_K.reshape(S, 2)[:, 0].min() > 0, "the one is liked more than the other is not"


def test_a_log_without_lists_has_counts_and_no_rates() -> None:
    (item_K,) = COLUMNS.item(counts(0, 7), *NO_VALUES, counts(0, 500))
    assert not item_K[: S * 4].any()
    assert item_K[S * 5 :] == pytest.approx(np.full(S, np.log(8) / LOG_SCALE))
    (user_K,) = COLUMNS.user(counts(0, 7), counts(0, 500))
    assert not user_K.any()


def test_a_user_is_compared_with_everybody() -> None:
    (found_K,) = COLUMNS.user(counts(50, 25), ALL)
    assert found_K[: S * 2].reshape(S, 2)[:, 0].min() > 1
    (stranger_K,) = COLUMNS.user(counts(0), ALL)
    assert not stranger_K.any()


def items(**genres: list[str]) -> ItemValues:
    schema = pa.schema([pa.field("item_id", pa.string()), *attribute_fields(DOMAIN.attributes)])
    rows = [{"item_id": item, "title": item, "genres": of} for item, of in genres.items()]
    return ItemValues.of(pa.Table.from_pylist(rows, schema=schema), DOMAIN)


def of_items(values: ItemValues, *names: str) -> list[tuple[str, int]]:
    number_V, value_V = values.of_items(np.array([hash64(name) for name in names], np.uint64))
    return [(names[number], value) for number, value in zip(number_V.tolist(), value_V.tolist(), strict=True)]


def test_values_of_items_are_found_and_replaced() -> None:
    war, drama = hash64_column(pa.array(["genres/war", "genres/drama"])).tolist()
    values = items(a=["war", "drama"], b=[], c=["war"])
    assert of_items(values, "c", "unknown", "a") == [("c", war), ("a", war), ("a", drama)]
    newer = values.updated(items(c=["drama"], d=["war"]))
    assert of_items(newer, "a", "b", "c", "d") == [("a", war), ("a", drama), ("c", drama), ("d", war)]
    nothing = items()
    assert of_items(nothing, "a") == []
    assert of_items(nothing.updated(values), "c") == [("c", war)]


def test_a_mean_by_item_is_of_its_own_values() -> None:
    mean_NF = mean_by_item(np.array([[1.0], [3.0], [5.0]]), np.array([0, 0, 2]), 4)
    assert mean_NF.tolist() == [[2.0], [0.0], [5.0], [0.0]]
