"""Gates, plan, watch and records of retraining without Ray: every bad day and every bad model, in milliseconds."""

import dataclasses
import itertools
import json
import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from rayapp.cli import retrain as command
from rayapp.contracts.config import DAY_MS, Domain
from rayapp.contracts.json_values import to_json
from rayapp.contracts.presets import COUNTS, Preset, demo, nano, variant
from rayapp.loop import run_state as states
from rayapp.loop import steps
from rayapp.loop.day_counts import COLUMNS, count_bucket
from rayapp.loop.gates import (
    CHALLENGER,
    CHAMPION,
    Challenge,
    Gate,
    absolute_gates,
    baseline_gate,
    failed,
    latency_gate,
    relative_gates,
    reload_gate,
    segment_labels,
    shift_gates,
    stability_index,
)
from rayapp.loop.limits import GateLimits, read_limits
from rayapp.loop.lines import Line, read_root_lines
from rayapp.loop.plan import candidates, closed_days, day_window, make_plan
from rayapp.loop.prometheus import watch_metrics
from rayapp.loop.report import markdown
from rayapp.loop.results import EXPORT, GATES, LINES, PLAN, PROMOTE
from rayapp.loop.run_state import RunState
from rayapp.loop.steps import RetrainOptions, RetrainSteps
from rayapp.loop.watch import DayFacts, day_gates, usual_days, watch_gates
from rayapp.pipeline.export import Exported
from rayapp.pipeline.histories import LABEL_COLUMNS
from rayapp.pipeline.labels import label_requests
from rayapp.registry.aliases import promote, read_aliases
from rayapp.registry.models import FORMAT
from rayapp.registry.verdicts import read_verdict
from rayapp.root.places import MODELS
from rayapp.root.publish import PublishError, write_json
from rayapp.store import Committed
from rayapp.store.lmdb import LmdbStore
from rayapp.training.comparison import BootstrapInterval, compare
from rayapp.training.evaluate import SEGMENTS, EvaluationSet
from tests.conftest import T0, make_event

LIMITS = GateLimits()


def day(n: int, **changed: object) -> DayFacts:
    """An ordinary day; a few per cent different each time."""
    scale = 1 + 0.02 * (n % 3)
    usual = DayFacts(
        day_ms=T0 + n * DAY_MS,
        requests=int(1000 * scale),
        users=300,
        shown=int(10_000 * scale),
        hours=24,
        events=int(3000 * scale),
        actions={"click": int(2000 * scale), "save": int(800 * scale), "hide": int(200 * scale)},
        labels={"save": int(800 * scale), "hide": int(200 * scale)},
        top_user_events=60,
        logged=int(10_000 * scale),
        predictions={"save": 0.08 * scale, "hide": 0.02 * scale},
        answers=int(1000 * scale),
        degraded=2,
        parity=1.0,
    )
    return dataclasses.replace(usual, **changed)  # type: ignore[arg-type]


BEFORE = [day(n) for n in range(5)]


def refusals(facts: DayFacts, usual: list[DayFacts] = BEFORE) -> set[str]:
    return {gate.name for gate in failed(day_gates(facts, usual, LIMITS))}


@pytest.mark.parametrize(
    ("changed", "because"),
    [
        ({}, set()),
        ({"actions": {"click": 2000, "hide": 200}}, {"action save"}),
        ({"labels": {"save": 200, "hide": 800}}, {"label save", "label hide"}),
        ({"labels": {"save": 0, "hide": 200}}, {"label save"}),
        ({"top_user_events": 1_000_000, "events": 1_003_000}, {"one user"}),
        ({"top_user_events": 5_000, "events": 1_000_000}, {"one user"}),
        ({"top_user_events": 900}, set()),
        ({"hours": 11}, {"hours"}),
        (
            {"requests": 150, "shown": 1500, "actions": {"click": 300, "save": 120, "hide": 30}, "labels": {}},
            {"requests"},
        ),
        (
            {"requests": 250, "shown": 2500, "actions": {"click": 500, "save": 200, "hide": 50}, "labels": {}},
            {"requests"},
        ),
        ({"labels": {"save": 1300, "hide": 200}}, set()),
    ],
    ids=[
        "usual",
        "vanished",
        "flipped",
        "label gone",
        "bot",
        "bot in a large feed",
        "busy user",
        "half a day",
        "few",
        "a quarter",
        "drift",
    ],
)
def test_a_day_that_must_not_be_trained_on_is_told_from_one_that_may(changed: dict, because: set[str]) -> None:
    assert refusals(day(5, **changed)) == because


