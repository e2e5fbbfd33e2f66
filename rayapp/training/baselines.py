"""Baselines that are counted: popularity, which is positive actions on an item up to each request, faded with the
half-life that orders the validation window best; and co-visitation with the last items.

Shapes: R requests, C candidates of the largest, N candidates of all of them, H heads, S half-lives.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.presets import COUNTS, Preset
from rayapp.features.known_numbers import NUM_ITEM
from rayapp.features.requests import Requests
from rayapp.features.statistic_columns import Columns
from rayapp.pipeline.made_lists import is_made_up
from rayapp.pipeline.window_loader import WindowReader
from rayapp.statistics.known import Statistics, load_newest
from rayapp.training import metrics
from rayapp.training.catalogue_recall import popular_recalls, read_next_actions
from rayapp.training.comparison import Logits
from rayapp.training.evaluate import BATCH_REQUESTS, of_candidates, popularity_logits
from rayapp.training.run import TrainingRun, evaluate_and_publish
from rayapp.training.start import Start, start

POPULARITY: Final = "popularity"
COVISITATION: Final = "co-visitation"
BASELINES: Final = (COUNTS, POPULARITY)
"""What a ranker has to be above; of equal ones the first is the better."""
WITHOUT_LISTS: Final = (*BASELINES, COVISITATION)
"""The same, where a log came without shown lists."""
COUNTED: Final = (POPULARITY, COVISITATION)
"""Models without anything to train."""
LESS_THAN_ANY: Final = 1e-3
"""Weight of what only decides between equals."""
UNTRAINED: Final = {
    "step": 0,
    **dict.fromkeys(("examples", "seconds", "cpu_seconds"), 0),
    **dict.fromkeys(("loss", "best_loss"), None),
    "stopped": "nothing to train",
}
"""The position of a run without steps."""


@dataclass(frozen=True, slots=True)
class Popularity:
    """What a feed without any model would show first."""

    domain: Domain
    statistics: Statistics
    half_life_ms: int
    most: float
    """The largest count of the validation window."""

    @staticmethod
    def fit(root: Path, domain: Domain, validation_window: str) -> "Popularity":
        """Chooses among the domain's half-lives."""
        statistics, counts, labels = load_newest(root, domain), [], []
        made_up = is_made_up(root, validation_window)
        head = domain.head_names.index(domain.positive_head)
        for batch in WindowReader(root, [validation_window], domain, 1).in_order(BATCH_REQUESTS):
            counts.append(_positives(statistics, batch.requests))
            labels.append(batch.label_NH[:, head])
        count_NS, label_N = np.concatenate(counts), np.concatenate(labels)
        if made_up:
            found_S = popular_recalls(read_next_actions(root, validation_window, domain), statistics)
        else:
            found_S = np.array([metrics.auc(count_N.astype(np.float32), label_N)[0] for count_N in count_NS.T])
        best = int(np.argmax(np.nan_to_num(found_S)))
        return Popularity(domain, statistics, domain.half_lives_ms[best], float(count_NS[:, best].max(initial=1.0)))

    def score(self, root: Path, window: str) -> Logits:
        """`[R, C, H]` of a window's candidates."""
        which = self.domain.half_lives_ms.index(self.half_life_ms)

        def logits(requests: Requests) -> Logits:
            return popularity_logits(_positives(self.statistics, requests)[:, which], self.most, self.domain)

        return of_candidates(WindowReader(root, [window], self.domain, 1), logits)


def publish_popularity(run: TrainingRun, domain: Domain) -> dict[str, Any]:
    """Popularity as a model that the graph can serve: the linear ranker `counts` with one weight, on the logarithm of
    the positive actions. `run` is of that variant. Returns the metrics.
    """
    fitted = Popularity.fit(run.root, domain, run.validation_window)
    begun, columns = start(run.root, run.preset, run.item_table, domain, None), Columns.of(domain)
    place = begun.inputs.encoders.item.num_numbers + columns.positives(domain.half_lives_ms.index(fitted.half_life_ms))
    return _publish_sum(run, begun, domain, {place: 1.0})


def publish_covisitation(run: TrainingRun, domain: Domain) -> dict[str, Any]:
    """Co-visitation with the last items as such a model: of items that it says the same of, as of those it says nothing
    of, the most popular comes first. Returns the metrics.
    """
    begun, columns = start(run.root, run.preset, run.item_table, domain, None), Columns.of(domain)
    first = begun.inputs.encoders.item.num_numbers
    lasting = first + columns.positives(len(domain.half_lives_ms) - 1)
    return _publish_sum(run, begun, domain, {first + columns.num_item + NUM_ITEM: 1.0, lasting: LESS_THAN_ANY})


def covisitation(preset: Preset) -> Preset:
    """From the preset of `counts`."""
    return dataclasses.replace(preset.replace(reads_covisits=True), variant=COVISITATION)


def _publish_sum(run: TrainingRun, begun: Start, domain: Domain, weights: dict[int, float]) -> dict[str, Any]:
    """A linear model over some of an item's numbers, by their place; heads of rejections have them turned round."""
    linear: Any = begun.ranker.mlp[0]
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.zero_()
        for place, weight in weights.items():
            linear.weight[:, place] = torch.tensor([-weight if utility < 0 else weight for utility in domain.utilities])
    return evaluate_and_publish(run, begun, domain, UNTRAINED, "CPU")


def _positives(statistics: Statistics, requests: Requests) -> NDArray[np.float64]:
    """`[N, S]`."""
    step_N = np.repeat(statistics.grid.step(requests.timestamp_ms_R), requests.sizes)
    return statistics.positives(requests.candidate_hash_N, step_N)
