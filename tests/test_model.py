"""The ranker, with a test for each defect known of the reference code."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rayapp.config import ModelConfig, nano
from rayapp.features.items import ABSENT, ItemEncoder
from rayapp.hashing import hash64
from rayapp.model.encoder import TransActEncoder
from rayapp.model.item_table import ItemTable
from rayapp.model.ranker import CrossNetwork, Ranker, ranking_loss
from rayapp.model.scorer import Scorer
from rayapp.model.tower import LinearTower, fit_linear_tower
from rayapp.schema import FIRST_ACTION_ID, PAD, Attribute, AttributeKind

CONFIG = nano().model
VOCABULARY_SIZE = 6
ATTRIBUTES = (Attribute("title", AttributeKind.TEXT), Attribute("genres", AttributeKind.CATEGORIES))


@pytest.fixture
def encoder() -> TransActEncoder:
    torch.manual_seed(0)
    return TransActEncoder(CONFIG, VOCABULARY_SIZE).eval()


def inputs(n: int, length: int, real: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(n * 100 + length)
    action = torch.randint(FIRST_ACTION_ID, VOCABULARY_SIZE, (n, length))
    action[:, real:] = PAD
    return action, torch.randn(n, length, CONFIG.item_dim), torch.randn(n, CONFIG.item_dim)


def test_read_out_is_the_newest_k_rows_and_the_max_pool(encoder: TransActEncoder) -> None:
    action, history, candidate = inputs(3, 16, 16)
    out = encoder(action, history, candidate)
    assert out.shape == (3, (CONFIG.latest_k + 1) * CONFIG.encoder_dim) == (3, encoder.output_dim)
    assert ModelConfig().encoder_dim == 96
    assert (ModelConfig().latest_k + 1) * 96 == 1056


def test_it_is_pytorch_s_encoder_on_the_concatenated_rows(encoder: TransActEncoder) -> None:
    action, history, candidate = inputs(2, 10, 10)
    rows = torch.cat([encoder.action_embedding(action), history, candidate[:, None].expand(-1, 10, -1)], dim=-1)
    plain = encoder.transformer(rows)
    expected = torch.cat([plain[:, : CONFIG.latest_k].flatten(1), plain.max(dim=1).values], dim=-1)
    torch.testing.assert_close(encoder(action, history, candidate), expected)


@pytest.mark.parametrize("training", [False, True])
def test_what_lies_in_padding_never_matters(training: bool) -> None:
    """Defect: padding reached the max-pool, and differently in training and evaluation."""
    encoder = TransActEncoder(dataclasses.replace(CONFIG, dropout=0.0), VOCABULARY_SIZE).train(training)
    action, history, candidate = inputs(4, 16, 5)
    other = history.clone()
    other[:, 5:] = 1e3
    torch.testing.assert_close(encoder(action, history, candidate), encoder(action, other, candidate))
    short = encoder(action[:, :5], history[:, :5], candidate)
    torch.testing.assert_close(encoder(action, history, candidate), short, atol=1e-5, rtol=1e-5)


def test_the_first_action_of_the_vocabulary_is_not_padding(encoder: TransActEncoder) -> None:
    """Defect: the smallest action id was the padding id, and its events vanished."""
    action, history, candidate = inputs(1, 8, 8)
    action[:] = FIRST_ACTION_ID
    changed = history.clone()
    changed[0, 3] += 1.0
    assert (encoder(action, history, candidate) - encoder(action, changed, candidate)).abs().max() > 1e-3


@pytest.mark.parametrize("training", [False, True])
def test_an_empty_history_is_zeros_and_its_content_leaks_nowhere(encoder: TransActEncoder, training: bool) -> None:
    """Defect: a fully masked row gave NaN, or let position 0 through."""
    encoder.train(training)
    action, history, candidate = inputs(3, 8, 0)
    out = encoder(action, history, candidate)
    assert torch.equal(out, torch.zeros_like(out))
    out.sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_python_s_random_generator_is_not_used(encoder: TransActEncoder) -> None:
    """Defect: the mask was drawn inside forward, once per batch, from Python's global generator."""
    state = random.getstate()
    encoder.train()
    torch.manual_seed(5)
    first = encoder(*inputs(2, 8, 8))
    random.random()
    torch.manual_seed(5)
    encoder_again = encoder(*inputs(2, 8, 8))
    random.setstate(state)
    torch.testing.assert_close(first, encoder_again)


def test_cross_network_is_dcn_v2() -> None:
    torch.manual_seed(1)
    cross = CrossNetwork(5, 2)
    x = torch.randn(3, 5)
    expected = x
    for layer in cross.layers:
        assert isinstance(layer, nn.Linear)
        expected = x * (expected @ layer.weight.T + layer.bias) + expected
    torch.testing.assert_close(cross(x), expected)


def test_an_impression_without_an_action_has_weight() -> None:
    """Read to the letter the paper's matrix gives it none, and no negative would be learnt from."""
    logits = torch.zeros(1, 2, 2, requires_grad=True)
    label = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    ranking_loss(logits, label, valid, torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]])).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[0, 1], torch.zeros(2))  # a matrix without the column: the trap
    logits.grad = None
    ranking_loss(logits, label, valid, torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 1.0]])).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[[-0.25, 0.75], [0.5, 0.25]]]))