def test_small_days_scatter_without_being_refused_and_the_first_days_have_nothing_to_differ_from() -> None:
    counts = {"requests": 210, "shown": 300, "labels": {"save": 12, "hide": 2}, "actions": {"save": 12}}
    small = [day(n, **counts) for n in range(5)]
    assert refusals(dataclasses.replace(small[0], labels={"save": 4, "hide": 6}), small) == set()
    assert refusals(day(0, labels={"save": 5}), []) == set()
    assert refusals(day(0, requests=3), []) == {"requests"}


def test_a_refused_day_is_not_what_is_usual() -> None:
    flipped = [day(n, labels={"save": 200, "hide": 800}) for n in range(5, 9)]
    days = [*BEFORE, *flipped, day(9)]
    assert refusals(day(9), usual_days(day(9), days)) == {"label save", "label hide"}
    assert refusals(day(9), usual_days(day(9), days, [d.day_ms for d in flipped])) == set()


def test_the_watch_sees_more_than_the_gates_of_a_day() -> None:
    def left(**changed: object) -> set[str]:
        return {g.name for g in failed(watch_gates(day(5, **changed), BEFORE, LIMITS, age_days=1.0))}

    assert left() == set()
    assert left(users=20) == {"volume users"}
    assert left(degraded=100) == {"degraded"}
    assert left(parity=0.9) == {"parity"}
    assert left(predictions={"save": 0.3, "hide": 0.02}) == {"prediction save"}
    nothing = {
        "requests": 0,
        "users": 0,
        "shown": 0,
        "hours": 0,
        "events": 0,
        "actions": {},
        "labels": {},
        "answers": 0,
    }
    assert left(**nothing) >= {"requests", "volume events"}
    assert {g.name for g in failed(watch_gates(day(5), BEFORE, LIMITS, age_days=30.0))} == {"champion age"}


def test_a_day_is_counted_from_the_logs(domain: Domain) -> None:
    hour = 3_600_000
    requests = pa.Table.from_pylist(
        [
            {"request_id": "r1", "user_id": "a", "timestamp_ms": T0, "item_ids": ["i", "j"], "model_version": "m",
             "probabilities": [0.1, 0.2, 0.3, 0.4], "fallback_reason": "unknown_user"},
            {"request_id": "r2", "user_id": "a", "timestamp_ms": T0 + 5 * hour, "item_ids": ["k"], "model_version": "m",
             "fallback_reason": "candidates: timeout"},
            {"request_id": "r3", "user_id": "b", "timestamp_ms": T0 + DAY_MS, "item_ids": ["i"]},
        ],
        schema=COLUMNS,
    )  # fmt: skip
    events = pa.Table.from_pylist(
        [
            {"user_id": "a", "event_hash": n, "item_id": item, "action": action, "timestamp_ms": at,
             "received_at_ms": at, "commit_seq": 0, "request_id": request}
            for n, (item, action, at, request) in enumerate(
                [("i", "save", T0 + 1, "r1"), ("j", "hide", T0 + 2, "r1"), ("k", "save", T0 + DAY_MS + hour, "r2"),
                 ("z", "click", T0 + 3, None)]
            )
        ],
        schema=pa.schema([f.with_type(pa.string()) if pa.types.is_dictionary(f.type) else f for f in LABEL_COLUMNS]),
    )  # fmt: skip
    day = T0, T0 + DAY_MS
    counted = count_bucket(label_requests(requests, events, domain, day), T0, domain)
    assert counted == {
        "requests": 2, "users": 1, "shown": 3, "events": 3, "hours": [0, 5], "top_user_events": 3,
        "answers": 2, "degraded": 1, "action save": 1, "action hide": 1, "action click": 1,
        "label save": 2, "label hide": 1, "logged": 2, "sum save": pytest.approx(0.4), "sum hide": pytest.approx(0.6),
    }  # fmt: skip
    empty = count_bucket(label_requests(COLUMNS.empty_table(), events.slice(0, 0), domain, day), T0, domain)
    assert (empty["requests"], empty["hours"], empty["top_user_events"]) == (0, [], 0)


