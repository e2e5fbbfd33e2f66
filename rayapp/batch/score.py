"""A whole job: stage the input by user bucket, score the parts with a pool of actors, publish.

Through Ray flow numbers of parts and a few counts of each; rows go from files to files.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
import ray.exceptions
import torch
from ray.data import ActorPoolStrategy, DataContext

from rayapp.batch.input_files import num_partitions, plan_files, quarantine_text, stage_files
from rayapp.batch.job import InputKind, Job, Workspace, file_stamp, finished_output, once, publish, workspace
from rayapp.batch.output import total
from rayapp.batch.part import PartScorer
from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.schema import EVENT_SCHEMA, columns_of
from rayapp.importing.files import expand
from rayapp.importing.staging import Staging
from rayapp.pipeline.statistics import count_for_models
from rayapp.pipeline.tasks import BACK_PRESSURE, Told, quiet, run_tasks
from rayapp.registry.aliases import read_aliases
from rayapp.root.catalogue import read_catalogue, read_users
from rayapp.root.erasure import Tombstones, hide
from rayapp.root.facts import read_root
from rayapp.root.logs import coded
from rayapp.root.places import EVENTS, REQUESTS
from rayapp.root.publish import Manifest, PublishError, read_json

ALL_USERS: Final = "all users"
ITEMS_PER_REQUEST: Final = 20
"""For a guess at how many parts a request log is worth."""


_NOTHING: Final = {
    InputKind.REQUESTS: "the request log holds no request of that time with a model's name (imported lists have none; "
    "--model scores them too)",
    InputKind.USERS: "no user has a candidate",
    InputKind.PAIRS: "the files are empty",
}


class QuarantinedError(PublishError):
    """With `strict`: something of the input can't be used, so nothing was scored."""


@dataclass(frozen=True, slots=True)
class ScorerPool:
    """The actors that score."""

    size: int
    gpus_each: float = 0.0
    """0: on the CPU, one thread each."""


PartsTold = Callable[[int, int, int], None]
"""Called with (parts done by this run, parts it has to do, rows scored by it)."""


