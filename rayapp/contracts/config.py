"""Settings as frozen values: what the feed is about, the sizes of the ranker, how it is trained.

`presets` names sets of them. Nothing here knows paths, Ray or the environment.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from pydantic import model_serializer

from rayapp.contracts.json_values import to_json as to_json  # noqa: PLC0414
from rayapp.contracts.schema import REQUEST_SCHEMA, Attribute, AttributeKind, Vocabulary
from rayapp.contracts.tables import duration_text
from rayapp.contracts.zones import UTC, is_zone

MINUTE_MS: Final = 60 * 1000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS
YEAR_2000_MS: Final = 946_684_800_000
RESERVED_NAMES: Final = frozenset(
    {
        *("item_id", "user_id", "created_at_ms", "effective_at_ms", "available", "vector", "likes"),
        *REQUEST_SCHEMA.names,
    }
)
"""Columns of our own tables; an attribute of the same name would be taken for them."""
FOREVER: Final = 0
"""The half-life of a count that does not fade."""
HALF_LIVES_MS: Final = (HOUR_MS, DAY_MS, 7 * DAY_MS, FOREVER)
"""Of a domain that says nothing else."""
REST_ITEMS: Final = 200
LATER_FIELDS: Final = {
    "half_lives_ms": HALF_LIVES_MS,
    "statistics_step_ms": 10 * MINUTE_MS,
    "flag_delay_ms": 10 * MINUTE_MS,
    "left_out_of_statistics": {},
    "time_zone": UTC,
    "seen_ms": {},
    "seen_again_after_ms": 0,
    "caps": {},
    "mix": {},
    "calibration": None,
    "rest_ms": 0,
    "rest_items": REST_ITEMS,
}
"""Fields that a domain's JSON leaves out at their default: versions are named by it, and keep their names."""
SERVED_FIELDS: Final = frozenset(
    {"seen_ms", "seen_again_after_ms", "caps", "mix", "calibration", "rest_ms", "rest_items"}
)
"""Fields that only feeds go by: what was trained before they changed stays what it is, under its name."""
MAX_CAPPED: Final = 500
MAX_REST_ITEMS: Final = 1_000
MAX_HALF_LIVES: Final = 4
"""Every half-life is as many more columns of every count."""


def day_name(timestamp_ms: int) -> str:
    """The UTC day; with the minute where the time is not midnight."""
    moment = time.gmtime(timestamp_ms / 1000)
    return time.strftime("%Y-%m-%d" if timestamp_ms % DAY_MS == 0 else "%Y-%m-%dT%H%M", moment)


