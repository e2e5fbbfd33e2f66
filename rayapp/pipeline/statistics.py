"""Counts the statistics that `rayapp.statistics` reads: one pass over the logs with Ray Data, nothing is shuffled.

A task folds a bucket's rows into increments and cuts them by the highest bits of their keys; a second round of tasks
adds up what all buckets have of one cut. Keys of later cuts are greater, so the cuts are laid end to end, in files. No
process ever holds more than a bucket's rows or a cut's increments.

Shapes: E increments, A counted kinds, H heads.
"""

import dataclasses
import functools
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.schema import EVENT_SCHEMA, REQUEST_SCHEMA, columns_of, fingerprint
from rayapp.features.item_values import ItemValues
from rayapp.features.statistics import ARRAYS, SPAN, DecayedCounts, Grid, Hashes, Increments
from rayapp.pipeline.export import CURSORS
from rayapp.pipeline.log_view import LogView
from rayapp.pipeline.tasks import Told, quiet, run_tasks
from rayapp.root.catalogue import read_version
from rayapp.root.facts import read_root, trained_domains
from rayapp.root.places import EVENTS, ITEMS, REQUESTS, STATISTICS, STATISTICS_STAGING, USERS
from rayapp.root.publish import Manifest, exclusive, log_manifest, publish_directory
from rayapp.statistics.agreement import Agreement
from rayapp.statistics.known import (
    LAST_STEPS,
    VALUES,
    of_everything,
    of_values,
    settings_of,
    superseded,
    users_left_out,
)
from rayapp.statistics.observations import Observations, acted, shown

REQUEST_COLUMNS: Final = columns_of(
    REQUEST_SCHEMA, "request_id", "user_id", "timestamp_ms", "item_ids", "labels", "commit_seq"
)
EVENT_COLUMNS: Final = columns_of(
    EVENT_SCHEMA, "user_id", "item_id", "action", "timestamp_ms", "received_at_ms", "commit_seq", "event_hash"
)
KEPT: Final = 3
"""Statistics of a root and a domain that are kept: a replica or a job may still read older ones than the newest."""
CUT_BITS: Final = 4
OPEN_STEPS: Final = 2
"""Rows of so many last steps may still come: what is received at the end of one is stored in the next."""


def count_statistics(root: Path, domain: Domain, told: Told = quiet) -> tuple[str, bool]:
    """Publishes `statistics/<name>` of all that the logs hold, unless it is there; its name, and whether it was made.

    Raises:
        PublishError: a log or the catalogue can't be read.
    """
    num_buckets, view, grid = read_root(root)[1], LogView.of(root), Grid.of(domain)
    read = {**view.numbers, **{kind: log_manifest(root / kind)[0] for kind in (ITEMS, USERS)}}
    number = sum(read.values()) + len(view.erased)
    name = f"{number:06d}-{fingerprint((sorted(read.items()), sorted(view.erased.items()), settings_of(domain)))[:8]}"
    if (root / STATISTICS / name).exists():
        return name, False
    agreement = Agreement.of_root(root, num_buckets)
    left_out_X, staging = users_left_out(root, domain), root / STATISTICS_STAGING

    def fold(bucket: int) -> dict[str, Any]:
        return _fold(view, bucket, domain, grid, agreement, left_out_X, staging)

    def write(directory: Path) -> Manifest:
        acted_H = np.sum([row["acted"] for row in run_tasks(num_buckets, fold, told)], axis=0)
        flags_H = acted_H == 0  # an imported log has either the actions of a head or its flags
        run_tasks(2 << CUT_BITS, lambda n: _add_up(n, num_buckets, flags_H, grid, staging))
        for kind in ("items", "users"):
            _lay_end_to_end(kind, staging, directory / kind)
        np.save(directory / LAST_STEPS, np.concatenate([np.load(_last_file(staging, b)) for b in range(num_buckets)]))
        items = read_version(root, ITEMS)
        _derive(staging, ItemValues.nothing() if items is None else ItemValues.of(items, domain), grid, directory)
        return {
            "read": read,
            "settings": settings_of(domain),
            CURSORS: {kind: view.manifests[kind].get(CURSORS, {}) for kind in (EVENTS, REQUESTS)},
        }

    with exclusive(root / STATISTICS, "counting statistics"):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            publish_directory(root / STATISTICS / name, write)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        _remove_old(root, domain)
    return name, True


def count_for_models(root: Path, domain: Domain, versions: Collection[str]) -> bool:
    """`count_statistics` of the domain, after those that these models were trained under where they read others;
    whether the domain's were made."""
    trained = [own for version, own in trained_domains(root, domain).items() if version in versions]
    for own in {str(settings_of(own)): own for own in trained}.values():
        if settings_of(own) != settings_of(domain):
            count_statistics(root, own)
    return count_statistics(root, domain)[1]


def _remove_old(root: Path, domain: Domain) -> None:
    """A model that was trained before the domain changed reads its own, as long as it is there."""
    now, _ = read_root(root)
    for name in superseded(root, [domain, now, *trained_domains(root, now).values()], KEPT):
        shutil.rmtree(root / STATISTICS / name, ignore_errors=True)


