"""Which arm a user is in: sticky, kept when shares grow, changed without a restart.

A user's slot is a hash of the experiment's salt and the user's id; arms own slots. An arm that grows takes free slots
only, so nobody ever moves from one arm to another. The slots follow from the shares and the order in which they grew;
that order is kept in `experiments.state.json`, with the experiments that were stopped. With two arms the order does not
matter: the control grows from the bottom, the treatment from the top.

No rule that sees only today's shares can do this for three arms: when all users are dealt out, the second arm must own
exactly what the first leaves, and so must the third.
"""

import contextlib
import dataclasses
import fcntl
import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayapp.contracts.config import DAY_MS, Domain, day_name, day_start_ms
from rayapp.contracts.errors import RayappError
from rayapp.contracts.hashing import hash64, hash64_column
from rayapp.contracts.json_values import to_json
from rayapp.experiments.declaration import NUM_SLOTS, Arm, Experiment, ExperimentError, read_experiments
from rayapp.root.places import EXPERIMENTS_FILE, EXPERIMENTS_STATE
from rayapp.root.publish import PublishError, read_json, write_json

log = logging.getLogger(__name__)
FREE: Final = -1
SEPARATOR: Final = "\x1f"
State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the request path needs to know of a user's arm."""

    experiment: str
    arm: str
    alias: str
    utilities: tuple[float, ...] | None
    mix: Mapping[str, float] | None

    @property
    def label(self) -> str:
        """As answers and the request log name the arm."""
        return f"{self.experiment}/{self.arm}"


def slot_of(salt: str, user_id: str) -> int:
    """The user's slot, 0 to NUM_SLOTS - 1; independent between salts."""
    return hash64(f"{salt}{SEPARATOR}{user_id}") % NUM_SLOTS


def slots_of(salt: str, users: pa.Array) -> NDArray[np.int64]:
    """`slot_of` for a column of users."""
    return np.asarray(hash64_column(pc.binary_join_element_wise(salt, users, SEPARATOR)) % NUM_SLOTS, np.int64)


@dataclass(frozen=True)
class Layout:
    """The slots of one experiment's arms, and the step of growth that gave each."""

    arm_S: NDArray[np.int16]
    """Place of the arm that owns the slot, or FREE."""
    step_S: NDArray[np.int16]

    def count(self, num_steps: int, num_arms: int) -> NDArray[np.int64]:
        """Slots by step and arm."""
        counts = np.zeros((num_steps, num_arms), np.int64)
        owned = self.arm_S != FREE
        np.add.at(counts, (self.step_S[owned], self.arm_S[owned]), 1)
        return counts

    @cached_property
    def arms(self) -> list[int]:
        return [int(arm) for arm in self.arm_S]


