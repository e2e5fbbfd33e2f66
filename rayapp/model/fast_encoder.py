"""TransAct's encoder for one user and many candidates, exact and with less than half the arithmetic.

The candidate is in every row, so in the first layer whatever is linear splits into a part of the user and a part of
the candidate. With one head, pairs of matrices that follow one another are multiplied beforehand. docs/model.md
("Scoring fast") has the formulas.

Shapes: C candidates, B of them in a block, L actions (newest first, no padding), D row width, E item vector width,
A heads, R `B * L` rows, G read-out width.
"""

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from rayapp.contracts.schema import PAD
from rayapp.model.encoder import SequenceEncoder, TransActEncoder
from rayapp.model.ranker import Batch

BLOCK_BYTES: Final = 320_000
"""Of one activation `[B, L, D]`: the five that live at a time fit a core's second-level cache of 2 MB."""
LARGEST_RANGE: Final = 40.0
"""Of the first layer's attention logits. An error of rounding in a logit grows with it and the softmax passes it on, so
beyond this the plain module is used: what it rounds, training has rounded alike. (Exponentiated in two factors, a range
beyond 70 would also leave float32.)"""
LARGEST_SPREAD: Final = 4.0
"""Of a later layer's attention logits: their standard deviation over normalised rows. Sharper ones would enlarge what
the layers before them rounded. Trained models stand at 0.8 to 1.1."""
PLAIN_BLOCK: Final = 64
"""Candidates at a time in the plain module: their activations stay in the cache."""
Block = Callable[[slice], Tensor]


