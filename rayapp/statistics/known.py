"""The statistics of a root as of any moment: read from a directory that is published whole, plus what came since.

Shapes: N items or users, U distinct steps, S half-lives, A counted kinds, K columns, V values of categories.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.schema import AttributeKind
from rayapp.features.item_values import ItemValues
from rayapp.features.requests import Requests
from rayapp.features.statistic_columns import Columns, Floats
from rayapp.features.statistics import DecayedCounts, Grid, Hashes, Increments, Ints
from rayapp.root.catalogue import read_users
from rayapp.root.places import EVENTS, REQUESTS, STATISTICS
from rayapp.root.publish import PublishError, read_manifest

EVERYTHING: Final = np.zeros(1, np.uint64)
PARTS: Final = ("items", "values", "users", "everything")
VALUES: Final = ("hash_I", "offset_I", "value_V")
LAST_STEPS: Final = "last_steps.npy"


@dataclass(frozen=True, slots=True)
class Counted:
    """Counts of items, of values of categories, of users, and of everything together."""

    items: DecayedCounts
    values: DecayedCounts
    users: DecayedCounts
    everything: DecayedCounts

    @staticmethod
    def nothing(grid: Grid, num_kinds: int) -> "Counted":
        return Counted(*(DecayedCounts.of(grid, Increments.none(num_kinds)) for _ in PARTS))

    def advanced(self, step: int, items: Increments, users: Increments, item_values: ItemValues) -> "Counted":
        """With increments of steps before `step`, for look-ups at it or later."""
        parts = (items, of_values(items, item_values), users, of_everything(items))
        return Counted(*(getattr(self, name).advanced(step, part) for name, part in zip(PARTS, parts, strict=True)))

    @staticmethod
    def load(directory: Path, grid: Grid) -> "Counted":
        """Raises OSError or ValueError where a file is missing or damaged."""
        return Counted(*(DecayedCounts.load(directory / name, grid) for name in PARTS))


def of_values(items: Increments, item_values: ItemValues) -> Increments:
    """What happened to the values of the items' categories."""
    number_V, value_V = item_values.of_items(items.key_E)
    return Increments.added_up([Increments(value_V, items.step_E[number_V], items.count_EA[number_V])])


def of_everything(items: Increments) -> Increments:
    """What happened at all."""
    return Increments.added_up([Increments(np.zeros(len(items), np.uint64), items.step_E, items.count_EA)])


