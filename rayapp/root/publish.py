"""Directories with a manifest: how stages hand over data without anyone ever reading half of it.

Two forms. An immutable directory (window, item table, model) is written beside its final name and renamed. A log
that grows keeps numbered manifests; a new number is claimed by creating its file exclusively, which is a
compare-and-swap, and readers open only the files that the newest manifest lists.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from rayapp.contracts.errors import RayappError

MANIFEST: Final = "manifest.json"
Manifest = dict[str, Any]


class PublishError(RayappError):
    """A place that can't be written, or a manifest that can't be read; the message says what to do."""


def in_words(error: OSError) -> str:
    """What the system refused, for people."""
    if error.errno == errno.ENOSPC or "No space left" in str(error):  # Arrow's errors carry the number in their text
        where = f" of {error.filename}" if error.filename else ""
        return f"no space is left on the disk{where}; free some, then run the command again"
    return str(error)


def read_json(path: Path) -> Any:
    """The JSON file's value.

    Raises:
        PublishError: absent or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise PublishError(f"{path} does not exist") from None
    except ValueError as error:
        raise PublishError(f"{path} is not valid JSON ({error}); restore it or build it again") from None


def write_json(path: Path, value: Any) -> None:
    """Writes the whole file or nothing: a reader sees the old text or the new one, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("w") as file:
            json.dump(value, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def publish_directory(final: Path, write: Callable[[Path], Manifest]) -> Manifest:
    """Calls `write(temporary directory)`, adds its manifest and gives the directory its final name.

    What an earlier, killed run left half-written is removed first. On any error nothing is left behind.

    Raises:
        PublishError: `final` exists already; published directories are never changed in place.
    """
    if final.exists():
        raise PublishError(f"{final} is published already and published directories do not change")
    final.parent.mkdir(parents=True, exist_ok=True)
    for leftover in final.parent.glob(f".{final.name}.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = final.parent / f".{final.name}.tmp-{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        manifest = write(temporary)
        publish_prepared(temporary, final, manifest)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return manifest


def publish_prepared(prepared: Path, final: Path, manifest: Manifest) -> None:
    """Adds its manifest to a finished directory on the same disk and gives it its final name, where nothing may be."""
    write_json(prepared / MANIFEST, manifest)
    for path in prepared.rglob("*"):
        sync_file(path)
    prepared.rename(final)
    _sync_directory(final.parent)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an immutable directory."""
    manifest: Manifest = read_json(directory / MANIFEST)
    return manifest


def log_manifest(log: Path, number: int | None = None) -> tuple[int, Manifest]:
    """A log's manifest of that number, or the newest, and its number; `(0, {"files": []})` for a log that holds
    nothing yet."""
    if number is None:
        number = max((int(p.stem) for p in (log / "manifests").glob("*.json")), default=0)
    return number, read_json(log / "manifests" / f"{number:08d}.json") if number else {"files": []}


def commit_log(log: Path, number: int, manifest: Manifest) -> None:
    """Publishes `manifest` as the successor of number `number`.

    Raises:
        PublishError: somebody else committed in between; read again and retry.
    """
    manifests = log / "manifests"
    manifests.mkdir(parents=True, exist_ok=True)
    temporary = manifests / f".{uuid.uuid4().hex}"
    write_json(temporary, manifest)
    try:
        os.link(temporary, manifests / f"{number + 1:08d}.json")
    except FileExistsError:
        raise PublishError(f"{log} was changed by another process meanwhile; run the command again") from None
    finally:
        temporary.unlink()
    _sync_directory(manifests)


@contextlib.contextmanager
def exclusive(directory: Path, purpose: str) -> Iterator[None]:
    """Holds the directory's lock file; a second process is refused at once instead of waiting.

    Raises:
        PublishError: another process holds it, or the directory can't be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = (directory / ".lock").open("w")
    except OSError as error:
        raise PublishError(f"{directory} can't be written ({error.strerror}); choose another --root") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PublishError(f"another process holds {directory} for {purpose}; wait for it or stop it") from None
        yield


def sync_file(path: Path) -> None:
    """Makes a file, or the names in a directory, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(directory: Path) -> None:
    sync_file(directory)
