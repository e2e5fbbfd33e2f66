"""A root that version 0.1 left behind: `data/root_of_0_1.tar.xz`, a made-up world with a champion, a baseline, one
finished retraining, and a day that came after it. Its logs, items, users and store open; its models know no fresh
statistics and are refused; trained anew it serves and retrains."""

import re
import shutil
import tarfile
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from rayapp.cli.main import cli
from rayapp.contracts.config import DAY_MS, day_name
from rayapp.contracts.presets import nano
from rayapp.importing.domains import BUILT_IN, load_domain
from rayapp.launch.graph import running_graph
from rayapp.launch.ports import free_port
from rayapp.loop.artifacts import build_windows, item_table, train_model, training_run
from rayapp.loop.daily import watch_days
from rayapp.loop.first_training import split_of
from rayapp.loop.report import markdown
from rayapp.loop.results import EXPORT, GATES, ITEM_TABLE, JUDGE, LINES, PLAN, PROMOTE, TRAIN, WINDOWS
from rayapp.loop.retrain import retrain
from rayapp.loop.run_state import FAILED, JUDGED, PROMOTED, read_runs
from rayapp.loop.steps import RetrainOptions
from rayapp.pipeline.export import Exported
from rayapp.registry.aliases import BASELINE, CHAMPION, promote, read_aliases
from rayapp.registry.models import load_model
from rayapp.registry.verdicts import read_verdict
from rayapp.root.catalogue import read_catalogue, read_users
from rayapp.root.facts import read_root
from rayapp.root.logs import read_log
from rayapp.root.places import EVENTS, REQUESTS
from rayapp.root.publish import PublishError
from rayapp.sources.synthetic import World
from rayapp.store.opening import open_store
from tests.conftest import until

START_MS = World().start_ms
LAST_DAY = 11
"""The newest day of its logs; day 0 is the world's first. The retraining of the archive tested on the one before."""
RETRAINED = "nano-v1.1-2025-01-11-81a4766f"
REFUSED = "model {version} has format 2, this version reads 3; train anew: `rayapp train`"


LIKED = '\n[[heads]]\nname = "liked"\nactions = ["save", "click"]\nutility = 0.5\n'
SHARE = '\n[[actions]]\nname = "share"\nkind = "positive"\n'