def day_start_ms(timestamp_ms: int) -> int:
    """When the UTC day of a moment began."""
    return int(timestamp_ms) // DAY_MS * DAY_MS


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """One sigmoid of the ranker: did any of these actions follow the impression?"""

    name: str
    actions: tuple[str, ...]
    utility: float
    """Weight of this head's probability in the feed score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cap:
    """At most `most` items of one value of an attribute among any `of` neighbouring places of a list."""

    most: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.most < self.of <= MAX_CAPPED:
            raise ValueError(f"must be 1 <= most < of <= {MAX_CAPPED}, not {self.most} of {self.of}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibratedRanking:
    """A list's values of an attribute follow those of the user's last likes; `weight` of that against the score."""

    attribute: str
    weight: float

    def __post_init__(self) -> None:
        if not 0 < self.weight < 1:
            raise ValueError(f"weight must be above 0 and below 1, not {self.weight}")


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
    user_weights: dict[str, dict[str, float]] = field(default_factory=dict)
    """Categorical attribute of users -> value -> loss weight; a user's weight is the product over attributes."""
    half_lives_ms: tuple[int, ...] = HALF_LIVES_MS
    """How fast the fresh statistics fade: ascending multiples of `statistics_step_ms`, FOREVER last."""
    statistics_step_ms: int = 10 * MINUTE_MS
    """The grid of time: a statistic at t knows what was received before the last whole step at or before t."""
    flag_delay_ms: int = 10 * MINUTE_MS
    """Labels that came as 0/1 flags of a shown list have no time of arrival: they count so long after it was shown."""
    left_out_of_statistics: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Categorical attribute of users -> values whose users count in no statistic: bots, testers."""
    time_zone: str = UTC
    """IANA name of the zone whose hour and day of the week models read."""
    seen_ms: dict[str, int] = field(default_factory=dict)
    """Action -> for how long its item stays out of the user's feeds, FOREVER for good. Actions that are not listed do
    not count, but negative ones, which do for good. Empty: every action counts for good."""
    seen_again_after_ms: int | None = 0
    """Where nothing else is left, what was seen comes back so long after the last action on it; None: never."""
    rest_ms: int = 0
    """For so long after it was shown an item stays out of the user's feeds; 0: shown items don't rest."""
    rest_items: int = REST_ITEMS
    """Of each user's shown items so many, the last, are kept for it."""
    caps: dict[str, Cap] = field(default_factory=dict)
    """Categorical attribute of items -> how many of one value a list may hold."""
    mix: dict[str, float] = field(default_factory=dict)
    """Candidate source -> the most that it brings of a feed's candidates, as a share. Empty: the usual shares."""
    calibration: CalibratedRanking | None = None
    """None: lists go by score and diversity alone."""

    def __post_init__(self) -> None:
        known = set(self.vocabulary.names)
        for head in self.heads:
            if missing := set(head.actions) - known:
                raise ValueError(f"head {head.name!r} needs actions that the vocabulary lacks: {sorted(missing)}")
        if self.positive_head not in self.head_names:
            raise ValueError(f"positive_head {self.positive_head!r} is none of the heads {self.head_names}")
        if self.title not in {a.name for a in self.attributes}:
            raise ValueError(f"title {self.title!r} is no attribute of the items")
        users = {a.name for a in self.user_attributes if a.kind is AttributeKind.CATEGORIES}
        for said in ("user_weights", "left_out_of_statistics"):
            if unknown := set(getattr(self, said)) - users:
                raise ValueError(f"{said} names {sorted(unknown)}, no categorical attribute of the users")
        if not is_zone(self.time_zone):
            raise ValueError(f'time_zone must name a zone like "Europe/Berlin" or "{UTC}", not "{self.time_zone}"')
        self._check_statistics()
        self._check_feeds()
        for group in (self.attributes, self.user_attributes, self.context_attributes):
            names = [a.name for a in group]
            if bad := {n for n in names if n in RESERVED_NAMES or names.count(n) > 1}:
                raise ValueError(f"attribute names must be unique and not a column of ours: {sorted(bad)}")

    def _check_statistics(self) -> None:
        step_ms, fading = self.statistics_step_ms, [h for h in self.half_lives_ms if h != FOREVER]
        if not MINUTE_MS <= step_ms <= HOUR_MS:
            raise ValueError(f'statistics_step must be from "1m" to "1h", not "{duration_text(step_ms)}"')
        if not 1 <= len(self.half_lives_ms) <= MAX_HALF_LIVES:
            raise ValueError(f"half_lives must be 1 to {MAX_HALF_LIVES} durations, not {len(self.half_lives_ms)}")
        if self.half_lives_ms not in {(*sorted({*fading}),), (*sorted({*fading}), FOREVER)}:
            raise ValueError('half_lives must ascend without repeats, with "never" last')
        if bad := [duration_text(h) for h in fading if h < step_ms or h % step_ms]:
            step = duration_text(step_ms)
            raise ValueError(f'half_lives must be multiples of statistics_step "{step}"; {", ".join(bad)} is none')
        if self.flag_delay_ms <= 0:
            raise ValueError(
                'flag_delay must be longer than "0s": a statistic that knew a flag at once would know the answer'
            )

    def _check_feeds(self) -> None:
        if unknown := set(self.seen_ms) - set(self.vocabulary.names):
            raise ValueError(f"seen names {sorted(unknown)}, no action; there are {list(self.vocabulary.names)}")
        if any(lasts_ms < 0 for lasts_ms in self.seen_ms.values()) or (self.seen_again_after_ms or 0) < 0:
            raise ValueError("what counts as seen must last for some time, not less than none")
        if self.rest_ms < 0 or not 1 <= self.rest_items <= MAX_REST_ITEMS:
            raise ValueError(f"seen: rest must not be negative, and rest_items be from 1 to {MAX_REST_ITEMS}")
        categories = [a.name for a in self.attributes if a.kind is AttributeKind.CATEGORIES]
        if unknown := set(self.caps) - set(categories):
            raise ValueError(f"caps names {sorted(unknown)}, no categorical attribute of the items; {categories} are")
        if self.mix and not 0 < sum(self.mix.values()) <= 1 + 1e-9:
            raise ValueError(f"mix sums to {sum(self.mix.values()):g}; it must be above 0 and at most 1")
        if self.calibration is not None and (name := self.calibration.attribute) not in categories:
            raise ValueError(f"calibration names {name!r}, no categorical attribute of the items; {categories} are")

    @model_serializer(mode="wrap")
    def _as_before(self, values: Callable[["Domain"], dict[str, Any]]) -> dict[str, Any]:
        usual = {name for name, default in LATER_FIELDS.items() if getattr(self, name) == default}
        return {name: value for name, value in values(self).items() if name not in usual}

    @property
    def head_names(self) -> tuple[str, ...]:
        return tuple(head.name for head in self.heads)

    @property
    def utilities(self) -> tuple[float, ...]:
        return tuple(head.utility for head in self.heads)