def observed(
    view: LogView, bucket: int, domain: Domain, grid: Grid, agreement: Agreement
) -> tuple[Observations, NDArray[np.int64]]:
    """All that a bucket's logs say, each once, in the steps that it counts in; and how many imported rows there are of
    each kind. What erased users did is there until a compaction takes it out of the logs: it has been served."""
    view = dataclasses.replace(view, erased={})
    requests, events = view.requests(bucket, REQUEST_COLUMNS), view.events(bucket, EVENT_COLUMNS).events
    parts, imported_A = list[Observations](), np.zeros(1 + 2 * len(domain.heads), np.int64)
    for table, observe in ((requests, shown), (events, acted)):
        row_E, found = observe(table, domain, grid)
        commit_seq_E = pc.fill_null(table["commit_seq"], 0).to_numpy()[row_E]
        step_E = agreement.counted_in(found.step_E, commit_seq_E, bucket)
        parts.append(dataclasses.replace(found, step_E=step_E))
        imported_A += np.bincount(found.kind_E[commit_seq_E == 0], minlength=len(imported_A))
    return Observations.concatenate(parts).once(), imported_A


def _fold(
    view: LogView,
    bucket: int,
    domain: Domain,
    grid: Grid,
    agreement: Agreement,
    left_out_X: Hashes,
    staging: Path,
) -> dict[str, Any]:
    found, imported_A = observed(view, bucket, domain, grid, agreement)
    found, num_kinds = found.without(left_out_X), len(imported_A)
    of_users = found.after(view.erased, grid).of_users(num_kinds)
    for kind, increments in (("items", found.of_items(num_kinds)), ("users", of_users)):
        cut_E = increments.key_E >> np.uint64(64 - CUT_BITS)
        for cut in range(1 << CUT_BITS):
            part = increments.take(np.flatnonzero(cut_E == cut))
            if len(part):
                np.savez(_cut_file(staging, kind, cut, bucket), key=part.key_E, step=part.step_E, count=part.count_EA)
    num_heads = len(domain.heads)
    live_E = found.kind_E <= num_heads
    last_E = live_E & (found.step_E > found.step_E[live_E].max(initial=0) - OPEN_STEPS)
    np.save(_last_file(staging, bucket), found.take(last_E).keys())
    return {"acted": imported_A[1 : 1 + num_heads].tolist()}


def _add_up(number: int, num_buckets: int, flags_H: NDArray[np.bool_], grid: Grid, staging: Path) -> dict[str, Any]:
    """One cut of the items (even numbers) or of the users (odd ones). `flags_H`: whether a head's flags count."""
    kind, cut, num_heads = ("items", "users")[number % 2], number // 2, len(flags_H)
    parts = [Increments.none(1 + num_heads)]
    for bucket in range(num_buckets):
        path = _cut_file(staging, kind, cut, bucket)
        if path.exists():
            with np.load(path) as found:
                count_EA = found["count"]
                acted_EH = count_EA[:, 1 : 1 + num_heads] + count_EA[:, 1 + num_heads :] * flags_H
                parts.append(Increments(found["key"], found["step"], np.column_stack([count_EA[:, :1], acted_EH])))
    increments = Increments.added_up(parts)
    increments = increments.take(np.flatnonzero(increments.count_EA.any(axis=1)))
    directory = staging / f"{kind}-{cut:02d}"
    shutil.rmtree(directory, ignore_errors=True)
    DecayedCounts.of(grid, increments).save(directory)
    if kind == "items":
        np.savez(staging / f"all-{cut:02d}", key=increments.key_E, step=increments.step_E, count=increments.count_EA)
    return {}


def _cut_file(staging: Path, kind: str, cut: int, bucket: int) -> Path:
    return staging / f"{kind}-{cut:02d}-{bucket:04d}.npz"


def _last_file(staging: Path, bucket: int) -> Path:
    return staging / f"last-{bucket:04d}.npy"


def _lay_end_to_end(kind: str, staging: Path, target: Path) -> None:
    """Lays the cuts' arrays end to end; ranks of keys go on from cut to cut."""
    target.mkdir()
    cuts = [staging / f"{kind}-{cut:02d}" for cut in range(1 << CUT_BITS)]
    for name in ARRAYS:
        arrays = [np.load(cut / f"{name}.npy", mmap_mode="r") for cut in cuts]
        shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
        path = target / f"{name}.npy"
        if not shape[0]:  # nothing can't be mapped
            np.save(path, np.zeros(shape, arrays[0].dtype))
            continue
        laid = np.lib.format.open_memmap(path, "w+", arrays[0].dtype, shape)
        at = keys = 0
        for cut, array in zip(cuts, arrays, strict=True):
            laid[at : at + len(array)] = array + keys * SPAN if name == "place_E" else array
            at += len(array)
            keys += len(np.load(cut / "key_K.npy", mmap_mode="r"))
        laid.flush()


def _derive(staging: Path, item_values: ItemValues, grid: Grid, directory: Path) -> None:
    """Counts of categories' values and of everything, from the items' cuts."""

    def cuts() -> Iterator[Increments]:
        for cut in range(1 << CUT_BITS):
            with np.load(staging / f"all-{cut:02d}.npz") as found:
                yield Increments(found["key"], found["step"], found["count"])

    def add(one: Increments, other: Increments) -> Increments:
        return Increments.added_up([one, other])

    for name, derive in (("values", lambda items: of_values(items, item_values)), ("everything", of_everything)):
        DecayedCounts.of(grid, functools.reduce(add, map(derive, cuts()))).save(directory / name)
    for array in VALUES:
        np.save(directory / f"{array}.npy", getattr(item_values, array))
