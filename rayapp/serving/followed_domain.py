"""The root's domain, as a replica that runs for months goes by it: read again when it was changed."""

import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.root.facts import read_root
from rayapp.root.places import ROOT_FILE


class FollowedDomain:
    """Of one replica; any thread may call it."""

    def __init__(self, root: Path) -> None:
        """Raises:
        PublishError: this is no root.
        """
        self._file, self._root, self._lock = root / ROOT_FILE, root, threading.Lock()
        self._stamp = self._stamped()
        self.now, _ = read_root(root)

    def refresh(self) -> bool:
        """Whether `now` is another domain than before.

        Raises:
            OSError: the file is not there.
            PublishError: it can't be read; `now` stays.
        """
        with self._lock:
            stamp = self._stamped()
            if stamp == self._stamp:
                return False
            before, (self.now, _) = self.now, read_root(self._root)
            self._stamp = stamp
            return self.now != before

    def knowing(self, action_E: NDArray[np.uint8]) -> Domain:
        """The domain of actions that a store has taken: one of them may have been appended a moment ago."""
        if len(action_E) and int(action_E.max()) >= self.now.vocabulary.size:
            self.refresh()
        return self.now

    def _stamped(self) -> tuple[int, int, int]:
        """A file that took another's place has another number, time or size."""
        stat = self._file.stat()
        return stat.st_ino, stat.st_mtime_ns, stat.st_size
