"""LMDB environments of this process and their transactions: stores at one path share one, since LMDB opens a file once
a process."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import lmdb

from rayapp.store import StoreError
from rayapp.store.contents import MEND

DATA: Final = "data.mdb"
T = TypeVar("T")


@dataclass(slots=True)
class Environment:
    """One open environment, its locks, and how many stores use it.

    The map can't be moved while a transaction of this process is open. Who needs both locks takes `turn` first.
    """

    env: lmdb.Environment
    key: tuple[int, Path]
    users: int = 0
    turn: threading.Lock = field(default_factory=threading.Lock)
    mapping: threading.Lock = field(default_factory=threading.Lock)

    def alone(self, use: Callable[[], T]) -> T:
        """`use()` while no other thread of this process writes; again on a larger map where the present one is used up,
        or another process has made it larger.

        Databases are opened so too: the binding lets no other thread run while it waits for LMDB's lock, and a thread
        that holds that lock may wait to run.
        """
        with self.turn:
            while True:
                try:
                    return use()
                except lmdb.MapResizedError:
                    self._move_map(0)
                except lmdb.MapFullError:
                    self.env.reader_check()
                    self._move_map(2 * self.env.info()["map_size"])

    @contextmanager
    def reading(self) -> Iterator[lmdb.Transaction]:
        """A read transaction: one state of all databases.

        Raises:
            StoreError: it can't be read.
        """
        try:
            txn = self._snapshot()
            try:
                with txn:
                    yield txn
            finally:
                self.mapping.release()
        except lmdb.Error as error:
            raise StoreError(f"the sequence store {self.key[1]} can't be read: {error}") from None

    def _snapshot(self) -> lmdb.Transaction:
        """A read transaction; whoever gets it holds `mapping`."""
        while True:
            self.mapping.acquire()
            try:
                return self.env.begin(buffers=False)
            except lmdb.MapResizedError:  # another process has made it larger
                self.mapping.release()
            except BaseException:
                self.mapping.release()
                raise
            with self.turn:
                self._move_map(0)

    def writing(self, write: Callable[[lmdb.Transaction], T]) -> T:
        """Runs `write` in one transaction, and again where the map was too small. Returns when it is durable.

        Raises:
            StoreError: it can't be written.
        """

        def once() -> T:
            with self.env.begin(write=True) as txn:
                return write(txn)

        try:
            return self.alone(once)
        except lmdb.Error as error:
            raise StoreError(
                f"the sequence store {self.key[1]} can't be written, nothing of this was taken: {error}"
            ) from None

    def _move_map(self, size: int) -> None:
        """To another size, 0: the one that another process gave it. Whoever calls holds `turn`."""
        with self.mapping:
            self.env.set_mapsize(size)

    def release(self) -> None:
        """Closes it when this was the last user."""
        with _lock:
            self.users -= 1
            if self.users == 0:
                del _open[self.key]
                self.env.close()


_open: dict[tuple[int, Path], Environment] = {}
_lock = threading.Lock()


def acquire(path: Path, map_bytes: int, max_databases: int, sync: bool) -> Environment:
    """The environment of `path`, opened unless it is open here already; each caller releases it once."""
    key = (os.getpid(), path.resolve())  # a forked child must not use its parent's
    with _lock:
        shared = _open.get(key)
        if shared is None:
            env = lmdb.open(str(path), map_size=map_bytes, max_dbs=max_databases, max_readers=1024, sync=sync)
            shared = _open[key] = Environment(env, key)
        shared.users += 1
    return shared


def data_bytes(path: Path) -> int:
    """Size of the file in the directory; 0 where there is none yet."""
    return (path / DATA).stat().st_size if (path / DATA).exists() else 0


def refuse_truncated(env: lmdb.Environment, path: Path) -> None:
    """A page that lies behind the end of the file would end the process with SIGBUS when it is read."""
    needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if (size := data_bytes(path)) < needed:
        raise StoreError(f"the sequence store {path} is cut off: {size} of {needed} bytes. {MEND}")
