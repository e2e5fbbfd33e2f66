"""The item tower, trained as one half of a two-tower retrieval model (Yi et al., RecSys 2019).

The query tower reads a user's last engaged items, the item tower an item's content; an in-batch sampled softmax asks
for the next engaged item, its logits corrected by log Q, the probability of an item to be drawn into a batch, so that
popular items are not pushed away for being popular. A second, small loss asks the item's vector for its categories:
who engages with what tells topics apart poorly where people like many.

The item tower is linear in hashed content tokens, and that is all it is, so a new item has a vector from its
attributes alone. What only few engaged with is not learned by heart (FEWEST_ENGAGEMENTS). A step is a few milliseconds
of look-ups and there are 3,000 at the most, so it is trained where it is called: workers would take longer to start.

Shapes: P engagements, B examples, L context items, U distinct items of a batch, N items, T tokens, E width,
G categories.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from rayapp.contracts.schema import Attribute, AttributeKind
from rayapp.features.content import Item, content_tokens
from rayapp.model.tower import LinearTower
from rayapp.pipeline.engagements import Engagements

MIN_TOKENS: Final = 4096
MAX_CATEGORIES: Final = 1_000
MAX_TOKENS: Final = 1 << 18
FEWEST_ITEMS: Final = 5
FEWEST_ENGAGEMENTS: Final = 30
"""A token of fewer items, with fewer engagements in all, is not learned. The word that only one item's title has would
keep who engaged with that item; a ranker that trains on the same engagements reads its labels from such vectors, and
finds nothing of the kind when it serves (docs/log.md)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerConfig:
    """One training of the tower."""

    width: int
    seed: int = 0
    context_length: int = 10
    batch_size: int = 1024
    epochs: int = 20
    max_steps: int = 3_000
    learning_rate: float = 0.01
    temperature: float = 0.1
    category_weight: float = 0.5


