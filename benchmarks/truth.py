"""Scores that answers must have, by the model they name.

Shapes: C candidates.
"""

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rayapp.registry.models import LoadedModel, load_model
from rayapp.root.facts import read_root
from rayapp.serving.closed_steps import GRACE_MS
from rayapp.serving.fresh_statistics import FreshStatistics
from rayapp.serving.ranking import RankCall, rank
from rayapp.store.opening import open_store

ITEMS: Final = 40
TOLERANCE: Final = 1e-4
"""A score moves with the time of day and the user's gap to now, and a client knows to a second when it was made."""


@dataclass(frozen=True, slots=True)
class RankAnswer:
    """An answer of `/v1/rank`, and about when it was made."""

    user_id: str
    timestamp_ms: int
    body: dict[str, Any]


class Truth:
    """Of a few items, for users whose sequences do not change meanwhile. Models are loaded here and score again, with
    the statistics as of the step that an answer names."""

    def __init__(self, root: Path, store_url: str | None, versions: Sequence[str]) -> None:
        self._root, self._store_url = root, store_url
        self._domain, _ = read_root(root)
        self._models: dict[str, LoadedModel] = {v: load_model(root, v, self._domain) for v in versions}
        table = self._models[versions[0]].table
        self.item_ids = [str(item["item_id"]) for item in table.items[:ITEMS]]

    def wrong(self, answers: Iterable[RankAnswer]) -> list[RankAnswer]:
        """Those that have not, for every item, the score of the model that they name. An answer from before a ranker
        had read the statistics is not looked at.

        Raises:
            ValueError: two of the models can't be told apart by these scores.
        """
        wrong = list[RankAnswer]()
        store = open_store(self._root, self._store_url)
        try:
            known = [answer for answer in answers if answer.body["statistics_at"] is not None]
            by_step = groupby(sorted(known, key=_statistics_at_ms), _statistics_at_ms)
            for step_ms, of_step in by_step:
                closed_ns = (step_ms + GRACE_MS) * 1_000_000  # on the clock of a replica that reads this step
                statistics = FreshStatistics(self._root, self._domain, store, partial(int, closed_ns))
                for answer in of_step:
                    user = store.lookup(answer.user_id)
                    call = RankCall.of(answer.user_id, user, answer.timestamp_ms, self.item_ids, {})
                    if not self._agrees(answer, call, statistics):
                        wrong.append(answer)
        finally:
            store.close()
        return wrong

    def _agrees(self, answer: RankAnswer, call: RankCall, statistics: FreshStatistics) -> bool:
        told = {row["item_id"]: row["score"] for row in answer.body["items"]}
        if answer.body["model_version"] not in self._models or set(told) != set(self.item_ids):
            return False
        expected = {version: self._scores(model, call, statistics) for version, model in self._models.items()}
        found = list(expected.values())
        if any(np.abs(a - b).max() < 30 * TOLERANCE for n, a in enumerate(found) for b in found[:n]):
            raise ValueError(f"two of {list(expected)} score alike for {answer.user_id}")
        told_C = np.array([told[item_id] for item_id in self.item_ids])
        return bool(np.abs(told_C - expected[answer.body["model_version"]]).max() < TOLERANCE)

    def _scores(self, model: LoadedModel, call: RankCall, statistics: FreshStatistics) -> NDArray[np.float64]:
        """`[C]`."""
        probability_CH = rank(model, statistics, self._domain, call).probability_CH
        return np.asarray(probability_CH.astype(np.float64) @ np.asarray(self._domain.utilities))


def _statistics_at_ms(answer: RankAnswer) -> int:
    return round(datetime.datetime.fromisoformat(answer.body["statistics_at"]).timestamp() * 1000)
