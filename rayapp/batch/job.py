"""What one job is, and where its finished parts wait until the whole is published.

Beside the output directory `scores/` stands `.scores.job-<identity>/`: `job.json` (the job and the state of the root
that it reads), `staging/` (the input by user bucket), `done/` (a small file per finished part) and `result/`, which
becomes the output by one rename. A killed job is continued by the same command; another job has another identity and so
another directory, and what a dying worker still writes meets nobody.
"""

import dataclasses
import enum
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rayapp.contracts.json_values import from_json, to_json
from rayapp.contracts.schema import fingerprint
from rayapp.pipeline.log_view import LogView
from rayapp.root.facts import read_root
from rayapp.root.places import EVENTS, REQUESTS
from rayapp.root.publish import (
    MANIFEST,
    Manifest,
    PublishError,
    exclusive,
    log_manifest,
    publish_prepared,
    read_json,
    read_manifest,
    write_json,
)
from rayapp.statistics.known import newest_name

JOB_FILE: Final = "job.json"
BATCH: Final = "batch"
"""Who made a manifest, so that nothing but an earlier output is ever overwritten."""


class InputKind(enum.StrEnum):
    """Where the rows to score come from."""

    PAIRS = "pairs"
    USERS = "users"
    """Candidates are fetched for each user, the best `top_k` are kept."""
    REQUESTS = "requests"
    """The request log: what was served is scored again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """All that decides the output."""

    root: str
    kind: InputKind
    inputs: tuple[str, ...] = ()
    """Path, bytes and modification time of each file; of all users of the root: `all users`."""
    model_version: str | None = None
    """None: each request by the model that served it."""
    as_of_ms: int | None = None
    """None: each row has a time of its own."""
    since_ms: int | None = None
    until_ms: int | None = None
    """Of the request log."""
    num_candidates: int = 0
    top_k: int = 0
    rows_per_part: int = 100_000

    @property
    def identity(self) -> str:
        return fingerprint(sorted(to_json(self).items()))


@dataclass(frozen=True, slots=True)
class RootState:
    """The root as it stood when the job began: a job that is continued reads the same."""

    events: int
    """Number of the event log's manifest."""
    requests: int
    statistics: str
    """The name of those that are read."""

    @staticmethod
    def of(root: Path) -> "RootState":
        """Raises:
        PublishError: no statistics were counted yet.
        """
        domain, _ = read_root(root)
        return RootState(log_manifest(root / EVENTS)[0], log_manifest(root / REQUESTS)[0], newest_name(root, domain))


def file_stamp(path: Path) -> str:
    """Names a file's content without reading it."""
    stat = path.stat()
    return f"{path} {stat.st_size} {stat.st_mtime_ns}"


@dataclass(frozen=True, slots=True)
class Workspace:
    """A job's directory beside its output."""

    directory: Path
    job: Job
    state: RootState

    @property
    def root(self) -> Path:
        return Path(self.job.root)

    @property
    def staging(self) -> Path:
        return self.directory / "staging"

    @property
    def done(self) -> Path:
        return self.directory / "done"

    @property
    def result(self) -> Path:
        return self.directory / "result"

    def log_view(self) -> LogView:
        """The logs as they stood when the job began."""
        return LogView.of(self.root, numbers={EVENTS: self.state.events, REQUESTS: self.state.requests})

    def finished(self) -> set[int]:
        """The parts that need not be scored again."""
        return {int(path.stem) for path in self.done.glob("[!.]*.json")}

    def record_path(self, part: int) -> Path:
        """Where a finished part's counts are."""
        return self.done / f"{part:06d}.json"

    @staticmethod
    def read(directory: Path) -> "Workspace":
        values = read_json(directory / JOB_FILE)
        found = values["state"]
        state = RootState(found["events"], found["requests"], found["statistics"])
        return Workspace(directory, from_json(Job, values["job"]), state)


def finished_output(out: Path, job: Job, *, overwrite: bool) -> Manifest | None:
    """The manifest of the output where this very job made it; None where there is work to do.

    Raises:
        PublishError: something else is there, and what may be done about it.
    """
    if not out.exists():
        return None
    manifest = read_json(out / MANIFEST) if (out / MANIFEST).is_file() else {}
    if manifest.get("made_by") != BATCH:
        raise PublishError(f"{out} exists and is no output of batch scoring; choose another --out")
    if overwrite:
        return None
    found = from_json(Job, manifest["job"])
    if found.identity == job.identity:
        for leftover in out.parent.glob(f".{out.name}.job-{job.identity}"):  # killed right after it had published
            shutil.rmtree(leftover, ignore_errors=True)
        return read_manifest(out)
    raise PublishError(f"{out} holds the output of another job ({_differs(found, job)}); {_CHOOSE}")


_CHOOSE: Final = "choose another --out, or replace it with --overwrite"


def _differs(found: Job, job: Job) -> str:
    """The fields in which two jobs differ, for people."""
    old, new = to_json(found), to_json(job)
    return "; ".join(f"{k}: {_shown(old[k])} there, {_shown(new[k])} here" for k in new if old[k] != new[k])


def _shown(value: Any) -> str:
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return text if len(text) <= 100 else f"{text[:97]}…"


@contextmanager
def workspace(out: Path, job: Job, *, overwrite: bool) -> Iterator[Workspace]:
    """The job's own directory, made or found, and nobody else in it. A job that fails before its first part is done
    leaves nothing behind.

    Raises:
        PublishError: an unfinished other job stands in the way, or this one runs already.
    """
    mine = out.parent / f".{out.name}.job-{job.identity}"
    for other in sorted(out.parent.glob(f".{out.name}.job-*")):
        if other != mine and (other / JOB_FILE).exists():
            found = Workspace.read(other).job
            if not overwrite:
                raise PublishError(f"{other} holds an unfinished other job ({_differs(found, job)}); {_CHOOSE}")
            with exclusive(other, "batch scoring"):
                shutil.rmtree(other)
    with exclusive(mine, "batch scoring"):
        if not (mine / JOB_FILE).exists():
            state = dataclasses.asdict(RootState.of(Path(job.root)))
            write_json(mine / JOB_FILE, {"job": to_json(job), "state": state})
        work = Workspace.read(mine)
        for path in (work.staging, work.done, work.result / "scores"):
            path.mkdir(parents=True, exist_ok=True)
        try:
            yield work
        except Exception:
            if not work.finished():
                shutil.rmtree(mine)
            raise


def publish(work: Workspace, out: Path, manifest: Manifest) -> None:
    """Gives the result its name, in place of an earlier output, and removes the workspace."""
    old = out.with_name(f".{out.name}.replaced")
    if out.exists():  # only with --overwrite
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    publish_prepared(work.result, out, {"made_by": BATCH, "job": to_json(work.job), **manifest})
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(work.directory)


def once(marker: Path, make: Callable[[], Any]) -> Any:
    """`make()`, whose result is kept in `marker` (JSON), so that a continued job does not do it again."""
    if not marker.exists():
        write_json(marker, make())
    return read_json(marker)