class TwoTower(nn.Module):
    """Both towers; `forward` returns the loss."""

    def __init__(self, num_tokens: int, num_categories: int, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.EmbeddingBag(num_tokens, config.width, mode="sum")
        nn.init.normal_(self.tokens.weight, std=config.width**-0.5)
        self.query = nn.Linear(config.width, config.width, bias=False)
        nn.init.eye_(self.query.weight)
        self.categories = nn.Linear(config.width, max(num_categories, 1))

    def embed(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        """Unit vectors `[U, E]` of items given as ragged tokens."""
        return functional.normalize(self.tokens(tokens, offsets), dim=1)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        item_UE = self.embed(batch["tokens"], batch["offsets"])
        context_BLE = item_UE[batch["context_BL"].clamp(min=0)] * (batch["context_BL"] >= 0)[:, :, None]
        query_BE = functional.normalize(self.query(context_BLE.sum(dim=1)), dim=1)
        target_B = batch["target_B"]
        logit_BB = query_BE @ item_UE[target_B].T / self.config.temperature - batch["log_q_U"][target_B]
        # Another row's target that is this row's own is no negative.
        same_BB = target_B[:, None] == target_B[None, :]
        same_BB.fill_diagonal_(False)
        logit_BB = logit_BB.masked_fill(same_BB, float("-inf"))
        own_B = torch.arange(len(target_B), device=logit_BB.device)
        # Without any engagement only the categories teach; the sum of nothing is a 0 that knows its parameters.
        loss = functional.cross_entropy(logit_BB, own_B) if len(target_B) else logit_BB.sum()
        said_UG = self.categories(item_UE / self.config.temperature)
        has_UG = batch["categories_UG"]
        return loss + self.config.category_weight * functional.binary_cross_entropy_with_logits(said_UG, has_UG)


@dataclass(frozen=True, slots=True)
class Content:
    """Tokens and categories of all items, ragged."""

    tokens: NDArray[np.int64]
    token_offsets: NDArray[np.int64]
    categories: NDArray[np.int64]
    category_offsets: NDArray[np.int64]
    num_tokens: int
    num_categories: int
    kept_T: NDArray[np.bool_]
    """Whether a slot's tokens are learned."""

    @staticmethod
    def of(items: Sequence[Item], attributes: Sequence[Attribute], engaged_N: NDArray[np.int64]) -> "Content":
        """The number of token slots grows with the content, so that few tokens share one. `engaged_N`: engagements with
        each item."""
        wide = [content_tokens(item, attributes, 1 << 62) for item in items]
        distinct = len({token for tokens in wide for token in tokens})
        num_tokens = min(max(1 << (2 * distinct).bit_length(), MIN_TOKENS), MAX_TOKENS)
        engaged_T, items_T = np.zeros(num_tokens, np.int64), np.zeros(num_tokens, np.int64)
        for tokens, engaged in zip(wide, engaged_N.tolist(), strict=True):
            slots = list({token % num_tokens for token in tokens})
            items_T[slots] += 1
            engaged_T[slots] += engaged
        kept_T = (items_T >= FEWEST_ITEMS) | (engaged_T >= FEWEST_ENGAGEMENTS)
        wide = [[token for token in tokens if kept_T[token % num_tokens]] for tokens in wide]
        names = [a.name for a in attributes if a.kind is AttributeKind.CATEGORIES]
        said = [[(name, v) for name in names for v in item.get(name) or ()] for item in items]
        used: dict[tuple[str, str], int] = {}
        for pairs in said:
            for pair in pairs:
                used[pair] = used.get(pair, 0) + 1
        # A category of one item (an author with one video) teaches nothing about others.
        frequent = sorted((p for p, count in used.items() if count > 1), key=lambda p: (-used[p], p))
        number = {pair: n for n, pair in enumerate(frequent[:MAX_CATEGORIES])}
        kept = [[number[pair] for pair in pairs if pair in number] for pairs in said]
        return Content(
            np.array([t % num_tokens for tokens in wide for t in tokens], np.int64),
            np.r_[0, np.cumsum([len(tokens) for tokens in wide])].astype(np.int64),
            np.array([c for categories in kept for c in categories], np.int64),
            np.r_[0, np.cumsum([len(categories) for categories in kept])].astype(np.int64),
            num_tokens,
            len(number),
            kept_T,
        )


def train_two_tower(
    items: Sequence[Item], attributes: Sequence[Attribute], engagements: Engagements, config: TowerConfig
) -> LinearTower:
    """Trains on all of `engagements`, in this process, and returns the item tower. Without a pair of engagements of one
    user only the categories teach."""
    content = Content.of(items, attributes, np.bincount(engagements.item_P, minlength=len(items)))
    context_PL = engagements.contexts(config.context_length)
    taught = (context_PL >= 0).any(axis=1)
    torch.manual_seed(config.seed)
    model = TwoTower(content.num_tokens, content.num_categories, config)
    fit(model, content, engagements.item_P[taught], context_PL[taught], config)
    weight_TE = model.tokens.weight.detach().numpy()
    weight_TE[~content.kept_T] = 0
    return LinearTower(weight_TE, tuple(attributes))


def fit(
    model: TwoTower,
    content: Content,
    target_P: NDArray[np.int64],
    context_PL: NDArray[np.int64],
    config: TowerConfig,
) -> float:
    """Trains `model` in place; the mean loss of the last tenth of the steps."""
    num_items, num_examples = len(content.token_offsets) - 1, len(target_P)
    # Q: how often an item is a target, smoothed by one so that every item has a chance.
    count_N = np.bincount(target_P, minlength=num_items) + 1.0
    log_q_N = torch.from_numpy(np.log(count_N / count_N.sum())).float()
    has_NG = torch.zeros(num_items, max(model.categories.out_features, 1))
    item_C = np.repeat(np.arange(num_items), np.diff(content.category_offsets))
    has_NG[torch.from_numpy(item_C), torch.from_numpy(content.categories)] = 1.0
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    per_epoch = max(-(-num_examples // config.batch_size), 1)
    num_steps = min(max(per_epoch * config.epochs, 1), config.max_steps)
    losses = []
    for step in range(num_steps):
        epoch, k = divmod(step, per_epoch)
        order = np.random.default_rng([config.seed, epoch]).permutation(num_examples)
        rows = np.array_split(order, per_epoch)[k]
        # Some items at random besides those engaged with, so that the unpopular learn their categories too.
        extra = np.random.default_rng([config.seed, 1, step]).integers(num_items, size=config.batch_size // 4)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - step / num_steps)
        optimizer.zero_grad(set_to_none=True)
        loss = model(_batch(content, context_PL[rows], target_P[rows], extra, log_q_N, has_NG))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses[-max(num_steps // 10, 1) :]))


def _batch(
    content: Content,
    context_BL: NDArray[np.int64],
    target_B: NDArray[np.int64],
    extra: NDArray[np.int64],
    log_q_N: Tensor,
    has_NG: Tensor,
) -> dict[str, Tensor]:
    """The batch over its distinct items only: each is embedded once."""
    items_U, place = np.unique(np.r_[context_BL.ravel().clip(min=0), target_B, extra], return_inverse=True)
    start_U, size_U = content.token_offsets[items_U], np.diff(content.token_offsets)[items_U]
    offsets_U = np.cumsum(size_U) - size_U
    at = np.arange(size_U.sum()) - np.repeat(offsets_U, size_U) + np.repeat(start_U, size_U)
    num_context = context_BL.size
    context = np.where(context_BL >= 0, place[:num_context].reshape(context_BL.shape), -1)
    chosen = torch.from_numpy(items_U)
    return {
        "tokens": torch.from_numpy(content.tokens[at]),
        "offsets": torch.from_numpy(offsets_U),
        "context_BL": torch.from_numpy(context),
        "target_B": torch.from_numpy(place[num_context : num_context + len(target_B)]),
        "log_q_U": log_q_N[chosen],
        "categories_UG": has_NG[chosen],
    }