def lay_out(steps: list[list[int]]) -> Layout:
    """Deals slots: `steps[k][a]` is how many slots arm `a` owns after step k.

    Each arm looks for free slots from its own end: the last one downward from the top, the others upward from their
    n-th part. So as long as no arm has more than its n-th part (with two arms: always) the order of growth is
    without effect.

    Raises:
        ExperimentError: an arm shrinks, or the slots don't suffice.
    """
    arm_S, step_S = np.full(NUM_SLOTS, FREE, np.int16), np.full(NUM_SLOTS, FREE, np.int16)
    for k, wanted in enumerate(steps):
        for a, count in enumerate(wanted):
            upward = np.roll(np.arange(NUM_SLOTS), -(a * NUM_SLOTS // len(wanted)))
            order = np.arange(NUM_SLOTS)[::-1] if a == len(wanted) - 1 else upward
            free = order[arm_S[order] == FREE]
            more = count - int((arm_S == a).sum())
            if not 0 <= more <= len(free):
                raise ExperimentError(
                    f"arm {a + 1} can't come to {count} slots: it needs {more} of {len(free)} free ones"
                )
            arm_S[free[:more]], step_S[free[:more]] = a, k
    return Layout(arm_S, step_S)


@dataclass(frozen=True)
class Running:
    """An experiment with its slots and what the state knows of it."""

    experiment: Experiment
    layout: Layout
    steps: list[dict[str, Any]]
    """`{"at_ms", "arms": [{name, share, alias, utilities, mix}]}`: the declaration each time it changed."""
    stopped: dict[str, Any] | None
    """`{"at_ms", "why"}`"""

    @property
    def until_ms(self) -> int:
        """Everybody has the champion from here on."""
        ends_ms = self.experiment.ends_ms
        return min(ends_ms, self.stopped["at_ms"]) if self.stopped else ends_ms

    @property
    def arm_names(self) -> list[str]:
        """The control first."""
        return [arm.name for arm in self.experiment.arms]

    @property
    def num_steps(self) -> int:
        return max(len(self.steps), 1)

    def status(self, now_ms: int) -> str:
        """In words."""
        if self.stopped:
            return f"stopped {day_name(day_start_ms(self.stopped['at_ms']))}: {self.stopped['why']}"
        if now_ms < self.experiment.starts_ms:
            return f"starts {day_name(self.experiment.starts_ms)}"
        return "over" if now_ms >= self.until_ms else "on"

    def assign(self, user_id: str) -> Arm | None:
        """The user's arm, whatever the time is."""
        arm = self.layout.arms[slot_of(self.experiment.salt, user_id)]
        return None if arm == FREE else self.experiment.arms[arm]


class ExperimentBook:
    """The declared experiments and their state, as a server holds them. A broken file leaves everything as it was."""

    def __init__(self, root: Path, domain: Domain) -> None:
        self._root, self._domain = root, domain
        self._experiments: tuple[Running, ...] = ()
        self._seen: tuple[Any, ...] | None = None
        self._next_start_ms = 0
        self.problem: str | None = None
        """Why the files as they are now were not taken; None when they were."""

    def follow(self, domain: Domain) -> None:
        """Reads the files by another domain with the next refresh."""
        self._domain, self._seen = domain, None

    def refresh(self, now_ms: int) -> None:
        """Follows the two files when they changed. Reads the disk: not for an event loop's own thread."""
        seen = (_signature(self._root / EXPERIMENTS_FILE), _signature(self._root / EXPERIMENTS_STATE))
        if seen == self._seen and now_ms < self._next_start_ms:
            return
        try:
            self._experiments = record_steps(self._root, self._domain, now_ms)
            problem = None
        except (RayappError, OSError) as error:
            problem = str(error)
            self._follow_stops()
        if problem and problem != self.problem:
            log.error("experiments stay as they were: %s", problem)
        self.problem = problem
        starts = [r.experiment.starts_ms for r in self._experiments if r.experiment.starts_ms > now_ms]
        self._next_start_ms = min(starts, default=2**63)
        self._seen = None if problem else seen

    def _follow_stops(self) -> None:
        """A stop is followed whatever is wrong with the file."""
        with contextlib.suppress(PublishError, OSError):
            state = read_state(self._root)
            self._experiments = tuple(
                dataclasses.replace(running, stopped=state.get(running.experiment.name, {}).get("stopped"))
                for running in self._experiments
            )

    def running(self, now_ms: int) -> Running | None:
        """The experiment that is on at this moment."""
        for each in self._experiments:
            if each.experiment.starts_ms <= now_ms < each.until_ms:
                return each
        return None

    def arm_of(self, user_id: str, now_ms: int) -> Assignment | None:
        """The user's arm now; None: the champion, with the domain's utilities and mix."""
        running = self.running(now_ms)
        arm = running.assign(user_id) if running else None
        if running is None or arm is None:
            return None
        return Assignment(running.experiment.name, arm.name, arm.alias, arm.utilities, arm.mix)


def read_state(root: Path) -> State:
    """`experiments.state.json`: name -> `{"salt", "fixed", "steps", "stopped"}`."""
    state: State = read_json(root / EXPERIMENTS_STATE) if (root / EXPERIMENTS_STATE).exists() else {}
    return state


def record_steps(root: Path, domain: Domain, now_ms: int) -> tuple[Running, ...]:
    """The declared experiments with their slots. What changed in one that has started is written to the state.

    Any number of processes may call it; the first one to see a change records it.

    Raises:
        ExperimentError: the file is wrong, an arm shrinks, anything but shares and what arms do changes in a started
            experiment, or two experiments are on at the same time.
        PublishError: the state is damaged.
    """
    experiments = read_experiments(root, domain)
    if not experiments and not (root / EXPERIMENTS_STATE).exists():
        return ()
    with _locked(root):
        state = read_state(root)
        before = repr(state)
        _all_declared(state, experiments, now_ms)
        for experiment in experiments:
            if experiment.starts_ms <= now_ms:
                _record_step(state, experiment, now_ms)
        found = tuple(_running(experiment, state) for experiment in experiments)
        _one_at_a_time(found)
        if repr(state) != before:
            write_json(root / EXPERIMENTS_STATE, state)
    return found


def stop(root: Path, domain: Domain, name: str, why: str, now_ms: int) -> None:
    """Stops an experiment for good: from the next refresh on everybody gets the champion.

    One that has started is stopped even while the experiments file is wrong.

    Raises:
        ExperimentError: no such experiment, or it is stopped already.
    """
    with _locked(root):
        state = read_state(root)
        if name not in state:
            declared = {experiment.name: experiment for experiment in read_experiments(root, domain)}
            if name not in declared:
                known = ", ".join(sorted({*declared, *state})) or "none"
                raise ExperimentError(f"there is no experiment {name!r} in {root / EXPERIMENTS_FILE}; known: {known}")
            state[name] = {"salt": declared[name].salt, "steps": [], "stopped": None}
        if state[name]["stopped"]:
            raise ExperimentError(f"{name} is stopped already: {state[name]['stopped']['why']}")
        state[name]["stopped"] = {"at_ms": now_ms, "why": why}
        write_json(root / EXPERIMENTS_STATE, state)


def _record_step(state: State, experiment: Experiment, now_ms: int) -> None:
    entry = state.setdefault(experiment.name, {"salt": experiment.salt, "steps": [], "stopped": None})
    fixed = {
        "salt": experiment.salt,
        "starts_ms": experiment.starts_ms,
        "planned_days": experiment.planned_days,
        "guardrails": [[guardrail.head, guardrail.must_not] for guardrail in experiment.guardrails],
        "arms": [arm.name for arm in experiment.arms],
    }
    arms = [to_json(arm) for arm in experiment.arms]
    if not entry["steps"]:
        if entry["stopped"]:  # before it began
            return
        entry.update(fixed=fixed, steps=[{"at_ms": now_ms, "arms": arms}])
        return
    said = f"{EXPERIMENTS_FILE}: experiment {experiment.name!r} has started:"
    for key, value in fixed.items():
        if entry["fixed"][key] != value:
            raise ExperimentError(
                f"{said} its {key.removesuffix('_ms')} can't change from {entry['fixed'][key]!r} to {value!r}; "
                "declare another experiment, with another name and salt"
            )
    if entry["stopped"] or now_ms >= experiment.ends_ms:
        return
    for old, new in zip(entry["steps"][-1]["arms"], arms, strict=True):
        if new["share"] < old["share"]:
            raise ExperimentError(
                f"{said} arm {new['name']!r} can't shrink from {old['share']:g} to {new['share']:g}, which would take "
                f"the feed away from some of its users; `rayapp experiment stop {experiment.name}` ends it for all"
            )
    if entry["steps"][-1]["arms"] != arms:
        entry["steps"].append({"at_ms": now_ms, "arms": arms})


def _all_declared(state: State, experiments: tuple[Experiment, ...], now_ms: int) -> None:
    """A file that an editor has just emptied ends nothing."""
    names = {experiment.name for experiment in experiments}
    for name, entry in state.items():
        if name not in names and entry["steps"] and not entry["stopped"]:
            ends_ms = entry["fixed"]["starts_ms"] + entry["fixed"]["planned_days"] * DAY_MS
            if now_ms < ends_ms:
                raise ExperimentError(
                    f"{EXPERIMENTS_FILE}: experiment {name!r} is on and the file does not declare it any more; "
                    f"`rayapp experiment stop {name}` before it is taken out"
                )


def _running(experiment: Experiment, state: State) -> Running:
    entry = state.get(experiment.name, {"steps": [], "stopped": None})
    steps = entry["steps"]
    counts = [[round(arm["share"] * NUM_SLOTS) for arm in step["arms"]] for step in steps]
    return Running(experiment, lay_out(counts or [[arm.num_slots for arm in experiment.arms]]), steps, entry["stopped"])


def _one_at_a_time(found: tuple[Running, ...]) -> None:
    on = [each for each in found if each.until_ms > each.experiment.starts_ms]
    ordered = sorted(on, key=lambda each: each.experiment.starts_ms)
    for first, second in itertools.pairwise(ordered):
        if second.experiment.starts_ms < first.until_ms:
            raise ExperimentError(
                f"{EXPERIMENTS_FILE}: {first.experiment.name!r} and {second.experiment.name!r} are on at the same "
                "time; one experiment runs at a time: move the second's `starts`, or `rayapp experiment stop` the first"
            )


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Waits for the lock: it is held for milliseconds."""
    with (root / f".{EXPERIMENTS_STATE}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
