"""`domain.toml` -> `DomainFile`. Errors name the place in the file and what is allowed there."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from rayapp.contracts.config import (
    DAY_MS,
    FOREVER,
    HALF_LIVES_MS,
    MINUTE_MS,
    REST_ITEMS,
    YEAR_2000_MS,
    CalibratedRanking,
    Cap,
    Domain,
    Head,
)
from rayapp.contracts.errors import RayappError
from rayapp.contracts.schema import Action, ActionKind, Attribute, AttributeKind, Vocabulary
from rayapp.contracts.tables import AnyTable, Duration, ListOf, Moment, Table, duration_ms, read_table, read_toml
from rayapp.contracts.zones import UTC
from rayapp.importing.domains.layout import (
    Column,
    DomainFile,
    EntityLayout,
    EventLayout,
    RequestLayout,
    TextFiles,
    TimeColumn,
)
from rayapp.retrieval.sources import SOURCES


class DomainError(RayappError):
    """The domain file says something that can't be; the message names the place."""


def parse_domain(text: str) -> DomainFile:
    """The whole file.

    Raises:
        DomainError: not TOML, a missing or misspelt key, or values that contradict each other.
    """
    try:
        return _domain_file(read_toml(_DomainTables, text))
    except ValueError as error:
        raise DomainError(str(error)) from None


def _duration_ms(value: Any, endless: str) -> int | None:
    """A duration, or None for the word that says it never ends."""
    if value == endless:
        return None
    try:
        return duration_ms(value)
    except ValueError as error:
        raise ValueError(f'{error}, or "{endless}"') from None


def _longer_ms(value: Any, endless: str, instead: str) -> int:
    """A duration of more than nothing; FOREVER, which is 0, for the word. `instead` says what to write for nothing."""
    lasts_ms = _duration_ms(value, endless)
    if lasts_ms == FOREVER:
        raise ValueError(f"must be longer; {instead}")
    return FOREVER if lasts_ms is None else lasts_ms


def _half_life_ms(value: Any) -> int:
    return _longer_ms(value, "never", 'counts that do not fade are "never"')


def _seen_for_ms(value: Any) -> int:
    return _longer_ms(value, "forever", 'leave out an action that does not count, and "forever" is for good')


def _again_after_ms(value: Any) -> int | None:
    return _duration_ms(value, "forever")


class _Seen(Table):
    actions: dict[str, Annotated[int, BeforeValidator(_seen_for_ms)]] = Field(default={})
    again_after: Annotated[int | None, BeforeValidator(_again_after_ms)] = 0
    rest: Duration = 0
    rest_items: int = REST_ITEMS


class _Cap(Table):
    most: int
    of: int


class _Calibration(Table):
    attribute: str
    weight: float


class _Action(Table):
    name: str
    kind: Annotated[ActionKind, Field(strict=False)]
    in_sequence: bool = True
    priority: int = 0


class _Head(Table):
    name: str
    actions: ListOf[str] | None = None
    """None: the action of the same name."""
    utility: float = 1.0
    loss_weights: dict[str, float] = Field(default={})


class _Attributes(Table):
    text: ListOf[str] = ()
    categories: ListOf[str] = ()
    numbers: ListOf[str] = ()

    @property
    def all(self) -> tuple[Attribute, ...]:
        groups = (
            (AttributeKind.TEXT, self.text),
            (AttributeKind.CATEGORIES, self.categories),
            (AttributeKind.NUMBER, self.numbers),
        )
        return tuple(Attribute(name, kind) for kind, names in groups for name in names)


class _Users(_Attributes, TextFiles):
    columns: dict[str, Any] = Field(default={})
    """Column, or moment, of the id and of each attribute; one that is left out has a column of its own name."""


class _Items(_Users):
    title: str


class _DomainTables(Table):
    name: str
    positive_head: str
    attribution: Duration = DAY_MS
    time_mask: Duration = 0
    earliest: Moment = YEAR_2000_MS
    half_lives: ListOf[Annotated[int, BeforeValidator(_half_life_ms)]] = HALF_LIVES_MS
    statistics_step: Duration = 10 * MINUTE_MS
    flag_delay: Duration = 10 * MINUTE_MS
    left_out_of_statistics: dict[str, ListOf[str]] = Field(default={})
    time_zone: str = UTC
    user_weights: dict[str, dict[str, float]] = Field(default={})
    seen: _Seen = _Seen()
    caps: dict[str, _Cap] = Field(default={})
    mix: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default={})
    calibration: _Calibration | None = None
    actions: ListOf[_Action]
    heads: ListOf[_Head]
    items: _Items
    users: _Users = _Users()
    context: _Attributes = _Attributes()
    events: ListOf[EventLayout]
    requests: ListOf[RequestLayout] = ()


