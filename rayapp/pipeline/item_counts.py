"""What happened to each item, folded by the step of a grid in which the server had it: what decayed counts are made of.

An impression counts when it was shown, an action when it was received. Where a log has no event of a head's actions,
the labels that its lists carry count instead, the domain's `flag_delay_ms` after the list was shown: when a flag was
set is not known, and a count that knew it at once would know the answer.

Shapes: E increments, M shown items, H heads.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.schema import REQUEST_SCHEMA, columns_of
from rayapp.features.statistics import DecayedCounts, Grid
from rayapp.pipeline.log_view import LogView
from rayapp.root.facts import read_root

IMPRESSIONS: Final = "impressions"
FLAG: Final = "flag/"
"""Before a head's name: what its flags count, beside what its events do."""
COLUMNS: Final = columns_of(REQUEST_SCHEMA, "request_id", "user_id", "timestamp_ms", "item_ids", "labels")
KEYS: Final = ["item_hash", "step"]


def count_items(root: Path, domain: Domain) -> pd.DataFrame:
    """A row for each item and step of the domain's grid in which the log has something of it: `item_hash`, `step`,
    `impressions` and a count per head.

    One pass over the logs in this process, a bucket at a time.
    """
    view, grid, parts = LogView.of(root), Grid.of(domain), []
    for bucket in range(read_root(root)[1]):
        requests, events = view.requests(bucket, COLUMNS), view.events(bucket).events
        parts.append(_fold([*_shown(requests, domain, grid), *_acted(events, domain, grid)], domain))
    counts = _fold(parts, domain)
    for head in domain.head_names:
        if not counts[head].any():
            counts[head] = counts[FLAG + head]
    counted = [IMPRESSIONS, *domain.head_names]
    return counts.loc[counts[counted].any(axis=1), [*KEYS, *counted]]


def decayed(counts: pd.DataFrame, domain: Domain) -> DecayedCounts:
    """Of the table that `count_items` gives, or of one with another key under `item_hash`."""
    values_EA = counts[[IMPRESSIONS, *domain.head_names]].to_numpy(np.int64)
    key_E, step_E = counts["item_hash"].to_numpy(np.uint64), counts["step"].to_numpy(np.int64)
    return DecayedCounts(Grid.of(domain), key_E, step_E, values_EA)


def _shown(requests: pa.Table, domain: Domain, grid: Grid) -> list[pd.DataFrame]:
    item_lists = requests["item_ids"].combine_chunks()
    size_R = pc.list_value_length(item_lists).to_numpy(zero_copy_only=False)
    item_hash_M = hash64_column(pc.list_flatten(item_lists))
    time_M = np.repeat(requests["timestamp_ms"].to_numpy(), size_R)
    rows = [_increments(item_hash_M, grid.step(time_M), IMPRESSIONS)]
    given_R = pc.is_valid(requests["labels"]).to_numpy()
    if given_R.any():
        given_M = np.repeat(given_R, size_R)
        label_GH = pc.list_flatten(requests["labels"]).to_numpy().reshape(-1, len(domain.heads))
        step_G = grid.step(time_M[given_M] + domain.flag_delay_ms)
        for name, label_G in zip(domain.head_names, label_GH.T, strict=True):
            rows.append(_increments(item_hash_M[given_M][label_G > 0], step_G[label_G > 0], FLAG + name))
    return rows


def _acted(events: pa.Table, domain: Domain, grid: Grid) -> list[pd.DataFrame]:
    action = events["action"].cast(pa.string())
    item_hash_E, step_E = hash64_column(events["item_id"]), grid.step(events["received_at_ms"].to_numpy())
    rows = []
    for head in domain.heads:
        counts_E = pc.is_in(action, value_set=pa.array(head.actions)).to_numpy()
        rows.append(_increments(item_hash_E[counts_E], step_E[counts_E], head.name))
    return rows


def _increments(item_hash_E: Any, step_E: Any, counted: str) -> pd.DataFrame:
    return pd.DataFrame({"item_hash": item_hash_E, "step": step_E, counted: np.ones(len(step_E), np.int64)})


def _fold(parts: list[pd.DataFrame], domain: Domain) -> pd.DataFrame:
    every = pd.concat(parts, ignore_index=True).groupby(KEYS, sort=True).sum()
    flags = [FLAG + head for head in domain.head_names]
    return every.reindex(columns=[IMPRESSIONS, *domain.head_names, *flags]).fillna(0).astype(np.int64).reset_index()
