"""One retraining, from start or from where a killed one stopped, to its outcome and its report."""

import time
import traceback
from pathlib import Path

from rayapp.contracts.config import Domain
from rayapp.contracts.errors import RayappError
from rayapp.loop import run_state as states
from rayapp.loop.limits import read_limits
from rayapp.loop.report import write_report
from rayapp.loop.run_state import RunState, new_run, read_runs
from rayapp.loop.steps import Ended, RetrainOptions, RetrainSteps, Say
from rayapp.root.facts import read_root
from rayapp.root.publish import exclusive


def retrain(
    root: Path, options: RetrainOptions, *, as_of_ms: int, store_url: str | None = None, say: Say = lambda _line: None
) -> RunState:
    """Runs all steps; the outcome and the reason are in the returned state, and in the report.

    Whatever happens in it, the live model keeps serving: its alias moves in the last step alone. Ray must be
    initialised.

    Raises:
        PublishError: this is no root, another process holds it, `retrain.toml` is wrong, or the records of earlier runs
            can't be read.
    """
    domain, _ = read_root(root)
    limits = read_limits(root)
    with exclusive(root, "a retraining"):
        state = _take_up(root, options, as_of_ms, say)
        try:
            outcome, why = RetrainSteps(root, domain, options, limits, state, store_url, say).run()
        except Ended as end:
            outcome, why = end.outcome, end.why
        except (RayappError, OSError) as error:
            outcome, why = states.FAILED, str(error)
        except Exception:  # a bug, or a fault nobody thought of: the loop goes on and the report tells it whole
            outcome, why = states.FAILED, traceback.format_exc()
        _finish(state, domain, outcome, why, say)
    return state


def _take_up(root: Path, options: RetrainOptions, as_of_ms: int, say: Say) -> RunState:
    """The last run where it was killed, or a new one. A killed run with other options is closed with a report."""
    wanted = options.to_json()
    unfinished = [run for run in read_runs(root) if run.outcome is None]
    if unfinished and unfinished[-1].options == wanted:
        run = unfinished.pop()
        run.resumed += 1
        run.save()
        say(f"going on with {run.id}, which was stopped")
    else:
        run = new_run(root, wanted, as_of_ms)
        run.save()
    for other in unfinished:
        _finish(other, read_root(root)[0], states.ABANDONED, "it was stopped, and the next run had other options", say)
    return run


def _finish(state: RunState, domain: Domain, outcome: str, why: str, say: Say) -> None:
    state.outcome, state.why, state.finished_ms = outcome, why, time.time_ns() // 1_000_000
    try:
        state.save()
        say(f"report: {write_report(state, domain)}")
    except OSError as error:  # a full disk: the words below are all that is left
        say(f"the report can't be written ({error.strerror}); the live models are what they were")
    say(f"{outcome}: {why}" if why else outcome)
