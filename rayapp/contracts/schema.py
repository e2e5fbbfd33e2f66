"""What an action, event, request and item are: the vocabulary, the Arrow schemas, ids, hashes and buckets.

Everything else imports this file; of ours it imports the hash alone.
"""

import enum
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray
from pydantic import model_serializer, model_validator

from rayapp.contracts.hashing import hash64

PAD: Final = 0
"""Action id of an empty slot. Never the id of a real action, so a real action can't be taken for padding."""
UNKNOWN: Final = 1
"""Action id of an action that the vocabulary at hand does not hold (another version's, or a typo in an old log)."""
FIRST_ACTION_ID: Final = 2

MAX_ID_BYTES: Final = 128
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class ActionKind(enum.StrEnum):
    """What an action says about the item."""

    POSITIVE = "positive"
    NEGATIVE = "negative"
    NEUTRAL = "neutral"


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """One entry of the vocabulary."""

    name: str
    kind: ActionKind
    in_sequence: bool = True
    """Whether it takes one of the user's last-100 slots. Impressions do not."""
    priority: int = 0
    """Of several actions of one user on one item at one millisecond, the highest priority takes the slot."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The configured actions; the id of the n-th is `n + 2`, for ever. New actions are appended."""

    actions: tuple[Action, ...]

    def __post_init__(self) -> None:
        names = [action.name for action in self.actions]
        if len(set(names)) != len(names):
            raise ValueError(f"the vocabulary names an action twice: {names}")
        if len(names) > 253:
            raise ValueError(f"the vocabulary holds {len(names)} actions; 253 is the most that fits one byte")

    @property
    def size(self) -> int:
        """Number of ids, PAD and UNKNOWN included."""
        return FIRST_ACTION_ID + len(self.actions)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(action.name for action in self.actions)

    def id_of(self, name: str) -> int:
        """The action's id; UNKNOWN for a name that is not configured."""
        names = self.names
        return names.index(name) + FIRST_ACTION_ID if name in names else UNKNOWN

    def ids_of(self, names: pa.ChunkedArray | pa.Array) -> NDArray[np.uint8]:
        """Ids of a whole Arrow column of names."""
        if pa.types.is_dictionary(names.type):
            coded = names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names
            index = coded.indices.to_numpy(zero_copy_only=False)
            return self.ids_of(coded.dictionary)[index] if len(index) else np.zeros(0, np.uint8)
        position = pc.fill_null(pc.index_in(names, value_set=pa.array(self.names, pa.string())), -1)
        ids: NDArray[np.int64] = position.to_numpy(zero_copy_only=False).astype(np.int64) + FIRST_ACTION_ID
        return ids.clip(min=UNKNOWN).astype(np.uint8)  # -1, not configured, becomes UNKNOWN

    def flags(self, *, in_sequence: bool = False, kind: ActionKind | None = None) -> NDArray[np.bool_]:
        """For each id, whether it has the property asked for. UNKNOWN takes a slot but is of no kind."""
        if kind is None:
            assert in_sequence
            return np.array([False, True, *(action.in_sequence for action in self.actions)])
        return np.array([False, False, *(action.kind is kind for action in self.actions)])

    @property
    def priorities(self) -> NDArray[np.int64]:
        """Priority for each id; UNKNOWN's is below every configured one."""
        lowest = min((action.priority for action in self.actions), default=0) - 1
        return np.array([lowest, lowest, *(action.priority for action in self.actions)], dtype=np.int64)

    def extends(self, older: "Vocabulary") -> bool:
        """Whether `older` is a prefix of this one, by name: then its ids still mean the same actions."""
        return self.names[: len(older.names)] == older.names

    @model_serializer
    def _to_list(self) -> list[Action]:
        """JSON has the bare list."""
        return list(self.actions)

    @model_validator(mode="before")
    @classmethod
    def _of_list(cls, values: Any) -> Any:
        return {"actions": values} if isinstance(values, list) else values