@dataclass(frozen=True, slots=True)
class Statistics:
    """Numbers of items and users as a ranker reads them."""

    grid: Grid
    columns: Columns
    item_values: ItemValues
    counted: tuple[Counted, ...]
    """They add up."""

    def with_counted(self, item_values: ItemValues, more: Counted) -> "Statistics":
        """With what was counted since."""
        return dataclasses.replace(self, item_values=item_values, counted=(*self.counted, more))

    def items(self, hash_N: Hashes, step_N: Ints) -> NDArray[np.float32]:
        """`[N, K]`: what was known of each item at the beginning of its step."""
        number_V, value_V = self.item_values.of_items(hash_N)
        own_NSA = self.counts(hash_N, step_N)
        value_VSA = self._at(lambda part: part.values, value_V, step_N[number_V])
        return self.columns.item(own_NSA, value_VSA, number_V, self._everything(step_N))

    def users(self, hash_N: Hashes, step_N: Ints) -> NDArray[np.float32]:
        """`[N, K]`."""
        own_NSA = self._at(lambda part: part.users, hash_N, step_N)
        return self.columns.user(own_NSA, self._everything(step_N))

    def users_without(self, user_hash: np.uint64, step: int, gone_NSA: Floats) -> NDArray[np.float32]:
        """`[N, K]` of one user, each time with other counts taken out."""
        step_N = np.full(len(gone_NSA), step)
        own_1SA = self._at(lambda part: part.users, np.array([user_hash], np.uint64), step_N[:1])
        return self.columns.user((own_1SA - gone_NSA).clip(0), self._everything(step_N))

    def of_requests(self, requests: Requests) -> Requests:
        """The requests with what was known of their users and candidates at their time."""
        step_R = self.grid.step(requests.timestamp_ms_R)
        step_N = np.repeat(step_R, requests.sizes)
        return dataclasses.replace(
            requests,
            user_statistic_RK=self.users(requests.user_hash_R, step_R),
            item_statistic_NK=self.items(requests.candidate_hash_N, step_N),
        )

    def positives(self, hash_N: Hashes, step_N: Ints) -> Floats:
        """`[N, S]`: positive actions on each item."""
        return self.counts(hash_N, step_N)[:, :, self.columns.kinds_G[0]]

    def counts(self, hash_N: Hashes, step_N: Ints) -> Floats:
        """`[N, S, A]`: impressions and each head's actions on each item."""
        return self._at(lambda part: part.items, hash_N, step_N)

    def all_positives(self, step: int) -> tuple[Hashes, Floats]:
        """`([N], [N, S])`: the items that anything ever happened to, by hash, and the positive actions on each."""
        hash_N = np.unique(np.concatenate([part.items.key_K for part in self.counted]))
        return hash_N, self.positives(hash_N, np.full(len(hash_N), step))

    def _everything(self, step_N: Ints) -> Floats:
        step_U, number_N = np.unique(step_N, return_inverse=True)
        all_USA = self._at(lambda part: part.everything, np.repeat(EVERYTHING, len(step_U)), step_U)
        return all_USA[number_N]

    def _at(self, of: Callable[[Counted], DecayedCounts], key_N: Hashes, step_N: Ints) -> Floats:
        first, *others = (of(part).at(key_N, step_N) for part in self.counted)
        return sum(others, start=first)


@dataclass(frozen=True, slots=True)
class Base:
    """Statistics that were counted and published, and which rows they hold."""

    name: str
    statistics: Statistics
    cursors: Mapping[str, Mapping[str, Mapping[str, int]]]
    """EVENTS or REQUESTS -> identity of a store -> bucket -> the last commit_seq that is counted."""
    last_steps_X: Hashes
    """Keys of what was counted in the last steps of each bucket: it must not count again in the rows that come."""

    @staticmethod
    def nothing(domain: Domain) -> "Base":
        """Of a root whose logs were never counted."""
        grid, no_hash = Grid.of(domain), np.zeros(0, np.uint64)
        statistics = Statistics(
            grid, Columns.of(domain), ItemValues.nothing(), (Counted.nothing(grid, 1 + len(domain.heads)),)
        )
        return Base("", statistics, {EVENTS: {}, REQUESTS: {}}, no_hash)

    def cursor(self, kind: str, bucket: int, store: str) -> int:
        """The last commit_seq of a bucket that is counted. A store that is new counts on behind those before it."""
        of_kind = self.cursors[kind]
        known = [of_kind[store]] if store in of_kind else of_kind.values()
        return max((int(cursors.get(str(bucket), 0)) for cursors in known), default=0)


def load_base(root: Path, name: str, domain: Domain) -> Base:
    """Maps `statistics/<name>` into memory.

    Raises:
        PublishError: there are none of that name, they are damaged, or they count other things than the domain does.
    """
    directory = root / STATISTICS / name
    if not directory.exists():
        raise PublishError(f"there are no statistics {name} in {root / STATISTICS}; `rayapp windows` counts them")
    manifest = read_manifest(directory)
    if not _counted_for(manifest["settings"], domain):
        raise PublishError(f"{directory} was counted for other heads or half-lives; count anew: `rayapp windows`")
    grid = Grid.of(domain)
    try:
        values = ItemValues(*(np.asarray(np.load(directory / f"{array}.npy", mmap_mode="r")) for array in VALUES))
        statistics = Statistics(grid, Columns.of(domain), values, (Counted.load(directory, grid),))
        last_steps_X = np.load(directory / LAST_STEPS)
    except (OSError, ValueError) as error:
        raise PublishError(f"{directory} is damaged ({error}); remove it and count anew: `rayapp windows`") from None
    return Base(name, statistics, manifest["cursors"], last_steps_X)


