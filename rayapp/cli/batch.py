"""`rayapp batch-score`."""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rayapp.cli.options import moment, root_option

if TYPE_CHECKING:
    from rayapp.batch.job import Job

PATH = click.Path(path_type=Path, exists=True, resolve_path=True)
NOT_CLEAN_EXIT = 3
LOG_EVERY_S = 20.0


@click.command("batch-score")
@root_option
@click.option("--model", help="An alias or a version. [default: champion; with --requests the model that served]")
@click.option("--as-of", help="Score as the live graph would at this moment: 2026-05-03 or 2026-05-03T18:00Z.")
@click.option("--pairs", type=PATH, multiple=True, help="Files or directories of user_id, item_id; may be given again.")
@click.option("--users", type=PATH, multiple=True, help="Files or directories of user_id: the best items of each.")
@click.option("--all-users", is_flag=True, help="The best items of every user that the root knows at that moment.")
@click.option("--requests", is_flag=True, help="The request log again, compared with what was served.")
@click.option("--since", help="First moment of the requests.")
@click.option("--until", help="Behind the last moment of the requests.")
@click.option("--out", type=click.Path(path_type=Path, resolve_path=True), required=True, help="Directory to make.")
@click.option("--top-k", type=click.IntRange(1), default=50, show_default=True, help="Items kept a user.")
@click.option("--candidates", type=click.IntRange(1), default=200, show_default=True, help="Items scored a user.")
@click.option(
    "--workers", type=click.IntRange(1), help="Actors that score. [default: one a CPU, or as many as GPUs give]"
)
@click.option("--gpus", type=click.FloatRange(0), default=0.0, show_default=True, help="GPUs an actor, 0.25 too.")
@click.option("--rows-per-part", type=click.IntRange(1_000), default=100_000, show_default=True, help="Rows scored "
              "between two points from which a killed job goes on; with the user bucket it bounds memory.")  # fmt: skip
@click.option("--strict", is_flag=True, help=f"Exit with {NOT_CLEAN_EXIT}, and score nothing, when a row or a file of "
              "the input can't be used; with --requests, when a score differs from the logged one.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the output of another job.")
