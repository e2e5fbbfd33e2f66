"""Ragged requests: what is taken, joined, thinned and padded is what a list of lists would hold."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rayapp.contracts.schema import FIRST_ACTION_ID
from rayapp.features.requests import Requests, context_row, full_request
from rayapp.features.sequence import Sequences

SIZES = st.lists(st.integers(0, 5), min_size=1, max_size=6)


def make(sizes: list[int]) -> tuple[Requests, list[list[int]]]:
    """Requests of so many candidates, of 3 actions each, and the hashes of each one's candidates."""
    candidates = [[100 * r + c for c in range(size)] for r, size in enumerate(sizes)]
    ones = [
        Requests.of_one(
            r,
            1_000 + r,
            context_row((), 1_000 + r, {}),
            Sequences(
                np.full((1, 3), FIRST_ACTION_ID, np.uint8), np.full((1, 3), r, np.uint64), np.zeros((1, 3), np.int64),
                np.array([3])
            ),
            np.array(hashes, np.uint64),
            np.array([r], np.float32),
            np.array(hashes, np.float32)[:, None],
        )
        for r, hashes in enumerate(candidates)
    ]  # fmt: skip
    return Requests.concatenate(ones), candidates


def lists(requests: Requests) -> list[list[int]]:
    return [
        requests.candidate_hash_N[a:b].tolist() for a, b in zip(requests.offset_R, requests.offset_R[1:], strict=False)
    ]


@given(SIZES, st.data())
def test_some_requests_in_any_order(sizes: list[int], data: st.DataObject) -> None:
    requests, candidates = make(sizes)
    assert lists(requests) == candidates
    rows = data.draw(st.lists(st.integers(0, len(sizes) - 1), max_size=8))
    some = requests.take(np.array(rows, np.int64))
    assert lists(some) == [candidates[r] for r in rows]
    assert some.user_hash_R.tolist() == some.sequences.item_hash_RL[:, 0].tolist() == rows
    assert some.context["timestamp_ms"].to_pylist() == some.timestamp_ms_R.tolist() == [1_000 + r for r in rows]
    assert some.user_statistic_RK[:, 0].tolist() == rows
    assert some.item_statistic_NK[:, 0].tolist() == some.candidate_hash_N.tolist()
    assert (
        requests.candidate_hash_N[requests.places(np.array(rows, np.int64))].tolist() == some.candidate_hash_N.tolist()
    )


@given(SIZES, st.data())
def test_some_candidates_of_every_request(sizes: list[int], data: st.DataObject) -> None:
    requests, candidates = make(sizes)
    keep = data.draw(st.lists(st.booleans(), min_size=sum(sizes), max_size=sum(sizes)))
    kept = {c for c, stays in zip(requests.candidate_hash_N.tolist(), keep, strict=True) if stays}
    thinned = requests.with_candidates(np.array(keep, bool))
    assert lists(thinned) == [[c for c in of_one if c in kept] for of_one in candidates]
    assert len(thinned) == len(requests)


@given(SIZES, st.integers(0, 3))
def test_padding_adds_zeros_behind_and_says_where(sizes: list[int], more: int) -> None:
    requests, candidates = make(sizes)
    for width in (None, max(*sizes, 1) + more):
        padded, valid = requests.pad(requests.candidate_hash_N, width), requests.valid(width)
        assert padded.shape == valid.shape == (len(sizes), max(*sizes, 1) if width is None else width)
        assert [row[there].tolist() for row, there in zip(padded, valid, strict=True)] == candidates
        assert not padded[~valid].any()
        assert requests.pad(requests.item_statistic_NK, width)[valid].tolist() == requests.item_statistic_NK.tolist()


@given(st.integers(1, 6), st.integers(1, 6))
def test_histories_of_any_two_lengths_are_joined(one: int, other: int) -> None:
    both = [
        full_request((), (2, 2), np.arange(1, n + 1, dtype=np.uint64), np.zeros(2, np.uint64)) for n in (one, other)
    ]
    joined = Requests.concatenate(both)
    assert joined.sequences.action_RL.shape == (2, max(one, other))
    assert joined.sequences.length_R.tolist() == [one, other]
    for r, alone in enumerate(both):
        assert joined.sequences.hash_of(r) == alone.sequences.hash_of(0)
        cut = joined.sequences.of_length(1).take(np.array([r]))
        assert (cut.item_hash_RL.tolist(), cut.length_R.tolist()) == ([[1]], [1])
