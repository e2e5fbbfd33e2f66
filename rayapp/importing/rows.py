"""Chunks of a team's files -> rows in our schemas. Pure: a table and a layout in, good rows and rejections out.

Shapes: N rows of a chunk, H heads.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.schema import (
    EVENT_SCHEMA,
    Attribute,
    AttributeKind,
    Vocabulary,
    attribute_fields,
    content_event_id,
    item_schema,
    request_schema,
    user_schema,
)
from rayapp.importing.columns import RowCheck, flags, ids, is_untyped, lists, masked, numbers, texts, unique_ids
from rayapp.importing.domains.layout import ActionRule, Column, EntityLayout, EventLayout, RequestLayout, TimeColumn
from rayapp.importing.plain_types import plain
from rayapp.importing.times import moments

MAX_LIST_ITEMS: Final = 2000
"""Items of one shown list; more is a grouping mistake of the source."""
UNNAMED_REQUEST: Final = "r-"

IMPRESSION_FIELDS: Final = ("request_id", "user_id", "timestamp_ms", "surface", "item_id", "position", "labels")


@dataclasses.dataclass(frozen=True, slots=True)
class Clock:
    """What bounds a plausible timestamp."""

    earliest_ms: int
    now_ms: int


class _Reader:
    """A chunk of a file, read by the columns of a layout; collects what is wrong with its rows."""

    def __init__(self, raw: pa.Table, clock: Clock, null_values: Sequence[str]) -> None:
        self.raw, self.clock = raw, clock
        self.present = frozenset(raw.column_names)
        self.check = RowCheck(raw.num_rows, null_values)

    def __len__(self) -> int:
        return int(self.raw.num_rows)

    def of(self, column: Column) -> pa.ChunkedArray:
        name = column.find(self.present)
        assert name is not None, f"the plan chose a layout without {column}"
        return self.raw[name]

    def ids(self, column: Column, field: str) -> pa.DictionaryArray:
        return ids(self.of(column), field, self.check)

    def unique_ids(self, column: Column, field: str, *, may_miss: bool = False) -> pa.Array:
        return unique_ids(self.of(column), field, self.check, may_miss=may_miss)

    def moments(self, column: TimeColumn, field: str) -> NDArray[np.int64]:
        return moments(self.of(column.column), column, field, self.check, **dataclasses.asdict(self.clock))

    def beginnings(self, column: TimeColumn, field: str, *, lenient: bool) -> NDArray[np.int64]:
        """Moments of entities: an item may be older than any event, and one without a date was always there; where
        `lenient`, one with a date that can't be read, too."""
        raw, since_ever = self.of(column.column), np.iinfo(np.int64).min // 2
        unreadable = self.check.inside(len(self)) if lenient else self.check
        bounds = {"earliest_ms": since_ever, "now_ms": self.clock.now_ms}
        at_N = moments(raw, column, field, self.check, **bounds, may_miss=True, unreadable=unreadable)
        if lenient:
            self.check.lose(unreadable)
        return at_N

    def optional_text(self, column: Column | None, field: str) -> pa.Array:
        if column is None:
            return pa.nulls(len(self), pa.string())
        inside = self.check.inside(len(self))
        text = texts(self.of(column), field, inside)
        self.check.lose(inside)
        return text

    def optional_numbers(self, column: Column | None, field: str) -> pa.Array:
        """Null where there is none, or none that can be read. NaN is how pandas writes a missing value."""
        if column is None:
            return pa.nulls(len(self), pa.float64())
        raw, inside = plain(self.of(column)), self.check.inside(len(self))
        if pa.types.is_floating(raw.type):
            raw = pc.if_else(pc.is_nan(raw), None, raw)
        value_N, missing_N = numbers(raw, field, inside)
        self.check.lose(inside)
        return pa.array(value_N, mask=missing_N | ~inside.good_N)

    def optional_position(self, column: Column | None) -> pa.Array:
        value = self.optional_numbers(column, "position")
        value_N = pc.fill_null(value, 0).to_numpy(zero_copy_only=False)
        odd_N = (value_N != np.floor(value_N)) | (np.abs(value_N) > np.iinfo(np.int32).max)
        if odd_N.any() and column:
            inside = self.check.inside(len(self))
            inside.fail(odd_N, "position", "is not a whole number", self.of(column))
            self.check.lose(inside)
        return pa.array(np.where(odd_N, 0, value_N).astype(np.int32), mask=odd_N | masked(pc.is_null(value)))

    def finish(self, columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
        """The good rows; `schema` may name fewer columns than `columns` holds."""
        keep = self.check.good_N
        rows = pa.Table.from_pydict({f.name: _cast(columns[f.name], f.type) for f in schema})
        # Rejected rows may hold nulls where the schema allows none, so they go before it is applied.
        rows = rows if keep.all() else rows.filter(pa.array(keep))
        return rows.cast(schema)


def _cast(column: Any, kind: pa.DataType) -> pa.Array:
    column = column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column if column.type == kind else column.cast(kind)


def event_rows(raw: pa.Table, layout: EventLayout, domain: Domain, clock: Clock) -> tuple[pa.Table, RowCheck]:
    """Rows of EVENT_SCHEMA; an event that the server had before it happened is moved back to when it had it."""
    read = _Reader(raw, clock, layout.null_values)
    user = read.ids(layout.user_id, "user_id")
    item = read.ids(layout.item_id, "item_id")
    timestamp_N = read.moments(layout.timestamp, "timestamp")
    received_N = timestamp_N + layout.lag_ms
    if layout.received_at:
        received_N = read.moments(layout.received_at, "received_at")
        timestamp_N = np.minimum(timestamp_N, received_N)
    action = _actions(read, layout.action, domain.vocabulary)
    request = pa.nulls(len(read), pa.string())
    if layout.request_id:
        request = read.unique_ids(layout.request_id, "request_id", may_miss=True)
    if layout.event_id:
        event_id = read.unique_ids(layout.event_id, "event_id")
    else:
        event_id = _content_ids(user, item, action, timestamp_N, read.check.good_N)
    columns = {
        "event_id": event_id,
        "event_hash": hash64_column(event_id),
        "user_id": user,
        "item_id": item,
        "action": action,
        "timestamp_ms": timestamp_N,
        "received_at_ms": received_N,
        "commit_seq": np.zeros(len(read), np.int64),
        "request_id": request,
        "position": read.optional_position(layout.position),
        "value": read.optional_numbers(layout.value, "value"),
        "surface": read.optional_text(layout.surface, "surface"),
    }
    return read.finish(columns, EVENT_SCHEMA), read.check


def _actions(read: _Reader, rule: ActionRule, vocabulary: Vocabulary) -> pa.Array:
    if rule.column:
        raw = read.of(rule.column)
        words = texts(raw, "action", read.check).dictionary_encode()
        names = [rule.names.get(w, None if rule.names else w) for w in words.dictionary.to_pylist()]
        known = pa.array([n if n in vocabulary.names else None for n in names], pa.string())
        action = pa.DictionaryArray.from_arrays(words.indices, known).dictionary_decode()
        read.check.fail(~pc.is_valid(words).to_numpy(zero_copy_only=False), "action", "is missing", raw)
        unknown_N = ~pc.is_valid(action).to_numpy(zero_copy_only=False)
        read.check.fail(unknown_N, "action", "is not in the vocabulary of the domain file", raw)
        return action
    place_N = np.full(len(read), -1)
    priority = {a.name: a.priority for a in vocabulary.actions}
    names = list(vocabulary.names)
    if rule.otherwise:
        place_N[:] = names.index(rule.otherwise)
    for action_name, column in sorted(rule.flags.items(), key=lambda flag: priority[flag[0]]):
        set_N, _ = flags(read.of(column), action_name, read.check)
        place_N = np.where(set_N, names.index(action_name), place_N)
    none_N = place_N < 0
    if rule.flags:
        read.check.fail(none_N, "action", "no flag is set", read.of(next(iter(rule.flags.values()))))
    return pa.array(names, pa.string()).take(pa.array(np.maximum(place_N, 0)))


def _content_ids(
    user: pa.DictionaryArray, item: pa.DictionaryArray, action: pa.Array, timestamp_N: Any, good_N: NDArray[np.bool_]
) -> pa.Array:
    rows = zip(user.to_pylist(), item.to_pylist(), action.to_pylist(), timestamp_N.tolist(), good_N, strict=True)
    return pa.array([content_event_id(u, i, a, t) if good else "" for u, i, a, t, good in rows], pa.string())


def impression_schema(domain: Domain) -> pa.Schema:
    """One shown item a row, on its way to a list: staged by the import and grouped inside the bucket."""
    fields = [request_schema(()).field(n) for n in ("request_id", "user_id", "timestamp_ms", "surface")]
    fields += [pa.field("item_id", pa.string(), nullable=False), pa.field("position", pa.int32())]
    fields += [pa.field("labels", pa.list_(pa.float32(), len(domain.heads)))]
    return pa.schema(fields + attribute_fields(domain.context_attributes))


def impression_rows(raw: pa.Table, layout: RequestLayout, domain: Domain, clock: Clock) -> tuple[pa.Table, RowCheck]:
    """Rows of `impression_schema`, from files with a shown item a row."""
    read = _Reader(raw, clock, layout.null_values)
    if layout.only:
        word = texts(read.of(layout.only.column), "only", read.check)
        wanted = pc.is_in(word, value_set=pa.array(layout.only.words, pa.string()))
        read.check.good_N &= wanted.to_numpy(zero_copy_only=False)  # passed over, not rejected: they are other events
    user = read.ids(layout.user_id, "user_id")
    item = read.ids(layout.items, "item_id")
    timestamp_N = read.moments(layout.timestamp, "timestamp")
    surface = read.optional_text(layout.surface, "surface")
    if layout.request_id:
        request = read.unique_ids(layout.request_id, "request_id")
    else:
        shown = zip(user.to_pylist(), timestamp_N.tolist(), surface.to_pylist(), strict=True)
        digest = xxhash.xxh3_128_hexdigest
        request = pa.array([UNNAMED_REQUEST + digest("\x1f".join(map(str, s)).encode()) for s in shown], pa.string())
    labels = pa.nulls(len(read), pa.list_(pa.float32(), len(domain.heads)))
    if layout.labels:
        of_head = layout.labels
        label_NH = np.stack(
            [flags(read.of(of_head[h]), f"labels.{h}", read.check)[0] for h in domain.head_names], axis=1
        )
        labels = pa.FixedSizeListArray.from_arrays(
            pa.array(label_NH.astype(np.float32).ravel()), len(domain.head_names)
        )
    columns = {
        "request_id": request,
        "user_id": user,
        "timestamp_ms": timestamp_N,
        "surface": surface,
        "item_id": item,
        "position": read.optional_position(layout.position),
        "labels": labels,
        **_context(read, layout.context, domain.context_attributes),
    }
    return read.finish(columns, impression_schema(domain)), read.check


def list_rows(raw: pa.Table, layout: RequestLayout, domain: Domain, clock: Clock) -> tuple[pa.Table, RowCheck]:
    """Rows of `request_schema`, from files with a shown list a row."""
    read = _Reader(raw, clock, layout.null_values)
    user = read.ids(layout.user_id, "user_id")
    timestamp_N = read.moments(layout.timestamp, "timestamp")
    raw_items = read.of(layout.items)
    values, offsets = lists(raw_items, layout.items.separator, "item_ids", read.check, strict=True)
    size_N = np.diff(offsets)
    read.check.fail(size_N == 0, "item_ids", "is an empty list", raw_items)
    read.check.fail(size_N > MAX_LIST_ITEMS, "item_ids", f"holds more than {MAX_LIST_ITEMS} items", raw_items)
    inside = read.check.inside(len(values))
    items = ids(values, "item_ids", inside, untyped=is_untyped(raw_items))
    row_M = np.repeat(np.arange(len(read)), size_N)
    read.check.notes += inside.notes
    rows_of: dict[str, list[int]] = {}
    for place, _, reason, _ in inside.rejected:
        rows_of.setdefault(reason, []).append(int(row_M[place]))
    for reason, bad in rows_of.items():
        read.check.fail(np.isin(np.arange(len(read)), bad), "item_ids", f"an item id {reason}", raw_items)
    schema = request_schema(domain.context_attributes)
    columns: dict[str, Any] = {field.name: pa.nulls(len(read), field.type) for field in schema}
    if layout.request_id:
        columns["request_id"] = read.unique_ids(layout.request_id, "request_id")
    else:
        lists_N = pa.LargeListArray.from_arrays(pa.array(offsets), items.dictionary_decode()).to_pylist()
        rows = zip(user.to_pylist(), timestamp_N.tolist(), lists_N, strict=True)
        made = [UNNAMED_REQUEST + xxhash.xxh3_128_hexdigest(repr(row).encode()) for row in rows]
        columns["request_id"] = pa.array(made, pa.string())
    columns |= {
        "user_id": user,
        "timestamp_ms": timestamp_N,
        "surface": read.optional_text(layout.surface, "surface"),
        "item_ids": pa.LargeListArray.from_arrays(pa.array(offsets), items.dictionary_decode()),
        **_context(read, layout.context, domain.context_attributes),
    }
    if layout.labels:
        columns["labels"] = _list_labels(read, layout.labels, domain.head_names, size_N)
    return read.finish(columns, schema), read.check


def _list_labels(
    read: _Reader, of_head: dict[str, Column], heads: Sequence[str], size_N: NDArray[np.int64]
) -> pa.LargeListArray:
    """Items x heads, row by row, from one list of 0/1 per head."""
    label_MH = np.zeros((int(size_N.sum()), len(heads)), np.float32)
    for h, head in enumerate(heads):
        raw = read.of(of_head[head])
        values, offsets = lists(raw, of_head[head].separator, f"labels.{head}", read.check)
        wrong_N = np.diff(offsets) != size_N
        read.check.fail(wrong_N, f"labels.{head}", "has another length than item_ids", raw)
        inside = RowCheck(len(values))
        set_V, _ = flags(values, f"labels.{head}", inside)
        row_V = np.repeat(np.arange(len(read)), np.diff(offsets))
        bad_N = np.bincount(row_V[~inside.good_N], minlength=len(read)) > 0
        read.check.fail(bad_N, f"labels.{head}", "holds something that is neither 0 nor 1", raw)
        label_MH[np.repeat(~wrong_N, size_N), h] = set_V[~wrong_N[row_V]]
    ends = np.r_[0, np.cumsum(size_N)] * len(heads)
    return pa.LargeListArray.from_arrays(pa.array(ends), pa.array(label_MH.ravel()))


def entity_rows(
    raw: pa.Table, layout: EntityLayout, attributes: Sequence[Attribute], clock: Clock, *, users: bool
) -> tuple[pa.Table, RowCheck]:
    """Rows of `item_schema` (with `vector` where the layout and the file have one) or `user_schema`."""
    read = _Reader(raw, clock, layout.null_values)
    schema = (user_schema if users else item_schema)(attributes)
    id_name, at_name = schema.names[:2]
    at_N = np.zeros(len(read), np.int64)
    if layout.at:
        at_N = read.beginnings(layout.at, at_name.removesuffix("_ms"), lenient=not users)
    columns = {
        id_name: read.ids(layout.id, id_name),
        at_name: at_N,
        **_attributes(read, layout.attributes, attributes),
    }
    if not users:
        columns["available"] = _available(read, layout.available)
    vector = layout.vector.find(read.present) if layout.vector else None
    if vector:
        schema = schema.append(pa.field("vector", pa.large_list(pa.float32())))
        columns["vector"] = _vectors(read, raw[vector])
    return read.finish(columns, schema), read.check


def _available(read: _Reader, column: Column | None) -> pa.Array:
    name = column.find(read.present) if column else None
    if name is None:
        return pa.nulls(len(read), pa.bool_())
    set_N, missing_N = flags(read.raw[name], "available", read.check)
    return pa.array(set_N, mask=missing_N)


def _vectors(read: _Reader, raw: pa.ChunkedArray) -> pa.LargeListArray:
    """Null where an item has none, or one that can't be read."""
    outside = read.check.inside(len(read))
    values, offsets = lists(raw, None, "vector", outside)
    inside = read.check.inside(len(values))
    value_V, missing_V = numbers(values, "vector", inside)
    row_V = np.repeat(np.arange(len(read)), np.diff(offsets))
    bad_N = np.bincount(row_V[~inside.good_N | missing_V], minlength=len(read)) > 0
    outside.fail(bad_N, "vector", "holds something that is not a finite number", raw)
    read.check.lose(outside)
    value = pa.array(value_V.astype(np.float32))
    return pa.LargeListArray.from_arrays(pa.array(offsets), value, mask=pa.array(~outside.good_N))


def _attributes(read: _Reader, columns: Mapping[str, Column], attributes: Sequence[Attribute]) -> dict[str, pa.Array]:
    kind_of = {a.name: a.kind for a in attributes}
    made: dict[str, pa.Array] = {}
    for name, column in columns.items():
        if kind_of[name] is AttributeKind.TEXT:
            made[name] = read.optional_text(column, name)
        elif kind_of[name] is AttributeKind.NUMBER:
            made[name] = read.optional_numbers(column, name)
        else:
            outside = read.check.inside(len(read))
            values, offsets = lists(read.of(column), column.separator, name, outside)
            inside = read.check.inside(len(values))
            words = texts(values, name, inside)
            read.check.lose(outside)
            read.check.lose(inside, np.repeat(np.arange(len(read)), np.diff(offsets)))
            made[name] = pa.LargeListArray.from_arrays(pa.array(offsets), pc.fill_null(words, ""))
    return made


def _context(read: _Reader, columns: Mapping[str, Column], attributes: Sequence[Attribute]) -> dict[str, pa.Array]:
    """Every attribute; null where the layout has no column for it."""
    absent = {field.name: pa.nulls(len(read), field.type) for field in attribute_fields(attributes)}
    return absent | _attributes(read, columns, attributes)