def test_padded_candidates_cost_nothing() -> None:
    logits, label = torch.randn(2, 3, 2), torch.zeros(2, 3, 2)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    weights = torch.ones(2, 3)
    loss = ranking_loss(logits, label, valid, weights)
    logits[~valid] = 1e3
    torch.testing.assert_close(ranking_loss(logits, label, valid, weights), loss)


def make_scorer(num_items: int = 40, config: ModelConfig = CONFIG) -> Scorer:
    rng = np.random.default_rng(0)
    items = [
        {"item_id": f"i{n}", "created_at_ms": n, "title": f"film {n}", "genres": [f"g{n % 3}"]}
        for n in range(num_items)
    ]
    tower = LinearTower(rng.normal(size=(64, config.item_dim)).astype(np.float32), ATTRIBUTES)
    table = ItemTable.make("t", tower, items, np.arange(num_items), tower.embed(items), 0)
    encoder = ItemEncoder.fit(items, ATTRIBUTES)
    torch.manual_seed(0)
    ranker = Ranker(
        config,
        vocabulary_size=VOCABULARY_SIZE,
        num_heads=2,
        num_categories=encoder.num_categories,
        num_numbers=encoder.num_numbers,
    )
    return Scorer(ranker, table, encoder, VOCABULARY_SIZE)


def hashes(*ids: str) -> np.ndarray:
    return np.array([hash64(i) for i in ids], np.uint64)


@settings(deadline=None, max_examples=25)
@given(
    order=st.permutations(range(30)),
    split=st.integers(1, 29),
    real=st.integers(0, CONFIG.history_length),
    padding=st.integers(0, 3),
)
def test_a_score_depends_on_the_user_and_the_item_alone(order: list[int], split: int, real: int, padding: int) -> None:
    """Defect: scores moved with batch mates. Any order, any split, any padding: the same scores."""
    scorer = make_scorer()
    action = np.full(CONFIG.history_length, PAD, np.uint8)
    action[:real] = FIRST_ACTION_ID + np.arange(real) % 3
    history = hashes(*(f"i{n}" for n in range(CONFIG.history_length)))
    ids = [f"i{n}" for n in order]
    whole, known = scorer.score(action, history, hashes(*ids))
    assert known.all()
    parts = [
        scorer.score(np.pad(action, (0, padding)), np.pad(history, (0, padding)), hashes(*part))[0]
        for part in (ids[:split], ids[split:])
    ]
    np.testing.assert_allclose(whole, np.concatenate(parts), atol=2e-6)


def test_unknown_actions_and_items_are_scored_and_flagged() -> None:
    """Defect: an unknown action id crashed."""
    scorer = make_scorer()
    action = np.array([200, 99, 2], np.uint8)
    scores, known = scorer.score(action, hashes("i1", "nowhere", "i2"), hashes("i3", "nowhere"))
    assert known.tolist() == [True, False]
    assert np.isfinite(scores).all()
    as_unknown, _ = scorer.score(np.array([1, 1, 2], np.uint8), hashes("i1", "nowhere", "i2"), hashes("i3", "nowhere"))
    np.testing.assert_array_equal(scores, as_unknown)


def test_without_the_sequence_the_user_s_actions_change_nothing() -> None:
    scorer = make_scorer(config=dataclasses.replace(CONFIG, use_sequence=False))
    empty, _ = scorer.score(np.zeros(4, np.uint8), hashes("a", "b", "c", "d"), hashes("i1", "i2"))
    full, _ = scorer.score(np.full(4, 2, np.uint8), hashes("i5", "i6", "i7", "i8"), hashes("i1", "i2"))
    np.testing.assert_array_equal(empty, full)


def test_a_new_item_is_embedded_by_the_table_s_own_tower() -> None:
    scorer = make_scorer()
    item = {"item_id": "new", "created_at_ms": 5, "title": "film new", "genres": ["g1", "never seen"]}
    table = scorer.table.with_items([item])
    (row,) = table.rows_of_ids(["new"])
    assert row == table.num_rows - 1
    assert scorer.table.rows_of_ids(["new"])[0] == ABSENT
    np.testing.assert_allclose(table.vectors_NE[row], table.tower.embed([item])[0])
    changed = table.with_items([{**item, "genres": ["g2"]}])
    assert changed.num_rows == table.num_rows
    assert changed.item(int(row))["genres"] == ["g2"]
    _, known = scorer.with_table(table).score(np.zeros(1, np.uint8), hashes("x"), hashes("new"))
    assert known.all()


def test_two_items_of_one_id_are_refused() -> None:
    tower = LinearTower(np.zeros((8, 4), np.float32), ATTRIBUTES)
    items = [{"item_id": "a", "created_at_ms": 0}] * 2
    with pytest.raises(ValueError, match="'a'"):
        ItemTable.make("t", tower, items, np.zeros(2, np.int64), tower.embed(items), 0)


def test_a_tower_fitted_to_given_vectors_says_them_for_new_items() -> None:
    items = [{"item_id": f"i{n}", "created_at_ms": 0, "title": f"t{n}", "genres": [f"g{n % 2}"]} for n in range(60)]
    given = np.eye(2, dtype=np.float32)[np.arange(60) % 2]
    tower = fit_linear_tower(items, ATTRIBUTES, given, np.ones(60, np.float32))
    new = tower.embed([{"item_id": "n", "created_at_ms": 0, "title": "unseen", "genres": ["g0"]}])[0]
    np.testing.assert_allclose(new, given[0], atol=0.05)
    assert np.isfinite(tower.embed([{"item_id": "bare", "created_at_ms": 0}])).all()
