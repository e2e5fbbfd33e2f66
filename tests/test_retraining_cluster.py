"""The loop for real: days arrive, models are trained, judged and promoted while a graph serves; and killed runs."""

import threading
import time
from pathlib import Path

import httpx
import pytest

from rayapp.graph import free_port, running_graph
from rayapp.registry.aliases import CHAMPION, read_aliases, rollback
from rayapp.retraining.run import retrain
from rayapp.retraining.state import PROMOTED, REFUSED
from rayapp.workflow import seed_store
from tests.retraining_world import LIMITS, OPTIONS, day_ms, import_days, make_raw

pytestmark = pytest.mark.cluster
FIRST_DAYS = 6
"""Days 0 to 5 make the first champion."""


class Load(threading.Thread):
    """A client that asks for feeds all the time, and remembers what it got."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.client = httpx.Client(base_url=url, timeout=30)
        self.failures: list[str] = []
        self.answers = 0
        self.versions: set[str] = set()
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.1):
            answer = self.client.post("/v1/recommendations", json={"user_id": f"u{self.answers % 50}"})
            self.answers += 1
            if answer.status_code != 200 or answer.json()["degraded"]:
                self.failures.append(answer.text)
            else:
                self.versions.add(answer.json()["model_version"])

    def stop(self) -> None:
        self._ended.set()
        self.join()


@pytest.fixture(scope="module")
def raw(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_raw(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def root(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven days of log and no model."""
    root = tmp_path_factory.mktemp("retraining") / "root"
    import_days(root, raw, 0, FIRST_DAYS)
    (root / "retrain.toml").write_text(LIMITS)
    return root


def live_version(client: httpx.Client) -> str:
    return str(client.post("/v1/recommendations", json={"user_id": "u1"}).json()["model_version"])


def seconds_until_live(client: httpx.Client, version: str) -> float:
    started = time.monotonic()
    while live_version(client) != version:
        assert time.monotonic() - started < 5, f"{version} is not live after 5 s"
        time.sleep(0.02)
    return time.monotonic() - started


def test_three_days_against_a_live_graph(root: Path, raw: Path) -> None:
    """Two good days are promoted by the gates, a poisoned one is refused, a rollback answers; no request fails."""
    first = retrain(root, OPTIONS, as_of_ms=day_ms(FIRST_DAYS + 1))
    assert first.outcome == PROMOTED, first.why
    live = [read_aliases(root)[CHAMPION]]
    seed_store(root)
    with running_graph(root, free_port()) as url:
        load = Load(url)
        load.start()
        for day in (FIRST_DAYS, FIRST_DAYS + 1):
            import_days(root, raw, day + 1, day + 1)
            state = retrain(root, OPTIONS, as_of_ms=day_ms(day + 2))
            assert state.outcome == PROMOTED, state.why
            live.append(read_aliases(root)[CHAMPION])
            seconds_until_live(load.client, live[-1])
            assert state.stages["export"]["requests"] > 0, "what the graph answered reached the log"
        assert len(set(live)) == 3

        poisoned = FIRST_DAYS + 2
        import_days(root, raw, poisoned + 1, poisoned + 1)
        state = retrain(root, OPTIONS, as_of_ms=day_ms(poisoned + 2))
        assert state.outcome == REFUSED
        rollback(root)
        assert seconds_until_live(load.client, live[-2]) < 5
        rollback(root)
        seconds_until_live(load.client, live[-1])
        load.stop()
    assert not load.failures
    assert load.answers > 50
    assert load.versions == set(live)
