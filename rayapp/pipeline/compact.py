"""`rayapp compact`: many small files of a bucket become one, and erased users leave the disk.

Whoever compacts holds the root's lock, so no import or window build reads meanwhile; training and serving read other
directories. Each log is committed once; files that no manifest lists any more go last.
"""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import places_of
from rayapp.features.statistics import SPAN
from rayapp.pipeline.histories import HISTORY_COLUMNS, merge
from rayapp.pipeline.tasks import Told, quiet, run_tasks
from rayapp.root.catalogue_writer import remove_users
from rayapp.root.erasure import Tombstones, erased_rows, hide, tombstones
from rayapp.root.facts import read_root
from rayapp.root.logs import files_of, log_schema, read_bucket, sort_log, without_copies, write_file
from rayapp.root.places import EVENTS, REQUESTS, STATISTICS, WINDOWS
from rayapp.root.publish import Manifest, commit_log, log_manifest


@dataclass(slots=True)
class Compacted:
    """What a compaction did."""

    files_before: int = 0
    files_after: int = 0
    rows_erased: int = 0
    copies_dropped: int = 0
    windows_rewritten: int = 0
    files_removed: int = 0
    """Replaced ones, and those that a killed import left."""


def compact(root: Path, told: Told = quiet) -> Compacted:
    """Compacts both logs and removes what tombstones cover from logs, users, windows and statistics."""
    domain, num_buckets = read_root(root)
    erased = tombstones(root)
    done = Compacted()
    for kind in (EVENTS, REQUESTS):
        _compact_log(root, kind, num_buckets, domain, erased, told, done)
    if erased:
        done.rows_erased += remove_users(root, erased)
        _blank_windows(root, num_buckets, erased, done)
        _blank_statistics(root, erased, done)
    return done


def _compact_log(
    root: Path, kind: str, num_buckets: int, domain: Domain, erased: Tombstones, told: Told, done: Compacted
) -> None:
    log = root / kind
    number, manifest = log_manifest(log)
    place = (f"compact-{number + 1:04d}", uuid.uuid4().hex[:12])
    schema = log_schema(kind, domain)

    def task(bucket: int) -> dict[str, Any]:
        return _compact_bucket(root, kind, bucket, manifest, schema, erased, place)

    results = run_tasks(num_buckets, task, told)
    rewritten = {bucket for bucket, result in enumerate(results) if result["rewritten"]}
    done.files_before += len(manifest["files"])
    if rewritten:
        files = [f for f in manifest["files"] if f["bucket"] not in rewritten]
        manifest["files"] = files + [result["entry"] for result in results if result.get("entry")]
        commit_log(log, number, manifest)
    done.files_after += len(manifest["files"])
    done.rows_erased += sum(result["erased"] for result in results)
    done.copies_dropped += sum(result["copies"] for result in results)
    done.files_removed += _remove_unlisted(log, manifest)


def _compact_bucket(
    root: Path,
    kind: str,
    bucket: int,
    manifest: Manifest,
    schema: pa.Schema,
    erased: Tombstones,
    place: tuple[str, str],
) -> dict[str, Any]:
    tables = read_bucket(root, kind, bucket, manifest, schema)
    kept = [hide(t, erased) for t in tables]
    before, visible = sum(t.num_rows for t in tables), sum(t.num_rows for t in kept)
    if len(files_of(manifest, bucket)) <= 1 and visible == before:
        return {"rewritten": False, "erased": 0, "copies": 0}
    if kind == EVENTS:
        rows = merge(kept, schema).events
    else:
        rows = pa.concat_tables(kept)
        rows = sort_log(without_copies(rows))
    entry = write_file(root / kind, place[0], bucket, place[1], rows) if rows.num_rows else None
    return {"rewritten": True, "entry": entry, "erased": before - visible, "copies": visible - rows.num_rows}


def _remove_unlisted(log: Path, manifest: Manifest) -> int:
    """Deletes data files that the newest manifest does not list, and the manifests before it."""
    listed = {file["path"] for file in manifest["files"]}
    unlisted = [p for p in log.glob("dt=*/bucket=*/*") if str(p.relative_to(log)) not in listed]
    for path in unlisted:
        path.unlink()
    for directory in sorted(log.glob("dt=*/bucket=*")) + sorted(log.glob("dt=*")):
        if not any(directory.iterdir()):
            directory.rmdir()
    for path in sorted((log / "manifests").glob("*.json"))[:-1]:
        path.unlink()
    return len(unlisted)


