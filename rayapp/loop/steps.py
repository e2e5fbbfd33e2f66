"""The steps of a retraining: export → windows → judge the new days → item table → train → gates → promote, for the
champion's line and for each arm of a running experiment on the same days.

Each finished step is kept in the run's state, and all that a step makes is published whole, so a run that was killed
goes on where it stopped.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, ParamSpec, TypeVar, cast

from rayapp.contracts.config import Domain, Scope, day_name
from rayapp.contracts.json_values import to_json
from rayapp.contracts.presets import COUNTS, Preset, variant
from rayapp.loop import run_state as states
from rayapp.loop.artifacts import (
    HISTORY_LENGTH,
    Prepared,
    fitted,
    make_windows,
    num_lists,
    train_model,
    training_run,
)
from rayapp.loop.challenge import challenge, champion_gate
from rayapp.loop.choose import earned_over
from rayapp.loop.choose_by_recall import Recalls, earned_by_recall
from rayapp.loop.daily import candidate_days, champion_age_days, ended_days, tested_until_ms, watch_rows
from rayapp.loop.day_counts import count_days
from rayapp.loop.gates import Challenge, failed, reasons
from rayapp.loop.limits import GateLimits
from rayapp.loop.lines import Line, read_root_lines
from rayapp.loop.plan import TrainingPlan, day_span, day_window, make_plan
from rayapp.loop.renew_table import same_space, table_for
from rayapp.loop.results import (
    COUNT,
    EXPORT,
    GATES,
    ITEM_TABLE,
    JUDGE,
    LINES,
    PLAN,
    PROMOTE,
    RECORD,
    TRAIN,
    WINDOWS,
    ExportSkipped,
    JudgedDays,
)
from rayapp.loop.run_state import RunState, Step
from rayapp.loop.watch import day_gates, made_up_day_gates, usual_days
from rayapp.pipeline.export import Exported, export_all
from rayapp.pipeline.made_lists import is_made_up
from rayapp.registry.aliases import CHAMPION, promote, read_aliases
from rayapp.registry.models import trained_domain
from rayapp.registry.retrainings import record_retraining
from rayapp.registry.verdicts import record_verdict
from rayapp.root.places import EXPORTS
from rayapp.root.publish import PublishError, exclusive
from rayapp.store.opening import open_store
from rayapp.training.baselines import COVISITATION, covisitation, publish_covisitation
from rayapp.training.run import TrainingRun, train_here

WATCHED_DAYS: Final = 7
"""In the report of a run."""
Say = Callable[[str], None]
T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainOptions:
    """How to retrain."""

    first: Preset
    """For a root that has no champion yet."""
    chosen: Preset | None = None
    """Instead of the champion's own preset and variant."""
    scope: Scope = "full"
    init: Literal["warm", "scratch"] = "warm"
    train_window_days: int = 14
    num_workers: int = 1
    again: bool = False
    """Also when no day is new."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Ended(Exception):
    """The run ends before the last step, with this outcome and reason."""

    def __init__(self, outcome: str, why: str) -> None:
        super().__init__(why)
        self.outcome, self.why = outcome, why


@dataclass(frozen=True, slots=True)
class RetrainSteps:
    """One run's steps; `run` does those that its state lacks."""

    root: Path
    domain: Domain
    options: RetrainOptions
    limits: GateLimits
    state: RunState
    store_url: str | None
    say: Say

    def run(self) -> tuple[str, str]:
        """The outcome and the reason."""
        self._step(EXPORT, self.export)
        lines = self._step(LINES, self.lines)
        days = self._step(WINDOWS, self.windows, lines)
        judged = self._step(JUDGE, self.judge, days, lines[0].version)
        plan = self._step(PLAN, self.plan, days, judged, lines[0].version)
        tables = {line: self._step(ITEM_TABLE.of(line.alias), self.item_table, line, plan) for line in lines}
        counts = self._step(COUNT, self.counts, lines[0], plan, tables[lines[0]])
        versions = {
            line: self._step(TRAIN.of(line.alias), self.train, line, plan, tables[line], counts) for line in lines
        }
        challenges = {
            line: self._step(GATES.of(line.alias), self.gates, line, plan, versions[line], counts) for line in lines
        }
        promoted = {line: self._step(PROMOTE.of(line.alias), self.promote, line, challenges[line]) for line in lines}
        moved = {line.alias: (line.version, challenges[line].version) for line in lines if promoted[line]}
        of_no_arm = counts if COUNTS not in {line.alias for line in lines} else None
        self._step(RECORD, self.record, moved, plan, of_no_arm)
        live, left = read_aliases(self.root), {line.alias: challenges[line] for line in lines if not promoted[line]}
        kept = [f"{alias} keeps its model: {each.why_kept(alias, live.get(alias))}" for alias, each in left.items()]
        words = [*kept, *(f"{alias} is now {now}" for alias, (_, now) in moved.items())]
        words += [f"{window} was refused" for window in judged.refused]
        return states.REFUSED if kept else states.PROMOTED, "; ".join(words)

    def _step(self, step: Step[T], work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        if step.name in self.state.stages:
            self.say(f"{step.name}: done before")
            return cast(T, self.state.find(step))
        self.say(f"{step.name} …")
        started = time.monotonic()
        result = work(*arguments, **named)
        self.state.keep(step, result, time.monotonic() - started)
        return result

    def export(self) -> Exported | ExportSkipped:
        """Brings what the feed took in and gave out into the logs."""
        store = open_store(self.root, self.store_url)
        try:
            with exclusive(self.root / EXPORTS, "an export"):
                return export_all(self.root, store, time.time_ns() // 1_000_000)
        except PublishError as error:  # `rayapp export --follow` is at it: the log is as new as it gets
            return ExportSkipped(str(error))
        finally:
            store.close()

    def lines(self) -> tuple[Line, ...]:
        return tuple(read_root_lines(self.root, self.domain, self.options.first, self.options.chosen))

    def windows(self, lines: Sequence[Line]) -> tuple[int, ...]:
        """Counts statistics and publishes the windows that are missing; the days that this run may read."""
        now_ms = self.state.as_of_ms
        wanted = candidate_days(self.root, self.domain, self.options.train_window_days, now_ms)
        if not wanted:
            raise Ended(states.NO_NEW_DATA, f"the log holds no closed day before {day_name(now_ms)}")
        length = max(HISTORY_LENGTH, *(line.preset.model.history_length for line in lines))
        spans = [day_span(day) for day in wanted]
        make_windows(self.root, self.domain, spans, history_length=length)
        return tuple(wanted)

    def judge(self, days: Sequence[int], champion: str | None) -> JudgedDays:
        """Refuses days that may not be trained on: every day that no run has judged yet."""
        now_ms = self.state.as_of_ms
        runs = [run.find(JUDGE) for run in states.read_runs(self.root)]
        before = {day for judged_then in runs if judged_then is not None for day in judged_then.judged}
        excluded = states.read_excluded(self.root)  # an accepted day is not judged again
        before |= {day for day in days if day_window(day) in excluded}
        ended = sorted({*ended_days(self.root, days[0], now_ms), *days})  # made of actions alone, days have no request
        facts = count_days(self.root, ended, self.domain, now_ms=now_ms)
        unusual = {one.day_ms for one in facts if day_window(one.day_ms) in states.refused_windows(self.root)}
        judged: list[int] = []
        for one in facts:
            if one.day_ms not in days or one.day_ms in before:
                continue
            window = day_window(one.day_ms)
            usual = usual_days(one, facts, unusual)
            if is_made_up(self.root, window):
                gates = made_up_day_gates(one, num_lists(self.root, window), usual, self.limits)
            else:
                gates = day_gates(one, usual, self.limits)
            if champion is not None and one.day_ms >= tested_until_ms(self.root, champion) and not failed(gates):
                gates.append(champion_gate(self.root, self.domain, window, champion, self.limits))
            judged.append(one.day_ms)
            if why := reasons(gates):
                unusual.add(one.day_ms)
                states.exclude(self.root, window, self.state.id, why)
        age_days = champion_age_days(self.root, champion, now_ms)
        mine = {w: e["reasons"] for w, e in states.read_excluded(self.root).items() if e["run"] == self.state.id}
        watch = watch_rows(self.root, facts, unusual, self.limits, age_days, WATCHED_DAYS)
        return JudgedDays(tuple(judged), mine, watch)

    def plan(self, days: Sequence[int], judged: JudgedDays, champion: str | None) -> TrainingPlan:
        """What to train on, unless no day is new or usable."""
        refused = states.refused_windows(self.root)
        usable = [day for day in days if day_window(day) not in refused]
        shown = [day for day in usable if not is_made_up(self.root, day_window(day))]
        plan = make_plan(shown) or make_plan(usable)  # made-up lists only where there are too few days of real ones
        words = "; ".join(f"{name} was refused: {', '.join(why)}" for name, why in judged.refused.items())
        if plan is None:
            why = f"it takes three usable closed days to train, validate and test; there are {len(days)}"
            raise Ended(states.REFUSED if words else states.NO_NEW_DATA, "; ".join(filter(None, (why, words))))
        plans = [run.find(PLAN) for run in states.read_runs(self.root) if run.outcome in states.JUDGED]
        tested = [each.tested_until_ms for each in plans if each is not None]
        last_ms = max([tested_until_ms(self.root, champion), *tested])
        if plan.tested_until_ms <= last_ms and not self.options.again:
            why = f"the newest usable closed day is {day_name(plan.test)}, which was tested on before"
            raise Ended(states.REFUSED if words else states.NO_NEW_DATA, words or why)
        return plan

    def item_table(self, line: Line, plan: TrainingPlan) -> str:
        """A part of a model can only be trained on the vectors that its other parts know."""
        every_days = self.limits.item_table_days if self._scope(line) == "full" else float("inf")
        prepared, preset = self._fitted(line, plan)
        return table_for(self.root, prepared, preset, line.item_table, every_days)

    def counts(self, line: Line, plan: TrainingPlan, table: str) -> str:
        """Trains the baseline that a ranker is held against, with the vectors of the champion's line."""
        prepared, ranker = self._fitted(line, plan)
        preset = variant(ranker, COUNTS)
        title = f"{preset.name}-{COUNTS}-{day_name(plan.test)}"
        run = training_run(self.root, prepared, preset, table, title=title)
        train_model(run, self.domain, train_here)
        return run.version

    def train(self, line: Line, plan: TrainingPlan, table: str, counts: str) -> str:
        """The line's next model; counts where a ranker would have to earn its place and did not."""
        if line.preset.variant == COUNTS:
            return counts
        run = self.training_run(line, plan, table)
        train_model(run, self.domain)
        if not line.to_earn:
            return run.version
        versions, window = {run.version: run.version, COUNTS: counts}, day_window(plan.test)
        if is_made_up(self.root, window):
            versions[COVISITATION] = self.covisits(line, plan, table)
            recalls = Recalls.of(self.root, self.domain, window, versions)
            choice = earned_by_recall(recalls, run.version, [COUNTS, COVISITATION])
        else:
            choice = earned_over(self.root, self.domain, window, versions, run.version, [COUNTS])
        self.say(choice.why)
        return versions[choice.variant]

    def covisits(self, line: Line, plan: TrainingPlan, table: str) -> str:
        """Co-visitation as the line's item table has it."""
        prepared, ranker = self._fitted(line, plan)
        preset = covisitation(variant(ranker, COUNTS))
        title = f"{preset.name}-{COVISITATION}-{day_name(plan.test)}"
        run = training_run(self.root, prepared, preset, table, title=title)
        train_model(run, self.domain, publish_covisitation)
        return run.version

    def _fitted(self, line: Line, plan: TrainingPlan) -> tuple[Prepared, Preset]:
        """What a training of the line reads, and its preset as it is worked out for these days."""
        prepared = Prepared(self.domain, plan.spans)
        return prepared, fitted(self.root, prepared, line.preset, live=line.goes_on)

    def _scope(self, line: Line) -> Scope:
        """What takes the place of a baseline has no part that is trained already."""
        return "full" if line.to_earn else self.options.scope

    def training_run(self, line: Line, plan: TrainingPlan, table: str) -> TrainingRun:
        """Warm where that was asked for and the item vectors still mean what the live model's weights learnt."""
        last = None if line.to_earn else line.item_table
        warm = self.options.init == "warm" and last is not None and same_space(self.root, table, last)
        warm = warm and self._reads_the_same(line)
        prepared, preset = self._fitted(line, plan)
        scoped = dataclasses.replace(preset.train, scope=self._scope(line))
        return training_run(
            self.root,
            prepared,
            dataclasses.replace(preset, train=scoped),
            table,
            title=f"{preset.name}-{preset.variant}-{day_name(plan.test)}",
            num_workers=self.options.num_workers,
            init_from=line.version if warm else None,
        )

    def _reads_the_same(self, line: Line) -> bool:
        """Whether the live model knows every attribute of today's domain: its weights have no place for more."""
        assert line.version is not None
        own = trained_domain(self.root, line.version, self.domain)
        groups = ("attributes", "user_attributes", "context_attributes")
        return all(set(getattr(self.domain, group)) <= set(getattr(own, group)) for group in groups)

    def gates(self, line: Line, plan: TrainingPlan, version: str, counts: str) -> Challenge:
        """The challenger against the model that was live when the run began, and against counts, on the newest day. A
        ranker that is refused the place of a baseline leaves it to the new counts."""
        judged = self._challenge(line, plan, version, counts)
        if line.to_earn and judged.why and version != counts:
            self.say(f"{version} was refused: {judged.why}")
            judged = self._challenge(line, plan, counts, counts)
        return judged

    def _challenge(self, line: Line, plan: TrainingPlan, version: str, counts: str) -> Challenge:
        return challenge(
            self.root,
            self.domain,
            day_window(plan.test),
            line.version,
            version,
            counts if line.alias == CHAMPION else None,  # an arm may be weak on purpose
            self.limits,
            of_a_kind=not line.to_earn,
        )

    def promote(self, line: Line, judged: Challenge) -> bool:
        """Moves the alias if all gates passed and nobody moved it meanwhile; whether the line has its new model."""
        promoted = not judged.why and read_aliases(self.root).get(line.alias) in (line.version, judged.version)
        verdict = {
            "retraining": self.state.id,
            "alias": line.alias,
            "promoted": promoted,
            "champion": judged.champion,
            "window": judged.window,
            "gates": [to_json(gate) for gate in judged.gates],
        }
        record_verdict(self.root, judged.version, verdict)
        if promoted:
            promote(self.root, line.alias, judged.version)
        return promoted

    def record(self, moved: Mapping[str, tuple[str | None, str]], plan: TrainingPlan, counts: str | None) -> None:
        """Experiments compare before and after a retraining, so they are told of it. The watch reads the alias of the
        counts."""
        if counts is not None:
            promote(self.root, COUNTS, counts)
        if moved:
            record_retraining(self.root, time.time_ns() // 1_000_000, moved, day_window(plan.test))
