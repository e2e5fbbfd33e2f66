"""A few users of the event log, for people who want to see the feed of somebody with a past.

No store can list its users at a price that a request may cost, so the ids come from the log, a bounded piece of it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayapp.root.places import EVENTS
from rayapp.root.publish import log_manifest

NUM_FILES: Final = 8
NUM_ROWS: Final = 50_000
"""Read of each file, at the most."""
NUM_OF_FILE: Final = 16
FEW: Final = 5
SOME: Final = 50
OF_EACH: Final = 4
"""Users of each size that a sample holds."""


def logged_users(root: Path) -> list[str]:
    """Up to NUM_FILES x NUM_OF_FILE user ids, spread over the event log; none where it is empty.

    Raises:
        OSError: a file of the log can't be read.
    """
    files = log_manifest(root / EVENTS)[1]["files"]
    users: dict[str, None] = {}
    for file in files[:: -(-len(files) // NUM_FILES)] if files else []:
        with pq.ParquetFile(root / EVENTS / file["path"]) as stored:
            batch = next(stored.iter_batches(batch_size=NUM_ROWS, columns=["user_id"]), None)
        found = pc.unique(batch["user_id"]).to_pylist() if batch is not None else []
        users |= dict.fromkeys(found[:: -(-len(found) // NUM_OF_FILE)] if found else [])
    return list(users)


def of_each_size(lengths: Mapping[str, int]) -> list[tuple[str, int]]:
    """`(user_id, actions)` of OF_EACH users with fewer than FEW actions, with fewer than SOME, and with more, those
    with the fewest first. Who has none, as an erased user, is left out."""
    sizes: list[list[tuple[str, int]]] = [[], [], []]
    for user_id, length in sorted(lengths.items(), key=lambda pair: (pair[1], pair[0])):
        if length:
            sizes[(length >= FEW) + (length >= SOME)].append((user_id, length))
    return [row for rows in sizes for row in rows[:: max(len(rows) // OF_EACH, 1)][:OF_EACH]]