def version_values(domain: Domain) -> dict[str, Any]:
    """The domain as versions are named by it: its JSON, with tuples where the first versions had them."""
    values = to_json(domain)
    heads = tuple({**head, "actions": tuple(head["actions"])} for head in values["heads"])
    named = {name: value for name, value in values.items() if name not in SERVED_FIELDS}
    return {**named, "heads": heads, "label_weights": tuple(map(tuple, values["label_weights"]))}


Encoder = Literal["transact", "cross", "average", "none"]
Fusion = Literal["concat", "append", "none"]
Positions = Literal["none", "learned"]
Reads = Literal["all", "numbers"]
Scope = Literal["full", "sequence", "heads"]
LATER_OF_MODEL: Final = {
    "reads": "all",
    "match_dim": 0,
    "readout_dim": 0,
    "reads_rates": True,
    "reads_covisits": False,
}
READOUT_PARTS: Final = ("latest", "random", "all", "max")
CAME_LATER: Final = {"scope": "full", "min_steps": 0, "evaluations": 0, "patience_evaluations": 0}
"""Fields that are left out of JSON at this value: versions and runs are named by it, and keep their names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """TransAct V1.1 and the ranker around it; the defaults are the published sizes."""

    encoder: Encoder = "transact"
    """`cross` encodes the actions once a user, and candidates attend to them; `average` is their mean; `none` is the
    same ranker without the sequence, the comparison every gain is measured against."""
    fusion: Fusion = "concat"
    """How `transact` brings in the candidate: in every row, as one more row, or not at all."""
    readout: str = "latest+max"
    """Rows that reach the ranker, joined by +: the `latest` K, K `random` places, `all`, the `max`-pool over all."""
    positions: Positions = "none"
    action_types: bool = True
    """False: a row says which item was acted on, not how."""
    history_length: int = 100
    action_dim: int = 32
    item_dim: int = 32
    num_layers: int = 2
    num_heads: int = 1
    feedforward_dim: int = 32
    dropout: float = 0.1
    match_dim: int = 0
    """Values of an action that are summed over the actions on items like the candidate (`model.matching`); 0: none."""
    readout_dim: int = 0
    """`cross`: columns that the read-out is projected to before the crossing; 0: all of it is crossed."""
    latest_k: int = 10
    """K: V1.1 has 10 newest rows and the max-pool, 11 in all."""
    category_dim: int = 16
    num_cross_layers: int = 3
    mlp_dim: int = 256
    """0: the heads are linear."""
    reads: Reads = "all"
    """`numbers`: statistics, ages, gaps and numeric attributes alone; no vectors and no categories."""
    reads_weekday: bool = False
    """False: the day of the week reads as zeros. Each training sets it by how many days its windows hold."""
    reads_rates: bool = True
    """False: whatever counts shown lists reads as zeros. Each training sets it by whether its lists were shown."""
    reads_covisits: bool = False
    """Reads of the item table what is acted on beside the user's last items (`model.covisits`)."""

    def __post_init__(self) -> None:
        for name, allowed in (("encoder", Encoder), ("fusion", Fusion), ("positions", Positions), ("reads", Reads)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} must be one of {get_args(allowed)}, not {getattr(self, name)!r}")
        if unknown := set(self.readout_parts) - set(READOUT_PARTS):
            raise ValueError(f"readout names {sorted(unknown)}; known: {READOUT_PARTS}")

    @model_serializer(mode="wrap")
    def _as_before(self, fields: Callable[["ModelConfig"], dict[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in fields(self).items() if (name, value) not in LATER_OF_MODEL.items()}

    @property
    def readout_parts(self) -> list[str]:
        return self.readout.split("+")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run."""

    seed: int = 0
    num_epochs: int = 1
    """At the most, unless `min_steps` asks for more."""
    min_steps: int = 0
    """A small window is gone over again until its epochs add up to so many steps; an early stop may end them sooner."""
    patience_epochs: int = 0
    """Training stops when this many further epochs have not lowered the loss on the validation window."""
    evaluations: int = 0
    """Looks at the validation window, spread evenly over the steps; 0: one after each epoch."""
    patience_evaluations: int = 0
    """The patience of a run with `evaluations`, counted in these."""
    batch_requests: int = 256
    learning_rate: float = 4.8e-3
    warmup_steps: int = 5_000
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    negative_rate: float = 1.0
    """Share of shown items without any label that are trained on; calibration corrects the probabilities for it."""
    time_mask_ms: int | None = None
    """Instead of the domain's time mask. Windows are built for the domain's: with a longer one a very active user's
    masked history may be shorter than `history_length`."""
    scope: Scope = "full"
    """What is trained: everything, the `sequence` encoder alone, or the `heads` (the MLP behind the crossing) alone;
    the rest stays as it is in the published model that the run starts from."""

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            raise ValueError(f"scope must be one of {get_args(Scope)}, not {self.scope!r}")

    @model_serializer(mode="wrap")
    def _as_before(self, fields: Callable[["TrainConfig"], dict[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in fields(self).items() if (name, value) not in CAME_LATER.items()}