class AttributeKind(enum.StrEnum):
    """How an item attribute is read: a set of categories, a number, or free text."""

    CATEGORIES = "categories"
    NUMBER = "number"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of the items of a domain."""

    name: str
    kind: AttributeKind


EVENT_SCHEMA: Final = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("event_hash", pa.uint64(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("timestamp_ms", pa.int64(), nullable=False),
        pa.field("received_at_ms", pa.int64(), nullable=False),
        pa.field("commit_seq", pa.int64(), nullable=False),  # 0 for imported events: before anything live
        pa.field("request_id", pa.string()),
        pa.field("position", pa.int32()),
        pa.field("value", pa.float64()),
        pa.field("surface", pa.string()),
    ]
)
"""One row per action, in the log and in the outbox."""

REQUEST_SCHEMA: Final = pa.schema(
    [
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("timestamp_ms", pa.int64(), nullable=False),
        pa.field("surface", pa.string()),
        pa.field("item_ids", pa.large_list(pa.string()), nullable=False),
        pa.field("sources", pa.large_list(pa.string())),
        pa.field("probabilities", pa.large_list(pa.float32())),  # items x heads, row by row
        pa.field("labels", pa.large_list(pa.float32())),  # items x heads; null: joined from events
        pa.field("model_version", pa.string()),
        pa.field("item_table", pa.string()),
        pa.field("statistics_at_ms", pa.int64()),  # what was received before then counted
        pa.field("statistics", pa.string()),  # the numbers that the ranker read (`statistics.logged`)
        pa.field("experiment", pa.string()),
        pa.field("fallback_reason", pa.string()),
        pa.field("watermark", pa.int64()),  # commit_seq of the user's bucket at the read; null: not known
        pa.field("sequence_hash", pa.uint64()),
        pa.field("propensities", pa.large_list(pa.float32())),  # how likely a source was to propose the item
        pa.field("random_order", pa.bool_()),  # shuffled instead of sorted by score
        pa.field("shadow_version", pa.string()),  # a model that scored the same items and was not shown
        pa.field("shadow_probabilities", pa.large_list(pa.float32())),  # items x heads
        pa.field("commit_seq", pa.int64()),  # its own number; null: imported, or logged by an older release
    ]
)
"""One row per list that was shown."""


def attribute_fields(attributes: Sequence[Attribute]) -> list[pa.Field]:
    """A domain's attributes as typed columns; every one may be missing in a row."""
    types = {
        AttributeKind.CATEGORIES: pa.large_list(pa.string()),
        AttributeKind.NUMBER: pa.float64(),
        AttributeKind.TEXT: pa.string(),
    }
    return [pa.field(attribute.name, types[attribute.kind]) for attribute in attributes]


def item_schema(attributes: Sequence[Attribute]) -> pa.Schema:
    """Items of a domain: id, when they became available, whether they still are, and the domain's attributes."""
    ids = [pa.field("item_id", pa.string(), nullable=False), pa.field("created_at_ms", pa.int64(), nullable=False)]
    available = pa.field("available", pa.bool_())  # false: in no feed; null is true
    return pa.schema([*ids, available, *attribute_fields(attributes)])


DELETED: Final = "deleted"
"""Marks what the item log keeps of an item that was deleted. A domain's own attribute of this name is never `True`."""


def deleted_item(item_id: str) -> dict[str, Any]:
    """What the item log keeps of it, until it is put again."""
    return {"item_id": item_id, DELETED: True}


def is_deleted(item: Mapping[str, Any]) -> bool:
    """Whether this is all that is left of an item."""
    return item.get(DELETED) is True


def user_schema(attributes: Sequence[Attribute]) -> pa.Schema:
    """Users of a domain: id, from when on the attributes hold, and the attributes."""
    ids = [pa.field("user_id", pa.string(), nullable=False), pa.field("effective_at_ms", pa.int64(), nullable=False)]
    return pa.schema(ids + attribute_fields(attributes))


def request_schema(context: Sequence[Attribute]) -> pa.Schema:
    """REQUEST_SCHEMA and the domain's context attributes behind it."""
    return pa.schema(list(REQUEST_SCHEMA) + attribute_fields(context))


def columns_of(schema: pa.Schema, *names: str) -> pa.Schema:
    """Some columns of a schema, in the order of the names."""
    return pa.schema([schema.field(name) for name in names])


def fingerprint(value: object) -> str:
    """16 hex digits that name a schema or any value with a stable `str`: equal fingerprints, equal meaning."""
    return hashlib.sha256(str(value).encode()).hexdigest()[:16]


def bucket_of(user_id: str, num_buckets: int) -> int:
    """The bucket that holds everything of this user, in the logs and in the store."""
    return hash64(user_id) % num_buckets


def id_problem(value: str) -> str | None:
    """Why `value` can't be a user, item or event id, or None when it can."""
    if not value:
        return "must not be empty"
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return "must be valid Unicode"
    if size > MAX_ID_BYTES:
        return f"is {size} bytes long; at most {MAX_ID_BYTES} are allowed"
    if _CONTROL.search(value):
        return "must not hold control characters"
    return None


def content_event_id(user_id: str, item_id: str, action: str, timestamp_ms: int) -> str:
    """The idempotency key of an event that came without one: the same content gives the same id."""
    text = "\x1f".join((user_id, item_id, action, str(timestamp_ms)))
    return "c-" + xxhash.xxh3_128_hexdigest(text.encode())


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One accepted action, before the store stamps its `commit_seq`. Fields as in EVENT_SCHEMA."""

    event_id: str
    user_id: str
    item_id: str
    action: str
    timestamp_ms: int
    received_at_ms: int
    request_id: str | None = None
    position: int | None = None
    value: float | None = None
    surface: str | None = None
