"""Lists for a log without shown lists: each item that a user chose, among others that existed then.

Nobody saw these lists. They teach a ranker what people choose, and reach no statistic.

Shapes: E events, N items, M moments, R lists, C items of a list, Q lists that are not full, K draws for each, X pairs
of a user and an item.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayapp.contracts.config import DAY_MS, Domain
from rayapp.contracts.hashing import hash64_column, places_of
from rayapp.contracts.schema import ActionKind, request_schema
from rayapp.features.requests import offsets
from rayapp.features.seen import Seen
from rayapp.pipeline.histories import Bucket
from rayapp.pipeline.search import running_max
from rayapp.root.catalogue import read_catalogue
from rayapp.root.places import EVENTS, REQUESTS, WINDOWS
from rayapp.root.publish import Manifest, log_manifest, read_manifest
from rayapp.statistics.known import load_newest

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
MADE_UP, REAL = "made-up", "real"
OTHERS: Final = 9
"""Of a list of ten."""
POWER: Final = 0.5
"""Others are drawn in proportion to (their actions + 1) ** POWER: 0 is by lot, 1 by popularity."""
SEED: Final = 0
ENOUGH_LISTS: Final = 500
"""So many lists of a graph's own are as few as a training makes do with; from then on they take the place."""
MOST_MOMENTS: Final = 32
"""Of a window, at which popularity is looked up; a day has at most one."""
ROUNDS: Final = 4
"""Of draws for a list, before what is left is drawn exactly."""
NOTHING: Final = -1


def lacks_lists(root: Path) -> bool:
    """Whether a team's own log came without shown lists: actions were imported, and no list ever."""
    (_, events), (_, requests) = (log_manifest(root / kind) for kind in (EVENTS, REQUESTS))
    return bool(events.get("partitions")) and not requests.get("partitions")


def is_made_up(root: Path, window: str) -> bool:
    """Whether nobody saw the lists of a published window, as its manifest says. Those of older releases were shown.

    Raises:
        PublishError: the manifest can't be read.
    """
    directory = root / WINDOWS / window
    return directory.exists() and read_manifest(directory).get("lists", {}).get("kind", REAL) == MADE_UP


def told_lists(root: Path, window: str) -> str:
    """How the lists of a window were made, in words; for one whose lists were made."""
    lists = read_manifest(root / WINDOWS / window)["lists"]
    real = lists["real_lists_left_out"]
    told = (
        f"made-up lists, since the log has no shown ones: the item that a user chose and {lists['others']} others of "
        f"that time, drawn by {lists['drawn_by']}, none of which the user ever acted on"
    )
    return told + (f" ({real:,} real lists of the graph are not enough yet, {ENOUGH_LISTS:,} are)" if real else "")


def described(num_real: int) -> Manifest:
    """What the manifest of a window of made-up lists says of them."""
    return {
        "kind": MADE_UP,
        "others": OTHERS,
        "drawn_by": f"(actions + 1) ** {POWER}",
        "seed": SEED,
        "real_lists_left_out": num_real,
    }