def load_newest(root: Path, domain: Domain) -> Statistics:
    """The statistics of a root that were counted last.

    Raises:
        PublishError: there are none; or as for `load_base`.
    """
    return load_base(root, newest_name(root, domain), domain).statistics


def newest_name(root: Path, domain: Domain) -> str:
    """The name of those that were counted last for a domain.

    Raises:
        PublishError: there are none.
    """
    name = newest_statistics(root, domain)
    if name is None:
        there = " of these heads and half-lives" if newest_statistics(root) is not None else ""
        raise PublishError(f"{root} has no statistics{there} yet; `rayapp train` counts them, or `rayapp windows`")
    return name


def settings_of(domain: Domain) -> dict[str, Any]:
    """What decides the meaning of counts, as the manifest keeps it."""
    heads = {head.name: list(head.actions) for head in domain.heads}
    out = {name: list(values) for name, values in domain.left_out_of_statistics.items()}
    return {
        "heads": heads,
        "half_lives_ms": list(domain.half_lives_ms),
        "step_ms": domain.statistics_step_ms,
        "flag_delay_ms": domain.flag_delay_ms,
        "left_out": out,
        "categories": [a.name for a in domain.attributes if a.kind is AttributeKind.CATEGORIES],
    }


def reading_of(domain: Domain) -> str:
    """Equal for domains whose rankers read the same numbers."""
    return json.dumps([settings_of(domain), domain.positive_head], sort_keys=True)


def _counted_for(settings: Mapping[str, Any], domain: Domain) -> bool:
    """Statistics that say nothing of the categories were counted before those could change."""
    wanted = settings_of(domain)
    return isinstance(settings, Mapping) and {**wanted, **settings} == wanted


@functools.lru_cache(maxsize=64)
def _settings(directory: Path) -> Mapping[str, Any]:
    """Of statistics, which are published whole and never change."""
    settings: Mapping[str, Any] = read_manifest(directory)["settings"]
    return settings


def users_left_out(root: Path, domain: Domain) -> Hashes:
    """Hashes of users that ever had a value that the domain leaves out."""
    users = read_users(root, domain)
    out = np.zeros(users.num_rows, bool)
    for name, values in domain.left_out_of_statistics.items():
        out |= np.array([bool(set(some or ()) & set(values)) for some in users[name].to_pylist()], bool)
    return np.unique(hash64_column(users["user_id"].filter(pa.array(out))))


def counted_names(root: Path) -> list[str]:
    """Of all statistics of a root, those that were counted last at the end: a name begins with a number that grows."""
    names = [path.name for path in (root / STATISTICS).glob("[!.]*")]
    return sorted(names, key=lambda name: (int(name.partition("-")[0]), name))


def newest_statistics(root: Path, domain: Domain | None = None) -> str | None:
    """The name of those that were counted last, for a domain or at all; None where there are none.

    Raises:
        PublishError: a manifest can't be read.
    """
    names = reversed(counted_names(root))
    return next((n for n in names if domain is None or _counted_for(_settings(root / STATISTICS / n), domain)), None)


def superseded(root: Path, domains: Iterable[Domain], kept: int) -> list[str]:
    """Names of all statistics but the `kept` newest of each domain.

    Raises:
        PublishError: a manifest can't be read.
    """
    names = counted_names(root)
    settings = {name: _settings(root / STATISTICS / name) for name in names}
    stay = set[str]()
    for domain in domains:
        stay.update([name for name in names if _counted_for(settings[name], domain)][-kept:])
    return [name for name in names if name not in stay]
