"""What a user would otherwise do with the same files: Polars in memory, and Ray Data's `groupby().map_groups`.

`python -m benchmarks.peers {histories|end-to-end} FILES…` prints the seconds that Polars took; it runs in a process
of its own, so that it starts with memory as empty as ours.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayapp.root.places import WINDOWS

LENGTH = 100
IN_SEQUENCE = ("click", "save", "hide")
LISTS = ["event_hash", "item_id", "action", "timestamp_ms", "received_at_ms", "commit_seq"]


def polars_histories(files: Sequence[str]) -> dict[str, Any]:
    """Each user's newest 100 actions from the stored log, in the two ways a Polars user would write it; the quicker."""
    import polars as pl

    def scan() -> Any:
        frame = pl.scan_parquet(list(files), hive_partitioning=False).select(["user_id", *LISTS])
        return frame.filter(pl.col("action").is_in(list(IN_SEQUENCE)))

    def sort_then_group() -> Any:
        frame = scan().sort("user_id", "timestamp_ms", "event_hash")
        return frame.group_by("user_id", maintain_order=True).agg(pl.all().tail(LENGTH)).collect()

    def group_then_sort() -> Any:
        newest = pl.all().sort_by("timestamp_ms", "event_hash").tail(LENGTH)
        return scan().group_by("user_id").agg(newest).collect()

    return _quicker([sort_then_group, group_then_sort])


def polars_end_to_end(files: Sequence[str]) -> dict[str, Any]:
    """From the raw files: scan, drop copies of an event, each user's newest 100 actions."""
    import polars as pl

    def scan() -> Any:
        frame = pl.scan_parquet(list(files)).unique(subset="event_id", keep="any")
        return frame.filter(pl.col("action").is_in(list(IN_SEQUENCE)))

    def sort_then_group() -> Any:
        frame = scan().sort("user_id", "timestamp_ms", "event_id")
        return frame.group_by("user_id", maintain_order=True).agg(pl.all().tail(LENGTH)).collect()

    def group_then_sort() -> Any:
        newest = pl.all().sort_by("timestamp_ms", "event_id").tail(LENGTH)
        return scan().group_by("user_id").agg(newest).collect()

    return _quicker([sort_then_group, group_then_sort])


def _quicker(ways: Sequence[Callable[[], Any]]) -> dict[str, Any]:
    best: dict[str, Any] = {"seconds": float("inf")}
    for way in ways:
        started = time.perf_counter()
        frame = way()
        seconds = time.perf_counter() - started
        if seconds < best["seconds"]:
            best = {"seconds": seconds, "way": way.__name__, "users": frame.height, "sum": checksum(frame.to_arrow())}
        del frame
    return best


def checksum(histories: pa.Table) -> int:
    """A number that two tables of histories share when they hold the same times in the same order for the same users:
    time x place, summed over everything, as 64-bit integers wrap."""
    lists = pa.concat_tables([histories.select(["timestamp_ms"])]).combine_chunks()["timestamp_ms"].chunk(0)
    offsets = np.asarray(lists.offsets)
    times = np.asarray(lists.values)[offsets[0] : offsets[-1]]
    size = np.diff(offsets)
    place = np.arange(len(times)) - np.repeat(offsets[:-1] - offsets[0], size)
    with np.errstate(over="ignore"):
        return int((times.astype(np.uint64) * (place + 1).astype(np.uint64)).sum(dtype=np.uint64))


def map_groups_histories(files: Sequence[str]) -> float:
    """Seconds that `groupby("user_id").map_groups` takes for the same histories."""
    import ray.data

    def one_user(rows: pa.Table) -> pa.Table:
        order = np.lexsort((rows["event_hash"].to_numpy(), rows["timestamp_ms"].to_numpy()))[-LENGTH:]
        rows = rows.take(pa.array(order))
        ends = pa.array([0, rows.num_rows], pa.int64())
        lists = {n: pa.LargeListArray.from_arrays(ends, rows[n].combine_chunks()) for n in LISTS}
        return pa.table({"user_id": rows["user_id"].slice(0, 1).combine_chunks(), **lists})

    started = time.perf_counter()
    data = ray.data.read_parquet(list(files), partitioning=None).select_columns(["user_id", *LISTS])
    data = data.filter(expr=f"action in {list(IN_SEQUENCE)}")
    groups = data.groupby("user_id", num_partitions=8).map_groups(one_user, batch_format="pyarrow")
    groups.materialize()
    return time.perf_counter() - started


def expanded_bytes(root: Path, window: str, directory: Path, seed: int = 0) -> int:
    """Size of the same examples with a row per shown item that carries its sequence, shuffled, as most pipelines store
    them: user, item, labels, the last 100 items, actions and times."""
    rng = np.random.default_rng(seed)
    total = 0
    for path in sorted((root / WINDOWS / window / "requests").glob("*.parquet")):
        requests = pq.read_table(path, partitioning=None)
        histories = pq.read_table(root / WINDOWS / window / "histories" / path.name, partitioning=None)
        flat = {name: histories[name].combine_chunks().flatten() for name in ("item_id", "action", "timestamp_ms")}
        end = requests["end"].to_numpy()
        start = np.maximum(requests["start"].to_numpy(), end - LENGTH)
        size = np.diff(requests["item_ids"].combine_chunks().offsets.to_numpy())
        row = np.repeat(np.arange(requests.num_rows), size)
        shuffled = rng.permutation(len(row))
        row = row[shuffled]
        length = (end - start)[row]
        offsets = np.r_[0, np.cumsum(length)]
        index = np.arange(offsets[-1]) - np.repeat(offsets[:-1], length) + np.repeat(start[row], length)
        columns = {
            name: pa.LargeListArray.from_arrays(pa.array(offsets), v.take(pa.array(index))) for name, v in flat.items()
        }
        label = requests["labels"].combine_chunks().flatten().to_numpy().reshape(len(row), -1)[shuffled]
        table = pa.table(
            {
                "user_id": requests["user_id"].take(pa.array(row)),
                "candidate": requests["item_ids"].combine_chunks().flatten().take(pa.array(shuffled)),
                **{f"label_{h}": label[:, h] for h in range(label.shape[1])},
                **columns,
            }
        )
        out = directory / path.name
        out.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, out, compression="zstd")
        total += out.stat().st_size
    return total


if __name__ == "__main__":
    peer = {"histories": polars_histories, "end-to-end": polars_end_to_end}[sys.argv[1]]
    sys.stdout.write(json.dumps(peer(Path(sys.argv[2]).read_text().split("\n"))) + "\n")
