"""TransAct V1.1: the user's last actions, read together with the candidate (KDD 2023, arXiv 2306.00248, section 3).

Shapes: N examples (one request x one candidate), L history rows (newest first), E item vector width, D encoder row
width, K newest rows kept.
"""

import torch
from torch import Tensor, nn

from rayapp.config import ModelConfig
from rayapp.schema import PAD


class TransActEncoder(nn.Module):
    """Transformer over `[action | engaged item | candidate item]` rows; read-out = newest K rows and a max-pool.

    Every row that holds no action is out of everything: it is no attention key, its output is zero and it takes no
    part in the max-pool. A user without any action gets zeros, which is also what the ranker was trained on.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.latest_k = config.latest_k
        self.output_dim = (config.latest_k + 1) * config.encoder_dim  # 11 rows at the published K = 10
        self.action_embedding = nn.Embedding(vocabulary_size, config.action_dim, padding_idx=PAD)
        layer = nn.TransformerEncoderLayer(
            config.encoder_dim, config.num_heads, config.feedforward_dim, config.dropout, batch_first=True
        )  # post-norm, ReLU, no positional encoding: as published
        self.transformer = nn.TransformerEncoder(layer, config.num_layers, enable_nested_tensor=False)

    def forward(self, action_NL: Tensor, history_NLE: Tensor, candidate_NE: Tensor) -> Tensor:
        """Returns `[N, (K + 1) * D]`: the newest K rows, then the max-pool over all rows."""
        pad_NL = action_NL == PAD
        rows_NLD = torch.cat(
            [
                self.action_embedding(action_NL),
                history_NLE,
                candidate_NE[:, None, :].expand(-1, action_NL.shape[1], -1),
            ],
            dim=-1,
        )
        # A softmax over no key at all is NaN, so an empty history attends to its first slot; its output is
        # zeroed below like every other empty row's.
        ignore_NL = pad_NL.clone()
        ignore_NL[:, 0] = False
        out_NLD = self.transformer(rows_NLD, src_key_padding_mask=ignore_NL)
        out_NLD = out_NLD.masked_fill(pad_NL[:, :, None], 0.0)
        latest_NKD = out_NLD[:, : self.latest_k]
        if missing := self.latest_k - latest_NKD.shape[1]:
            latest_NKD = nn.functional.pad(latest_NKD, (0, 0, 0, missing))
        pooled_ND = out_NLD.masked_fill(pad_NL[:, :, None], float("-inf")).amax(dim=1)
        pooled_ND = torch.where(pad_NL.all(dim=1, keepdim=True), 0.0, pooled_ND)
        return torch.cat([latest_NKD.flatten(1), pooled_ND], dim=-1)
