"""The stages of a retraining: export → windows → judge the new days → item table → train → gates → promote, for the
champion's line and for each arm of a running experiment on the same days.

Each finished stage is kept in the run's state, and all that a stage makes is published whole, so a run that was killed
goes on where it stopped.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from rayapp.contracts.config import DAY_MS, Domain, Scope, day_name, to_json
from rayapp.contracts.presets import Preset
from rayapp.contracts.schema import fingerprint
from rayapp.loop import run_state as states
from rayapp.loop.challenge import challenge, champion_gate
from rayapp.loop.daily import champion_age_days, ended_days, tested_until_ms, watch_rows
from rayapp.loop.day_counts import count_days, days_with_requests
from rayapp.loop.gates import failed
from rayapp.loop.limits import GateLimits
from rayapp.loop.lines import Line, read_root_lines
from rayapp.loop.plan import Plan, candidates, closed_days, day_window, make_plan
from rayapp.loop.renew_table import same_space, table_for
from rayapp.loop.run_state import RunState
from rayapp.loop.watch import day_gates, usual_days
from rayapp.loop.workflow import HISTORY_LENGTH, train_model
from rayapp.pipeline.export import export_all
from rayapp.pipeline.rate_snapshots import build_rates
from rayapp.pipeline.windows import Window, build
from rayapp.registry.aliases import promote, read_aliases
from rayapp.registry.retrainings import record_retraining
from rayapp.registry.verdicts import record_verdict
from rayapp.root.places import EXPORTS, ITEM_TABLES, WINDOWS
from rayapp.root.publish import PublishError, exclusive, read_manifest
from rayapp.store.opening import open_store
from rayapp.training.run import TrainingRun

WATCHED_DAYS: Final = 7
"""In the report of a run."""
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
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
    """The run ends before the last stage, with this outcome and reason."""

    def __init__(self, outcome: str, why: str) -> None:
        super().__init__(why)
        self.outcome, self.why = outcome, why


class Stages:
    """One run's stages; `go` does those that its state lacks."""

    def __init__(
        self,
        root: Path,
        domain: Domain,
        options: Options,
        limits: GateLimits,
        state: RunState,
        store_url: str | None,
        say: Say,
    ) -> None:
        self.root, self.domain, self.options, self.limits = root, domain, options, limits
        self.state, self.store_url, self.say = state, store_url, say

    def go(self) -> tuple[str, str]:
        """The outcome and the reason."""
        self._stage("export", self.export)
        lines = [Line.from_json(values) for values in self._stage("lines", self.lines)]
        days = self._stage("windows", self.windows, lines)
        judged = self._stage("judge", self.judge, days, lines[0].version)
        plan = Plan.from_json(self._stage("plan", self.plan, days, judged, lines[0].version))
        tables = [self._stage(f"item table of {line.alias}", self.item_table, line, plan) for line in lines]
        versions = [
            self._stage(f"train {line.alias}", self.train, line, plan, table)
            for line, table in zip(lines, tables, strict=True)
        ]
        for line, version in zip(lines, versions, strict=True):
            self._stage(f"gates of {line.alias}", self.gates, line, plan, version)
        moved = {
            line.alias: (line.version, version)
            for line, version in zip(lines, versions, strict=True)
            if self._stage(f"promote {line.alias}", self.promote, line, version)
        }
        self._stage("record", self.record, moved, plan)
        kept = [line.alias for line in lines if line.alias not in moved]
        words = [f"{alias} keeps its model: {self.state.stages[f'gates of {alias}']['why']}" for alias in kept]
        words += [f"{alias} is now {now}" for alias, (_, now) in moved.items()]
        words += [f"{window} was refused" for window in judged["refused"]]
        return states.REFUSED if kept else states.PROMOTED, "; ".join(words)

    def _stage(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        if name in self.state.stages:
            self.say(f"{name}: done before")
            return self.state.stages[name]
        self.say(f"{name} …")
        started = time.monotonic()
        result = work(*arguments)
        self.state.stages[name] = result
        self.state.seconds[name] = round(time.monotonic() - started, 2)
        self.state.save()
        return result

    def export(self) -> dict[str, Any]:
        """Brings what the feed took in and gave out into the logs."""
        store = open_store(self.root, self.store_url)
        try:
            with exclusive(self.root / EXPORTS, "an export"):
                total = export_all(self.root, store, time.time_ns() // 1_000_000)
        except PublishError as error:  # `rayapp export --follow` is at it: the log is as new as it gets
            return {"skipped": str(error)}
        finally:
            store.close()
        return dataclasses.asdict(total)

    def lines(self) -> list[dict[str, Any]]:
        lines = read_root_lines(self.root, self.domain, self.options.first, self.options.chosen)
        return [line.to_json() for line in lines]

    def windows(self, lines: Sequence[Line]) -> list[int]:
        """Publishes the window and the rates of each closed day that has none; the days that this run may read."""
        now_ms, attribution_ms = self.state.as_of_ms, self.domain.attribution_ms
        days = days_with_requests(self.root, now_ms)
        closed = closed_days(days, now_ms=now_ms, attribution_ms=attribution_ms)
        wanted = candidates(closed, states.refused_windows(self.root), self.options.train_window_days)
        if not wanted:
            raise Ended(states.NO_NEW_DATA, f"the log holds no closed day before {day_name(now_ms)}")
        length = max(HISTORY_LENGTH, *(line.preset.model.history_length for line in lines))
        build_rates(self.root, wanted[0], now_ms + 1, self.domain)
        for day in wanted:
            if not (self.root / WINDOWS / day_window(day)).exists():
                build(self.root, day_window(day), Window(day, day + DAY_MS, length), self.domain)
        return wanted

    def judge(self, days: Sequence[int], champion: str | None) -> dict[str, Any]:
        """Refuses days that may not be trained on: every day that no run has judged yet."""
        now_ms = self.state.as_of_ms
        before = {day for run in states.read_runs(self.root) for day in run.stages.get("judge", {}).get("judged", [])}
        excluded = states.read_excluded(self.root)  # an accepted day is not judged again
        before |= {day for day in days if day_window(day) in excluded}
        facts = count_days(self.root, ended_days(self.root, days[0], now_ms), self.domain, now_ms=now_ms)
        unusual = {one.day_ms for one in facts if day_window(one.day_ms) in states.refused_windows(self.root)}
        judged: list[int] = []
        for one in facts:
            if one.day_ms not in days or one.day_ms in before:
                continue
            window = day_window(one.day_ms)
            gates = day_gates(one, usual_days(one, facts, unusual), self.limits)
            if champion is not None and one.day_ms >= tested_until_ms(self.root, champion) and not failed(gates):
                gates.append(champion_gate(self.root, self.domain, window, champion, self.limits))
            judged.append(one.day_ms)
            if reasons := [f"{gate.name}: {gate.words}" for gate in failed(gates)]:
                unusual.add(one.day_ms)
                states.exclude(self.root, window, self.state.id, reasons)
        age_days = champion_age_days(self.root, champion, now_ms)
        mine = {w: e["reasons"] for w, e in states.read_excluded(self.root).items() if e["run"] == self.state.id}
        return {
            "judged": judged,
            "refused": mine,
            "watch": watch_rows(self.root, facts, unusual, self.limits, age_days, WATCHED_DAYS),
        }

    def plan(self, days: Sequence[int], judged: dict[str, Any], champion: str | None) -> dict[str, Any]:
        """What to train on, unless no day is new or usable."""
        refused = states.refused_windows(self.root)
        plan = make_plan([day for day in days if day_window(day) not in refused])
        words = "; ".join(f"{name} was refused: {', '.join(why)}" for name, why in judged["refused"].items())
        if plan is None:
            why = f"it takes three usable closed days to train, validate and test; there are {len(days)}"
            raise Ended(states.REFUSED if words else states.NO_NEW_DATA, "; ".join(filter(None, (why, words))))
        runs = [run for run in states.read_runs(self.root) if run.outcome in states.JUDGED and "plan" in run.stages]
        tested = [Plan.from_json(run.stages["plan"]).tested_until_ms for run in runs]
        last_ms = max([tested_until_ms(self.root, champion), *tested])
        if plan.tested_until_ms <= last_ms and not self.options.again:
            why = f"the newest usable closed day is {day_name(plan.test)}, which was tested on before"
            raise Ended(states.REFUSED if words else states.NO_NEW_DATA, words or why)
        return plan.to_json()

    def item_table(self, line: Line, plan: Plan) -> str:
        """A part of a model can only be trained on the vectors that its other parts know."""
        every_days = self.limits.item_table_days if self.options.scope == "full" else float("inf")
        width = line.preset.model.item_dim
        return table_for(self.root, self.domain, line.item_table, width, plan.validation, every_days)

    def train(self, line: Line, plan: Plan, table: str) -> str:
        run = self.training_run(line, plan, table)
        train_model(run, self.domain)
        return run.version

    def training_run(self, line: Line, plan: Plan, table: str) -> TrainingRun:
        """Warm where that was asked for and the item vectors still mean what the champion's weights learnt."""
        last, init = line.item_table, self.options.init
        warm = init == "warm" and last is not None and same_space(self.root, table, last)
        width = int(read_manifest(self.root / ITEM_TABLES / table)["width"])
        preset = line.preset.replace(item_dim=width)
        preset = dataclasses.replace(preset, train=dataclasses.replace(preset.train, scope=self.options.scope))
        windows = tuple(day_window(day) for day in plan.days)
        parent = line.version if warm else None
        decides = (to_json(preset), self.domain.to_json(), windows, table, self.options.num_workers, parent)
        return TrainingRun(
            root=self.root,
            version=f"{preset.name}-{preset.variant}-{day_name(plan.test)}-{fingerprint(decides)[:8]}",
            preset=preset,
            train_windows=windows[:-2],
            validation_window=windows[-2],
            test_window=windows[-1],
            item_table=table,
            num_workers=self.options.num_workers,
            init_from=parent,
        )

    def gates(self, line: Line, plan: Plan, version: str) -> dict[str, Any]:
        """The challenger against the model that was live when the run began, on the newest day."""
        window = day_window(plan.test)
        found = challenge(self.root, self.domain, window, line.version, version, self.limits)
        why = "; ".join(f"{gate.name}: {gate.words}" for gate in failed(found.gates))
        return {**found.to_json(), "window": window, "champion": line.version, "version": version, "why": why}

    def promote(self, line: Line, version: str) -> bool:
        """Moves the alias if all gates passed and nobody moved it meanwhile; whether the line has its new model."""
        judged = self.state.stages[f"gates of {line.alias}"]
        now = read_aliases(self.root).get(line.alias)
        if not judged["why"] and now not in (line.version, version):
            judged["why"] = f"{line.alias} was moved to {now} while this run trained, so it was left there"
        promoted = not judged["why"]
        record_verdict(
            self.root,
            version,
            {"retraining": self.state.id, "alias": line.alias, "promoted": promoted}
            | {key: judged[key] for key in ("champion", "window", "gates")},
        )
        if promoted:
            promote(self.root, line.alias, version)
        return promoted

    def record(self, moved: dict[str, tuple[str | None, str]], plan: Plan) -> None:
        """Experiments compare before and after a retraining, so they are told of it."""
        if moved:
            record_retraining(self.root, time.time_ns() // 1_000_000, moved, day_window(plan.test))