@pytest.fixture
def window(rng: np.random.Generator, domain: Domain) -> EvaluationSet:
    """900 requests of 300 users, a third of them cold."""
    user_R = rng.integers(0, 300, 900)
    label_RCH = (rng.random((900, 8, len(domain.heads))) < 0.2).astype(np.float32)
    activity_R = np.where(user_R < 100, 2, np.where(user_R < 200, 20, 50))
    valid_RC = np.ones((900, 8), bool)
    return EvaluationSet(label_RCH, valid_RC, user_R.astype(np.uint64), activity_R, user_R.astype(object))


def judged(window: EvaluationSet, domain: Domain, champion: np.ndarray, challenger: np.ndarray) -> list[Gate]:
    rows = compare(window, {CHAMPION: [champion], CHALLENGER: [challenger]}, domain, references=[CHAMPION], draws=100)
    segments = {name: window.segment(name) for name in ("all", *SEGMENTS)}
    labels = segment_labels(window.label_RCH, window.valid_RC, segments, domain.head_names)
    return absolute_gates(rows, labels, LIMITS) + relative_gates(rows, labels, LIMITS)


def logits(window: EvaluationSet, rng: np.random.Generator, signal: float | np.ndarray) -> np.ndarray:
    """Logits that know the labels a little, and are calibrated about."""
    label_RCH = window.label_RCH
    return (signal * (label_RCH - 0.2) - 1.7 + 0.8 * rng.normal(size=label_RCH.shape)).astype(np.float32)


@pytest.mark.slow
def test_an_equal_model_passes_and_a_better_one_that_harms_cold_users_does_not(
    window: EvaluationSet, domain: Domain, rng: np.random.Generator
) -> None:
    champion = logits(window, rng, 1.0)
    assert failed(judged(window, domain, champion, champion)) == []
    for seed in range(5):  # retrained: other noise, the same strength
        again = logits(window, np.random.default_rng(seed), 1.0)
        assert [g.name for g in failed(judged(window, domain, champion, again)) if "auc" in g.name] == []
    cold_R = window.segment("cold")[:, None, None]
    better = logits(window, rng, np.where(cold_R, 0.2, 1.8))
    names = {gate.name for gate in failed(judged(window, domain, champion, better))}
    assert names >= {"auc of save, cold users", "auc of hide, cold users"}
    assert not names & {"auc of save, everyone", "auc of save, core users"}


def test_a_model_that_knows_nothing_or_predicts_too_much_is_refused(
    window: EvaluationSet, domain: Domain, rng: np.random.Generator
) -> None:
    champion = logits(window, rng, 1.0)
    nothing = {gate.name for gate in failed(judged(window, domain, champion, logits(window, rng, 0.0)))}
    assert nothing >= {"auc of save", "auc of save, everyone", "normalised entropy of save, everyone"}
    assert "calibration of save" in {g.name for g in failed(judged(window, domain, champion, champion + 1.0))}