def to_nobody(_done: int, _count: int, _rows: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class JobProgress:
    """Who is told of the two stages."""

    staging: Callable[[str], Told] = lambda _title: quiet
    parts: PartsTold = to_nobody


def run_job(
    job: Job,
    files: Sequence[Path],
    out: Path,
    pool: ScorerPool,
    *,
    now_ms: int,
    overwrite: bool = False,
    strict: bool = False,
    progress: JobProgress | None = None,
) -> tuple[Manifest, bool]:
    """Scores what is not scored yet and publishes `out`; its manifest, and whether there was anything to do.

    `files` are those that `job.inputs` names.

    Raises:
        PublishError: another job's output or workspace is in the way; nothing to score; something can't be read or
            written, in which case the finished parts are kept for the next run.
    """
    told = progress or JobProgress()
    manifest = finished_output(out, job, overwrite=overwrite)
    if manifest is not None:
        return manifest, False
    out.parent.mkdir(parents=True, exist_ok=True)
    root = Path(job.root)
    count_for_models(
        root, read_root(root)[0], [job.model_version] if job.model_version else read_aliases(root).values()
    )
    with workspace(out, job, overwrite=overwrite) as work:
        staged = once(work.directory / "staged.json", lambda: stage_input(work, files, now_ms, told.staging))
        if strict and staged["quarantined"]:
            reasons = "; ".join(f"{n} × {reason}" for reason, n in list(staged["reasons"].items())[:5])
            first = quarantine_text(work.staging).splitlines()[0]
            raise QuarantinedError(
                f"--strict scored nothing, because something can't be used: {reasons}; first {first}"
            )
        parts = parts_of(work, staged)
        finished = work.finished()
        score_parts([part for part in parts if part not in finished], work, pool, told.parts)
        manifest = _manifest(work, staged, parts)
        if not manifest["rows"]:
            shutil.rmtree(work.done)
            raise PublishError("there is nothing to score: " + _NOTHING[job.kind])
        if text := quarantine_text(work.staging):
            (work.result / "quarantine.ndjson").write_text(text)
        publish(work, out, manifest)
    return manifest, True


def job_of_files(files: Sequence[Path]) -> tuple[list[Path], tuple[str, ...]]:
    """`(every file of paths that may be directories, their stamps)`: what `Job.inputs` holds."""
    found = expand(files)
    return found, tuple(file_stamp(path) for path in found)


# ---- staging ---------------------------------------------------------------------------------------------------------


def stage_input(work: Workspace, files: Sequence[Path], now_ms: int, stage: Callable[[str], Told]) -> dict[str, Any]:
    """Once a job: the input by part, and a copy of the catalogue."""
    domain, num_buckets = read_root(work.root)
    job = work.job
    pq.write_table(read_catalogue(work.root), work.directory / "catalogue.parquet")
    if job.kind is InputKind.REQUESTS:
        files_of_log = work.log_view().manifests[REQUESTS]["files"]
        num_rows = sum(file["rows"] for file in files_of_log) * ITEMS_PER_REQUEST
        partitions = num_partitions(num_rows, num_buckets, job.rows_per_part)
        return {"partitions": partitions, "rows": num_rows, "rejected_rows": 0, "quarantined": 0, "reasons": {}}
    if not files:
        files = _all_users(work, stage("list the users"))
    planned = plan_files(files, job.kind, domain)
    rows = planned.num_rows * max(job.num_candidates, 1)
    staging = Staging(work.staging, num_partitions(rows, num_buckets, job.rows_per_part))
    told = stage("read and sort the input")
    return stage_files(staging, planned, domain, as_of_ms=job.as_of_ms, now_ms=now_ms, told=told)


def _all_users(work: Workspace, told: Told) -> list[Path]:
    """Writes a file a bucket of everyone who had done something by then, or had attributes."""
    root, as_of_ms = work.root, work.job.as_of_ms
    assert as_of_ms is not None
    domain, num_buckets = read_root(root)
    view = work.log_view()
    columns = ("user_id", "timestamp_ms", "received_at_ms")
    schema = coded(columns_of(EVENT_SCHEMA, *columns), ["user_id"])

    def task(bucket: int) -> dict[str, Any]:
        users: set[str] = set()
        for rows in view.stored(EVENTS, bucket, schema):
            seen = pc.and_(pc.less(rows["timestamp_ms"], as_of_ms), pc.less_equal(rows["received_at_ms"], as_of_ms))
            users |= set(pc.unique(rows["user_id"].filter(seen)).to_pylist())
        users |= set(_with_attributes(root, domain, bucket, num_buckets, as_of_ms, view.erased))
        path = work.staging / f"users-{bucket:04d}.parquet"
        pq.write_table(pa.table({"user_id": pa.array(sorted(users), pa.string())}), path)
        return {}

    run_tasks(num_buckets, task, told)
    return sorted(work.staging.glob("users-*.parquet"))


def _with_attributes(
    root: Path, domain: Domain, bucket: int, num_buckets: int, as_of_ms: int, erased: Tombstones
) -> list[str]:
    """A bucket's users whose attributes held by then; they need not have done anything."""
    table = read_users(root, domain).select(["user_id", "effective_at_ms"]).rename_columns(["user_id", "timestamp_ms"])
    mine = hash64_column(table["user_id"]) % np.uint64(num_buckets) == bucket
    there = hide(table.filter(pa.array(mine & (table["timestamp_ms"].to_numpy() <= as_of_ms))), erased)
    users: list[str] = pc.unique(there["user_id"]).to_pylist()
    return users


# ---- scoring ---------------------------------------------------------------------------------------------------------


def parts_of(work: Workspace, staged: dict[str, Any]) -> list[int]:
    """All parts, those of one bucket behind one another, so that an actor finds its histories in memory."""
    _, num_buckets = read_root(work.root)
    splits = staged["partitions"] // num_buckets
    return [split * num_buckets + bucket for bucket in range(num_buckets) for split in range(splits)]


class _Actor:
    """An actor of the pool: a PartScorer that is made once."""

    def __init__(self, directory: str, gpu: bool) -> None:
        if not gpu:
            torch.set_num_threads(1)
        self._scorer = PartScorer(Workspace.read(Path(directory)), torch.device("cuda" if gpu else "cpu"))

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for part in batch["item"].tolist():
            record = self._scorer.score(part)
            yield {"part": np.array([part]), "scored": np.array([record["scored"]])}


def score_parts(parts: Sequence[int], work: Workspace, pool: ScorerPool, told: PartsTold = to_nobody) -> None:
    """Scores `parts`; each leaves its record in `work.done`. A killed actor's part is scored again by another."""
    if not parts:
        return
    context = DataContext.get_current()
    context.set_config(BACK_PRESSURE, [])  # numbers flow, not data (pipeline.tasks)
    numbers = ray.data.from_items(list(parts), override_num_blocks=len(parts))
    scored = numbers.map_batches(
        _Actor,
        fn_constructor_args=(str(work.directory), pool.gpus_each > 0),
        batch_size=1,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=min(pool.size, len(parts)), max_tasks_in_flight_per_actor=2),
        num_cpus=1,
        num_gpus=pool.gpus_each or None,
    )
    done = rows = 0
    try:
        for row in scored.iter_rows():
            done, rows = done + 1, rows + int(row["scored"])
            told(done, len(parts), rows)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OSError | PublishError):
            raise PublishError(
                f"{error.cause}; {done} of {len(parts)} parts were finished and are kept: run the command again"
            ) from None
        raise
    finally:
        context.remove_config(BACK_PRESSURE)


def _manifest(work: Workspace, staged: dict[str, Any], parts: Sequence[int]) -> Manifest:
    counts = total(read_json(work.record_path(part)) for part in parts)
    quarantine = {name: staged[name] for name in ("rejected_rows", "quarantined", "reasons")}
    state = {"events": work.state.events, "requests": work.state.requests}
    return {"created_at_ms": time.time_ns() // 1_000_000, "state": state, **quarantine, **counts}
