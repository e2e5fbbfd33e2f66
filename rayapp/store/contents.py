"""What both back ends do alike: what a store says of itself, and what a lookup answers."""

import itertools
import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any, Final

import numpy as np

from rayapp.contracts.schema import Event, Vocabulary
from rayapp.store import KEPT_STEPS, StepTooOld, StoreError, UserSequence
from rayapp.store.packed import EMPTY, FORMAT, unpack
from rayapp.store.shown import unpack_shown

MEND: Final = "Move it away and run `rayapp store rebuild`: it is restored from the log"

_EVENT_FIELDS: Final = tuple(field.name for field in fields(Event))
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def event_value(event: Event) -> dict[str, Any]:
    """The event as a row of the outbox. `dataclasses.asdict` copies deeply, which cost a third of an append."""
    return {name: getattr(event, name) for name in _EVENT_FIELDS}


def encoded(value: dict[str, Any]) -> str:
    """JSON of the fields that are not None."""
    return _ENCODER.encode({k: v for k, v in value.items() if v is not None})


def description(vocabulary: Vocabulary, num_buckets: int) -> dict[str, Any]:
    """What a new store says of itself. Its `id` tells it from any other, also from one that takes its place: the
    numbers that the log has seen of the one say nothing of the other."""
    return {
        "format": FORMAT,
        "id": uuid.uuid4().hex,
        "num_buckets": num_buckets,
        "vocabulary": list(vocabulary.names),
    }


def refuse_other(where: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Checks what a store says of itself.

    Raises:
        StoreError: it was written with another format, bucket count or vocabulary.
    """
    for name in ("format", "num_buckets"):
        if found[name] != wanted[name]:
            raise StoreError(f"{where} has {name} {found[name]}, expected {wanted[name]}. {MEND}")
    if wanted["vocabulary"][: len(found["vocabulary"])] != found["vocabulary"]:
        raise StoreError(
            f"{where} was written with the actions {found['vocabulary']}, the domain has {wanted['vocabulary']}; "
            "actions may only be appended"
        )


def sequence_of(
    stored: bytes | None, watermark: int, before_ms: int | None, limit: int | None, shown: bytes | None = None
) -> UserSequence:
    """A stored value, and that of what was shown, as a lookup answers them."""
    try:
        history, item_ids = unpack(stored or EMPTY)
        shown_items = unpack_shown(shown)
    except ValueError as error:  # numpy's and UTF-8's word for bytes that are no such value
        raise StoreError(f"a stored sequence is damaged ({error}). {MEND}") from None
    keep = np.flatnonzero(history.timestamp_ms_E < before_ms) if before_ms is not None else np.arange(len(history))
    keep = keep[:limit]
    return UserSequence(history.take(keep), tuple(item_ids[i] for i in keep), watermark, shown_items)


def chunks(events: Iterable[Event], size: int) -> Iterator[list[Event]]:
    """The events, `size` at a time."""
    rest = iter(events)
    while chunk := list(itertools.islice(rest, size)):
        yield chunk


def checked_cursors(cursors: Sequence[int], num_buckets: int) -> tuple[int, ...]:
    """Raises:
    ValueError: they are not one cursor of 0 or more for each bucket.
    """
    if len(cursors) != num_buckets:
        raise ValueError(f"the store has {num_buckets} buckets, these are {len(cursors)} cursors")
    if min(cursors) < 0:
        raise ValueError(f"a cursor is 0 or more, not {min(cursors)}")
    return tuple(int(cursor) for cursor in cursors)


def checked_limit(limit: int) -> int:
    """Raises:
    ValueError: below 1, where no rows would look like rows that were removed.
    """
    if limit < 1:
        raise ValueError(f"a limit is 1 or more, not {limit}")
    return limit


def checked_step(step: int) -> int:
    """Raises:
    ValueError: outside of [0, 2^53), which Redis can't order.
    """
    if not 0 <= step < 1 << 53:
        raise ValueError(f"a time step is a whole number in [0, 2^53), not {step}")
    return int(step)


def too_old(step: int) -> StepTooOld:
    return StepTooOld(
        f"the store keeps the cursors of the last {KEPT_STEPS:,} time steps, all later than step {step}; nobody can "
        "agree on it any more"
    )
