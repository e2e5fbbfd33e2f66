"""Numbered, independent tasks run by Ray Data: the one way this room spreads work.

A task writes files of its own under names that its number decides, so a task that Ray runs again after its worker died
writes the same files again.
"""

import json
from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext

from rayapp.root.publish import PublishError, in_words

Told = Callable[[int, int], None]
"""Called with (tasks done, tasks in all)."""


TASKS_PER_CPU: Final = 4
RESULT, FAILURE = "result", "failure"
BACK_PRESSURE: Final = "backpressure_policies.enabled"
"""Ray Data's key; it has no public setting for it."""


def quiet(_done: int, _count: int) -> None:
    """Tells nobody."""


def run_tasks(count: int, task: Callable[[int], dict[str, Any]], told: Told = quiet) -> list[dict[str, Any]]:
    """`[task(0), …, task(count - 1)]`; the results must be JSON values.

    Raises:
        PublishError: a task could not read or write; its words.
    """
    if not count:
        return []

    def run(batch: dict[str, Any]) -> pa.Table:
        numbers = [int(n) for n in batch["item"]]
        return pa.table({"number": numbers, "result": [json.dumps(_answer(task, n)) for n in numbers]})

    # A few numbers a task: starting a task costs some 15 ms, and the slowest should still find others to run beside.
    blocks = min(count, TASKS_PER_CPU * max(int(ray.cluster_resources().get("CPU", 1)), 1))
    context = DataContext.get_current()
    # What flows through Ray Data are a few numbers a task. Its back-pressure, made for blocks of data, would hold a
    # second task back until the first has ended, and wait between tasks: a third of the time at 64 buckets.
    context.set_config(BACK_PRESSURE, [])
    tasks = ray.data.from_items(list(range(count)), override_num_blocks=blocks)
    results: list[dict[str, Any] | None] = [None] * count
    done = 0
    try:
        for row in tasks.map_batches(run, batch_size=None, batch_format="numpy").iter_rows():
            answer = json.loads(row["result"])
            if FAILURE in answer:
                raise PublishError(answer[FAILURE])
            results[row["number"]] = answer[RESULT]
            done += 1
            told(done, count)
    finally:
        context.remove_config(BACK_PRESSURE)
    assert done == count
    return [result for result in results if result is not None]


def _answer(task: Callable[[int], dict[str, Any]], number: int) -> dict[str, Any]:
    """What the task returned, or its words where it could not read or write: an exception would come back inside Ray's
    own, with pages of its stack."""
    try:
        return {RESULT: task(number)}
    except PublishError as error:
        return {FAILURE: str(error)}
    except OSError as error:
        return {FAILURE: in_words(error)}
