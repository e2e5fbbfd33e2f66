"""Peak memory of this process and all below it, as PSS: pages that processes share are counted once in all."""

import os
import threading
import time
from pathlib import Path
from types import TracebackType

from benchmarks.processes import tree

INTERVAL_S = 0.2


def tree_pss_bytes() -> int:
    """Proportional set size of the process tree, now."""
    return sum(_pss_bytes(pid) for pid in tree(os.getpid()))


def _pss_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # it ended meanwhile, or is not ours
    return 0


class PeakMemory:
    """`with PeakMemory() as memory: …` and then `memory.peak_bytes`, above what the tree held at the start."""

    def __enter__(self) -> "PeakMemory":
        self._idle = tree_pss_bytes()
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            self.peak_bytes = max(self.peak_bytes, tree_pss_bytes() - self._idle)
            self._stop.wait(max(INTERVAL_S - (time.monotonic() - started), 0.01))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
