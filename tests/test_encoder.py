"""The sequence encoders, with a test for each defect known of the reference code."""

import dataclasses
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rayapp.contracts.config import ModelConfig
from rayapp.contracts.presets import VARIANTS, nano, variant
from rayapp.contracts.schema import FIRST_ACTION_ID, PAD
from rayapp.model.encoder import ENCODERS, SequenceEncoder

CONFIG = nano().model
VOCABULARY_SIZE = 6
K, LENGTH = CONFIG.latest_k, CONFIG.history_length
SEQUENCE_VARIANTS = sorted(
    name for name in VARIANTS if variant(nano(), name).model.encoder != "none" and name != "double-length"
)


def make(config: ModelConfig = CONFIG, **changed: Any) -> SequenceEncoder:
    torch.manual_seed(0)
    config = dataclasses.replace(config, **changed)
    return ENCODERS[config.encoder](config, VOCABULARY_SIZE).eval()


def inputs(n: int, length: int, real: int, candidates: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(n * 100 + length)
    action = torch.randint(FIRST_ACTION_ID, VOCABULARY_SIZE, (n, length))
    action[:, real:] = PAD
    return action, torch.randn(n, length, CONFIG.item_dim), torch.randn(n, candidates, CONFIG.item_dim)


@pytest.fixture
def encoder() -> SequenceEncoder:
    return make()


def test_the_published_read_out_has_1056_numbers() -> None:
    assert ENCODERS["transact"](ModelConfig(), VOCABULARY_SIZE).output_dim == 11 * 96 == 1056


@pytest.mark.parametrize("candidates", [1, 3])
def test_it_is_pytorch_s_encoder_on_the_concatenated_rows(candidates: int) -> None:
    """Weights of a plain `nn.TransformerEncoder` load, and give the same output."""
    encoder = make()
    layer = nn.TransformerEncoderLayer(
        encoder.row_dim, CONFIG.num_heads, CONFIG.feedforward_dim, activation="relu", norm_first=False, batch_first=True
    )
    plain = nn.TransformerEncoder(layer, CONFIG.num_layers, enable_nested_tensor=False).eval()
    encoder.transformer.load_state_dict(plain.state_dict())
    action, history, candidate = inputs(2, 10, 10, candidates)
    out = encoder(action, history, candidate)
    for c in range(candidates):
        fused = candidate[:, c, None].expand(-1, 10, -1)
        rows = plain(torch.cat([encoder.action_embedding(action), history, fused], dim=-1))
        expected = torch.cat([rows[:, :K].flatten(1), rows.max(dim=1).values], dim=-1)
        torch.testing.assert_close(out[:, c], expected)


def test_v1_0_is_one_layer_and_every_row() -> None:
    config = variant(nano(), "v1.0").model
    encoder = make(config)
    assert config.num_layers == 1
    assert config.num_cross_layers == 0
    assert encoder.output_dim == LENGTH * encoder.row_dim


def test_appended_the_candidate_is_a_row_of_its_own() -> None:
    encoder = make(fusion="append", readout="all")
    assert encoder.output_dim == (LENGTH + 1) * (CONFIG.action_dim + CONFIG.item_dim)
    action, history, candidate = inputs(2, 10, 10)
    dummy = encoder.candidate_action_A.expand(2, 1, -1)
    rows = torch.cat([encoder.action_embedding(action), history], dim=-1)
    plain = encoder.transformer(torch.cat([torch.cat([dummy, candidate], dim=-1), rows], dim=1))
    torch.testing.assert_close(encoder(action, history, candidate)[:, 0, : 11 * encoder.row_dim], plain.flatten(1))


def test_cross_attends_like_pytorch_s_attention() -> None:
    encoder = make(encoder="cross", num_heads=2)
    attention = nn.MultiheadAttention(encoder.row_dim, 2, kdim=encoder.row_dim, batch_first=True)
    attention.out_proj.weight.data.copy_(torch.eye(encoder.row_dim))
    attention.in_proj_weight.data.copy_(
        torch.cat([torch.eye(encoder.row_dim), encoder.key.weight, encoder.value.weight])
    )
    attention.in_proj_bias.data.copy_(torch.cat([torch.zeros(encoder.row_dim), encoder.key.bias, encoder.value.bias]))
    action, history, candidate = inputs(3, 12, 7, candidates=4)
    rows = encoder.encode(encoder.actions(action, history), action == PAD)
    expected, _ = attention(encoder.query(candidate), rows, rows, key_padding_mask=action == PAD)
    attended = encoder(action, history, candidate)[..., -encoder.row_dim :]
    torch.testing.assert_close(attended, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SEQUENCE_VARIANTS)
def test_every_variant_says_its_width_and_gives_zeros_without_history(name: str) -> None:
    """Defect: a fully masked row gave NaN, or let position 0 through."""
    encoder = make(variant(nano(), name).model)
    for length in (8, encoder.config.history_length):
        assert encoder(*inputs(3, length, 5, candidates=2)).shape == (3, 2, encoder.output_dim)
    out = encoder(*inputs(3, 8, 0, candidates=2))
    if encoder.config.fusion == "append":  # all but the candidate's own row
        out = out[..., encoder.row_dim :]
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", SEQUENCE_VARIANTS)
def test_what_lies_in_padding_never_matters(name: str, training: bool) -> None:
    """Defect: padding reached the max-pool, and differently in training and evaluation."""
    encoder = make(dataclasses.replace(variant(nano(), name).model, dropout=0.0)).train(training)
    action, history, candidate = inputs(4, LENGTH // 2, 5)
    other = history.clone()
    other[:, 5:] = 1e3
    torch.testing.assert_close(encoder(action, history, candidate), encoder(action, other, candidate))
    short = encoder(action[:, :5], history[:, :5], candidate)
    torch.testing.assert_close(encoder(action, history, candidate), short, atol=1e-5, rtol=1e-5)


def test_the_first_action_of_the_vocabulary_is_not_padding(encoder: SequenceEncoder) -> None:
    """Defect: the smallest action id was the padding id, and its events vanished."""
    action, history, candidate = inputs(1, 8, 8)
    action[:] = FIRST_ACTION_ID
    changed = history.clone()
    changed[0, 3] += 1.0
    assert (encoder(action, history, candidate) - encoder(action, changed, candidate)).abs().max() > 1e-3


def test_without_action_types_all_actions_are_alike() -> None:
    encoder = make(action_types=False)
    action, history, candidate = inputs(2, 8, 8)
    other = torch.full_like(action, FIRST_ACTION_ID)
    assert torch.equal(encoder(action, history, candidate), encoder(other, history, candidate))


def test_before_training_an_item_is_more_of_its_row_than_the_action() -> None:
    """Item vectors have length 1. At the published size PyTorch's own start gives an action 5.7."""
    encoder = ENCODERS["transact"](ModelConfig(), VOCABULARY_SIZE)
    assert encoder.action_embedding.weight.norm(dim=1).max() < 1
    assert not encoder.action_embedding.weight[PAD].any()


@pytest.mark.parametrize("name", SEQUENCE_VARIANTS)
def test_an_empty_history_gives_finite_gradients(name: str) -> None:
    encoder = make(variant(nano(), name).model).train()
    encoder(*inputs(3, 8, 0)).sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_python_s_random_generator_is_not_used(encoder: SequenceEncoder) -> None:
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


def test_a_config_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="encoder must be one of"):
        ModelConfig(encoder="lstm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="readout names"):
        ModelConfig(readout="latest+min")
