"""`rayapp import`: a team's files -> the bucketed logs, the catalogue and the users, with everything odd counted.

Two halves of Ray Data tasks around a staging area; each log is committed once, at its end. A killed import leaves the
logs as they were, and the next one clears its staging area.
"""

import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.json_values import from_json, to_json
from rayapp.contracts.schema import EVENT_SCHEMA, columns_of, fingerprint
from rayapp.importing.domains.layout import DomainFile, FileLayout
from rayapp.importing.files import Piece, RejectedRow, expand, plan
from rayapp.importing.log_counts import LogCounts, Summary
from rayapp.importing.log_shape import IdSketch, LogShape, count_labelled
from rayapp.importing.log_warnings import warnings_of
from rayapp.importing.rows import Clock, entity_rows, event_rows, impression_rows, list_rows
from rayapp.importing.settle import items_seen, settle_events, settle_requests, unpack_bits
from rayapp.importing.staging import Notes, QuarantineFile, Staging, group, read_checked, read_staged, stage_task
from rayapp.pipeline.made_lists import chosen_actions, lacks_lists
from rayapp.pipeline.tasks import Told, quiet, run_tasks
from rayapp.root.catalogue import read_catalogue
from rayapp.root.catalogue_writer import merge
from rayapp.root.erasure import erased_rows, tombstones
from rayapp.root.facts import make_root, read_root
from rayapp.root.logs import read_bucket
from rayapp.root.places import EVENTS, IMPORT_STAGING, ITEMS, QUARANTINE, REQUESTS, USERS
from rayapp.root.publish import PublishError, commit_log, log_manifest

IMPRESSIONS: Final = "impressions"
ACTED: Final = ("user_id", "item_id", "action", "timestamp_ms")


@dataclass(frozen=True, slots=True)
class Inputs:
    """Files and directories of one import."""

    events: Sequence[Path] = ()
    requests: Sequence[Path] = ()
    items: Sequence[Path] = ()
    users: Sequence[Path] = ()


def import_files(
    root: Path,
    domain_file: DomainFile,
    inputs: Inputs,
    *,
    now_ms: int,
    num_buckets: int,
    stage: Callable[[str], Told] = lambda _title: quiet,
) -> Summary:
    """Brings the files into the root, which is made when it is not there. `now_ms` bounds plausible times.

    `stage(title)` is called at the start of each step and answers who is told of its progress.

    Raises:
        PublishError: a path does not exist, the root is another domain's, or nothing in the files is usable.
    """
    found = {name: expand(getattr(inputs, name)) for name in ("items", "users", "events", "requests")}
    if found["users"] and domain_file.users is None:
        raise PublishError("--users was given, but the domain file has no [users] attributes")
    if found["requests"] and not domain_file.requests:
        raise PublishError("--requests was given, but the domain file has no [[requests]] layout")
    make_root(root, domain_file.domain, num_buckets)
    directory = root / IMPORT_STAGING
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    run = _Import(root, domain_file, Staging(directory, read_root(root)[1]), now_ms, stage)
    try:
        if found["items"]:
            run.entities(ITEMS, found["items"], domain_file.items)
        if found["users"] and domain_file.users:
            run.entities(USERS, found["users"], domain_file.users)
        run.logs(found["events"], found["requests"])
        run.publish_quarantine()
        if lacks_lists(root):
            run.summary.lists_made_of = chosen_actions(domain_file.domain)
        run.summary.warnings = warnings_of(run.summary, domain_file)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return run.summary