def _domain_file(file: _DomainTables) -> DomainFile:
    domain = Domain(
        name=file.name,
        vocabulary=Vocabulary(tuple(Action(**dict(action)) for action in file.actions)),
        heads=tuple(Head(name=h.name, actions=h.actions or (h.name,), utility=h.utility) for h in file.heads),
        positive_head=file.positive_head,
        attributes=file.items.all,
        title=file.items.title,
        user_attributes=file.users.all,
        context_attributes=file.context.all,
        attribution_ms=file.attribution,
        time_mask_ms=file.time_mask,
        earliest_ms=file.earliest,
        label_weights=_label_weights(file.heads),
        user_weights=file.user_weights,
        half_lives_ms=file.half_lives,
        statistics_step_ms=file.statistics_step,
        flag_delay_ms=file.flag_delay,
        left_out_of_statistics=file.left_out_of_statistics,
        time_zone=file.time_zone,
        seen_ms=file.seen.actions,
        seen_again_after_ms=file.seen.again_after,
        rest_ms=file.seen.rest,
        rest_items=file.seen.rest_items,
        caps=_caps(file.caps),
        mix=file.mix,
        calibration=_calibration(file.calibration),
    )
    _known("mix names", domain.mix, tuple(SOURCES), "the sources of candidates")
    for number, events in enumerate(file.events, 1):
        _known(f"events[{number}] action names", events.action.actions, domain.vocabulary.names, "[[actions]]")
    for number, requests in enumerate(file.requests, 1):
        attributes = [a.name for a in domain.context_attributes]
        _known(f"requests[{number}] context names", requests.context, attributes, "[context]")
        if requests.labels and set(requests.labels) != set(domain.head_names):
            heads = ", ".join(domain.head_names)
            raise ValueError(f"requests[{number}] labels must give a column for each head, or none: {heads}")
    users = _entity_layout("[users]", file.users, ("user_id", "effective_at")) if file.users.all else None
    return DomainFile(
        domain=domain,
        events=file.events,
        requests=file.requests,
        items=_entity_layout("[items]", file.items, ("item_id", "created_at"), ("vector", "available")),
        users=users,
    )


def _caps(tables: dict[str, _Cap]) -> dict[str, Cap]:
    caps: dict[str, Cap] = {}
    for name, table in tables.items():
        try:
            caps[name] = Cap(most=table.most, of=table.of)
        except ValueError as error:
            raise ValueError(f"caps {name} {error}") from None
    return caps


def _calibration(table: _Calibration | None) -> CalibratedRanking | None:
    try:
        return None if table is None else CalibratedRanking(attribute=table.attribute, weight=table.weight)
    except ValueError as error:
        raise ValueError(f"calibration {error}") from None


def _label_weights(heads: Sequence[_Head]) -> tuple[tuple[float, ...], ...]:
    """The matrix of `Domain.label_weights`; () where no head says anything."""
    columns = [*(head.name for head in heads), "impression"]
    for head in heads:
        _known(f"head {head.name!r}: loss_weights names", head.loss_weights, columns, "heads and `impression`")
    if not any(head.loss_weights for head in heads):
        return ()
    return tuple(tuple(head.loss_weights.get(column, 1.0) for column in columns) for head in heads)


def _known(said: str, names: Iterable[str], known: Sequence[str], among: str) -> None:
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"{said} {unknown}, not among {among}: {', '.join(known) or 'there are none'}")


def _entity_layout(where: str, table: _Users, own: tuple[str, str], optional: tuple[str, ...] = ()) -> EntityLayout:
    """`own`: what files call the id and the moment."""
    left = dict(table.columns)

    def take(kind: type[AnyTable], name: str) -> AnyTable | None:
        if name not in left:
            return None
        try:
            return read_table(kind, left.pop(name))
        except ValueError as error:
            raise ValueError(f"{where} columns {name}: {error}") from None

    def own_name(name: str) -> Column:
        return take(Column, name) or Column(column=(name,))

    names = [attribute.name for attribute in table.all]
    id_name, at_name = own
    layout = EntityLayout(
        id=own_name(id_name),
        at=take(TimeColumn, at_name),
        attributes={name: own_name(name) for name in names},
        **{name: take(Column, name) for name in optional},
        null_values=table.null_values,
        dialect=table.dialect,
    )
    if left:
        known = ", ".join((*own, *names, *optional))
        raise ValueError(f"{where} columns has no key {sorted(left)[0]!r}; known: {known}")
    return layout
