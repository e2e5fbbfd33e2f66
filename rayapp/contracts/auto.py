"""The preset `auto`: the sizes of the ranker and the schedule of its training, worked out from the size of the log.

Anchors say what fits a log of so many shown items. Between two of them every number is interpolated in
logarithms, so that ten times the log moves it by the same factor. What comes out is a preset of plain values.
"""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any, Final

from rayapp.contracts.config import ModelConfig, TrainConfig
from rayapp.contracts.presets import Preset, variant


@dataclass(frozen=True, slots=True)
class LogSize:
    """How much there is to learn from."""

    lists: int
    """Of the training windows."""
    shown: int
    """Items of these lists: the examples of one epoch."""
    validation_lists: int


SMALL: Final = {
    "history_length": 32,
    "latest_k": 4,
    "action_dim": 8,
    "item_dim": 8,
    "feedforward_dim": 16,
    "category_dim": 4,
    "num_cross_layers": 1,
    "mlp_dim": 32,
}
"""34,000 weights on a news log of 16,000 shown items, which the 1,250,000 of `demo` knew by heart after one epoch
(docs/log.md)."""
ANCHORS: Final[tuple[dict[str, float], ...]] = (
    {"shown": 5e3, "batch_shown": 128, "num_epochs": 12, "learning_rate": 6e-3, **SMALL},
    {"shown": 2e4, "batch_shown": 220, "num_epochs": 8, "learning_rate": 6e-3, **SMALL},
    {
        "shown": 3e5,
        "batch_shown": 640,
        "num_epochs": 2,
        "learning_rate": 6e-3,
        "history_length": 40,
        "latest_k": 10,
        "action_dim": 16,
        "item_dim": 24,
        "feedforward_dim": 32,
        "category_dim": 8,
        "num_cross_layers": 2,
        "mlp_dim": 64,
    },
    {
        "shown": 1e9,
        "batch_shown": 12_000,
        "num_epochs": 1,
        "learning_rate": 4.8e-3,
        "history_length": 100,
        "latest_k": 10,
        "action_dim": 32,
        "item_dim": 32,
        "feedforward_dim": 32,
        "category_dim": 16,
        "num_cross_layers": 3,
        "mlp_dim": 256,
    },
)
"""By the shown items of the training windows. The last one is published (TransAct, section 4 and appendix): 50 million
lists of 20, 12,000 examples a step. The one before has the sizes and the batch of the preset `demo`, which was measured
on 360,000 shown items. The small ones were found on some 16,000 (docs/log.md). The learning rate is that of
`target-attention`, which gains from 3e-3 to 6e-3 and little more to 1e-2 on logs of 100,000 to 300,000 shown items."""
WIDTHS: Final = ("history_length", "action_dim", "item_dim", "feedforward_dim", "category_dim", "mlp_dim")
MULTIPLE_OF: Final = 4
"""Widths are."""
WARMUP_SHARE: Final = 0.1
"""Of the steps. Published are 2 % of a run that is a thousand times as long; a tenth is what small presets had."""
PATIENCE_SHARE: Final = 0.5
"""Of the evaluations: so many without gain a run survives. On the way to learning the sequence the loss on a validation
window of 192 lists stood still for a third of a run (docs/log.md)."""
MOST_EVALUATIONS: Final = 12
FEWEST_EVALUATIONS: Final = 4


def fit(preset: Preset, size: LogSize) -> Preset:
    """With the sizes and the schedule for a log; epochs that the preset names are kept."""
    fitted = dataclasses.replace(preset, model=model_for(size), train=schedule_for(size, preset.train))
    return variant(fitted, preset.variant)


def refit(preset: Preset, size: LogSize) -> Preset:
    """A preset that was fitted before, on another log: its sizes stay, so that a warm start finds its weights, and its
    schedule is worked out anew."""
    untold = dataclasses.replace(preset.train, num_epochs=0)
    return dataclasses.replace(preset, train=schedule_for(size, untold))


def model_for(size: LogSize) -> ModelConfig:
    values = _between(size.shown)
    widths: dict[str, Any] = {name: MULTIPLE_OF * round(values[name] / MULTIPLE_OF) for name in WIDTHS}
    return ModelConfig(latest_k=round(values["latest_k"]), num_cross_layers=round(values["num_cross_layers"]), **widths)


def schedule_for(size: LogSize, train: TrainConfig) -> TrainConfig:
    """`train` with epochs (whole ones, unless it names them), batch, learning rate, warm-up, evaluations, patience."""
    values = _between(size.shown)
    batch_requests = max(1, round(values["batch_shown"] * size.lists / size.shown))
    num_epochs = train.num_epochs or int(values["num_epochs"])
    evaluations = _evaluations(num_epochs * size.lists, size.validation_lists)
    return dataclasses.replace(
        train,
        num_epochs=num_epochs,
        batch_requests=batch_requests,
        learning_rate=round(values["learning_rate"], 4),
        warmup_steps=max(1, round(WARMUP_SHARE * num_epochs * size.lists / batch_requests)),
        evaluations=evaluations,
        patience_evaluations=round(PATIENCE_SHARE * evaluations),
    )


def _evaluations(trained_lists: int, validation_lists: int) -> int:
    """As many as read a quarter of the lists that are trained on: without the backward pass, two thirds of a step, that
    takes less than a tenth of the time. Not so few that the best weights are a matter of luck."""
    affordable = trained_lists // (4 * max(validation_lists, 1))
    return min(max(affordable, FEWEST_EVALUATIONS), MOST_EVALUATIONS)


def _between(shown: int) -> dict[str, float]:
    """Every number of the anchors at a size of the log; beyond the first and the last one, theirs."""
    within = min(max(shown, ANCHORS[0]["shown"]), ANCHORS[-1]["shown"])
    low, high = next(pair for pair in itertools.pairwise(ANCHORS) if within <= pair[1]["shown"])
    share = math.log(within / low["shown"]) / math.log(high["shown"] / low["shown"])
    return {name: value * (high[name] / value) ** share for name, value in low.items()}
