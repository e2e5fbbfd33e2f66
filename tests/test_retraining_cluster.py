"""The loop for real: days arrive, models are trained, judged and promoted while a graph serves; and what goes wrong."""

import errno
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from rayapp.contracts.config import day_name
from rayapp.contracts.presets import COUNTS
from rayapp.launch.graph import running_graph
from rayapp.launch.ports import free_port
from rayapp.loop import artifacts
from rayapp.loop.artifacts import Prepared
from rayapp.loop.daily import watch_days
from rayapp.loop.plan import day_window
from rayapp.loop.preview import preview
from rayapp.loop.results import COUNT, EXPORT, GATES, TRAIN
from rayapp.loop.retrain import retrain
from rayapp.loop.run_state import FAILED, NO_NEW_DATA, PROMOTED, REFUSED, RunState, accept, read_runs, refused_windows
from rayapp.pipeline.export import Exported
from rayapp.registry.aliases import BASELINE, CHAMPION, promote, read_aliases, rollback
from rayapp.registry.retrainings import read_retrainings
from rayapp.registry.verdicts import read_verdict
from rayapp.root.publish import PublishError, exclusive, read_json, read_manifest, write_json
from tests.conftest import RAYAPP
from tests.retraining_world import DOMAIN, LIMITS, NEXT, OPTIONS, day_ms, import_day

pytestmark = pytest.mark.cluster
POISONED = NEXT + 1
KILLED_IN = ("train champion",)
KILLED_ALSO_IN = ("windows", "train counts", "train champion", "train treatment", "gates of champion")
ARM = "treatment"
EXPERIMENT = """
[[experiments]]
name = "arms"
salt = "arms-1"
starts = {starts}
planned_days = 30
[[experiments.arms]]
name = "control"
alias = "champion"
share = 0.5
[[experiments.arms]]
name = "treatment"
alias = "treatment"
share = 0.5
"""