def _blank_windows(root: Path, num_buckets: int, erased: Tombstones, done: Compacted) -> None:
    """Empties the rows of erased users in published windows. The number of rows stays, so ranges and batches stay what
    they were and a training run that reads the window meanwhile reads either the old rows or empty ones."""
    for directory in sorted((root / WINDOWS).glob("[!.]*")):
        results = run_tasks(num_buckets, lambda bucket, d=directory: _blank_bucket(d, bucket, erased))  # type: ignore[misc]
        rows = sum(result["rows"] for result in results)
        done.rows_erased += rows
        done.windows_rewritten += bool(rows)


def _blank_bucket(directory: Path, bucket: int, erased: Tombstones) -> dict[str, int]:
    name = f"bucket={bucket:04d}.parquet"
    blanked = 0
    for kind, blank in (("requests", _blank_requests), ("histories", _blank_histories)):
        path = directory / kind / name
        if path.exists():
            table, rows = blank(pq.read_table(path, partitioning=None), erased)
            blanked += rows
            if rows:
                _replace(path, table)
    return {"rows": blanked}


def _blank_requests(requests: pa.Table, erased: Tombstones) -> tuple[pa.Table, int]:
    """Covered requests become requests of nobody for nothing."""
    covered = erased_rows(requests, erased)
    columns = []
    for column, field in zip(requests.columns, requests.schema, strict=True):
        values = column.combine_chunks()
        if pa.types.is_large_list(field.type):
            size = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
            flat = pc.list_flatten(values).filter(pa.array(np.repeat(~covered, size)))
            ends = np.r_[0, np.cumsum(np.where(covered, 0, size))].astype(np.int64)
            columns.append(pa.LargeListArray.from_arrays(pa.array(ends), flat))
        else:
            columns.append(pc.if_else(pa.array(covered), _nothing(field.type), values))
    return pa.Table.from_arrays(columns, schema=requests.schema), int(covered.sum())


def _blank_histories(histories: pa.Table, erased: Tombstones) -> tuple[pa.Table, int]:
    """Covered actions keep their places and never arrive, so no request sees them."""
    lists = {name: histories[name].combine_chunks() for name in HISTORY_COLUMNS}
    offsets = lists["timestamp_ms"].offsets
    user_E = np.repeat(np.arange(histories.num_rows), np.diff(offsets.to_numpy()))
    flat = {name: pc.list_flatten(values) for name, values in lists.items()}
    users = histories["user_id"].take(pa.array(user_E))
    covered = erased_rows(pa.table({"user_id": users, "timestamp_ms": flat["timestamp_ms"]}), erased)
    mask = pa.array(covered)
    never = pa.scalar(np.iinfo(np.int64).max, pa.int64())
    for name, values in flat.items():
        blank = never if name in {"received_at_ms", "commit_seq"} else _nothing(values.type)
        flat[name] = pc.if_else(mask, blank, values)
    left = np.bincount(user_E[~covered], minlength=histories.num_rows) > 0
    names = pc.if_else(pa.array(left), histories["user_id"].combine_chunks(), "")
    columns = [names, *(pa.LargeListArray.from_arrays(offsets, flat[name]) for name in HISTORY_COLUMNS)]
    return pa.Table.from_arrays(columns, schema=histories.schema), int(covered.sum())


def _nothing(kind: pa.DataType) -> pa.Scalar:
    return pa.scalar("" if pa.types.is_string(kind) else 0, kind)


def _blank_statistics(root: Path, erased: Tombstones, done: Compacted) -> None:
    """Sets the counts of erased users to nothing, in place; what items gained from them stays, it names nobody."""
    hash_X = np.array(sorted(erased), np.uint64)
    for directory in sorted((root / STATISTICS).glob("[!.]*")):
        users = directory / "users"
        key_K, place_E = (np.load(users / f"{name}.npy", mmap_mode="r") for name in ("key_K", "place_E"))
        rank_X, known_X = places_of(key_K, hash_X)
        since_X, until_X = (np.searchsorted(place_E, rank * SPAN) for rank in (rank_X[known_X], rank_X[known_X] + 1))
        if not len(since_X):
            continue
        count_ESA = np.load(users / "count_ESA.npy", mmap_mode="r+")
        for since, until in zip(since_X.tolist(), until_X.tolist(), strict=True):
            done.rows_erased += int(count_ESA[since:until].any(axis=(1, 2)).sum())
            count_ESA[since:until] = 0
        count_ESA.flush()
        key_K = np.load(users / "key_K.npy", mmap_mode="r+")
        key_K[rank_X[known_X]] ^= np.uint64(1)  # nobody's; the order stays
        key_K.flush()


def _replace(path: Path, table: pa.Table) -> None:
    temporary = path.with_name(f".{path.name}")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)
