"""The feed ranker: sequence read-out and the features of item, user and context through DCN v2 and an MLP to one
sigmoid per head.

Shapes: B requests, C candidates per request, L history rows, E item vector width, W category places, M numeric
features, A categorical attributes, F crossing width, H heads.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayapp.contracts.config import Domain, ModelConfig
from rayapp.features import known_numbers
from rayapp.features.attributes import ABSENT, AttributeEncoder, Encoders
from rayapp.features.statistic_columns import Columns
from rayapp.model.encoder import ENCODERS
from rayapp.model.matching import Matches


@dataclass(frozen=True, slots=True)
class Batch:
    """What the ranker reads, request-centred: what belongs to the user is held once, not once per candidate."""

    action_BL: Tensor
    age_BL: Tensor
    """Buckets of how long ago each action was (`model.matching`)."""
    history_BLE: Tensor
    history_category_BLW: Tensor
    candidate_BCE: Tensor
    item_category_BCW: Tensor
    item_number_BCM: Tensor
    """Numeric attributes, then the item's statistics and what is known of it without counting."""
    user_category_BW: Tensor
    user_number_BM: Tensor
    """Numeric attributes, then the user's statistics and what is known without counting."""
    context_category_BW: Tensor
    context_number_BM: Tensor

    def candidates(self, part: slice) -> "Batch":
        """The same requests with some of their candidates."""
        return dataclasses.replace(
            self,
            candidate_BCE=self.candidate_BCE[:, part],
            item_category_BCW=self.item_category_BCW[:, part],
            item_number_BCM=self.item_number_BCM[:, part],
        )


class CrossNetwork(nn.Module):
    """Full-rank DCN v2: `x_{l+1} = x_0 * (W_l x_l + b_l) + x_l` (Wang et al., WWW 2021, eq. 1)."""

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(num_layers))

    def forward(self, x_NF: Tensor) -> Tensor:
        crossed_NF = x_NF
        for layer in self.layers:
            crossed_NF = torch.addcmul(crossed_NF, x_NF, layer(crossed_NF))
        return crossed_NF


class Categories(nn.Module):
    """One embedding per category; an attribute's places are summed, the attributes stand side by side."""

    def __init__(self, encoder: AttributeEncoder, dim: int) -> None:
        super().__init__()
        self.widths = list(encoder.widths.values())
        self.output_dim = len(self.widths) * dim
        self.embedding = nn.Embedding(encoder.num_categories, dim, padding_idx=ABSENT)
        nn.init.normal_(self.embedding.weight, std=0.1)
        with torch.no_grad():
            self.embedding.weight[ABSENT] = 0

    def forward(self, category_W: Tensor) -> Tensor:
        """`[..., W]` to `[..., A * dim]`."""
        if not self.widths:
            return torch.zeros(*category_W.shape[:-1], 0, device=category_W.device)
        parts = self.embedding(category_W).split(self.widths, dim=-2)
        return torch.cat([part.sum(dim=-2) for part in parts], dim=-1)


class Ranker(nn.Module):
    """Logits of every head for every candidate. Without the sequence it is the same ranker minus the encoder."""

    def __init__(
        self, config: ModelConfig, encoders: Encoders, domain: Domain, vocabulary_size: int | None = None
    ) -> None:
        """`vocabulary_size`: of a model that knows fewer actions than the domain has by now."""
        super().__init__()
        columns, num_heads = Columns.of(domain), len(domain.heads)
        vocabulary_size = vocabulary_size or domain.vocabulary.size
        self.config: ModelConfig = config
        make = ENCODERS.get(config.encoder)
        self.encoder = make(config, vocabulary_size) if make is not None else None
        self.item_width = encoders.item.num_numbers + columns.num_item + known_numbers.NUM_ITEM
        self.user_width = encoders.user.num_numbers + columns.num_user + known_numbers.NUM_USER
        self.user_width += encoders.context.num_numbers
        self.item_width += config.reads_covisits
        self.matches = None
        if config.match_dim:
            self.matches = Matches(
                config.match_dim,
                vocabulary_size,
                config.history_length,
                encoders.item,
                action_types=config.action_types,
            )
            self.item_width += self.matches.output_dim
        if config.reads == "all":
            self.item_categories = Categories(encoders.item, config.category_dim)
            self.user_categories = Categories(encoders.user, config.category_dim)
            self.context_categories = Categories(encoders.context, config.category_dim)
            self.item_width += config.item_dim + self.item_categories.output_dim
            self.user_width += self.user_categories.output_dim + self.context_categories.output_dim
        width = self.item_width + self.user_width + (self.encoder.output_dim if self.encoder is not None else 0)
        self.cross = CrossNetwork(width, config.num_cross_layers)
        if config.mlp_dim:
            self.mlp = nn.Sequential(nn.Linear(width, config.mlp_dim), nn.ReLU(), nn.Linear(config.mlp_dim, num_heads))
        else:
            self.mlp = nn.Sequential(nn.Linear(width, num_heads))

    def forward(self, batch: Batch) -> Tensor:
        """Returns logits `[B, C, H]`."""
        num_candidates = batch.candidate_BCE.shape[1]
        features = [self.item_features(batch), self.user_features(batch)[:, None].expand(-1, num_candidates, -1)]
        if self.encoder is not None:
            features.append(self.encoder(batch.action_BL, batch.history_BLE, batch.candidate_BCE))
        logits_BCH: Tensor = self.mlp(self.cross(torch.cat(features, dim=-1)))
        return logits_BCH

    def item_features(self, batch: Batch) -> Tensor:
        """`[B, C, F of items]`: vector, categories and numbers of each candidate; the first columns of the crossing."""
        if self.config.reads == "numbers":
            return batch.item_number_BCM
        categories_BCF = self.item_categories(batch.item_category_BCW)
        features = [batch.candidate_BCE, categories_BCF, batch.item_number_BCM]
        if self.matches is not None:
            features.append(
                self.matches(
                    batch.action_BL,
                    batch.age_BL,
                    batch.history_BLE,
                    batch.history_category_BLW,
                    batch.candidate_BCE,
                    batch.item_category_BCW,
                )
            )
        return torch.cat(features, dim=-1)

    def user_features(self, batch: Batch) -> Tensor:
        """`[B, F of users]`: user and context; in the crossing they follow the candidate's."""
        if self.config.reads == "numbers":
            return torch.cat([batch.user_number_BM, batch.context_number_BM], dim=-1)
        return torch.cat(
            [
                self.user_categories(batch.user_category_BW),
                batch.user_number_BM,
                self.context_categories(batch.context_category_BW),
                batch.context_number_BM,
            ],
            dim=-1,
        )


def ranking_loss(
    logits_BCH: Tensor, label_BCH: Tensor, valid_BC: Tensor, weight_HA: Tensor, user_weight_B: Tensor
) -> Tensor:
    """Sum over candidates and heads of the binary cross-entropy, weighted by user and by the label-weight matrix
    (TransAct, eq. 1 and 2).

    `weight_HA` has a column per head's label and a last one for an impression without any. Read to the letter the
    paper's matrix has no such column, and an impression without an action would weigh nothing.
    """
    no_label_BC1 = (label_BCH.sum(dim=-1, keepdim=True) == 0).to(label_BCH.dtype)
    weight_BCH = torch.cat([label_BCH, no_label_BC1], dim=-1) @ weight_HA.T
    loss_BCH = nn.functional.binary_cross_entropy_with_logits(logits_BCH, label_BCH, reduction="none")
    loss_BC = (loss_BCH * weight_BCH).sum(dim=-1) * user_weight_B[:, None]
    return loss_BC[valid_BC].sum()