def changed(root: Path) -> str:
    """What `rayapp domain apply` says of the root's `domain.toml`."""
    done = CliRunner().invoke(cli, ["domain", "apply", "--root", str(root), str(root / "domain.toml")])
    return f"{done.output}{done.exception or ''}"


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once; nobody changes it."""
    root = tmp_path_factory.mktemp("old") / "root"
    with tarfile.open(Path(__file__).parent / "data" / "root_of_0_1.tar.xz") as archive:
        archive.extractall(root, filter="data")
    return root


@pytest.fixture
def old_root(archived: Path, tmp_path: Path) -> Path:
    return shutil.copytree(archived, tmp_path / "root")


def test_it_opens(archived: Path) -> None:
    domain, num_buckets = read_root(archived)
    assert (domain, num_buckets) == (load_domain("synthetic").domain, 4)
    assert read_aliases(archived)[CHAMPION] == RETRAINED
    assert BASELINE in read_aliases(archived)
    listed = CliRunner().invoke(cli, ["models", "list", "--root", str(archived)])
    assert listed.exit_code == 0, listed.output
    assert f"{REFUSED.format(version=RETRAINED)}  champion" in listed.output
    verdict = read_verdict(archived, RETRAINED)
    assert verdict is not None
    assert verdict["promoted"]


def test_the_results_of_its_retraining_are_read(archived: Path) -> None:
    (run,) = read_runs(archived)
    assert run.outcome == PROMOTED
    assert run.find(EXPORT) == Exported()
    (line,) = run.find(LINES) or ()
    assert (line.alias, line.preset.name) == (CHAMPION, "nano")
    plan, judged, challenge = run.find(PLAN), run.find(JUDGE), run.find(GATES.of(CHAMPION))
    assert plan is not None
    assert judged is not None
    assert challenge is not None
    assert plan.test == START_MS + (LAST_DAY - 1) * DAY_MS
    assert list(plan.spans) == [(day, day + DAY_MS) for day in run.find(WINDOWS) or ()]
    assert set(judged.judged) == {*plan.train, plan.validation, plan.test}
    assert (challenge.version, challenge.champion, challenge.why) == (RETRAINED, line.version, "")
    assert len(challenge.gates) == 28
    assert run.find(ITEM_TABLE.of(CHAMPION)) == "2025-01-08-4d-to-2025-01-10"
    assert run.find(TRAIN.of(CHAMPION)) == RETRAINED
    assert run.find(PROMOTE.of(CHAMPION)) is True
    written = (run.directory / "report.md").read_text().replace("| stage | seconds |", "| step | seconds |")
    assert markdown(run, read_root(archived)[0], read_aliases(archived)) == written, "the same report, word for word"


def test_its_logs_items_users_and_store_open(old_root: Path) -> None:
    domain, _ = read_root(old_root)
    assert read_log(old_root, EVENTS, ["user_id", "commit_seq"]).num_rows > 1_000
    requests = read_log(old_root, REQUESTS, ["request_id", "statistics_at_ms", "statistics", "commit_seq"])
    assert requests.num_rows > 100
    assert requests["statistics_at_ms"].null_count == requests["statistics"].null_count == requests.num_rows
    assert read_catalogue(old_root).num_rows > 10
    assert read_users(old_root, domain).num_rows > 10
    store = open_store(old_root)
    assert any(len(store.lookup(f"u{n}").history) for n in range(100))
    assert store.agreed() == {}
    assert store.agree(7, [0] * 4) == (0,) * 4
    store.close()


def test_its_models_are_refused_with_what_to_run(archived: Path) -> None:
    domain, _ = read_root(archived)
    for version in read_aliases(archived).values():
        with pytest.raises(PublishError, match=re.escape(REFUSED.format(version=version))):
            load_model(archived, version, domain)
    shown = CliRunner().invoke(cli, ["models", "show", "--root", str(archived), RETRAINED])
    assert REFUSED.format(version=RETRAINED) in str(shown.exception)


@pytest.mark.extended
@pytest.mark.cluster
def test_trained_anew_it_is_watched_retrained_and_served(old_root: Path, ray_session: None) -> None:
    domain, last_ms = read_root(old_root)[0], START_MS + LAST_DAY * DAY_MS
    as_of_ms = last_ms + 2 * DAY_MS
    options, why = RetrainOptions(first=nano(), train_window_days=3), REFUSED.format(version=RETRAINED)
    with pytest.raises(PublishError, match=re.escape(why)):
        watch_days(old_root, domain, 3, as_of_ms)
    refused = retrain(old_root, options, as_of_ms=as_of_ms)
    assert (refused.outcome, refused.why) == (FAILED, why)

    split = split_of(old_root, last_ms - 4 * DAY_MS, last_ms - DAY_MS, last_ms)
    prepared, built = build_windows(old_root, domain, split)
    assert built
    run = training_run(old_root, prepared, nano(), item_table(old_root, prepared, nano())[0])
    assert train_model(run, domain)
    promote(old_root, CHAMPION, run.version)

    (old_root / "domain.toml").write_text(BUILT_IN["synthetic"].read_text() + LIKED)
    assert "1 changes made" in changed(old_root)
    domain, _ = read_root(old_root)
    rows = watch_days(old_root, domain, 3, as_of_ms)
    assert [row["day_ms"] for row in rows] == [last_ms + day * DAY_MS for day in (-1, 0, 1)]
    assert [row["requests"] > 0 for row in rows] == [True, True, False]
    state = retrain(old_root, options, as_of_ms=as_of_ms)
    assert state.outcome in JUDGED, state.why
    plan, version = state.find(PLAN), state.find(TRAIN.of(CHAMPION))
    assert plan is not None
    assert plan.test == last_ms
    assert version is not None
    assert version.startswith(f"nano-v1.1-{day_name(plan.test)}-")
    assert load_model(old_root, version, domain).head_names == ("save", "click", "hide", "liked")
    assert load_model(old_root, run.version, domain).head_names == ("save", "click", "hide")
    live = version if state.outcome == PROMOTED else run.version
    assert read_aliases(old_root)[CHAMPION] == live
    assert [run.id for run in read_runs(old_root)] == ["20250113-1", refused.id, state.id]
    judged = state.find(JUDGE)
    assert judged is not None
    assert judged.judged == (plan.test,), "the days before were judged by the old run"

    store = open_store(old_root)
    user = next(user for user in (f"u{n}" for n in range(100)) if len(store.lookup(user).history))
    store.close()
    now = {"user_id": user, "item_id": "i1", "action": "share", "timestamp_ms": 1_760_000_000_000}
    with running_graph(old_root, free_port()) as url:
        answer = httpx.post(f"{url}/v1/recommendations", json={"user_id": user}, timeout=30)
        text = BUILT_IN["synthetic"].read_text().replace("utility = 0.2", "utility = 0.9") + LIKED + SHARE
        (old_root / "domain.toml").write_text(text)
        assert httpx.post(f"{url}/v1/events", json=now, timeout=30).status_code == 422
        assert "2 changes made" in changed(old_root)
        until(lambda: httpx.post(f"{url}/v1/events", json=now, timeout=30).status_code == 200, 10)
        rank = {"user_id": user, "item_ids": ["i1"], "explain": True}
        (item,) = httpx.post(f"{url}/v1/rank", json=rank, timeout=30).json()["items"]
    known = {"save": 1.0, "click": 0.9, "hide": -1.0, "liked": 0.5}
    assert item["score"] == pytest.approx(sum(known[head] * p for head, p in item["probabilities"].items()), abs=1e-4)
    assert ("liked" in item["probabilities"]) is (state.outcome == PROMOTED)
    assert answer.status_code == 200, answer.text
    feed = answer.json()
    assert (feed["model_version"], feed["degraded"]) == (live, False)
    assert feed["statistics_at"]
    assert feed["sequence"]["length"] > 0
    assert feed["items"]
