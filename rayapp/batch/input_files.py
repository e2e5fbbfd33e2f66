"""The caller's files of pairs or users -> checked rows, staged by user bucket so that each part finds its own at once.

A file or a row that can't be used goes to the quarantine; the others are taken. Columns that we do not know are
carried over as they are (from text files: as text).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayapp.batch.job import InputKind
from rayapp.contracts.config import DAY_MS, Domain
from rayapp.contracts.schema import AttributeKind, attribute_fields
from rayapp.importing.columns import RowCheck, ids, lists, numbers, texts
from rayapp.importing.domains.layout import TimeColumn
from rayapp.importing.files import NO_ROW, Piece, RejectedRow, plan
from rayapp.importing.staging import QuarantineFile, Staging, group, read_staged, stage_task
from rayapp.importing.times import moments
from rayapp.pipeline.tasks import Told, quiet, run_tasks
from rayapp.root.publish import PublishError

LATEST_MS: Final = 366 * DAY_MS
"""A row's time may lie this far ahead of the job's start; further is a mistake of its unit."""
TEXT_ROW_BYTES: Final = 32
"""For an estimate of a text file's rows."""
MAX_PARTITIONS: Final = 65_000
MILLISECONDS: Final = TimeColumn.model_validate("timestamp_ms")
KNOWN: Final = {
    "user_id": pa.string(),
    "item_id": pa.string(),
    "timestamp_ms": pa.int64(),
    "watermark": pa.int64(),
    "request_id": pa.string(),
    "statistics_at_ms": pa.int64(),
}
REQUIRED: Final = {InputKind.PAIRS: ("user_id", "item_id"), InputKind.USERS: ("user_id",)}


def output_names(domain: Domain) -> list[str]:
    """Columns that scoring adds to the caller's."""
    heads = [f"probability_{head}" for head in domain.head_names]
    told = ["as_of_ms", "model_version", *heads, "utility", "rank", "known_user", "known_item", "source"]
    return [*told, "logged_difference", "source_file", "source_row"]


@dataclass(frozen=True, slots=True)
class PlannedFiles:
    """What of the files will be read, and how a row will look."""

    pieces: list[Piece]
    schema: pa.Schema
    rejected: list[RejectedRow]
    num_rows: int
    """From the Parquet footers; of text files an estimate."""


def plan_files(paths: Sequence[Path], kind: InputKind, domain: Domain) -> PlannedFiles:
    """Looks at every file's columns, and at no row."""
    fixed = _known_types(domain)
    pieces: list[Piece] = []
    rejected: list[RejectedRow] = []
    schema = pa.schema([])
    num_rows = 0
    for path in paths:
        of_file, why = plan(path, None, "")
        if of_file:
            problem, schema = _join(schema, of_file[0], kind, fixed, set(output_names(domain)))
            why += [RejectedRow(str(path), NO_ROW, "", problem)] if problem else []
            of_file = [] if problem else of_file
        rejected += why
        pieces += of_file
        if of_file and of_file[0].kind == "parquet":
            num_rows += pq.read_metadata(path).num_rows
        elif of_file:
            num_rows += path.stat().st_size // TEXT_ROW_BYTES + 1
    first = [schema.field(name) for name in KNOWN if name in schema.names]
    schema = pa.schema([*first, *(field for field in schema if field.name not in KNOWN)])
    return PlannedFiles(pieces, schema, rejected, num_rows)


def _known_types(domain: Domain) -> dict[str, pa.DataType]:
    context = {field.name: field.type for field in attribute_fields(domain.context_attributes)}
    return {**KNOWN, **context, **dict.fromkeys(domain.head_names, pa.float32())}


