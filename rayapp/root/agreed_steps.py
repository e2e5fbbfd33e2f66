"""`agreed_steps.jsonl`: up to which rows the statistics of a time step count, as a store's replicas agreed.

One JSON line a step: `{"store": identity, "step": 28401234, "cursors": [17, 4, …]}`, a commit_seq for every bucket. A
store keeps its last steps only and may be lost; here they stay, so that what was served can be computed again.
"""

import json
import mmap
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any

from rayapp.root.places import AGREED_STEPS
from rayapp.root.publish import PublishError, sync_file

AgreedSteps = dict[tuple[str, int], tuple[int, ...]]
"""(identity of the store, time step) -> the commit_seq of every bucket up to which rows count."""


def agreed_steps(root: Path) -> AgreedSteps:
    """All steps that exports brought into the root, in the order of the file. Of a step's lines the first counts.

    The end of an export that was killed while it wrote is passed over.

    Raises:
        PublishError: a line is damaged; what it says.
    """
    path = root / AGREED_STEPS
    try:
        with path.open("rb") as file:
            # No more than it holds now: an export that mends and appends meanwhile can't mix its lines with torn ones.
            text = file.read(os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        return {}
    found: AgreedSteps = {}
    for line in text.split(b"\n")[:-1]:
        store, step, cursors = _read(path, line)
        found.setdefault((store, step), cursors)
    return found


def add_agreed_steps(root: Path, store: str, steps: Mapping[int, tuple[int, ...]]) -> int:
    """Appends those steps of a store that the file lacks, durably; returns how many. Whoever calls it holds `EXPORTS`.

    Raises:
        PublishError: a line is damaged; what it says.
    """
    if not steps:
        return 0
    path = root / AGREED_STEPS
    with path.open("a+b") as file:
        known, whole_bytes = _known(path, file, store, steps)
        new = [step for step in sorted(steps) if step not in known]
        lines = [json.dumps({"store": store, "step": step, "cursors": steps[step]}) + "\n" for step in new]
        file.truncate(whole_bytes)  # a torn line goes: the next one would be lost with it
        file.write("".join(lines).encode())
        file.flush()
        os.fsync(file.fileno())  # also where nothing is new: an export that was killed may not have come to it
    sync_file(root)
    return len(new)


def _known(path: Path, file: IO[bytes], store: str, steps: Collection[int]) -> tuple[set[int], int]:
    """`(steps of the store that the file holds, bytes of its whole lines)`, read from the end.

    The file grows for ever, and the last steps stand at its end. Not quite in order, since one may be agreed on late:
    behind as many older lines as there are steps no later one is looked for, and at worst it is written twice.
    """
    known: set[int] = set()
    if not file.seek(0, os.SEEK_END):
        return known, 0
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        end = text.rfind(b"\n")
        whole_bytes, oldest, older = end + 1, min(steps), 0
        while end >= 0 and older < len(steps):
            start = text.rfind(b"\n", 0, end) + 1
            of, step, _ = _read(path, text[start:end])
            if of == store:
                known.add(step)
                older += step < oldest
            end = start - 1
    return known, whole_bytes


def _read(path: Path, line: bytes) -> tuple[str, int, tuple[int, ...]]:
    try:
        values: Any = json.loads(line)
        return str(values["store"]), int(values["step"]), tuple(map(int, values["cursors"]))
    except (ValueError, KeyError, TypeError):
        raise PublishError(f"{path}: {line[:80]!r} is no agreed step; mend that line or take it out") from None