class Load(threading.Thread):
    """A client that asks for feeds and acts on them all the time, and remembers what failed."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.client = httpx.Client(base_url=url, timeout=30)
        self.failures: list[str] = []
        self.answers = 0
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.1):
            user = f"u{self.answers % 50}"
            answer = self.client.post("/v1/recommendations", json={"user_id": user})
            self.answers += 1
            if answer.status_code != 200:
                self.failures.append(answer.text)
                continue
            event = {"user_id": user, "item_id": answer.json()["items"][0]["item_id"], "action": "click"}
            event["timestamp_ms"] = time.time_ns() // 1_000_000
            if self.client.post("/v1/events", json=event).status_code != 200:
                self.failures.append("an event was not taken")

    def __enter__(self) -> "Load":
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._ended.set()
        self.join()
        self.client.close()


@dataclass(frozen=True)
class Night:
    """A root after the retraining of a day."""

    root: Path
    before: dict[str, str]
    """Its aliases before it."""
    state: RunState
    output: str = ""
    while_killed: tuple[dict[str, str], ...] = ()
    """Its aliases after each SIGKILL."""

    def copy(self, to: Path) -> Path:
        return shutil.copytree(self.root, to / "root")


def copy_of(trained: Path, to: Path) -> Path:
    root = shutil.copytree(trained, to / "root")
    (root / "retrain.toml").write_text(LIMITS)
    return root


@pytest.fixture(scope="module")
def promoted(
    trained_world: tuple[Path, Prepared], on_our_ray: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Night:
    """A day that is right, with an experiment whose second arm has a model of its own. Its run is killed in its
    training, and ends at last."""
    return night_with_kills(trained_world[0], tmp_path_factory.mktemp("promoted"), KILLED_IN, on_our_ray)


def night_with_kills(trained: Path, to: Path, steps: Sequence[str], environment: dict[str, str]) -> Night:
    """A run that is killed with SIGKILL in one step after another, and ends at last."""
    root = copy_of(trained, to)
    promote(root, ARM, read_aliases(root)[BASELINE])
    (root / "experiments.toml").write_text(EXPERIMENT.format(starts=time.strftime("%Y-%m-%d")))
    before, while_killed = read_aliases(root), []
    import_day(root, NEXT)
    command = [RAYAPP, "retrain", "--root", str(root)]
    command += ["--train-window-days", "3", "--as-of", day_name(day_ms(NEXT + 2))]
    for step in steps:
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert any(line.startswith(f"{step} …") for line in process.stdout)
            os.kill(process.pid, signal.SIGKILL)
        while_killed.append(read_aliases(root))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = read_runs(root)
    return Night(root, before, run, done.stdout, tuple(while_killed))


@pytest.fixture(scope="module")
def refused(promoted: Night, tmp_path_factory: pytest.TempPathFactory) -> Night:
    """The day after, whose saves got lost on the way."""
    root = promoted.copy(tmp_path_factory.mktemp("refused"))
    before = read_aliases(root)
    import_day(root, POISONED, without="save")
    return Night(root, before, on_day(root, POISONED))


def seconds_until_live(client: httpx.Client, version: str) -> float:
    started = time.monotonic()
    while client.get("/v1/models").json()["serving"] != version:
        assert time.monotonic() - started < 5, f"{version} is not live after 5 s"
        time.sleep(0.02)
    return time.monotonic() - started


def on_day(root: Path, day: int) -> RunState:
    """The run of the night in which that day closes."""
    return retrain(root, OPTIONS, as_of_ms=day_ms(day + 2))


def test_a_run_that_is_killed_goes_on_and_nothing_moves_before_its_end(promoted: Night) -> None:
    root, run = promoted.root, promoted.state
    assert promoted.while_killed == (promoted.before,) * len(KILLED_IN)
    assert "plan: done before" in promoted.output
    assert (run.outcome, run.resumed) == (PROMOTED, len(KILLED_IN))
    new = {alias: run.find(TRAIN.of(alias)) for alias in (CHAMPION, ARM)} | {COUNTS: run.find(COUNT)}
    assert read_aliases(root) == promoted.before | new
    challenge = run.find(GATES.of(CHAMPION))
    assert challenge is not None
    (gate,) = [gate for gate in challenge.gates if gate.name == "over counts"]
    assert f"over {new[COUNTS]}" in gate.words
    built = {path.name for path in (root / "windows").iterdir()}
    assert built >= {day_window(day_ms(day)) for day in range(NEXT - 4, NEXT + 1)}
    assert not [name for name in built if name.startswith(".")], "nothing half-built is left"
    assert (run.directory / "report.md").read_text().startswith(f"# Retraining {run.id}: promoted")


@pytest.mark.extended
def test_a_run_that_is_killed_in_one_step_after_another_goes_on(
    trained_world: tuple[Path, Prepared], on_our_ray: dict[str, str], tmp_path: Path
) -> None:
    night = night_with_kills(trained_world[0], tmp_path, KILLED_ALSO_IN, on_our_ray)
    assert night.while_killed == (night.before,) * len(KILLED_ALSO_IN)
    assert "train champion: done before" in night.output
    assert (night.state.outcome, night.state.resumed) == (PROMOTED, len(KILLED_ALSO_IN))


def test_an_arm_of_an_experiment_has_a_line_of_its_own_in_the_same_run(promoted: Night) -> None:
    live = read_aliases(promoted.root)
    last = read_retrainings(promoted.root)[-1]
    assert last.aliases[CHAMPION] == {"from": promoted.before[CHAMPION], "to": live[CHAMPION]}
    assert last.aliases[ARM] == {"from": promoted.before[ARM], "to": live[ARM]}, "on the same day"
    manifests = [read_manifest(promoted.root / "models" / live[alias]) for alias in (CHAMPION, ARM)]
    assert [manifest["preset"]["variant"] for manifest in manifests] == ["v1.1", "no-sequence"]
    assert {manifest["test_window"] for manifest in manifests} == {day_window(day_ms(NEXT))}
    verdict = read_verdict(promoted.root, live[CHAMPION])
    assert verdict is not None
    assert verdict["promoted"]
    assert verdict["champion"] == promoted.before[CHAMPION]


def test_a_good_day_reaches_a_live_graph_and_a_rollback_answers(promoted: Night, tmp_path: Path) -> None:
    """From one model to the next and back while clients ask; no request fails."""
    root = promoted.copy(tmp_path)
    (root / "experiments.toml").unlink()
    live = [promoted.before[CHAMPION], read_aliases(root)[CHAMPION]]
    day = NEXT + 1
    with running_graph(root, free_port()) as url, Load(url) as load:
        seconds_until_live(load.client, live[-1])
        import_day(root, day)
        state = on_day(root, day)
        assert state.outcome == PROMOTED, state.why
        live.append(read_aliases(root)[CHAMPION])
        assert seconds_until_live(load.client, live[-1]) < 5
        exported = state.find(EXPORT)
        assert isinstance(exported, Exported)
        assert exported.events > 0, "what the graph took in reached the log"
        rollback(root)
        assert seconds_until_live(load.client, live[-2]) < 5
        rollback(root)
        seconds_until_live(load.client, live[-1])
    assert not load.failures
    assert load.answers > 20
    assert len(set(live)) == 3
    for n, version in enumerate(live[1:]):
        manifest = read_manifest(root / "models" / version)
        assert manifest["test_window"] == day_window(day_ms(NEXT + n))
        assert manifest["parent"] == live[n], "a warm start"
    last = read_retrainings(root)[-1]
    assert last.aliases == {CHAMPION: {"from": live[-2], "to": live[-1]}}


def test_a_poisoned_day_is_refused_and_the_report_says_why(refused: Night) -> None:
    state = refused.state
    assert state.outcome == REFUSED
    assert "'save' vanished" in state.why
    assert read_aliases(refused.root) == refused.before
    assert refused_windows(refused.root) == {day_window(day_ms(POISONED))}
    text = (state.directory / "report.md").read_text()
    for words in (
        "not promoted: the live models stay",
        "vanished",
        "--accept-window",
        "| live: champion |",
        "## Watch",
    ):
        assert words in text
    assert json.loads((state.directory / "report.json").read_text())["outcome"] == REFUSED


def test_a_quiet_night_says_so_and_the_watch_sees_what_was_wrong(refused: Night, tmp_path: Path) -> None:
    root = refused.copy(tmp_path)
    again = on_day(root, POISONED)
    assert again.outcome == NO_NEW_DATA, again.why
    rows = watch_days(root, DOMAIN, 3, day_ms(POISONED + 2))
    assert [row["day_ms"] for row in rows] == [day_ms(n) for n in (POISONED - 1, POISONED, POISONED + 1)]
    over_counts = [gate for row in rows for gate in row["gates"] if gate["name"] == "over counts"]
    assert [gate["words"].rsplit(" ", 1)[-1] for gate in over_counts] == [day_name(day_ms(NEXT))], (
        "the last that was not refused"
    )
    bad = {gate["name"] for gate in rows[1]["gates"] if not gate["passed"]}
    assert bad >= {"action save", "label save"}
    assert {gate["name"] for gate in rows[2]["gates"] if not gate["passed"]} >= {"requests"}, "a feed that stopped"


def test_a_refused_day_is_read_once_an_operator_accepts_it(refused: Night, tmp_path: Path) -> None:
    root = refused.copy(tmp_path)
    window = day_window(day_ms(POISONED))
    found = preview(root, OPTIONS, day_ms(POISONED + 2))
    assert (found.refused, found.new) == ([window], False)
    accept(root, window)
    found = preview(root, OPTIONS, day_ms(POISONED + 2))
    assert found.plan is not None
    assert (found.plan.test, found.new, found.to_build) == (day_ms(POISONED), True, [])
    assert [line[0] for line in found.lines] == [CHAMPION, ARM]


def test_faults_end_in_words_and_the_live_model_stays(
    promoted: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, day = promoted.copy(tmp_path), NEXT + 1
    before = read_aliases(root)
    import_day(root, day)

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(artifacts, "build", full)
        state = on_day(root, day)
    assert (state.outcome, read_aliases(root)) == (FAILED, before)
    assert "No space left" in (state.directory / "report.md").read_text()

    with exclusive(root, "another run"), pytest.raises(PublishError, match="another process holds"):
        on_day(root, day)

    path = root / "models" / before[CHAMPION] / "manifest.json"
    saved = shutil.copy(path, path.with_suffix(".saved"))
    write_json(path, read_json(path) | {"format": 99})
    state = on_day(root, day)
    shutil.move(saved, path)
    assert (state.outcome, read_aliases(root)) == (FAILED, before)
    assert "install the version that wrote it" in state.why

    (root / "retrain.toml").write_text("min_aux = 1")
    with pytest.raises(PublishError, match="has no key 'min_aux'; known: "):
        on_day(root, day)


def test_the_loop_outlives_a_failed_run_and_ends_when_told(
    trained_world: tuple[Path, Prepared], tmp_path: Path
) -> None:
    root = copy_of(trained_world[0], tmp_path)
    (root / "retrain.toml").write_text("min_aux = 1")
    command = [RAYAPP, "retrain", "--root", str(root)]
    with subprocess.Popen([*command, "--every", "1h"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert any("has no key 'min_aux'; known: " in line for line in process.stderr)
            assert any("that run ended with 1; the next is in" in line for line in process.stderr)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 143
        finally:
            process.kill()
