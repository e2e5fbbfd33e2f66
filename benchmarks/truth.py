"""Scores that an answer must have, by the model it names.

Shapes: C candidates.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rayapp.registry.models import load_model
from rayapp.root.facts import read_root
from rayapp.serving.fresh_statistics import FreshStatistics
from rayapp.serving.ranking import RankCall, rank
from rayapp.store.opening import open_store

ITEMS: Final = 40
TOLERANCE: Final = 1e-5


@dataclass(frozen=True, slots=True)
class Truth:
    """Of a few users, whose sequences must not change meanwhile, and a few items."""

    users: tuple[str, ...]
    item_ids: list[str]
    score_C: dict[tuple[str, str], NDArray[np.float64]]
    """By user and model version."""

    @staticmethod
    def of(root: Path, store_url: str | None, versions: Sequence[str], users: Sequence[str]) -> "Truth":
        """Loads the models here and scores.

        Raises:
            ValueError: two of the models can't be told apart by these scores.
        """
        domain, _ = read_root(root)
        store = open_store(root, store_url)
        statistics = FreshStatistics(root, domain, store)
        scores: dict[tuple[str, str], NDArray[np.float64]] = {}
        item_ids: list[str] = []
        try:
            for version in versions:
                model = load_model(root, version, domain)
                item_ids = [str(item["item_id"]) for item in model.table.items[:ITEMS]]
                for user in users:
                    call = RankCall.of(user, store.lookup(user), time.time_ns() // 1_000_000, item_ids, {})
                    probability_CH = rank(model, statistics, domain, call).probability_CH
                    scores[user, version] = probability_CH.astype(np.float64) @ np.asarray(domain.utilities)
        finally:
            store.close()
        for user in users:
            found = [scores[user, version] for version in versions]
            if any(np.abs(a - b).max() < 100 * TOLERANCE for n, a in enumerate(found) for b in found[:n]):
                raise ValueError(f"two of {versions} score alike for {user}")
        return Truth(tuple(users), item_ids, scores)

    def agrees(self, user_id: str, answer: dict[str, Any]) -> bool:
        """Whether an answer of `/v1/rank` has, for every item, the score of the model it names."""
        told = {row["item_id"]: row["score"] for row in answer["items"]}
        expected_C = self.score_C.get((user_id, answer["model_version"]))
        if expected_C is None or set(told) != set(self.item_ids):
            return False
        return bool(np.abs(np.array([told[i] for i in self.item_ids]) - expected_C).max() < TOLERANCE)
