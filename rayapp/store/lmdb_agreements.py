"""The cursors that replicas agreed on for each time step, as LMDB keeps them."""

import json
import struct
from typing import Any, Final

import lmdb

from rayapp.store import KEPT_STEPS
from rayapp.store.contents import too_old

_NUMBER: Final = struct.Struct(">Q")


def agree_on(txn: lmdb.Transaction, agreed: Any, step: int, named: tuple[int, ...]) -> tuple[int, ...]:
    """Those of the step; `named` where it has none yet.

    Raises:
        StepTooOld: as many as are kept are all of later steps.
    """
    key = _NUMBER.pack(step)
    if kept := txn.get(key, db=agreed):
        return tuple(json.loads(bytes(kept)))
    oldest = txn.cursor(db=agreed)
    if txn.stat(agreed)["entries"] >= KEPT_STEPS and oldest.first():
        if key < bytes(oldest.key()):
            raise too_old(step)
        oldest.delete()
    txn.put(key, json.dumps(named).encode(), db=agreed)
    return named


def agreed_after(txn: lmdb.Transaction, agreed: Any, after_step: int) -> dict[int, tuple[int, ...]]:
    """The kept steps after that one, ascending."""
    rows = txn.cursor(db=agreed)
    found = rows.set_range(_NUMBER.pack(max(after_step + 1, 0)))
    kept = [(bytes(key), bytes(value)) for key, value in rows.iternext()] if found else []
    return {_NUMBER.unpack(key)[0]: tuple(json.loads(value)) for key, value in kept}
