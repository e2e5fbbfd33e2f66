"""The fast scorer says what the plain module says, for every shape, variant, thread and size of logits."""

import copy
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayapp.contracts.presets import VARIANTS, nano, variant
from rayapp.contracts.schema import FIRST_ACTION_ID, PAD
from rayapp.features.requests import Requests
from rayapp.model import fast_encoder
from rayapp.model.fast_encoder import plain_blocks
from rayapp.model.scorer import Scorer
from tests.scorers import CONFIG, LENGTH, hashes, request, scorer_of, some_request

BLOCK = 4
"""Candidates of a block in these tests, at full length."""


def both(scorer: Scorer, asked: Requests) -> tuple[Tensor, Tensor]:
    """Logits of the fast ranker and of the plain module, `[C, H]`; of a padded candidate where there is none."""
    assert scorer.fast is not None
    with torch.inference_mode():
        batch = scorer.inputs.batch(asked)
        if not len(asked.candidate_hash_N):
            assert scorer.score(asked).probability_CH.shape == (0, 2)
        return scorer.fast(batch), scorer.ranker(batch)[0]


@settings(deadline=None, max_examples=80)
@given(
    heads=st.sampled_from([1, 2]),
    layers=st.integers(1, 3),
    readout=st.sampled_from(["latest+max", "all", "max", "latest", "random+max"]),
    positions=st.sampled_from(["none", "learned"]),
    crosses=st.integers(0, 2),
    real=st.integers(0, LENGTH),
    candidates=st.sampled_from([0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 1]),
)
def test_it_is_the_plain_module(
    heads: int, layers: int, readout: str, positions: str, crosses: int, real: int, candidates: int
) -> None:
    config = dataclasses.replace(
        CONFIG, num_heads=heads, num_layers=layers, readout=readout, positions=positions, num_cross_layers=crosses
    )
    row_bytes = 4 * LENGTH * (CONFIG.action_dim + 2 * CONFIG.item_dim)
    with mock.patch.object(fast_encoder, "BLOCK_BYTES", BLOCK * row_bytes):
        fast, plain = both(scorer_of(config), some_request(real, candidates))
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "double-length"])
@pytest.mark.parametrize("real", [0, 3, 8])
def test_so_is_every_variant(name: str, real: int) -> None:
    scorer = scorer_of(variant(nano(), name).model)
    for candidates in (0, 1, 70):
        torch.testing.assert_close(*both(scorer, some_request(real, candidates)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("scale", "layers", "is_guarded"),
    [(1.0, "", False), (5.0, "", True), (30.0, "", True), (5.0, "layers.0", False), (30.0, "layers.0", True)],
)
def test_logits_of_any_size_are_exact(scale: float, layers: str, is_guarded: bool) -> None:
    """Where logits reach far, rounding shows: the guards have to see it, in the first layer by the request's own logits
    and in the others by their weights.

    Logits of hundreds cost float32 itself some digits, so float64 is the judge: never worse than the plain module.
    """
    scorer = scorer_of(CONFIG, scale, layers)
    exact_ranker = copy.deepcopy(scorer.ranker).double()
    with mock.patch("rayapp.model.fast_encoder.plain_blocks", side_effect=plain_blocks) as guarded:
        for seed in range(5):
            asked = some_request(LENGTH, 30, seed)
            fast, plain = both(scorer, asked)
            batch = scorer.inputs.batch(asked)
            doubled = {name: getattr(batch, name) for name in batch.__slots__}
            doubled = {name: x.double() if x.is_floating_point() else x for name, x in doubled.items()}
            exact = exact_ranker(dataclasses.replace(batch, **doubled))[0]
            error, error_of_plain = ((logits - exact).abs().max() for logits in (fast, plain))
            assert error < max(1e-5, 2 * error_of_plain)
    assert guarded.called == is_guarded


def test_what_lies_in_padding_never_matters() -> None:
    scorer = scorer_of(CONFIG)
    assert scorer.fast is not None
    batch = scorer.inputs.batch(some_request(LENGTH, 9))
    batch.action_BL[:, 5:] = PAD
    other = dataclasses.replace(batch, history_BLE=batch.history_BLE.clone())
    other.history_BLE[:, 5:] = float("nan")
    with torch.inference_mode():
        assert torch.equal(scorer.fast(batch), scorer.fast(other))
        torch.testing.assert_close(scorer.fast(batch), scorer.ranker(batch)[0], atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(20)), split=st.integers(0, 20), real=st.integers(0, LENGTH))
def test_a_score_never_depends_on_other_candidates(order: list[int], split: int, real: int) -> None:
    """Also not on those of the same block, or on how many a block holds."""
    scorer = scorer_of(CONFIG)
    asked = some_request(real, 20)
    whole, _ = scorer.score(asked)
    with mock.patch.object(fast_encoder, "BLOCK_BYTES", 10_000):
        parts = [scorer.score(only(asked, np.array(part, np.int64)))[0] for part in (order[:split], order[split:])]
    np.testing.assert_allclose(np.concatenate(parts), whole[order], atol=1e-6)


def only(asked: Requests, index: np.ndarray) -> Requests:
    """The same request for some of its candidates."""
    return dataclasses.replace(
        asked,
        offset_R=np.array([0, len(index)]),
        candidate_hash_N=asked.candidate_hash_N[index],
        item_statistic_NK=asked.item_statistic_NK[index],
    )


def test_threads_score_side_by_side() -> None:
    scorer = scorer_of(CONFIG)
    asked = [some_request(n % (LENGTH + 1), 20, seed=n) for n in range(60)]
    alone = [scorer.score(one)[0] for one in asked]
    with ThreadPoolExecutor(4) as threads:
        for together, expected in zip(threads.map(lambda one: scorer.score(one)[0], asked), alone, strict=True):
            np.testing.assert_allclose(together, expected, atol=1e-6)


def test_an_item_put_a_second_ago_is_scored_by_the_same_prepared_weights() -> None:
    scorer = scorer_of(CONFIG)
    item = {"item_id": "i44", "created_at_ms": 5, "title": "film new", "genres": ["g1"]}
    extended = scorer.with_table(scorer.inputs.table.with_items([item]))
    assert extended.fast is scorer.fast
    asked = request(np.full(3, FIRST_ACTION_ID, np.uint8), hashes("i1", "i44", "i2"), hashes("i44", "i3"))
    torch.testing.assert_close(*both(extended, asked), atol=1e-5, rtol=1e-5)
    assert np.abs(extended.score(asked)[0] - scorer.score(asked)[0])[0].max() > 1e-6
