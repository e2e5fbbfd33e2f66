"""`domain.toml` -> `DomainFile`. Errors name the place in the file and what is allowed there."""

import datetime
import re
import tomllib
from collections.abc import Callable
from typing import Any, Final, TypeVar

from rayapp.contracts.config import DAY_MS, YEAR_2000_MS, Domain, Head
from rayapp.contracts.errors import RayappError
from rayapp.contracts.schema import Action, ActionKind, Attribute, AttributeKind, Vocabulary
from rayapp.importing.domains.layout import (
    NULL_VALUES,
    ActionRule,
    Column,
    DomainFile,
    EntityLayout,
    EventLayout,
    RequestLayout,
    TimeColumn,
    TimeUnit,
)

T = TypeVar("T")
UNIT_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": DAY_MS}
REQUIRED: Final = object()


class DomainError(RayappError):
    """The domain file says something that can't be; the message names the place."""


class _Table:
    """A TOML table that is emptied while it is read, so that a misspelt key is found."""

    def __init__(self, where: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise DomainError(f"{where} must be a table")
        self.where, self._values, self._known = where, dict(values), list[str]()

    def take(self, key: str, read: Callable[[str, Any], T], default: Any = REQUIRED) -> T:
        """The value at `key`, read by `read(place, value)`.

        Raises:
            DomainError: absent and without a default, or of the wrong form.
        """
        self._known.append(key)
        place = f"{self.where} {key}"
        if key not in self._values:
            if default is REQUIRED:
                raise DomainError(f"{place} is missing")
            return default  # type: ignore[no-any-return]
        return read(place, self._values.pop(key))

    def done(self) -> None:
        if self._values:
            raise DomainError(f"{self.where} has no key {sorted(self._values)[0]!r}; known: {', '.join(self._known)}")


def parse_domain(text: str) -> DomainFile:
    """The whole file.

    Raises:
        DomainError: not TOML, a missing or misspelt key, or values that contradict each other.
    """
    try:
        top = _Table("domain file:", tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise DomainError(f"not valid TOML: {error}") from None
    actions = top.take("actions", _list_of(_action))
    heads = top.take("heads", _list_of(_head))
    items = _Table("[items]", top.take("items", _any))
    users = _Table("[users]", top.take("users", _any, {}))
    context = _Table("[context]", top.take("context", _any, {}))
    attributes = {table.where: _attributes(table) for table in (items, users, context)}
    try:
        domain = Domain(
            name=top.take("name", _text),
            vocabulary=Vocabulary(actions),
            heads=tuple(head for head, _ in heads),
            positive_head=top.take("positive_head", _text),
            attributes=attributes["[items]"],
            title=items.take("title", _text),
            user_attributes=attributes["[users]"],
            context_attributes=attributes["[context]"],
            attribution_ms=top.take("attribution", duration_ms, DAY_MS),
            time_mask_ms=top.take("time_mask", duration_ms, 0),
            earliest_ms=top.take("earliest", _moment, YEAR_2000_MS),
            label_weights=_label_weights(heads),
            user_weights=top.take("user_weights", _user_weights, {}),
            rates_every_days=top.take("rates_every", _days, 1),
        )
    except ValueError as error:
        raise error if isinstance(error, DomainError) else DomainError(str(error)) from None
    parsed = DomainFile(
        domain=domain,
        events=top.take("events", _list_of(lambda where, v: _event_layout(where, v, domain))),
        requests=top.take("requests", _list_of(lambda where, v: _request_layout(where, v, domain)), ()),
        items=_entity_layout(items, "item_id", "created_at", domain.attributes, items=True),
        users=_entity_layout(users, "user_id", "effective_at", domain.user_attributes)
        if attributes["[users]"]
        else None,
    )
    for table in (context, top):
        table.done()
    return parsed


def _action(where: str, value: Any) -> Action:
    table = _Table(where, value)
    action = Action(
        name=table.take("name", _text),
        kind=table.take("kind", _one_of(ActionKind)),
        in_sequence=table.take("in_sequence", _typed(bool, "true or false"), True),
        priority=table.take("priority", _typed(int, "a whole number"), 0),
    )
    table.done()
    return action


def _head(where: str, value: Any) -> tuple[Head, dict[str, float]]:
    table = _Table(where, value)
    name = table.take("name", _text)
    weights = table.take("loss_weights", _any, {})
    if not isinstance(weights, dict):
        raise DomainError(f"{where} loss_weights must be a table of head = number")
    head = Head(
        name=name,
        actions=table.take("actions", _list_of(_text), (name,)),
        utility=table.take("utility", _number, 1.0),
    )
    table.done()
    return head, {key: _number(f"{where} loss_weights {key}", number) for key, number in weights.items()}


def _label_weights(heads: tuple[tuple[Head, dict[str, float]], ...]) -> tuple[tuple[float, ...], ...]:
    """The matrix of `Domain.label_weights`; () where no head says anything."""
    columns = [*(head.name for head, _ in heads), "impression"]
    for head, weights in heads:
        if unknown := set(weights) - set(columns):
            raise DomainError(f"head {head.name!r}: loss_weights names {sorted(unknown)}; known: {', '.join(columns)}")
    if not any(weights for _, weights in heads):
        return ()
    return tuple(tuple(weights.get(column, 1.0) for column in columns) for _, weights in heads)


def _attributes(table: _Table) -> tuple[Attribute, ...]:
    keys = {"text": AttributeKind.TEXT, "categories": AttributeKind.CATEGORIES, "numbers": AttributeKind.NUMBER}
    return tuple(Attribute(name, kind) for key, kind in keys.items() for name in table.take(key, _list_of(_text), ()))


def _event_layout(where: str, value: Any, domain: Domain) -> EventLayout:
    table = _Table(where, value)
    layout = EventLayout(
        user_id=table.take("user_id", _column),
        item_id=table.take("item_id", _column),
        timestamp=table.take("timestamp", _time),
        action=table.take("action", lambda place, v: _action_rule(place, v, domain.vocabulary)),
        event_id=table.take("event_id", _column, None),
        received_at=table.take("received_at", _time, None),
        lag_ms=table.take("lag", duration_ms, 0),
        request_id=table.take("request_id", _column, None),
        position=table.take("position", _column, None),
        value=table.take("value", _column, None),
        surface=table.take("surface", _column, None),
        null_values=table.take("null_values", _list_of(_text), NULL_VALUES),
    )
    table.done()
    return layout


def _action_rule(where: str, value: Any, vocabulary: Vocabulary) -> ActionRule:
    if isinstance(value, str | list):
        return ActionRule(column=_column(where, value))
    table = _Table(where, value)
    flags = table.take("flags", _any, {})
    rule = ActionRule(
        column=table.take("column", _column, None),
        names=table.take("names", lambda place, v: {k: _text(place, word) for k, word in v.items()}, {}),
        flags=tuple((action, _column(f"{where} flags {action}", c)) for action, c in flags.items()),
        otherwise=table.take("otherwise", _text, None),
    )
    table.done()
    if (rule.column is not None) + bool(rule.flags) > 1 or not (rule.column or rule.flags or rule.otherwise):
        raise DomainError(f"{where} needs `column`, or `flags`, or only `otherwise`")
    used = {*rule.names.values(), *(a for a, _ in rule.flags), *([rule.otherwise] if rule.otherwise else [])}
    if unknown := used - set(vocabulary.names):
        raise DomainError(f"{where} names actions that are not among [[actions]]: {sorted(unknown)}")
    return rule


def _request_layout(where: str, value: Any, domain: Domain) -> RequestLayout:
    table = _Table(where, value)
    rows = "item_id" in value
    labels = table.take("labels", _columns_by_name, ())
    context = table.take("context", _columns_by_name, ())
    known = {a.name for a in domain.context_attributes}
    if unknown := {name for name, _ in context} - known:
        raise DomainError(f"{where} context names what is no attribute of [context]: {sorted(unknown)}")
    if labels and {name for name, _ in labels} != set(domain.head_names):
        raise DomainError(f"{where} labels must give a column for each head, or none: {', '.join(domain.head_names)}")
    layout = RequestLayout(
        user_id=table.take("user_id", _column),
        timestamp=table.take("timestamp", _time),
        items=table.take("item_id" if rows else "item_ids", _column),
        rows=rows,
        request_id=table.take("request_id", _column, None),
        position=table.take("position", _column, None) if rows else None,
        only=table.take("only", _only, None) if rows else None,
        surface=table.take("surface", _column, None),
        labels=labels,
        context=context,
        null_values=table.take("null_values", _list_of(_text), NULL_VALUES),
    )
    table.done()
    return layout


def _entity_layout(
    table: _Table, id_name: str, at_name: str, attributes: tuple[Attribute, ...], *, items: bool = False
) -> EntityLayout:
    """The `columns` table inside [items] or [users]; what it leaves out has a column of its own name."""
    columns = _Table(f"{table.where} columns", table.take("columns", _any, {}))
    layout = EntityLayout(
        id=columns.take(id_name, _column, Column((id_name,))),
        at=columns.take(at_name, _time, None),
        attributes=tuple((a.name, columns.take(a.name, _column, Column((a.name,)))) for a in attributes),
        vector=columns.take("vector", _column, None) if items else None,
        available=columns.take("available", _column, None) if items else None,
        null_values=table.take("null_values", _list_of(_text), NULL_VALUES),
    )
    columns.done()
    table.done()
    return layout


def _only(where: str, value: Any) -> tuple[Column, tuple[str, ...]]:
    table = _Table(where, value)
    found = table.take("column", _column), table.take("is", _list_of(_text))
    table.done()
    return found


def _columns_by_name(where: str, value: Any) -> tuple[tuple[str, Column], ...]:
    if not isinstance(value, dict):
        raise DomainError(f"{where} must be a table of name = column")
    return tuple((name, _column(f"{where} {name}", column)) for name, column in value.items())


def _column(where: str, value: Any) -> Column:
    separator = None
    if isinstance(value, dict):
        table = _Table(where, value)
        value, separator = table.take("column", _any), table.take("separator", _text, None)
        table.done()
    names = (value,) if isinstance(value, str) else _list_of(_text)(where, value)
    return Column(names, separator)


def _time(where: str, value: Any) -> TimeColumn:
    if isinstance(value, dict):
        table = _Table(where, value)
        time = TimeColumn(table.take("column", _column), table.take("unit", _one_of(TimeUnit), TimeUnit.MILLISECONDS))
        table.done()
        return time
    return TimeColumn(_column(where, value))


def duration_ms(where: str, value: Any) -> int:
    match = re.fullmatch(r"(\d+)(ms|s|m|h|d)", value) if isinstance(value, str) else None
    if match is None:
        raise DomainError(f'{where} must be a duration like "30s", "24h" or "7d", not {value!r}')
    return int(match[1]) * UNIT_MS[match[2]]


def _days(where: str, value: Any) -> int:
    milliseconds = duration_ms(where, value)
    if milliseconds % DAY_MS or not milliseconds:
        raise DomainError(f'{where} must be whole days like "1d", not {value!r}')
    return milliseconds // DAY_MS


def _user_weights(where: str, value: Any) -> dict[str, dict[str, float]]:
    if not isinstance(value, dict) or not all(isinstance(weights, dict) for weights in value.values()):
        raise DomainError(f"{where} must hold a table of value = weight for each attribute")
    return {
        attribute: {name: _number(f"{where}.{attribute} {name}", number) for name, number in weights.items()}
        for attribute, weights in value.items()
    }


def _moment(where: str, value: Any) -> int:
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day, tzinfo=datetime.UTC)
    if not isinstance(value, datetime.datetime):
        raise DomainError(f"{where} must be a date like 1995-01-01, not {value!r}")
    return int((value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp() * 1000)


def _text(where: str, value: Any) -> str:
    return _typed(str, "text")(where, value)


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DomainError(f"{where} must be a number, not {value!r}")
    return float(value)


def _any(_where: str, value: Any) -> Any:
    return value


def _typed(kind: type[T], said: str) -> Callable[[str, Any], T]:
    def read(where: str, value: Any) -> T:
        if type(value) is not kind:
            raise DomainError(f"{where} must be {said}, not {value!r}")
        return value

    return read


def _one_of(kind: Callable[[str], T]) -> Callable[[str, Any], T]:
    def read(where: str, value: Any) -> T:
        try:
            return kind(value)
        except ValueError:
            allowed = ", ".join(str(member) for member in kind)  # type: ignore[attr-defined]
            raise DomainError(f"{where} must be one of {allowed}, not {value!r}") from None

    return read


def _list_of(read: Callable[[str, Any], T]) -> Callable[[str, Any], tuple[T, ...]]:
    def read_list(where: str, value: Any) -> tuple[T, ...]:
        if not isinstance(value, list) or not value:
            raise DomainError(f"{where} must be a list that is not empty")
        return tuple(read(f"{where}[{n}]", each) for n, each in enumerate(value, 1))

    return read_list
