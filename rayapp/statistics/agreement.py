"""In which step of the grid a row counts, so that every replica, every node and every later reader says the same.

All replicas that serve a step use the rows up to the same cursors, the commit_seq of every bucket; the first replica
to name them decides (`store.Agreements`). A row that comes too late for the step in which it was received counts from
the next step on.

Shapes: J agreed steps, B buckets, E rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayapp.features.statistics import Ints
from rayapp.root.agreed_steps import agreed_steps


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was agreed, in order of time."""

    step_J: Ints
    cursor_JB: NDArray[np.int64]

    @staticmethod
    def of(cursors: Mapping[int, Sequence[int]], num_buckets: int) -> "Agreement":
        """Step -> cursors."""
        steps = sorted(cursors)
        cursor_JB = np.array([cursors[step] for step in steps], np.int64).reshape(len(steps), num_buckets)
        return Agreement(np.array(steps, np.int64), np.maximum.accumulate(cursor_JB) if steps else cursor_JB)

    @staticmethod
    def of_root(root: Path, num_buckets: int) -> "Agreement":
        """What exports brought into a root. Of stores that took one another's place the later one's numbers are the
        greater.

        Raises:
            PublishError: the file is damaged.
        """
        cursors: dict[int, NDArray[np.int64]] = {}
        for (_, step), of_store in agreed_steps(root).items():
            cursors[step] = np.maximum(cursors.get(step, np.zeros(num_buckets, np.int64)), of_store)
        return Agreement.of({step: cursor_B.tolist() for step, cursor_B in cursors.items()}, num_buckets)

    def counted_in(self, step_E: Ints, commit_seq_E: Ints, bucket: int) -> Ints:
        """The step that each row of a bucket counts in: the one it was received in or, where that was agreed on without
        it, the first step that was agreed on with it."""
        place_E = np.searchsorted(self.cursor_JB[:, bucket], commit_seq_E, side="left")  # agreed on without the row
        last_E = np.r_[np.iinfo(np.int64).min, self.step_J][place_E]
        return np.asarray(np.maximum(step_E, last_E))