class _Import:
    def __init__(
        self, root: Path, domain_file: DomainFile, staging: Staging, now_ms: int, stage: Callable[[str], Told]
    ) -> None:
        self.root, self.domain_file, self.staging, self.stage = root, domain_file, staging, stage
        self.domain: Domain = domain_file.domain
        self.clock = Clock(self.domain.earliest_ms, now_ms)
        self.summary = Summary()

    def plan(self, paths: Sequence[Path], layouts: Sequence[FileLayout], said: str) -> list[Piece]:
        """Pieces of all files; a file that can't be read goes to the quarantine and the others go on."""
        pieces: list[Piece] = []
        rejected: list[RejectedRow] = []
        for path in paths:
            of_file, why = plan(path, layouts, said)
            pieces += of_file
            rejected += why
        self.quarantine(f"plan-{fingerprint(said)}", rejected)
        return pieces

    def quarantine(self, name: str, rejected: Sequence[RejectedRow]) -> None:
        with QuarantineFile(self.staging.directory / f"rejected-{name}.ndjson") as file:
            file.write(rejected)
        self.summary.add(file.result)

    def entities(self, kind: str, paths: Sequence[Path], layout: Any) -> None:
        users, staging, clock = kind == USERS, self.staging, self.clock
        attributes = self.domain.user_attributes if users else self.domain.attributes
        tasks = group(self.plan(paths, [layout], f"[{'users' if users else 'items'}] layout"))

        def task(number: int) -> dict[str, Any]:
            notes = Notes()

            def reader(raw: pa.Table, _layout: int) -> Any:
                return entity_rows(raw, layout, attributes, clock, users=users)

            tables = []
            with QuarantineFile(staging.directory / f"rejected-{kind}-{number:05d}.ndjson") as file:
                for _, rows, rejected in read_checked(tasks[number], reader, notes):
                    file.write(rejected)
                    if rows is not None:
                        tables.append(rows.drop_columns(["source_row"]))
            if tables:
                table = pa.concat_tables(tables, promote_options="default")
                pq.write_table(table, staging.directory / f"{kind}-{number:05d}.parquet")
            return {**file.result, "notes": to_json(notes), "rows": sum(t.num_rows for t in tables)}

        done = run_tasks(len(tasks), task, self.stage("users" if users else "items"))
        parts = [staging.directory / f"{kind}-{n:05d}.parquet" for n, r in enumerate(done) if r["rows"]]
        for result in done:
            self.summary.add(result)
        if parts:
            rows = pa.concat_tables([pq.read_table(p, partitioning=None) for p in parts], promote_options="default")
            if users:
                moments = rows.select(["user_id", "effective_at_ms"]).rename_columns(["user_id", "timestamp_ms"])
                rows = rows.filter(pa.array(~erased_rows(moments, tombstones(self.root))))
            self.summary.entities[kind] = merge(self.root, kind, rows, self.domain)
        elif kind == ITEMS:
            raise PublishError("no item of the --items files is usable: " + self.summary.most)

    def logs(self, event_paths: Sequence[Path], request_paths: Sequence[Path]) -> None:
        item_id = read_catalogue(self.root)["item_id"]
        catalogue = ray.put(np.sort(hash64_column(item_id)))
        seen = np.zeros(len(item_id), bool)
        self.summary.catalogue_ids = IdSketch.of(item_id)
        if event_paths:
            pieces = self.plan(event_paths, self.domain_file.events, "[[events]]")
            files = [str(path) for path in event_paths]
            staged = self.stage_kind(EVENTS, pieces, files, self.domain_file.events, self.summary.events)
            seen |= self.settle(EVENTS, {EVENTS: staged}, files, catalogue, self.summary.events, len(seen))
        if request_paths:
            layouts, files = self.domain_file.requests, [str(path) for path in request_paths]
            pieces = self.plan(request_paths, layouts, "[[requests]]")
            by_form = {
                IMPRESSIONS: [p for p in pieces if layouts[p.layout].rows],
                REQUESTS: [p for p in pieces if not layouts[p.layout].rows],
            }
            parts = {
                k: self.stage_kind(k, some, files, layouts, self.summary.requests)
                for k, some in by_form.items()
                if some
            }
            seen |= self.settle(REQUESTS, parts, files, catalogue, self.summary.requests, len(seen))
        self.summary.items_seen = int(seen.sum())
        if not (event_paths or request_paths):
            return
        for counts, paths, said in (
            (self.summary.events, event_paths, "--events"),
            (self.summary.requests, request_paths, "--requests"),
        ):
            if paths and not counts.accepted + counts.duplicates:
                self.publish_quarantine()
                raise PublishError(f"the {said} files hold no usable row: {self.summary.most}")

    def stage_kind(
        self, kind: str, pieces: list[Piece], files: list[str], layouts: Sequence[Any], counts: LogCounts
    ) -> list[str]:
        """Runs the first half for one kind of rows; the staged files."""
        tasks, staging, domain, clock = group(pieces), self.staging, self.domain, self.clock
        make: Any = {EVENTS: event_rows, IMPRESSIONS: impression_rows, REQUESTS: list_rows}[kind]

        def task(number: int) -> dict[str, Any]:
            def reader(raw: pa.Table, layout: int) -> Any:
                return make(raw, layouts[layout], domain, clock)

            return stage_task(staging, kind, number, tasks[number], files, reader)

        done = run_tasks(len(tasks), task, self.stage(f"{kind}: read and check"))
        for result in done:
            counts.read += result["read"]
            self.summary.add(result)
        return [name for result in done for name in result["staged"]]

    def settle(
        self,
        kind: str,
        staged: dict[str, list[str]],
        files: list[str],
        catalogue: Any,
        counts: LogCounts,
        num_items: int,
    ) -> Any:
        """Runs the second half for one log and commits it; which catalogue rows occurred."""
        log, root, staging, domain = self.root / kind, self.root, self.staging, self.domain
        number, manifest = log_manifest(log)
        events = log_manifest(root / EVENTS)[1]
        erased = tombstones(root)
        counts.is_first = number == 0
        place = (f"import-{number + 1:04d}", uuid.uuid4().hex[:12])

        def task(bucket: int) -> dict[str, Any]:
            tables = {form: read_staged(staging, names, bucket) for form, names in staged.items()}
            if not any(tables.values()):
                return {}
            if kind == EVENTS:
                rows, stats, rejected = settle_events(root, manifest, tables[EVENTS], bucket, place, files, erased)
                items = rows["item_id"]
                stats["actions"] = {a["values"]: a["counts"] for a in pc.value_counts(rows["action"]).to_pylist()}
            else:
                rows, stats, rejected = settle_requests(
                    root,
                    manifest,
                    tables.get(IMPRESSIONS, []),
                    tables.get(REQUESTS, []),
                    bucket,
                    place,
                    files,
                    domain,
                    erased,
                )
                items = pc.list_flatten(rows["item_ids"])
            shape = LogShape.of(rows["user_id"], items, rows["timestamp_ms"].to_numpy(), staging.num_buckets)
            if kind == REQUESTS and rows.num_rows:
                acted = read_bucket(root, EVENTS, bucket, events, columns_of(EVENT_SCHEMA, *ACTED))
                shape.lists_looked_at, shape.lists_with_label = count_labelled(rows, acted, domain)
            with QuarantineFile(staging.directory / f"rejected-settle-{kind}-{bucket:05d}.ndjson") as file:
                file.write(rejected)
            return stats | items_seen(items, ray.get(catalogue)) | {"shape": to_json(shape)} | file.result

        results = [r for r in run_tasks(staging.num_buckets, task, self.stage(f"{kind}: sort into buckets")) if r]
        seen = np.zeros(num_items, bool)
        for result in results:
            for name in ("accepted", "duplicates", "erased", "users", "items", "unknown_items"):
                setattr(counts, name, getattr(counts, name) + result[name])
            counts.unknown_item = counts.unknown_item or result["unknown_item"]
            counts.days += Counter(result["days"])
            counts.shape += from_json(LogShape, result["shape"])
            self.summary.add(result)
            self.summary.actions += Counter(result.get("actions", {}))
            seen |= unpack_bits(result["seen"], num_items)
        entries = [r["entry"] for r in results if r["entry"]]
        if entries:
            manifest["files"] += entries
            manifest.setdefault("partitions", {})[place[0]] = {"source": files, "rows": counts.accepted}
            commit_log(log, number, manifest)
        return seen

    def publish_quarantine(self) -> None:
        """One file of all rejections, named by its content: the same files again make no second one."""
        text = "".join(p.read_text() for p in sorted(self.staging.directory.glob("rejected-*.ndjson")))
        if not text:
            return
        path = self.root / QUARANTINE / f"{fingerprint(text)}.ndjson"
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(path)
        self.summary.quarantine = path
