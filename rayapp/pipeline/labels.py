"""Labels of shown items: the source's own, or whether an action of the head followed.

Shapes: R requests, M shown items of all requests, H heads, A actions.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayapp.contracts.config import Domain, Head
from rayapp.contracts.hashing import hash64_column
from rayapp.features.requests import offsets, ragged_places
from rayapp.pipeline.search import search_in_groups
from rayapp.statistics.observations import given_labels

NONE = -1
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class LabelledRequests:
    """Request rows, the events that were read with them, and the labels of all shown items, end to end."""

    requests: pa.Table
    events: pa.Table
    known_ms_MH: NDArray[np.int64]
    """When the server knew of the label: the arrival of the first action that makes it; NEVER where there is none."""
    offset_R: NDArray[np.int64]
    """R + 1 places where each request's items begin."""

    def matrix(self) -> NDArray[np.float32]:
        """`label_MH`: 1 where there is one."""
        return np.asarray(self.known_ms_MH != NEVER, np.float32)

    def request_of_item(self) -> NDArray[np.int64]:
        """`[M]`."""
        return np.repeat(np.arange(self.requests.num_rows), np.diff(self.offset_R))

    def between(self, since_ms: int, until_ms: int) -> "LabelledRequests":
        """The requests of `[since, until)`; all the events."""
        inside_R = between(self.requests, since_ms, until_ms)
        if inside_R.all():
            return self
        rows = np.flatnonzero(inside_R)
        return LabelledRequests(
            self.requests.filter(pa.array(inside_R)),
            self.events,
            self.known_ms_MH[ragged_places(self.offset_R, rows)],
            offsets(np.diff(self.offset_R)[rows]),
        )


def between(table: pa.Table, since_ms: int | None, until_ms: int | None) -> NDArray[np.bool_]:
    """Which rows of a log are of `[since, until)`; None: no bound."""
    time, all_time = table["timestamp_ms"].to_numpy(), np.iinfo(np.int64)
    first, last = all_time.min if since_ms is None else since_ms, all_time.max if until_ms is None else until_ms
    return np.asarray((time >= first) & (time < last))


def near(table: pa.Table, span_ms: tuple[int, int], domain: Domain) -> pa.Table:
    """The rows of a log that decide the labels of a span: its own, and those of the attribution time behind it."""
    return table.filter(pa.array(between(table, span_ms[0], span_ms[1] + domain.attribution_ms)))


def label_requests(
    requests: pa.Table, events: pa.Table, domain: Domain, span_ms: tuple[int, int] | None = None
) -> LabelledRequests:
    """Joins actions to what was shown; only the requests of a span `[since, until)` are kept, all without one.

    An action that names a request counts for that request's item, if it is the same user's. One that names none counts
    for the latest list that showed the item to its user. Either way within the attribution time. For the second rule
    `requests` must hold later lists too, up to the attribution time behind the span: they compete for such actions.
    Labels that a source carries are known when the attribution time is over; of heads that were appended after it was
    imported, the events tell.
    """
    if span_ms is not None:
        labelled = label_requests(near(requests, span_ms, domain), near(events, span_ms, domain), domain)
        return dataclasses.replace(labelled.between(*span_ms), events=events)
    item_lists = requests["item_ids"].combine_chunks()
    size_R = pc.list_value_length(item_lists).to_numpy(zero_copy_only=False)
    request_M = np.repeat(np.arange(requests.num_rows), size_R)
    shown = pd.DataFrame(
        {
            "request": hash64_column(requests["request_id"])[request_M],
            "item": hash64_column(pc.list_flatten(item_lists)),
            "user": hash64_column(requests["user_id"])[request_M],
            "time": requests["timestamp_ms"].to_numpy()[request_M],
        }
    )
    known_MH = np.full((len(shown), len(domain.heads)), NEVER)
    given_R = pc.is_valid(requests["labels"]).to_numpy()
    flag_MH = given_labels(requests.filter(pa.array(given_R)), len(domain.heads))
    if not given_R.all() or np.isnan(flag_MH).any():
        acted, row_A = _attributed(shown, _relevant(events, domain.heads), domain.attribution_ms)
        received_A = acted["received"].to_numpy()
        for h, head in enumerate(domain.heads):
            counts = acted["action"].isin(head.actions).to_numpy()
            np.minimum.at(known_MH[:, h], row_A[counts], received_A[counts])
    if given_R.any():
        given_M = given_R[request_M]
        mature_ms_M = shown["time"].to_numpy()[given_M] + domain.attribution_ms
        flags = np.where(flag_MH > 0, mature_ms_M[:, None], NEVER)
        known_MH[given_M] = np.where(np.isnan(flag_MH), known_MH[given_M], flags)
    return LabelledRequests(requests, events, known_MH, offsets(size_R.astype(np.int64)))


def _relevant(events: pa.Table, heads: Sequence[Head]) -> pd.DataFrame:
    """The events that any head asks for."""
    names = sorted({name for head in heads for name in head.actions})
    events = events.set_column(events.column_names.index("action"), "action", events["action"].cast(pa.string()))
    events = events.filter(pc.is_in(events["action"], value_set=pa.array(names, pa.string())))
    named = pc.is_valid(events["request_id"]).to_numpy()
    return pd.DataFrame(
        {
            "request": hash64_column(pc.fill_null(events["request_id"], "")),
            "named": named,
            "item": hash64_column(events["item_id"]),
            "user": hash64_column(events["user_id"]),
            "time": events["timestamp_ms"].to_numpy(),
            "received": events["received_at_ms"].to_numpy(),
            "action": pd.Categorical.from_codes(
                pc.index_in(events["action"], value_set=pa.array(names, pa.string())).to_numpy(), pd.Index(names)
            ),
        }
    )


def _attributed(
    shown: pd.DataFrame, acted: pd.DataFrame, attribution_ms: int
) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """The actions that count, and the shown row of each."""
    shown = shown.assign(row=np.arange(len(shown)))
    named = acted[acted["named"]].rename(columns={"time": "acted"})
    by_request = named.merge(shown, on=["request", "item", "user"])
    lag = by_request["acted"] - by_request["time"]
    by_request = by_request[(lag >= 0) & (lag <= attribution_ms)]
    unnamed = acted[~acted["named"]]
    place = _latest_shown(shown, unnamed, attribution_ms)
    by_item = unnamed[place != NONE]
    rows = np.r_[by_request["row"].to_numpy(np.int64), place[place != NONE]]
    return pd.concat([by_request[["action", "received"]], by_item[["action", "received"]]]), rows


def _latest_shown(shown: pd.DataFrame, acted: pd.DataFrame, attribution_ms: int) -> NDArray[np.int64]:
    """For each action the row that showed its item to its user last, or NONE."""
    if not len(acted) or not len(shown):
        return np.full(len(acted), NONE, np.int64)
    both = pd.concat([shown[["user", "item"]], acted[["user", "item"]]], ignore_index=True)
    pair = np.asarray(both.groupby(["user", "item"], sort=False).ngroup(), np.int64)
    pair_M, pair_A = pair[: len(shown)], pair[len(shown) :]
    time_M, time_A = shown["time"].to_numpy(np.int64), acted["time"].to_numpy(np.int64)
    order = np.lexsort((time_M, pair_M))
    before_A = search_in_groups(pair_M[order], time_M[order], pair_A, time_A, "right") - 1
    row_A = order[np.maximum(before_A, 0)]
    found_A = (before_A >= 0) & (pair_M[row_A] == pair_A) & (time_A - time_M[row_A] <= attribution_ms)
    return np.where(found_A, row_A, NONE)
