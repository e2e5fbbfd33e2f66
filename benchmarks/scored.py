"""What bench `score` scores: a made-up catalogue in memory, requests of it, and a ranker trained on them.

A user likes some topics; what was saved tells which, so attention has something to learn and its logits grow as they do
on a real log.

Shapes: B requests, C candidates, L actions, N items, E vector width, H heads.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from rayapp.contracts.config import Domain, ModelConfig
from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import FIRST_ACTION_ID
from rayapp.features.attributes import AttributeEncoder, Encoders
from rayapp.features.requests import Requests
from rayapp.features.sequence import Sequences
from rayapp.features.statistic_columns import Columns
from rayapp.model.calibration import Calibration
from rayapp.model.inputs import FeatureTables, UserTable, items_as_table
from rayapp.model.item_table import ItemTable
from rayapp.model.ranker import Ranker, ranking_loss
from rayapp.model.scorer import Scorer
from rayapp.model.tower import LinearTower

NUM_ITEMS: Final = 5_000
NUM_TOPICS: Final = 20
STEPS: Final = 120
BATCH: Final = (8, 8)
"""Requests, and candidates of each, of a training step."""
LEARNING_RATE: Final = 3e-3


@dataclass(frozen=True, slots=True)
class Scored:
    """A catalogue whose items belong to topics, and how a model reads it."""

    domain: Domain
    topic_N: NDArray[np.int64]
    hash_N: NDArray[np.uint64]
    inputs: FeatureTables

    @staticmethod
    def make(domain: Domain, item_dim: int) -> "Scored":
        """`domain` is that of the synthetic world, whose attributes are filled here."""
        rng = np.random.default_rng(0)
        topic_N = rng.integers(0, NUM_TOPICS, NUM_ITEMS)
        items: list[dict[str, Any]] = [
            {
                "item_id": f"i{n}",
                "created_at_ms": 0,
                "title": f"item {n}",
                "topics": [f"topic {topic}"],
                "style": [f"style {n % 7}"],
                "quality": float(rng.normal()),
            }
            for n, topic in enumerate(topic_N.tolist())
        ]
        vector_NE = rng.normal(size=(NUM_TOPICS, item_dim))[topic_N] + 0.7 * rng.normal(size=(NUM_ITEMS, item_dim))
        vector_NE = (vector_NE / np.linalg.norm(vector_NE, axis=1, keepdims=True)).astype(np.float32)
        tower = LinearTower(np.zeros((1, item_dim), np.float32), domain.attributes)
        table = ItemTable.make("bench", tower, items, np.zeros(NUM_ITEMS, np.int64), vector_NE, 0)
        names = [f"u{n}" for n in range(1_000)]
        countries = _lists([["nl"], ["de"], ["us"], ["jp"]] * 250)
        users = pa.table({"user_id": names, "effective_at_ms": np.zeros(1_000, np.int64), "country": countries})
        encoders = Encoders(
            AttributeEncoder.fit(items_as_table(table), domain.attributes),
            AttributeEncoder.fit(users, domain.user_attributes),
            AttributeEncoder.fit(_context(rng, 100), domain.context_attributes),
        )
        inputs = FeatureTables.of(table, UserTable.of(users, encoders.user), encoders, domain)
        hash_N = np.fromiter((hash64(item["item_id"]) for item in items), np.uint64, NUM_ITEMS)
        return Scored(domain, topic_N, hash_N, inputs)

    def requests(
        self, rng: np.random.Generator, num_requests: int, num_candidates: int, length: int
    ) -> tuple[Requests, NDArray[np.float32]]:
        """Requests of users with `length` actions each, and their labels `[B, C, H]`."""
        shape, heads = (num_requests, num_candidates), len(self.domain.heads)
        num_item, num_user = Columns.of(self.domain).widths
        liked_BT = rng.random((num_requests, NUM_TOPICS)) < 0.25
        item_BL, item_BC = (rng.integers(0, NUM_ITEMS, (num_requests, width)) for width in (length, num_candidates))
        saved_BL = np.take_along_axis(liked_BT, self.topic_N[item_BL], 1) & (rng.random(item_BL.shape) < 0.8)
        label_BC = np.take_along_axis(liked_BT, self.topic_N[item_BC], 1) & (rng.random(shape) < 0.8)
        names = self.domain.vocabulary.names
        save, click = (FIRST_ACTION_ID + names.index(name) for name in ("save", "click"))
        time_BL = np.zeros(item_BL.shape, np.int64)
        sequences = Sequences(
            np.where(saved_BL, save, click).astype(np.uint8),
            self.hash_N[item_BL],
            time_BL,
            np.full(num_requests, length, np.int64),
        )
        users = [hash64(f"u{n}") for n in rng.integers(0, 1_000, num_requests)]
        requests = Requests(
            np.array(users, np.uint64),
            np.zeros(num_requests, np.int64),
            _context(rng, num_requests),
            sequences,
            np.arange(num_requests + 1) * num_candidates,
            self.hash_N[item_BC].ravel(),
            rng.normal(size=(num_requests, num_user)).astype(np.float32),
            rng.normal(size=(num_requests * num_candidates, num_item)).astype(np.float32),
        )
        return requests, np.repeat(label_BC[:, :, None], heads, axis=2).astype(np.float32)


def trained_scorer(scored: Scored, config: ModelConfig) -> tuple[Scorer, float]:
    """A ranker after STEPS steps, ready to score, and its loss over the last tenth of them."""
    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    domain, inputs = scored.domain, scored.inputs
    heads = len(domain.heads)
    ranker = Ranker(config, inputs.encoders, domain)
    optimizer = torch.optim.Adam(ranker.parameters(), lr=LEARNING_RATE)
    weight_HA, user_weight_B = torch.ones(heads, heads + 1), torch.ones(BATCH[0])
    valid_BC, losses = torch.ones(BATCH, dtype=torch.bool), []
    for _ in range(STEPS):
        requests, label_BCH = scored.requests(rng, *BATCH, config.history_length)
        logits_BCH = ranker(inputs.batch(requests))
        loss = ranking_loss(logits_BCH, torch.from_numpy(label_BCH), valid_BC, weight_HA, user_weight_B)
        loss = loss / label_BCH.size
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(ranker.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return Scorer(ranker, inputs, Calibration.none(heads)), float(np.mean(losses[-STEPS // 10 :]))


def _context(rng: np.random.Generator, size: int) -> pa.Table:
    devices = _lists([[("phone", "tablet", "web")[n]] for n in rng.integers(0, 3, size)])
    return pa.table({"timestamp_ms": np.zeros(size, np.int64), "device": devices})


def _lists(values: list[list[str]]) -> pa.Array:
    return pa.array(values, pa.large_list(pa.string()))
