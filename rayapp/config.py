"""What one run is made of: the domain, the model, the training, and the named presets.

Frozen values only; nothing here knows paths, Ray or the environment.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Final

from rayapp.schema import REQUEST_SCHEMA, Attribute, AttributeKind, Vocabulary

DAY_MS: Final = 24 * 60 * 60 * 1000
YEAR_2000_MS: Final = 946_684_800_000
RESERVED_NAMES: Final = frozenset(
    {"item_id", "user_id", "created_at_ms", "effective_at_ms", "vector", "likes", *REQUEST_SCHEMA.names}
)
"""Columns of our own tables; an attribute of the same name would be taken for them."""

ATTRIBUTE_GROUPS: Final = ("attributes", "user_attributes", "context_attributes")


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """One sigmoid of the ranker: did any of these actions follow the impression?"""

    name: str
    actions: tuple[str, ...]
    utility: float
    """Weight of this head's probability in the feed score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Domain:
    """What a team's feed is about. The whole application is driven by it; no code asks for a data set's name."""

    name: str
    vocabulary: Vocabulary
    heads: tuple[Head, ...]
    positive_head: str
    """The head that comparisons report first."""
    attributes: tuple[Attribute, ...]
    """Of items."""
    title: str
    """The text attribute shown to people."""
    user_attributes: tuple[Attribute, ...] = ()
    context_attributes: tuple[Attribute, ...] = ()
    """What a request knows about its moment: device, tab, country."""
    earliest_ms: int = YEAR_2000_MS
    """A timestamp before this is a mistake of the source, most often of its unit."""
    attribution_ms: int = DAY_MS
    """An action belongs to the impression of the same request when it follows within this time."""
    time_mask_ms: int = 0
    """Training hides actions newer than T ~ U(0, this); 0 switches the mask off (TransAct, section 3.2.2)."""
    label_weights: tuple[tuple[float, ...], ...] = ()
    """Row per head: its loss weight for each head's label that is 1, then for an impression without any.
    Empty: every weight 1."""

    def __post_init__(self) -> None:
        known = set(self.vocabulary.names)
        for head in self.heads:
            if missing := set(head.actions) - known:
                raise ValueError(f"head {head.name!r} needs actions that the vocabulary lacks: {sorted(missing)}")
        if self.positive_head not in self.head_names:
            raise ValueError(f"positive_head {self.positive_head!r} is none of the heads {self.head_names}")
        if self.title not in {a.name for a in self.attributes}:
            raise ValueError(f"title {self.title!r} is no attribute of the items")
        for group in (self.attributes, self.user_attributes, self.context_attributes):
            names = [a.name for a in group]
            if bad := {n for n in names if n in RESERVED_NAMES or names.count(n) > 1}:
                raise ValueError(f"attribute names must be unique and not a column of ours: {sorted(bad)}")

    @property
    def head_names(self) -> tuple[str, ...]:
        return tuple(head.name for head in self.heads)

    @property
    def utilities(self) -> tuple[float, ...]:
        return tuple(head.utility for head in self.heads)

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        values["vocabulary"] = self.vocabulary.to_json()
        for group in ATTRIBUTE_GROUPS:
            values[group] = [{"name": a.name, "kind": a.kind.value} for a in getattr(self, group)]
        return values

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Domain":
        groups = {
            group: tuple(Attribute(a["name"], AttributeKind(a["kind"])) for a in values.get(group, ()))
            for group in ATTRIBUTE_GROUPS
        }
        return Domain(
            **{
                **values,
                "vocabulary": Vocabulary.from_json(values["vocabulary"]),
                "heads": tuple(Head(**{**h, "actions": tuple(h["actions"])}) for h in values["heads"]),
                **groups,
                "label_weights": tuple(tuple(row) for row in values["label_weights"]),
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """TransAct V1.1 and the ranker around it; the defaults are the published sizes."""

    use_sequence: bool = True
    """False: the same ranker without the user's actions, the comparison every gain is measured against."""
    history_length: int = 100
    action_dim: int = 32
    item_dim: int = 32
    num_layers: int = 2
    num_heads: int = 1
    feedforward_dim: int = 32
    dropout: float = 0.1
    latest_k: int = 10
    """Rows of the newest actions that reach the ranker besides the max-pool: V1.1 has 10 + 1 = 11."""
    category_dim: int = 16
    num_cross_layers: int = 3
    mlp_dim: int = 256

    @property
    def encoder_dim(self) -> int:
        """Width of one encoder row: action + engaged item + candidate item (early fusion by concatenation)."""
        return self.action_dim + 2 * self.item_dim


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run."""

    seed: int = 0
    num_epochs: int = 1
    batch_requests: int = 256
    learning_rate: float = 4.8e-3
    warmup_steps: int = 5_000
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    negative_rate: float = 1.0
    """Share of shown items without any label that are trained on; probabilities must be corrected for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A model and how to train it, under one name."""

    name: str
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


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
    return Preset(
        name="nano", model=model, train=TrainConfig(num_epochs=4, batch_requests=32, warmup_steps=5, learning_rate=5e-3)
    )


def demo() -> Preset:
    """The published shape of V1.1 at sizes that train in 4 minutes or less on 2 cores."""
    return Preset(
        name="demo",
        model=ModelConfig(history_length=40, action_dim=16, item_dim=24, num_cross_layers=2, mlp_dim=64),
        train=TrainConfig(batch_requests=128, warmup_steps=50, learning_rate=3e-3),
    )


def study() -> Preset:
    """At least four times cheaper than `demo`, for comparisons over many seeds."""
    return Preset(
        name="study",
        model=ModelConfig(history_length=16, action_dim=8, item_dim=16, num_cross_layers=2, mlp_dim=64),
        train=TrainConfig(batch_requests=128, warmup_steps=50, learning_rate=4e-3),
    )


def paper() -> Preset:
    """The published sizes and schedule (KDD 2023, section 4 and appendix): for a GPU and a large log."""
    return Preset(name="paper", train=TrainConfig(batch_requests=600))


PRESETS: Final = {"nano": nano, "demo": demo, "study": study, "paper": paper}


def to_json(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values."""
    return dataclasses.asdict(config)


def model_config_from_json(values: dict[str, Any]) -> ModelConfig:
    """Rebuilds a ModelConfig; a field this version does not know is an error that names it."""
    known = {f.name for f in dataclasses.fields(ModelConfig)}
    if unknown := set(values) - known:
        raise ValueError(f"config.json holds fields this version does not know: {sorted(unknown)}")
    return ModelConfig(**values)
