"""`experiments.toml`: what a team writes down about its experiments, read strictly.

[[experiments]]
name = "longer-history"
salt = "longer-history-1"       # its own: users are dealt anew for each salt
starts = 2026-12-01             # a day or a moment, UTC unless it says otherwise
planned_days = 14               # the report's decision is spread over these; then everybody has the champion again

[[experiments.arms]]            # the first arm is the control
name = "control"
alias = "champion"
share = 0.05                    # of the users, in steps of 0.0001; may grow while the experiment runs

[[experiments.arms]]
name = "treatment"
alias = "longer"
share = 0.05
utilities = { save = 2.0 }      # by head; the domain's for those left out
mix = { nearest = 0.5, explore = 0.05 }    # shares of the candidates by source

[[experiments.guardrails]]
head = "hide"
must_not = "rise"               # or "fall"
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from rayapp.contracts.config import DAY_MS, Domain
from rayapp.contracts.errors import RayappError
from rayapp.contracts.tables import Moment, Table, read_toml
from rayapp.registry.aliases import NAME
from rayapp.retrieval.sources import SOURCES
from rayapp.root.places import EXPERIMENTS_FILE

NUM_SLOTS: Final = 10_000
MAX_DAYS: Final = 60
Direction = Literal["rise", "fall"]


class ExperimentError(RayappError):
    """The experiments file, or what is asked of an experiment, can't be; the message names the place."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of making the feed. The first arm of an experiment is its control."""

    name: str
    share: float
    alias: str
    utilities: tuple[float, ...] | None = None
    """In the order of the domain's heads; None: the domain's."""
    mix: Mapping[str, float] | None = None
    """Candidate source -> share of the candidates; None: the domain's."""

    @property
    def num_slots(self) -> int:
        return round(self.share * NUM_SLOTS)


@dataclass(frozen=True, slots=True)
class Guardrail:
    """A head whose rate must not move one way in any arm, against the control."""

    head: str
    must_not: Direction


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment as declared."""

    name: str
    salt: str
    starts_ms: int
    planned_days: int
    arms: tuple[Arm, ...]
    guardrails: tuple[Guardrail, ...] = ()

    @property
    def ends_ms(self) -> int:
        return self.starts_ms + self.planned_days * DAY_MS


def parse_experiments(text: str, domain: Domain) -> tuple[Experiment, ...]:
    """The experiments of a file, in its order.

    Raises:
        ExperimentError: not TOML, a missing or misspelt key, a name that the domain lacks, or shares above 1.
    """
    try:
        tables = read_toml(_Experiments, text).experiments
    except ValueError as error:
        raise ExperimentError(f"{EXPERIMENTS_FILE}: {error}") from None
    for key in ("name", "salt"):
        _distinct(f"{EXPERIMENTS_FILE}: two experiments have the {key}", [getattr(table, key) for table in tables])
    return tuple(_experiment(table, domain) for table in tables)


def read_experiments(root: Path, domain: Domain) -> tuple[Experiment, ...]:
    """The root's experiments; none where it has no such file.

    Raises:
        ExperimentError: as `parse_experiments`, or the file can't be read.
    """
    try:
        return parse_experiments((root / EXPERIMENTS_FILE).read_text(encoding="utf-8"), domain)
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ExperimentError(f"{root / EXPERIMENTS_FILE} can't be read ({reason})") from None


def with_arm(domain: Domain, arm: Arm) -> Domain:
    """The domain with the utilities and the mix of an arm in the place of its own, where the arm has some."""
    utilities = arm.utilities or domain.utilities
    heads = tuple(dataclasses.replace(h, utility=u) for h, u in zip(domain.heads, utilities, strict=True))
    return dataclasses.replace(domain, heads=heads, mix=dict(arm.mix) if arm.mix is not None else domain.mix)


def _experiment(table: "_ExperimentTable", domain: Domain) -> Experiment:
    where = f"{EXPERIMENTS_FILE}: experiment {table.name!r}:"
    _distinct(f"{where} two arms have the name", [arm.name for arm in table.arms])
    _distinct(f"{where} two guardrails are on the head", [guardrail.head for guardrail in table.guardrails])
    arms = tuple(_arm(f"{where} arm {arm.name!r}:", arm, domain) for arm in table.arms)
    if (total := sum(arm.num_slots for arm in arms)) > NUM_SLOTS:
        raise ExperimentError(f"{where} the shares of its arms sum to {total / NUM_SLOTS:g}; 1 is all users")
    for guardrail in table.guardrails:
        _known(f"{where} guardrails name head", guardrail.head, domain.head_names)
    guardrails = tuple(Guardrail(g.head, g.must_not) for g in table.guardrails)
    return Experiment(table.name, table.salt, table.starts, table.planned_days, arms, guardrails)


def _arm(where: str, table: "_ArmTable", domain: Domain) -> Arm:
    if abs(table.share * NUM_SLOTS - round(table.share * NUM_SLOTS)) > 1e-6:
        raise ExperimentError(f"{where} share {table.share} is no multiple of {1 / NUM_SLOTS}")
    for head in table.utilities or ():
        _known(f"{where} utilities name head", head, domain.head_names)
    for source in table.mix or ():
        _known(f"{where} mix names source", source, SOURCES)
    if table.mix is not None and not 0 < sum(table.mix.values()) <= 1 + 1e-9:
        raise ExperimentError(f"{where} mix sums to {sum(table.mix.values()):g}; it must be above 0 and at most 1")
    utilities = None
    if table.utilities is not None:
        defaults = zip(domain.head_names, domain.utilities, strict=True)
        utilities = tuple(table.utilities.get(head, utility) for head, utility in defaults)
    return Arm(table.name, table.share, table.alias, utilities, table.mix)


def _known(said: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ExperimentError(f"{said} {name!r}; known: {', '.join(known)}")


def _distinct(said: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ExperimentError(f"{said} {name!r}")


Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class _ArmTable(Table):
    name: Name
    alias: Name
    share: Share
    utilities: dict[str, Number] | None = None
    mix: dict[str, Share] | None = None


class _GuardrailTable(Table):
    head: str
    must_not: Direction


class _ExperimentTable(Table):
    name: Name
    salt: Annotated[str, Field(min_length=1, max_length=128)]
    starts: Moment
    planned_days: Annotated[int, Field(ge=1, le=MAX_DAYS)]
    arms: Annotated[list[_ArmTable], Field(min_length=2, max_length=20)]
    guardrails: list[_GuardrailTable] = Field(default=[])


class _Experiments(Table):
    experiments: list[_ExperimentTable] = Field(default=[])