@click.option("--json", "as_json", is_flag=True, help="Print the output's manifest as one JSON line.")
def batch_score(
    root: Path,
    model: str | None,
    as_of: str | None,
    pairs: tuple[Path, ...],
    users: tuple[Path, ...],
    all_users: bool,
    requests: bool,
    since: str | None,
    until: str | None,
    out: Path,
    top_k: int,
    candidates: int,
    workers: int | None,
    gpus: float,
    rows_per_part: int,
    strict: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Score pairs, or the best items of users, with the model, features and code of the live graph.

    One of --pairs, --users, --all-users and --requests says what. The scores are Parquet files in OUT/scores, beside
    OUT/manifest.json. A killed job goes on where it stopped when the command is given again; a finished one does
    nothing. As a Ray job: `ray job submit … -- rayapp batch-score …`.
    """
    from rayapp.batch.job import InputKind, Job, finished_output
    from rayapp.batch.score import ALL_USERS, job_of_files

    if sum(map(bool, (pairs, users, all_users, requests))) != 1:
        raise click.UsageError("give one of --pairs, --users, --all-users, --requests")
    if not pairs and not requests and as_of is None:
        raise click.UsageError("--as-of is needed: the moment whose knowledge is used")
    if (since or until) and not requests:
        raise click.UsageError("--since and --until go with --requests")
    if as_of and requests:
        raise click.UsageError("--requests are scored as of their own times; leave --as-of out")
    fetching = bool(users or all_users)
    files, stamps = job_of_files(pairs or users) if pairs or users else ([], (ALL_USERS,) if all_users else ())
    job = Job(
        root=str(root),
        kind=InputKind.PAIRS if pairs else InputKind.REQUESTS if requests else InputKind.USERS,
        inputs=stamps,
        model_version=_version(root, model, requests=requests),
        as_of_ms=moment(as_of, "--as-of") if as_of else None,
        since_ms=moment(since, "--since") if since else None,
        until_ms=moment(until, "--until") if until else None,
        num_candidates=candidates if fetching else 0,
        top_k=top_k if fetching else 0,
        rows_per_part=rows_per_part,
    )
    finished = finished_output(out, job, overwrite=overwrite)  # told before Ray is started
    manifest = finished or _run(job, files, out, workers, gpus, overwrite=overwrite, strict=strict)
    if as_json:
        click.echo(json.dumps(manifest))
    else:
        _summary(manifest, out, scored=finished is None)
    if strict and manifest.get("different"):
        sys.exit(NOT_CLEAN_EXIT)


def _run(
    job: "Job", files: list[Path], out: Path, workers: int | None, gpus: float, *, overwrite: bool, strict: bool
) -> dict[str, Any]:
    from rayapp.batch.score import JobProgress, QuarantinedError, ScorerPool, run_job
    from rayapp.cli.progress import progress
    from rayapp.launch.runtime import job_ray

    # What Ray has to say, as of a worker that died, goes to stderr: stdout is for the result.
    with contextlib.redirect_stdout(sys.stderr), job_ray():
        pool = ScorerPool(workers or _room(gpus), gpus)
        told = JobProgress(progress, _rows_told())
        now_ms = time.time_ns() // 1_000_000
        try:
            return run_job(job, files, out, pool, now_ms=now_ms, overwrite=overwrite, strict=strict, progress=told)[0]
        except QuarantinedError as error:
            click.echo(f"rayapp: {error}", err=True)
            sys.exit(NOT_CLEAN_EXIT)


def _version(root: Path, model: str | None, *, requests: bool) -> str | None:
    from rayapp.registry.aliases import CHAMPION, read_aliases
    from rayapp.registry.models import load_model
    from rayapp.root.facts import read_root
    from rayapp.root.publish import PublishError

    domain, _ = read_root(root)
    if model is None and requests:
        return None
    aliases = read_aliases(root)
    if model is None and CHAMPION not in aliases:
        raise PublishError(f"{root} has no champion; name a model with --model")
    version = aliases.get(model or CHAMPION, model or CHAMPION)
    load_model(root, version, domain)  # one that does not load is told before anything starts
    return version


def _room(gpus: float) -> int:
    """Actors that the cluster has room for now."""
    import ray

    there = ray.cluster_resources()
    if not gpus:
        return max(int(there.get("CPU", 1)), 1)
    if not there.get("GPU"):
        click.echo("the cluster has no GPU now; the job waits for one", err=True)
    return max(int(there.get("GPU", 0) / gpus), 1)


def _rows_told() -> Callable[[int, int, int], None]:
    """Prints `score … 12/64 parts, 8,400 rows/s, 40 s left` on stderr; on no terminal a line every 20 s."""
    started = shown = time.monotonic()

    def told(done: int, count: int, rows: int) -> None:
        nonlocal shown
        now = time.monotonic()
        passed = max(now - started, 1e-3)
        terminal = sys.stderr.isatty()
        again = "\r" if terminal else ""
        line = f"score … {done}/{count} parts, {rows / passed:,.0f} rows/s, "
        if done == count:
            click.echo(f"{again}{line}{passed:.1f} s   ", err=True)
        elif terminal or now - shown > LOG_EVERY_S:
            shown = now
            left = f"{passed * (count - done) / done:.0f} s left   "
            click.echo(f"{again}{line}{left}", err=True, nl=not terminal)

    return told


def _summary(manifest: dict[str, Any], out: Path, *, scored: bool) -> None:
    click.echo(f"{out / 'scores'}: {manifest['rows']:,} rows of {manifest['requests']:,} requests"
               + ("" if scored else "; finished already, nothing to do"))  # fmt: skip
    counted = {
        "requests of users without any action": "cold_requests",
        "scored items that the model does not know": "unknown_items",
        "duplicated rows, scored once": "duplicates",
        "requests whose model is not known or not there any more, passed over": "skipped",
    }
    for said, name in counted.items():
        if manifest[name]:
            click.echo(f"{said}: {manifest[name]:,}")
    if manifest["quarantined"]:
        click.echo(f"quarantined: {manifest['quarantined']:,}, see {out / 'quarantine.ndjson'}")
        for reason, n in sorted(manifest["reasons"].items(), key=lambda pair: -pair[1])[:10]:
            click.echo(f"{n:>12,}  {reason}")
    if manifest.get("compared"):
        click.echo(
            f"compared with the log: {manifest['compared']:,} requests, {manifest['different']:,} differ by more than "
            f"1e-5, at most by {manifest['max_difference']:.1e}; {manifest['equal_hashes']:,} of "
            f"{manifest['hashes']:,} sequences equal"
        )
    if manifest["metrics"]:
        _metrics(manifest["metrics"])


def _metrics(metrics: dict[str, dict[str, dict[str, float | None]]]) -> None:
    names = ("rows", "labels", "auc", "normalised_entropy", "calibration")
    click.echo(f"\n{'head, users':28}" + "".join(f"{name:>20}" for name in names))
    for head, segments in metrics.items():
        for segment, values in segments.items():
            cells = (f"{values[n]:,.0f}" if n in names[:2] else _cell(values[n]) for n in names)
            click.echo(f"{head + ', ' + segment:28}" + "".join(f"{cell:>20}" for cell in cells))


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