def test_a_head_without_labels_is_not_judged(window: EvaluationSet, domain: Domain, rng: np.random.Generator) -> None:
    label_RCH = window.label_RCH.copy()
    label_RCH[:, :, 1] = 0.0
    rare = dataclasses.replace(window, label_RCH=label_RCH)
    champion = logits(rare, rng, 1.0)
    found = [gate for gate in judged(rare, domain, champion, champion) if "hide" in gate.name]
    assert found
    assert all(gate.passed and gate.value is None and "not judged" in gate.words for gate in found)


def test_shift_latency_and_reload() -> None:
    rng = np.random.default_rng(3)
    score = rng.normal(size=5000).astype(np.float32)
    means = {"save": (0.1, 0.11)}
    assert failed(shift_gates(score, score + 0.1, means, LIMITS)) == []
    moved = [g.name for g in failed(shift_gates(score, score + 1.0, means, LIMITS))]
    assert moved == ["mean feed score", "spread of the feed score"]
    assert [g.name for g in failed(shift_gates(score, 3 * score, means, LIMITS))] == ["spread of the feed score"]
    assert [g.name for g in failed(shift_gates(score, score, {"save": (0.1, 0.2)}, LIMITS))] == ["predictions of save"]
    assert latency_gate([0.010] * 5, [0.011, 0.9, 0.011], LIMITS).passed
    assert not latency_gate([0.010] * 5, [0.020] * 5, LIMITS).passed
    before = {"save": {"auc": 0.8, "calibration": None}}
    assert reload_gate(before, {"save": {"auc": 0.8, "calibration": float("nan")}}, LIMITS).passed
    assert not reload_gate(before, {"save": {"auc": 0.7, "calibration": None}}, LIMITS).passed
    assert not reload_gate(before, {"save": {"auc": None, "calibration": None}}, LIMITS).passed


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=50))
def test_the_stability_index_is_0_for_the_same_scores_and_never_below(values: list[float]) -> None:
    score = np.array(values, np.float32)
    assert stability_index(score, score) == 0.0
    assert stability_index(score, score + 1) >= 0.0


def test_a_plan_takes_closed_days_only_and_leaves_out_what_was_refused() -> None:
    days = [T0 + n * DAY_MS for n in range(6)]
    now_ms = days[-1] + DAY_MS + DAY_MS  # the attribution of the last day is just over
    assert closed_days(days, now_ms=now_ms, attribution_ms=DAY_MS) == days
    assert closed_days(days, now_ms=now_ms - 1, attribution_ms=DAY_MS) == days[:-1]
    plan = make_plan(candidates(days, {day_window(days[3])}, 2))
    assert plan is not None
    assert (plan.train, plan.validation, plan.test) == ((days[1], days[2]), days[4], days[5])
    assert make_plan(days[:2]) is None
    assert make_plan([]) is None


def test_limits_are_read_strictly(tmp_path: Path) -> None:
    assert read_limits(tmp_path) == GateLimits()
    path = tmp_path / "retrain.toml"
    path.write_text("min_auc = 0.6\nmin_requests = 5\n")
    assert read_limits(tmp_path) == GateLimits(min_auc=0.6, min_requests=5)
    for text, says in (
        ("min_aux = 1", "has no key 'min_aux'; known: min_requests, "),
        ("min_requests = 1.5", "min_requests: input should be a valid integer, not 1.5"),
        ("min_auc = true", "min_auc: input should be a valid number, not True"),
        ("min_auc = -1", "min_auc: input should be greater than or equal to 0, not -1"),
        ("min_auc", "not valid TOML"),
    ):
        path.write_text(text)
        with pytest.raises(PublishError, match=says):
            read_limits(tmp_path)