def _join(
    schema: pa.Schema, piece: Piece, kind: InputKind, fixed: dict[str, pa.DataType], ours: set[str]
) -> tuple[str, pa.Schema]:
    """`(why the file can't be taken or "", the schema with its columns)`."""
    present = ", ".join(piece.columns)
    for name in REQUIRED[kind]:
        if name not in piece.columns:
            return f"the column {name} is missing; the file has {present}", schema
    if kind is InputKind.USERS and "item_id" in piece.columns:
        return "a file of users has no item_id; give a file of pairs as --pairs", schema
    if taken := sorted(ours & set(piece.columns)):
        return f"the output has columns of the same names: {', '.join(taken)}; rename yours", schema
    stored = pq.read_schema(piece.path) if piece.kind == "parquet" else None
    fields = []
    for name in piece.columns:
        own = pa.string() if stored is None else _plain(stored.field(name).type)
        fields.append(pa.field(name, fixed.get(name, own)))
    try:
        return "", pa.unify_schemas([schema, pa.schema(fields)], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        return f"its columns don't go with those of the files before it: {error}", schema


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def check_rows(
    raw: pa.Table, schema: pa.Schema, domain: Domain, *, as_of_ms: int | None, now_ms: int
) -> tuple[pa.Table, RowCheck]:
    """Good rows with the columns of `schema`, and what is wrong with the others."""
    check = RowCheck(raw.num_rows)
    context = {a.name: a.kind for a in domain.context_attributes}
    columns: dict[str, Any] = {}
    for field in schema:
        name = field.name
        if name not in raw.column_names:
            columns[name] = pa.nulls(raw.num_rows, field.type)
            if name == "timestamp_ms" and as_of_ms is None:
                check.fail(np.ones(raw.num_rows, bool), name, NO_TIME, columns[name])
        elif name in ("user_id", "item_id"):
            columns[name] = ids(raw[name], name, check).cast(pa.string())
        elif name == "timestamp_ms":
            columns[name] = _times(_no_nan(raw[name]), check, domain.earliest_ms, as_of_ms, now_ms)
        elif context.get(name) is AttributeKind.CATEGORIES:
            values, offsets = lists(raw[name], None, name, check)
            words = pc.fill_null(texts(values, name, RowCheck(len(values))), "")
            columns[name] = pa.LargeListArray.from_arrays(pa.array(offsets), words)
        elif pa.types.is_string(field.type):
            columns[name] = texts(raw[name], name, check)
        elif name in KNOWN or name in context or name in domain.head_names:
            value_N, missing_N = numbers(_no_nan(raw[name]), name, check)
            columns[name] = pa.array(np.where(missing_N, 0, value_N), mask=missing_N).cast(field.type, safe=False)
        else:
            columns[name] = raw[name].cast(field.type)
    rows = pa.table(columns, schema=schema)
    return (rows if check.good_N.all() else rows.filter(pa.array(check.good_N))), check


NO_TIME: Final = "is missing, and no --as-of was given"


def _no_nan(raw: pa.ChunkedArray) -> pa.ChunkedArray:
    """NaN is how pandas writes a number that is missing."""
    return pc.if_else(pc.is_nan(raw), None, raw) if pa.types.is_floating(raw.type) else raw


def _times(raw: pa.ChunkedArray, check: RowCheck, earliest_ms: int, as_of_ms: int | None, now_ms: int) -> pa.Array:
    missing_N = np.asarray(pc.is_null(raw).to_numpy()).astype(bool)
    if as_of_ms is None:
        check.fail(missing_N, "timestamp_ms", NO_TIME, raw)
    time_N = moments(
        raw,
        MILLISECONDS,
        "timestamp_ms",
        check,
        earliest_ms=earliest_ms,
        now_ms=now_ms + LATEST_MS,
        may_miss=True,
    )
    return pa.array(time_N, mask=missing_N)


def num_partitions(num_rows: int, num_buckets: int, rows_per_part: int) -> int:
    """A multiple of the buckets, so that a part's users lie in one bucket: part % num_buckets."""
    splits = -(-num_rows // (num_buckets * rows_per_part))
    return num_buckets * max(1, min(splits, MAX_PARTITIONS // num_buckets))


def stage_files(
    staging: Staging,
    planned: PlannedFiles,
    domain: Domain,
    *,
    as_of_ms: int | None,
    now_ms: int,
    told: Told = quiet,
) -> dict[str, Any]:
    """Reads, checks and lays down all rows by part; counts, and the names of the staged files.

    Raises:
        PublishError: there is nothing to score.
    """
    tasks, schema = group(planned.pieces), planned.schema
    files = list(dict.fromkeys(piece.path for piece in planned.pieces))
    with QuarantineFile(staging.directory / "rejected-plan.ndjson") as quarantine:
        quarantine.write(planned.rejected)

    def task(number: int) -> dict[str, Any]:
        def reader(raw: pa.Table, _layout: int) -> tuple[pa.Table, RowCheck]:
            return check_rows(raw, schema, domain, as_of_ms=as_of_ms, now_ms=now_ms)

        return stage_task(staging, "rows", number, tasks[number], files, reader)

    done = run_tasks(len(tasks), task, told)
    reasons = sum((Counter(result["reasons"]) for result in done), quarantine.reasons)
    read, rejected = (sum(result[name] for result in done) for name in ("read", "rejected"))
    if read == rejected:
        most = "; ".join(f"{n} × {reason}" for reason, n in reasons.most_common(5)) or "the files are empty"
        raise PublishError(f"there is nothing to score: {most}")
    return {
        "partitions": staging.num_buckets,
        "rows": read - rejected,
        "rejected_rows": rejected,
        "quarantined": sum(reasons.values()),
        "reasons": dict(reasons),
        "files": [name for result in done for name in result["staged"]],
    }


def staged_rows(staging: Path, staged: dict[str, Any], part: int) -> pa.Table | None:
    """The rows of one part, with `source_file` and `source_row`."""
    tables = read_staged(Staging(staging, staged["partitions"]), staged["files"], part)
    return pa.concat_tables(tables) if tables else None


def quarantine_text(staging: Path) -> str:
    """All rejections, NDJSON."""
    return "".join(path.read_text() for path in sorted(staging.glob("rejected-*.ndjson")))