@dataclass(frozen=True, slots=True)
class Popular:
    """What lists are drawn from."""

    item_id_N: pa.Array
    hash_N: NDArray[np.uint64]
    """Ascending."""
    created_ms_N: Ints
    moment_ms_M: Ints
    weight_MN: Floats
    """In proportion to which items are drawn from each moment on."""

    @staticmethod
    def of(root: Path, domain: Domain, span_ms: tuple[int, int]) -> "Popular":
        """The catalogue, with what the newest statistics knew at each moment of a span.

        Raises:
            PublishError: the catalogue or the statistics can't be read.
        """
        catalogue, statistics = read_catalogue(root), load_newest(root, domain)
        item_id_N = catalogue["item_id"].combine_chunks()
        hash_N = hash64_column(item_id_N)
        order = np.argsort(hash_N)
        hash_N = hash_N[order]
        every_ms = max(DAY_MS, -(-(span_ms[1] - span_ms[0]) // (MOST_MOMENTS * DAY_MS)) * DAY_MS)
        moment_ms_M = np.arange(span_ms[0], span_ms[1], every_ms)
        kinds = [1 + h for h, head in enumerate(domain.heads) if set(head.actions) & set(chosen_actions(domain))]
        weight_MN = np.empty((len(moment_ms_M), len(hash_N)))
        for m, step in enumerate(statistics.grid.step(moment_ms_M).tolist()):
            count_NSA = statistics.counts(hash_N, np.full(len(hash_N), step))
            weight_MN[m] = (count_NSA[:, -1, kinds].sum(axis=1) + 1.0) ** POWER
        created_ms_N = catalogue["created_at_ms"].to_numpy()[order]
        return Popular(item_id_N.take(pa.array(order)), hash_N, created_ms_N, moment_ms_M, weight_MN)


def chosen_actions(domain: Domain) -> list[str]:
    """Names of the actions that make a list: positive ones that some head predicts."""
    positive = {action.name for action in domain.vocabulary.actions if action.kind is ActionKind.POSITIVE}
    positive |= {name for head in domain.heads if head.name == domain.positive_head for name in head.actions}
    return sorted(positive & {name for head in domain.heads for name in head.actions})


def make_lists(
    bucket: Bucket, span_ms: tuple[int, int], domain: Domain, popular: Popular, seed: Any
) -> tuple[pa.Table, int]:
    """`(the lists of one bucket whose time lies in [since, until), how many were left out)`, as rows of a request log.

    Left out are those whose item the catalogue lacks, or has from a later date. `seed`: whatever a generator takes.
    """
    events = bucket.events
    flags = domain.vocabulary.flags(in_sequence=True) | domain.vocabulary.flags(kind=ActionKind.POSITIVE)
    acted = bucket.filter(flags[domain.vocabulary.ids_of(events["action"])])
    events, user_E = acted.events, acted.user_E
    time_E, item_E = events["timestamp_ms"].to_numpy(), hash64_column(events["item_id"])
    first_E = first_acts(acted, item_E, domain)
    inside = np.flatnonzero(first_E & (time_E >= span_ms[0]) & (time_E < span_ms[1]))
    row_E, known_E = places_of(popular.hash_N, item_E)
    usable = known_E[inside] & (popular.created_ms_N[row_E[inside]] <= time_E[inside])
    at_R = inside[usable]
    acted_X = np.unique(user_E[known_E] * len(popular.hash_N) + row_E[known_E])
    rng = np.random.default_rng(seed)
    list_RC = np.full((len(at_R), 1 + OTHERS), NOTHING)
    list_RC[:, 0] = row_E[at_R]
    moment_R = np.searchsorted(popular.moment_ms_M, time_E[at_R], side="right") - 1
    for m in np.unique(moment_R).tolist():
        rows = np.flatnonzero(moment_R == m)
        at = at_R[rows]
        list_RC[rows, 1:] = draw_others(
            popular.weight_MN[m], popular.created_ms_N, time_E[at], user_E[at], acted_X, OTHERS, rng
        )
    key_RC = np.where(list_RC == NOTHING, 2.0, rng.random(list_RC.shape))
    list_RC = np.take_along_axis(list_RC, np.argsort(key_RC, axis=1), axis=1)
    return _as_requests(events, at_R, list_RC, popular, domain), len(inside) - len(at_R)


def first_acts(acted: Bucket, item_hash_E: NDArray[np.uint64], domain: Domain) -> NDArray[np.bool_]:
    """`[E]`: the first actions on an item within the attribution time of which some were positive, where the domain
    would have shown the item to its user then (`features.seen`)."""
    events = acted.events
    time_E, action_E = events["timestamp_ms"].to_numpy(), domain.vocabulary.ids_of(events["action"])
    user_E, item_E = acted.user_E, item_hash_E
    order = np.lexsort((time_E, item_E, user_E))
    user_E, item_E, time_E, action_E = user_E[order], item_E[order], time_E[order], action_E[order]
    new_E = np.r_[True, (np.diff(user_E) != 0) | (item_E[1:] != item_E[:-1])][: len(order)]
    pair_E = np.cumsum(new_E) - 1
    first_E = _starts(pair_E, time_E, new_E, domain.attribution_ms)
    chain_E = np.cumsum(first_E) - 1
    names = chosen_actions(domain)
    chosen_A = np.zeros(domain.vocabulary.size, bool)
    chosen_A[[domain.vocabulary.id_of(name) for name in names]] = True
    positive_F = np.bincount(chain_E, weights=chosen_A[action_E]) > 0 if len(order) else np.zeros(0, bool)
    seen_until_E = running_max(pair_E, Seen.of(domain).until_ms(action_E, time_E))
    before_E = np.r_[0, seen_until_E[:-1]][: len(order)]
    seen_E = ~new_E & (before_E > time_E)
    found_E = np.zeros(len(order), bool)
    found_E[order] = first_E & positive_F[chain_E] & ~seen_E
    return found_E


def _starts(pair_E: Ints, time_E: Ints, new_E: NDArray[np.bool_], attribution_ms: int) -> NDArray[np.bool_]:
    """Which rows begin anew: the first of each pair of user and item, then the first one later than the attribution
    time after the last that did."""
    start_E = new_E.copy()
    at = np.flatnonzero(new_E)
    values, rank = np.unique(np.r_[time_E, time_E + attribution_ms], return_inverse=True)
    key_E, end_E = pair_E * len(values) + rank[: len(time_E)], pair_E * len(values) + rank[len(time_E) :]
    next_E = np.searchsorted(key_E, end_E, side="right")
    while len(at):
        after = next_E[at]
        inside = after < len(pair_E)
        at, after = at[inside], after[inside]
        at = after[pair_E[after] == pair_E[at]]
        start_E[at] = True
    return start_E


def draw_others(
    weight_N: Floats,
    created_ms_N: Ints,
    time_ms_R: Ints,
    user_R: Ints,
    acted_X: Ints,
    count: int,
    rng: np.random.Generator,
) -> Ints:
    """`[R, count]` different items for each list, drawn in proportion to their weights from those that existed at its
    time and that its user never acted on; NOTHING at the end where there are fewer.

    `acted_X`: user * N + item of each pair, ascending.
    """
    drawn_RC = np.full((len(user_R), count), NOTHING)
    if not len(weight_N) or not len(user_R):
        return drawn_RC
    cumulative_N, num_items = np.cumsum(weight_N), len(weight_N)

    def allowed(row_QK: Ints, lists_Q: Ints) -> NDArray[np.bool_]:
        acted = places_of(acted_X, user_R[lists_Q][:, None] * num_items + row_QK)[1]
        return np.asarray((row_QK != NOTHING) & ~acted & (created_ms_N[row_QK] <= time_ms_R[lists_Q][:, None]))

    for _ in range(ROUNDS):
        open_Q = np.flatnonzero(drawn_RC[:, -1] == NOTHING)
        where_QK = rng.random((len(open_Q), 2 * count)) * cumulative_N[-1]
        tried_QK = np.searchsorted(cumulative_N, where_QK, side="right").clip(max=num_items - 1)
        tried_QK = np.concatenate([drawn_RC[open_Q], tried_QK], axis=1)
        keep_QK = allowed(tried_QK, open_Q) & _first_of_its_kind(tried_QK)
        place_QK = np.cumsum(keep_QK, axis=1) - 1
        q, k = np.nonzero(keep_QK & (place_QK < count))
        drawn_RC[open_Q[q], place_QK[q, k]] = tried_QK[q, k]
    every_1N = np.arange(num_items)[None]
    for r in np.flatnonzero(drawn_RC[:, -1] == NOTHING).tolist():
        have = drawn_RC[r][drawn_RC[r] != NOTHING]
        left = np.setdiff1d(np.flatnonzero(allowed(every_1N, np.array([r]))[0] & (weight_N > 0)), have)
        # Gumbel keys: the largest of log(weight) + noise are a weighted sample without replacement.
        key = np.log(weight_N[left]) + rng.gumbel(size=len(left))
        more = left[np.argsort(-key)][: count - len(have)]
        drawn_RC[r, len(have) : len(have) + len(more)] = more
    return drawn_RC


def _first_of_its_kind(row_QK: Ints) -> NDArray[np.bool_]:
    order_QK = np.argsort(row_QK, axis=1, kind="stable")
    sorted_QK = np.take_along_axis(row_QK, order_QK, axis=1)
    first_QK = np.ones(row_QK.shape, bool)
    np.put_along_axis(first_QK[:, :], order_QK[:, 1:], sorted_QK[:, 1:] != sorted_QK[:, :-1], axis=1)
    return first_QK


def _as_requests(events: pa.Table, at_R: Ints, list_RC: Ints, popular: Popular, domain: Domain) -> pa.Table:
    schema = request_schema(domain.context_attributes)
    row_M = list_RC[list_RC != NOTHING]
    offset_R = offsets((list_RC != NOTHING).sum(axis=1).astype(np.int64))
    chosen = events.take(pa.array(at_R))
    made = {
        "request_id": pa.array(
            [f"{MADE_UP}-{number:016x}" for number in chosen["event_hash"].to_pylist()], pa.string()
        ),
        "user_id": chosen["user_id"].cast(pa.string()),
        "timestamp_ms": chosen["timestamp_ms"],
        "item_ids": pa.LargeListArray.from_arrays(
            pa.array(offset_R), popular.item_id_N.take(pa.array(row_M)).cast(pa.string())
        ).cast(schema.field("item_ids").type),
    }
    columns = [made[f.name] if f.name in made else pa.nulls(len(at_R), f.type) for f in schema]
    return pa.table(columns, schema=schema)


def without_request_ids(bucket: Bucket) -> Bucket:
    """The events as they count for made-up lists: whatever an action names, it is none of these."""
    events = bucket.events
    at = events.column_names.index("request_id")
    nothing = pa.nulls(events.num_rows, pa.string())
    return Bucket(events.set_column(at, "request_id", nothing), bucket.user_E)