def test_runs_and_refusals_are_kept_whole(tmp_path: Path) -> None:
    first = states.new_run(tmp_path, {"scope": "full"}, T0)
    first.keep(EXPORT, Exported(events=1), 0.5)
    second = states.new_run(tmp_path, {}, T0)
    second.save()
    assert first.id != second.id
    read = {run.id: run for run in states.read_runs(tmp_path)}[first.id]
    assert (read.find(EXPORT), read.seconds, read.find(PLAN)) == (Exported(events=1), {"export": 0.5}, None)
    states.exclude(tmp_path, "w1", first.id, ["label save: flipped"])
    assert states.refused_windows(tmp_path) == {"w1"}
    with pytest.raises(PublishError, match="w2 was not refused; refused are: w1"):
        states.accept(tmp_path, "w2")
    states.accept(tmp_path, "w1")
    assert states.refused_windows(tmp_path) == set()
    (second.directory / "state.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(PublishError, match="another version of rayapp"):
        states.read_runs(tmp_path)


def test_the_watch_exports_prometheus_text(tmp_path: Path) -> None:
    run = states.new_run(tmp_path, {}, T0)
    run.outcome, run.finished_ms = states.REFUSED, T0
    one = day(5)
    gates = [to_json(gate) for gate in watch_gates(one, BEFORE, LIMITS, age_days=30.0)]
    text = generate_latest(watch_metrics([{**to_json(one), "gates": gates}], [run])).decode()
    lines = {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    }
    assert lines['rayapp_watch_within_threshold{measure="champion age"}'] == 0
    assert lines['rayapp_watch_within_threshold{measure="parity"}'] == 1
    assert lines["rayapp_champion_age_days"] == 30
    assert lines["rayapp_retraining_end_timestamp_seconds"] == T0 / 1000
    assert lines['rayapp_day_label_rate{head="save"}'] == pytest.approx(0.08, rel=0.01)
    assert lines['rayapp_retraining_outcome{outcome="refused"}'] == 1
    helped = [line.split()[2] for line in text.splitlines() if line.startswith("# HELP")]
    assert len(helped) == len(set(helped)) == len({line.split("{")[0].split(" ")[0] for line in lines})
    assert generate_latest(watch_metrics([], [])) == b""


@pytest.mark.parametrize(
    ("live", "why", "kept"),
    [
        ("old", "", None),
        ("new", "", None),
        ("old", "latency: too slow", "latency: too slow"),
        ("other", "", "champion was moved to other while this run trained, so it was left there"),
    ],
    ids=["passed", "promoted before the run was killed", "failed", "moved by hand"],
)
def test_an_alias_is_moved_where_all_gates_passed_and_nobody_moved_it(
    root: Path, domain: Domain, live: str, why: str, kept: str | None
) -> None:
    for version in ("old", "new", "other"):
        (root / MODELS / version).mkdir(parents=True)
        write_json(root / MODELS / version / "manifest.json", {})
    promote(root, CHAMPION, live)
    options = RetrainOptions(first=nano())
    state = states.new_run(root, options.to_json(), T0)
    found = Challenge(window="w", champion="old", version="new", gates=(), tables="", why=why)
    retraining = RetrainSteps(root, domain, options, LIMITS, state, None, lambda _: None)
    promoted = retraining.promote(Line(CHAMPION, "old", nano(), None), found)
    assert promoted is (kept is None)
    assert read_aliases(root) == {CHAMPION: "new" if promoted else live}
    verdict = read_verdict(root, "new")
    assert verdict is not None
    assert verdict["promoted"] is promoted
    assert promoted or found.why_kept(CHAMPION, live) == kept
    assert found.why == why, "the result of another step stays as it is"
    lines = (Line(CHAMPION, "old", nano(), None),)
    for step, result in ((LINES, lines), (GATES.of(CHAMPION), found), (PROMOTE.of(CHAMPION), promoted)):
        state.keep(step, result, 0.0)  # type: ignore[arg-type]
    state.outcome = states.PROMOTED if promoted else states.REFUSED
    report = markdown(state, domain, read_aliases(root))
    assert f"## champion: new {'promoted' if promoted else 'not promoted'}" in report
    assert promoted or f"Not promoted because of: {kept}." in report


def test_a_baseline_gives_way_to_a_ranker_and_every_other_model_goes_on_with_its_own_preset(
    root: Path, domain: Domain
) -> None:
    def lines(chosen: Preset | None = None) -> tuple[str, bool, bool]:
        (line,) = read_root_lines(root, domain, variant(demo(), "bst"), chosen)
        return f"{line.preset.name} {line.preset.variant}", line.goes_on, line.to_earn

    assert lines() == ("demo bst", False, True)
    for version, preset in (("ranker", variant(nano(), "cross")), ("counted", variant(nano(), COUNTS))):
        (root / MODELS / version).mkdir(parents=True)
        lineage = {"created_at_ms": 1, "train_windows": [], "validation_window": "v", "test_window": "t"}
        manifest = {"format": FORMAT, "preset": to_json(preset), "item_table": "t", **lineage}
        write_json(root / MODELS / version / "manifest.json", manifest)
    promote(root, CHAMPION, "ranker")
    assert lines() == ("nano cross", True, False)
    assert lines(chosen=demo()) == ("demo v1.1", False, False)
    promote(root, CHAMPION, "counted")
    assert lines() == ("nano bst", False, True)
    assert lines(chosen=variant(nano(), COUNTS)) == ("nano counts", False, True)


@pytest.mark.parametrize(
    ("gain", "passed"), [((0.01, -0.01, 0.02), True), ((-0.02, -0.03, -0.01), False), ((math.nan,) * 3, True)]
)
def test_a_live_ranker_is_not_certainly_worse_than_a_count(gain: tuple[float, float, float], passed: bool) -> None:
    gate = baseline_gate("over counts", "AUC", BootstrapInterval(*gain))
    assert gate.passed is passed
    assert ("a count of the past orders these lists better" in gate.words) is not passed


def killed_at_first(path: Path, *_options: object) -> None:
    with path.open("a") as runs:
        runs.write("run\n")
    if path.read_text() == "run\n":
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_the_loop_goes_on_when_a_run_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(command, "_run_alone", killed_at_first)
    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        command._go_on(3600, tmp_path / "runs")
    assert (tmp_path / "runs").read_text() == "run\nrun\n"
    assert all(3000 < pause <= 3600 for pause in pauses), "from start to start"
    assert capsys.readouterr().err.count("that run ended with -9; the next is in") == 1


@pytest.mark.parametrize(("every", "says"), [("40s", "a minute or more"), ("soon", 'like "30s", "24h" or "7d"')])
def test_a_loop_of_no_time_is_refused(root: Path, every: str, says: str) -> None:
    done = CliRunner().invoke(command.retrain, ["--root", str(root), "--every", every])
    assert (done.exit_code, says in done.output, repr(every) in done.output or every == "40s") == (2, True, True)


def test_the_export_of_a_retraining_ends_while_events_keep_coming(
    root: Path, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients never rest; what comes after the start of the export is for the next run."""
    events = itertools.count()

    class Busy(LmdbStore):
        def drain(self, bucket: int, cursor: int, limit: int) -> list[Committed]:
            n = next(events)
            assert n < 400, "it goes on for as long as events come"
            self.append([make_event(n, user=f"u{n % 50}")])
            return super().drain(bucket, cursor, limit)

    store = Busy(root / "store", domain.vocabulary, 4)
    store.append([make_event(-n, user=f"u{n}", at=T0 + n) for n in range(1, 31)])
    monkeypatch.setattr(steps, "open_store", lambda *_: store)
    run = RunState(root=root, id="r", as_of_ms=T0, options={}, started_ms=T0)
    options = RetrainOptions(first=nano())
    done = RetrainSteps(root, domain, options, GateLimits(), run, None, lambda _: None).export()
    assert isinstance(done, Exported)
    assert done.events >= 30
    assert next(events) < 20
