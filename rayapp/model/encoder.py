"""Encoders of the user's last actions, each read together with the candidate.

TransAct (KDD 2023, arXiv 2306.00248, section 3) with the variants of its tables, `cross`, whose transformer runs once
a user instead of once a candidate, and the average of the actions as the plain comparison.

Shapes: B requests, C candidates, N = B*C examples, L history rows (newest first), E item vector width, D encoder row
width, K newest rows kept.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rayapp.contracts.config import ModelConfig
from rayapp.contracts.schema import PAD


class SequenceEncoder(nn.Module, ABC):
    """What the encoders share: rows of actions, position, transformer and read-out.

    Every row that holds no action is out of everything: it is no attention key, its output is zero and it takes no
    part in a max-pool. A user without any action gets zeros, which is also what the ranker was trained on.
    """

    output_dim: int
    shared_dim: int = 0
    """Leading columns of the output that are the same for every candidate of a user."""

    def __init__(self, config: ModelConfig, vocabulary_size: int, row_dim: int) -> None:
        super().__init__()
        self.config = config
        self.row_dim = row_dim
        self.action_embedding = nn.Embedding(vocabulary_size, config.action_dim, padding_idx=PAD)
        # Beside item vectors of length 1. PyTorch's own N(0, 1) drowns them, and training starts with unlearning that.
        with torch.no_grad():
            self.action_embedding.weight *= 0.1 if config.action_types else 0.0
        self.action_embedding.requires_grad_(config.action_types)
        rows = config.history_length + (config.fusion == "append")
        learned = config.positions == "learned"
        self.position_LD = nn.Parameter(torch.randn(rows, row_dim) * 0.02) if learned else None
        layer = nn.TransformerEncoderLayer(
            row_dim, config.num_heads, config.feedforward_dim, config.dropout, batch_first=True
        )  # post-norm, ReLU, no positional encoding: as published
        self.transformer = nn.TransformerEncoder(layer, config.num_layers, enable_nested_tensor=False)
        # The rows that "random" keeps are the same for everyone, drawn once.
        drawn = torch.randperm(config.history_length, generator=torch.Generator().manual_seed(0))
        self.random_K: list[int] = sorted(drawn[: config.latest_k].tolist())
        self.readout_dim = row_dim * sum(
            {"all": config.history_length, "max": 1}.get(part, config.latest_k) for part in config.readout_parts
        )

    def actions(self, action_BL: Tensor, history_BLE: Tensor) -> Tensor:
        """`[action | engaged item]` rows."""
        return torch.cat([self.action_embedding(action_BL), history_BLE], dim=-1)

    def encode(self, rows_NLD: Tensor, pad_NL: Tensor) -> Tensor:
        """The transformer's output, zero where a row is padding."""
        if self.position_LD is not None:
            rows_NLD = rows_NLD + self.position_LD[: rows_NLD.shape[1]]
        # A softmax over no key at all is NaN, so an empty history attends to its first slot; its output is
        # zeroed below like every other empty row's.
        ignore_NL = pad_NL.clone()
        ignore_NL[:, 0] = False
        encoded_NLD: Tensor = self.transformer(rows_NLD, src_key_padding_mask=ignore_NL)
        return encoded_NLD.masked_fill(pad_NL[:, :, None], 0.0)

    def read_out(self, encoded_NLD: Tensor, pad_NL: Tensor | None) -> Tensor:
        """`[N, readout_dim]`: the parts that the config names, e.g. the newest K rows, then the max-pool.

        `pad_NL` of None: every row holds an action.
        """
        parts = []
        for part in self.config.readout_parts:
            if part == "max":
                parts.append(self._max_pool(encoded_NLD, pad_NL))
                continue
            count = self.config.history_length if part == "all" else self.config.latest_k
            kept_NLD = encoded_NLD
            if part == "random":
                count = self.config.history_length
            if missing := max(count - encoded_NLD.shape[1], 0):
                kept_NLD = nn.functional.pad(encoded_NLD, (0, 0, 0, missing))
            if part == "random":  # not by one list of indexes: a CUDA graph can't hold its copy to the device
                kept_NLD = torch.stack([kept_NLD[:, k] for k in self.random_K], dim=1)
            else:
                kept_NLD = kept_NLD[:, :count]
            parts.append(kept_NLD.flatten(1))
        return torch.cat(parts, dim=-1)

    @staticmethod
    def _max_pool(encoded_NLD: Tensor, pad_NL: Tensor | None) -> Tensor:
        if pad_NL is None:
            return encoded_NLD.amax(dim=1)
        pooled_ND = encoded_NLD.masked_fill(pad_NL[:, :, None], float("-inf")).amax(dim=1)
        return torch.where(pad_NL.all(dim=1, keepdim=True), 0.0, pooled_ND)

    @abstractmethod
    def forward(self, action_BL: Tensor, history_BLE: Tensor, candidate_BCE: Tensor) -> Tensor:
        """Returns `[B, C, output_dim]`."""


