"""The orders of items: what comes first, what fades out of them, and that replicas agree."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rayapp.contracts.config import DAY_MS, FOREVER, HOUR_MS
from rayapp.contracts.hashing import hash64
from rayapp.features.statistics import DecayedCounts, Grid, Increments
from rayapp.retrieval.index import CandidateIndex
from rayapp.retrieval.orders import LEAST_COUNT, NO_POSITIVES, Positives
from tests.films import item, positives, table_of

GRID = Grid(HOUR_MS // 6, (HOUR_MS, DAY_MS, 7 * DAY_MS, FOREVER))
HOUR, YEAR = 6, 365 * 24 * 6
"""In steps of the grid."""
SIZE = 8
INDEX = CandidateIndex(table_of([item(n) for n in range(SIZE)]))
HALF = table_of([item(n) for n in range(SIZE // 2)])


def index_of(done: Positives = NO_POSITIVES) -> CandidateIndex:
    return INDEX.ordered(done)


def ids(index: CandidateIndex, order: str) -> list[str]:
    """The items of an order, without the row that stands for absent ones."""
    return [index.table.item(row)["item_id"] for row in getattr(index.orders, order).tolist() if row]


def as_of(steps: dict[str, list[int]], step: int, grid: Grid = GRID) -> Positives:
    """One action on an item in each of its steps, as statistics count them."""
    key_E = np.array([hash64(item_id) for item_id, of_item in steps.items() for _ in of_item], np.uint64)
    step_E = np.array([at for of_item in steps.values() for at in of_item], np.int64)
    counted = DecayedCounts.of(
        grid, Increments.added_up([Increments(key_E, step_E, np.ones((len(key_E), 1), np.int64))])
    )
    return Positives.of(grid, counted.key_K, counted.at(counted.key_K, np.full(len(counted.key_K), step))[:, :, 0])


def test_popular_is_what_was_done_for_long_and_trending_what_was_done_lately() -> None:
    for_days = [YEAR - day * 24 * HOUR for day in range(1, 6)]
    done = as_of({"i1": for_days, "i2": [YEAR - 1, YEAR - 2], "i3": [YEAR - 1]}, YEAR)
    index = index_of(done)
    assert ids(index, "popular") == ["i1", "i2", "i3", "i7", "i6", "i5", "i4", "i0"]
    assert ids(index, "trending") == ["i2", "i3"]
    assert index.orders.trend_N[index.table.rows_of_ids(["i2", "i1"])].tolist() == [1.0, 0.0]


def test_without_counts_the_likes_of_the_table_say_what_is_popular() -> None:
    index = index_of()
    assert ids(index, "popular") == [f"i{n}" for n in range(SIZE - 1, -1, -1)]
    assert ids(index, "trending") == []


def test_what_is_of_one_date_is_new_by_popularity() -> None:
    table = table_of([item(n, created_at_ms=1_990) for n in range(SIZE)])
    index = CandidateIndex(table, positives({}, {"i2": 1.0, "i5": 3.0}))
    assert ids(index, "newest") == ids(index, "popular") == ["i5", "i2", "i7", "i6", "i4", "i3", "i1", "i0"]
    assert ids(index_of(positives({}, {"i2": 1.0})), "newest")[0] == "i7", "another date comes first"


def test_what_was_done_fades_and_years_of_silence_do_no_harm() -> None:
    done = {"i0": [0, 0], "i1": [0]}
    assert ids(index_of(as_of(done, 1)), "trending") == ["i0", "i1"]
    hours = int(np.ceil(-np.log2(LEAST_COUNT)))
    later = index_of(as_of(done, hours * HOUR))
    assert ids(later, "trending") == ["i0"], "an action counts for a little over four half-lives"
    assert ids(later, "popular")[:2] == ["i0", "i1"]
    forgotten = as_of(done, 50 * YEAR)
    assert len(forgotten.hash_K) == 0
    new = as_of(done | {"i2": [50 * YEAR]}, 50 * YEAR + 1)
    assert ids(index_of(new), "trending") == ids(index_of(new), "popular")[:1] == ["i2"]


def test_a_domain_whose_counts_never_fade_has_orders_too() -> None:
    done = as_of({"i0": [0, 1, 2], "i1": [YEAR]}, 2 * YEAR, Grid(GRID.step_ms, (FOREVER,)))
    index = index_of(done)
    assert ids(index, "trending") == ids(index, "popular")[:2] == ["i0", "i1"]


def test_popularity_is_1_for_the_first_and_0_for_those_that_nobody_knows() -> None:
    assert CandidateIndex(table_of([item(0)])).orders.popularity_N.tolist() == [0.0, 0.0]
    index = index_of(positives({}, {"i0": 9.0, "i1": 5.0, "i2": 5.0}))
    popularity = dict(zip(["absent", *(f"i{n}" for n in range(SIZE))], index.orders.popularity_N.tolist(), strict=True))
    assert popularity["i0"] == 1.0
    assert 0 < popularity["i3"] < popularity["i7"] < popularity["i1"] < popularity["i2"] < 1
    assert popularity["absent"] == 0.0


names = st.integers(0, SIZE - 1).map(lambda n: f"i{n}")
counts = st.dictionaries(names, st.integers(1, 3).map(float))


@given(lately=counts, lasting=counts, put=st.permutations(range(SIZE)), noise=st.integers(-3, 3))
def test_replicas_agree_whatever_the_rows_of_their_tables(
    lately: dict[str, float], lasting: dict[str, float], put: list[int], noise: int
) -> None:
    """Half of the items were put since the table was made, on each replica in another order; all counts alike."""
    done = positives(lately, lasting)
    later = [item(n) for n in put if n >= SIZE // 2]
    one = CandidateIndex(HALF.with_items(later), done)
    other = CandidateIndex(HALF.with_items(sorted(later, key=lambda each: str(each["item_id"]))), done)
    for order in ("popular", "newest", "trending"):
        assert ids(one, order) == ids(other, order)
    assert ids(one, "trending") == [i for i in ids(one, "trending") if i in lately]
    rounded = np.stack([done.lately_K, done.lasting_K, done.lasting_K], axis=1) * (1 + noise * 1e-6)
    grid = Grid(GRID.step_ms, (HOUR_MS, DAY_MS, FOREVER))
    summed = Positives.of(grid, done.hash_K, rounded)
    assert summed.lately_K.tolist() == done.lately_K.tolist(), "sums differ by a rounding, and nothing else does"
    assert summed.lasting_K.tolist() == done.lasting_K.tolist()


@given(lately=counts, lasting=counts)
def test_each_order_is_sorted_and_whole(lately: dict[str, float], lasting: dict[str, float]) -> None:
    index = index_of(positives(lately, lasting))
    popular, trending, orders = ids(index, "popular"), ids(index, "trending"), index.orders
    assert sorted(popular) == sorted(ids(index, "newest")) == [f"i{n}" for n in range(SIZE)]
    assert popular == sorted(popular, key=lambda i: (-lasting.get(i, 0.0), -int(i[1:])))
    assert trending == sorted(lately, key=lambda i: (-lately[i], popular.index(i)))
    assert (np.diff(orders.popularity_N[orders.popular]) <= 0).all()
    assert ((orders.trend_N[orders.trending] > 0) & (orders.trend_N[orders.trending] <= 1)).all()
