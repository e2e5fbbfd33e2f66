"""Named sizes and schedules, and the named variants of the model that comparisons are made of."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from rayapp.contracts.config import DAY_MS, ModelConfig, TrainConfig

AUTO: Final = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A model and how to train it, under one name."""

    name: str
    variant: str = "v1.1"
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def replace(self, **model: Any) -> "Preset":
        """With some fields of the model changed."""
        return dataclasses.replace(self, model=dataclasses.replace(self.model, **model))

    def seeded(self, seed: int) -> "Preset":
        return dataclasses.replace(self, train=dataclasses.replace(self.train, seed=seed))

    def with_epochs(self, num_epochs: int | None) -> "Preset":
        """At most so many passes over the training window; None leaves them as they are."""
        if num_epochs is None:
            return self
        train = dataclasses.replace(self.train, num_epochs=num_epochs, min_steps=0)
        return dataclasses.replace(self, train=train)


SMALL_LOGS: Final[dict[str, Any]] = {"min_steps": 300, "patience_epochs": 2}
"""Of the presets that people train their own logs with: an epoch of a small one is a handful of steps."""


def nano() -> Preset:
    """Everything the real thing has, at the smallest sizes: trains in seconds, for tests."""
    model = ModelConfig(
        history_length=16,
        action_dim=8,
        item_dim=8,
        feedforward_dim=16,
        latest_k=4,
        category_dim=4,
        num_cross_layers=1,
        mlp_dim=16,
    )
    train = TrainConfig(num_epochs=4, batch_requests=32, warmup_steps=5, learning_rate=5e-3)
    return Preset(name="nano", model=model, train=train)


def demo() -> Preset:
    """The published shape of V1.1 at sizes that train in 4 minutes or less on 2 cores."""
    model = ModelConfig(history_length=40, action_dim=16, item_dim=24, category_dim=8, num_cross_layers=2, mlp_dim=64)
    train = TrainConfig(batch_requests=128, warmup_steps=50, learning_rate=3e-3, **SMALL_LOGS)
    return Preset(name="demo", model=model, train=train)


def study() -> Preset:
    """Small enough for comparisons of many variants over many seeds. As many epochs as help: `cross` needs more of them
    than V1.1, which soon stops by itself (docs/log.md)."""
    model = ModelConfig(history_length=32, action_dim=8, item_dim=16, category_dim=8, num_cross_layers=2, mlp_dim=64)
    train = TrainConfig(num_epochs=5, batch_requests=256, warmup_steps=50, learning_rate=2e-3)
    return Preset(name="study", model=model, train=train)


def paper() -> Preset:
    """The published sizes and schedule (KDD 2023, section 4 and appendix): for a GPU and a large log."""
    return Preset(name="paper", train=TrainConfig(batch_requests=600, **SMALL_LOGS))


def auto() -> Preset:
    """Still without sizes and schedule: `contracts.auto.fit` works them out once the log is known."""
    return Preset(name=AUTO, train=TrainConfig(num_epochs=0))


PRESETS: Final = {"auto": auto, "nano": nano, "demo": demo, "study": study, "paper": paper}

TARGET_ATTENTION: Final = "target-attention"
DEFAULT_VARIANT: Final = TARGET_ATTENTION
NO_SEQUENCE: Final = "no-sequence"
COUNTS: Final = "counts"
COUNTS_LEARNING_RATE: Final = 3e-2
MATCH_DIM: Final = 8
Variant = Callable[[Preset], Preset]
PUBLISHED: Final = {"encoder": "transact", "match_dim": 0, "readout_dim": 0}
"""What a variant has unless it changes it: a preset may be of another variant already."""


def _model(**changed: Any) -> Variant:
    return lambda preset: preset.replace(**PUBLISHED | changed)


def _masked(time_mask_ms: int) -> Variant:
    return lambda preset: dataclasses.replace(
        preset, train=dataclasses.replace(preset.train, time_mask_ms=time_mask_ms)
    )


def _counts(preset: Preset) -> Preset:
    """A logistic regression: so few weights, all of one size, bear a high learning rate, and have no parts."""
    linear = _model(encoder="none", reads="numbers", num_cross_layers=0, mlp_dim=0)(preset)
    train = dataclasses.replace(linear.train, learning_rate=COUNTS_LEARNING_RATE, scope="full")
    return dataclasses.replace(linear, train=train)


def _target_attention(preset: Preset) -> Preset:
    return preset.replace(encoder="cross", match_dim=MATCH_DIM, readout_dim=preset.model.item_dim)


def _half_length(preset: Preset) -> Preset:
    return preset.replace(history_length=max(preset.model.history_length // 2, 1))


def _double_length(preset: Preset) -> Preset:
    return preset.replace(history_length=preset.model.history_length * 2)


MODELS: Final[dict[str, Variant]] = {
    "v1.1": _model(),
    "v1.0": _model(num_layers=1, readout="all", num_cross_layers=0),
    "cross": _model(encoder="cross"),
    TARGET_ATTENTION: _target_attention,
    NO_SEQUENCE: _model(encoder="none"),
    COUNTS: _counts,
    "average-pool": _model(encoder="average"),
    "bst": _model(num_layers=1, fusion="append", readout="all", positions="learned"),
}
"""What is worth serving, and what it must beat. `counts`: a logistic regression over statistics, the user's own actions
by category and kind, ages and gaps. `bst`: the candidate as one more row, learned positions, one layer,
every output row kept (Chen et al., DLP-KDD 2019)."""

ABLATIONS: Final[dict[str, Variant]] = {
    "no-action-types": _model(action_types=False),
    "no-candidate": _model(fusion="none"),
    "append": _model(fusion="append"),
    "readout-first-row": _model(readout="latest", latest_k=1),
    "readout-random-rows": _model(readout="random"),
    "readout-latest": _model(readout="latest"),
    "readout-max": _model(readout="max"),
    "readout-all": _model(readout="all"),
    "readout-all-max": _model(readout="all+max"),
    "half-length": _half_length,
    "double-length": _double_length,
    "one-layer": _model(num_layers=1),
    "four-layers": _model(num_layers=4),
    "positions": _model(positions="learned"),
    "no-time-mask": _masked(0),
    "day-time-mask": _masked(DAY_MS),
}
"""Changes of V1.1, one at a time: the rows of the paper's tables 2, 4 and 10 and figures 4 and 5."""

PARTS: Final[dict[str, Variant]] = {
    "without-action-types": lambda preset: _target_attention(preset).replace(action_types=False),
    "without-sums": lambda preset: _target_attention(preset).replace(match_dim=0),
    "without-transformer": lambda preset: _target_attention(preset).replace(encoder="none", readout_dim=0),
    "whole-readout": lambda preset: _target_attention(preset).replace(readout_dim=0),
}
"""The default variant without one of its parts: what an action is, in the encoder and in the sums; the sums over
actions on items like the candidate; the encoder; the projection of the read-out."""

VARIANTS: Final = MODELS | ABLATIONS | PARTS


def variant(preset: Preset, name: str) -> Preset:
    """The preset's sizes with a variant's changes."""
    return dataclasses.replace(VARIANTS[name](preset), variant=name)