class TransActEncoder(SequenceEncoder):
    """The published encoder: the candidate is part of the input, so everything is computed for each candidate.

    Fusion `concat` puts the candidate's vector into every row, `append` adds it as one more row, `none` leaves it out.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        row_dim = config.action_dim + config.item_dim * (2 if config.fusion == "concat" else 1)
        super().__init__(config, vocabulary_size, row_dim)
        self.output_dim = self.readout_dim
        self.shared_dim = self.readout_dim if config.fusion == "none" else 0
        if config.fusion == "append":
            self.candidate_action_A = nn.Parameter(torch.randn(config.action_dim) * 0.1)
            self.output_dim += row_dim

    def forward(self, action_BL: Tensor, history_BLE: Tensor, candidate_BCE: Tensor) -> Tensor:
        num_candidates = candidate_BCE.shape[1]
        rows_BLD, pad_BL = self.actions(action_BL, history_BLE), action_BL == PAD
        if self.config.fusion == "none":
            user_BF = self.read_out(self.encode(rows_BLD, pad_BL), pad_BL)
            return user_BF[:, None].expand(-1, num_candidates, -1)
        length = rows_BLD.shape[1]
        rows_BCLD = rows_BLD[:, None].expand(-1, num_candidates, -1, -1)
        pad_NL = pad_BL[:, None].expand(-1, num_candidates, -1).flatten(0, 1)
        if self.config.fusion == "concat":
            candidate_BCLE = candidate_BCE[:, :, None].expand(-1, -1, length, -1)
            rows_NLD = torch.cat([rows_BCLD, candidate_BCLE], dim=-1).flatten(0, 1)
            output_NF = self.read_out(self.encode(rows_NLD, pad_NL), pad_NL)
        else:
            dummy_BCA = self.candidate_action_A.expand(*candidate_BCE.shape[:2], -1)
            own_BC1D = torch.cat([dummy_BCA, candidate_BCE], dim=-1)[:, :, None]
            rows_NLD = torch.cat([own_BC1D, rows_BCLD], dim=2).flatten(0, 1)
            encoded_NLD = self.encode(rows_NLD, nn.functional.pad(pad_NL, (1, 0), value=False))
            output_NF = torch.cat([encoded_NLD[:, 0], self.read_out(encoded_NLD[:, 1:], pad_NL)], dim=-1)
        return output_NF.view(-1, num_candidates, self.output_dim)


class CrossEncoder(SequenceEncoder):
    """Encodes the actions once for the user; each candidate then attends to the encoded rows.

    Ours, not the paper's: what depends on the candidate is one query, one softmax over L and one weighted sum.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__(config, vocabulary_size, config.action_dim + config.item_dim)
        self.query = nn.Linear(config.item_dim, self.row_dim)
        self.key = nn.Linear(self.row_dim, self.row_dim)
        self.value = nn.Linear(self.row_dim, self.row_dim)
        self.project = None
        self.shared_dim = self.readout_dim
        if config.readout_dim:  # without a bias: nothing stays nothing
            self.project = nn.Linear(self.readout_dim, config.readout_dim, bias=False)
            self.shared_dim = config.readout_dim
        self.output_dim = self.shared_dim + self.row_dim

    def forward(self, action_BL: Tensor, history_BLE: Tensor, candidate_BCE: Tensor) -> Tensor:
        rows_BLD, pad_BL = self.actions(action_BL, history_BLE), action_BL == PAD
        encoded_BLD = self.encode(rows_BLD, pad_BL)
        user_BF = self.read_out(encoded_BLD, pad_BL)
        if self.project is not None:
            user_BF = self.project(user_BF)
        attended_BCD = self.attend(encoded_BLD, pad_BL, candidate_BCE)
        return torch.cat([user_BF[:, None].expand(-1, candidate_BCE.shape[1], -1), attended_BCD], dim=-1)

    def attend(self, encoded_BLD: Tensor, pad_BL: Tensor, candidate_BCE: Tensor) -> Tensor:
        """`[B, C, D]`; zeros for a user without any action."""
        heads = self.config.num_heads

        def split(x_BXD: Tensor) -> Tensor:
            return x_BXD.view(*x_BXD.shape[:2], heads, -1).transpose(1, 2)

        empty_B11 = pad_BL.all(dim=1)[:, None, None]
        keep_B11L = ~pad_BL[:, None, None, :] | empty_B11[..., None]
        attended = nn.functional.scaled_dot_product_attention(
            split(self.query(candidate_BCE)), split(self.key(encoded_BLD)), split(self.value(encoded_BLD)), keep_B11L
        )
        return torch.where(empty_B11, 0.0, attended.transpose(1, 2).flatten(2))


class AverageEncoder(SequenceEncoder):
    """The mean of the rows: the plain way to give a ranker the user's actions (the paper's WDL + seq)."""

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__(config, vocabulary_size, config.action_dim + config.item_dim)
        del self.transformer
        self.output_dim = self.shared_dim = self.row_dim

    def forward(self, action_BL: Tensor, history_BLE: Tensor, candidate_BCE: Tensor) -> Tensor:
        keep_BL1 = (action_BL != PAD)[:, :, None].to(history_BLE.dtype)
        mean_BD = (self.actions(action_BL, history_BLE) * keep_BL1).sum(dim=1) / keep_BL1.sum(dim=1).clamp(min=1)
        return mean_BD[:, None].expand(-1, candidate_BCE.shape[1], -1)


ENCODERS: dict[str, Callable[[ModelConfig, int], SequenceEncoder]] = {
    "transact": TransActEncoder,
    "cross": CrossEncoder,
    "average": AverageEncoder,
}