class EarlyFusion:
    """A trained TransActEncoder with fusion `concat`, prepared; the weights must not change afterwards."""

    def __init__(self, encoder: TransActEncoder) -> None:
        self._encoder = encoder
        first, *others = encoder.transformer.layers
        self._first = FirstLayer(first, encoder.config.item_dim)
        one_head = encoder.config.num_heads == 1
        self._others = [FoldedLayer(layer) if one_head else layer for layer in others]
        self._is_sharp = any(logit_spread(layer) > LARGEST_SPREAD for layer in others)

    def __call__(self, batch: Batch) -> Tensor:
        """`[C, G]` of a batch of one request; `[C, 0]` of a user without any action, whose read-out is zero."""
        encoder, candidate_CE = self._encoder, batch.candidate_BCE[0]
        length = int((batch.action_BL[0] != PAD).sum())
        if length == 0:
            return candidate_CE[:, :0]
        if self._is_sharp:
            return plain_blocks(encoder, batch)
        rows_LD = encoder.actions(batch.action_BL, batch.history_BLE)[0, :length]
        rows_LD = functional.pad(rows_LD, (0, candidate_CE.shape[1]))
        if encoder.position_LD is not None:
            rows_LD = rows_LD + encoder.position_LD[:length]
        first = self._first.of_user(rows_LD, candidate_CE)
        if first is None:
            return plain_blocks(encoder, batch)
        output_CG = candidate_CE.new_empty(len(candidate_CE), encoder.output_dim)
        size = max(1, BLOCK_BYTES // (rows_LD.numel() * rows_LD.element_size()))
        for at in range(0, len(candidate_CE), size):
            part = slice(at, at + size)
            x_BLD = first(part)
            for layer in self._others:
                x_BLD = layer(x_BLD)
            output_CG[part] = encoder.read_out(x_BLD, None)
        return output_CG


def logit_spread(layer: Any) -> float:
    """The standard deviation of a layer's attention logits between rows whose coordinates have variance 1, as a norm
    leaves them: the Frobenius norm of `W_q^T W_k / sqrt(width of a head)`, the largest of all heads."""
    attention = layer.self_attn
    q_DD, k_DD, _ = attention.in_proj_weight.detach().chunk(3)
    heads = zip(q_DD.chunk(attention.num_heads), k_DD.chunk(attention.num_heads), strict=True)
    return max(float(torch.linalg.matrix_norm(q_XD.T @ k_XD)) for q_XD, k_XD in heads) / math.sqrt(attention.head_dim)


def plain_blocks(encoder: SequenceEncoder, batch: Batch) -> Tensor:
    """The plain module's `[C, G]` of a batch of one request, some candidates at a time."""
    num_candidates = batch.candidate_BCE.shape[1]
    size = num_candidates if encoder.shared_dim else PLAIN_BLOCK  # each block computes what is shared again
    blocks = (batch.candidate_BCE[:, at : at + size] for at in range(0, num_candidates, size))
    return torch.cat([encoder(batch.action_BL, batch.history_BLE, block_BCE)[0] for block_BCE in blocks])


class FirstLayer:
    """The first layer, whose rows are `user's row + candidate`: everything linear is computed once for each of them.

    Of the logits `(q_l + q_c)·(k_l' + k_c)` the softmax over l' drops what is constant in l', which leaves
    `S[l, l'] + T[c, l']`. Its weights are then `exp(S) * exp(T) / sum`, one matrix for all candidates and one row for
    each, so that a candidate costs one matrix product.
    """

    def __init__(self, layer: Any, item_dim: int) -> None:
        attention = layer.self_attn
        self._heads, self._item_dim = attention.num_heads, item_dim
        self._scale = 1 / math.sqrt(attention.head_dim)
        self._query_DD, self._key_DD, self._value_DD = attention.in_proj_weight.detach().chunk(3)
        self._query_bias_D, _, self._value_bias_D = attention.in_proj_bias.detach().chunk(3)
        self._out_DD, self._out_bias_D = attention.out_proj.weight.detach(), attention.out_proj.bias.detach()
        self._rest = Rest(layer)

    def of_user(self, rows_LD: Tensor, candidate_CE: Tensor) -> Block | None:
        """A function from some of the candidates to the layer's output `[B, L, D]` for them; None where float32 holds
        the logits less exactly than is promised."""
        width = self._item_dim
        q_LD = functional.linear(rows_LD, self._query_DD, self._query_bias_D) * self._scale
        k_LD = rows_LD @ self._key_DD.T
        v_LD = functional.linear(rows_LD, self._value_DD, self._value_bias_D)
        q_CD = candidate_CE @ self._query_DD[:, -width:].T * self._scale
        rows_LD = rows_LD + self._out_bias_D
        own_CD = candidate_CE @ self._value_DD[:, -width:].T @ self._out_DD.T
        own_CD[:, -width:] += candidate_CE
        share = self._factors if self._heads == 1 else self._attention
        mix = share(q_LD, k_LD, q_CD, v_LD)
        if mix is None:
            return None

        def block(part: slice) -> Tensor:
            return self._rest(mix(rows_LD, part).add_(own_CD[part, None]))

        return block

    def _factors(self, q_LD: Tensor, k_LD: Tensor, q_CD: Tensor, v_LD: Tensor) -> "Mix | None":
        """The attention of one head by factors of its weights; None where the logits' range is too large."""
        s_LL, t_CL = q_LD @ k_LD.T, q_CD @ k_LD.T
        highest_L1, highest_C1 = s_LL.amax(-1, keepdim=True), t_CL.amax(-1, keepdim=True)
        ranges = ((high_X1[:, 0] - x_XL.amin(-1)).max() for x_XL, high_X1 in ((s_LL, highest_L1), (t_CL, highest_C1)))
        if sum(map(float, ranges)) > LARGEST_RANGE:
            return None
        s_LL, t_CL = (s_LL - highest_L1).exp_(), (t_CL - highest_C1).exp_()
        share_CL = (t_CL @ s_LL.T).reciprocal_()
        out_LD = v_LD @ self._out_DD.T

        def mix(rows_LD: Tensor, part: slice) -> Tensor:
            weighted_BLD = t_CL[part, :, None] * out_LD
            mixed_BLD = torch.bmm(s_LL.expand(len(weighted_BLD), -1, -1), weighted_BLD)
            return torch.addcmul(rows_LD, mixed_BLD, share_CL[part, :, None])

        return mix

    def _attention(self, q_LD: Tensor, k_LD: Tensor, q_CD: Tensor, v_LD: Tensor) -> "Mix":
        """The attention of several heads; only the projections are shared."""

        def split(x_BLD: Tensor) -> Tensor:
            return x_BLD.view(*x_BLD.shape[:2], self._heads, -1).transpose(1, 2)

        def mix(rows_LD: Tensor, part: slice) -> Tensor:
            q_BLD = q_LD + q_CD[part, None]
            k_BALX, v_BALX = (split(x_LD.expand(len(q_BLD), -1, -1)) for x_LD in (k_LD, v_LD))
            mixed = functional.scaled_dot_product_attention(split(q_BLD), k_BALX, v_BALX, scale=1.0)
            return functional.linear(mixed.transpose(1, 2).flatten(2), self._out_DD).add_(rows_LD)

        return mix


Mix = Callable[[Tensor, slice], Tensor]
"""From the user's rows and some of the candidates to rows plus what the attention adds to them, `[B, L, D]`."""


class FoldedLayer:
    """A layer of one head. `W_q^T W_k` and `W_o W_v` are one matrix each; what they add to all logits of a row alike
    is left out."""

    def __init__(self, layer: Any) -> None:
        attention = layer.self_attn
        # In float64, or the folded matrices would be the least exact part.
        q_DD, k_DD, v_DD = attention.in_proj_weight.detach().double().chunk(3)
        q_D, _, v_D = attention.in_proj_bias.detach().double().chunk(3)
        out_DD, out_D = attention.out_proj.weight.detach().double(), attention.out_proj.bias.detach().double()
        scale = 1 / math.sqrt(attention.head_dim)
        self._in_DX = torch.cat([q_DD.T @ k_DD * scale, (out_DD @ v_DD).T], dim=1).float()
        self._bias_X = torch.cat([q_D @ k_DD * scale, out_DD @ v_D + out_D]).float()
        self._rest = Rest(layer)

    def __call__(self, x_BLD: Tensor) -> Tensor:
        projected_RX = torch.addmm(self._bias_X, x_BLD.flatten(0, 1), self._in_DX)
        q_BLD, v_BLD = projected_RX.view(*x_BLD.shape[:2], -1).chunk(2, dim=-1)
        weight_BLL = torch.bmm(q_BLD, x_BLD.mT)
        # torch.softmax takes four times as long over rows of a hundred.
        weight_BLL.sub_(weight_BLL.amax(-1, keepdim=True)).exp_()
        sum_BL1 = weight_BLL.sum(-1, keepdim=True)
        return self._rest(torch.addcdiv(x_BLD, torch.bmm(weight_BLL, v_BLD), sum_BL1))


class Rest:
    """What follows a layer's attention: norm, feed-forward, norm."""

    def __init__(self, layer: Any) -> None:
        self._norm1, self._norm2 = layer.norm1, layer.norm2
        # The second bias of the feed-forward comes in with the norm, and out of its input again.
        self._norm1_bias_D = layer.norm1.bias.detach() + layer.linear2.bias.detach()
        self._in_DX, self._out_XD = layer.linear1.weight.detach().T, layer.linear2.weight.detach().T
        self._bias_X = layer.linear1.bias.detach() - layer.linear2.bias.detach() @ self._in_DX

    def __call__(self, x_BLD: Tensor) -> Tensor:
        norm1, norm2 = self._norm1, self._norm2
        x_BLD = functional.layer_norm(x_BLD, norm1.normalized_shape, norm1.weight, self._norm1_bias_D, norm1.eps)
        x_RD = x_BLD.flatten(0, 1)
        hidden_RX = torch.addmm(self._bias_X, x_RD, self._in_DX).relu_()
        x_RD.addmm_(hidden_RX, self._out_XD)
        return functional.layer_norm(x_BLD, norm2.normalized_shape, norm2.weight, norm2.bias, norm2.eps)
