"""What both back ends do alike: what a store says of itself, and what a lookup answers."""

from typing import Any, Final

import numpy as np

from rayapp.store import StoreError, UserSequence
from rayapp.store.packed import EMPTY, unpack

MEND: Final = "Move it away and run `rayapp store rebuild`: it is restored from the log"


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


def sequence_of(stored: bytes | None, watermark: int, before_ms: int | None, limit: int | None) -> UserSequence:
    """A stored value as a lookup answers it."""
    history, item_ids = unpack(stored or EMPTY)
    keep = np.flatnonzero(history.timestamp_ms_E < before_ms) if before_ms is not None else np.arange(len(history))
    keep = keep[:limit]
    return UserSequence(history.take(keep), tuple(item_ids[i] for i in keep), watermark)
