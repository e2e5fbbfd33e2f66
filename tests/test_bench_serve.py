"""The arithmetic of the serving benches: what counts as a flap, as goodput, as one answer of two models."""

import asyncio
import datetime
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aiohttp import web

from benchmarks.autoscale import _flaps
from benchmarks.host import empty_config, says_ready, side_by_side, sized
from benchmarks.http_load import FEED, HttpAnswer, closed_loop, feed_bodies, good, quantile_ms
from benchmarks.processes import wait_for_start
from benchmarks.serve import ALONE, EMPTY, GRAPH, HANDWRITTEN, PLAIN, PLAIN_INLINE, Loaded, _ratios
from benchmarks.truth import RankAnswer, Truth
from rayapp.launch.graph import serve_config
from rayapp.launch.ports import GraphError, free_port
from rayapp.registry.models import load_model
from rayapp.root.facts import read_root
from rayapp.serving.fresh_statistics import FreshStatistics
from rayapp.serving.ranking import RankCall, rank
from rayapp.store.lmdb import LmdbStore


@pytest.mark.parametrize(
    ("counts", "flaps"),
    [([1, 1, 1], 0), ([1, 2, 4, 4, 3, 1], 0), ([1, 2, 2], 0), ([1, 2, 1, 2, 1], 2), ([1, 3, 2, 3, 1], 2)],
)
def test_a_step_up_and_a_step_down_are_no_flap(counts: list[int], flaps: int) -> None:
    assert _flaps(counts) == flaps


def test_goodput_counts_whole_answers_that_came_in_time() -> None:
    answers = [
        HttpAnswer(0.0, 0.1, 200, False, False),
        HttpAnswer(0.0, 5.0, 200, False, False),
        HttpAnswer(0.0, 0.1, 200, False, True),
        HttpAnswer(0.0, 0.1, 429, True, False),
    ]
    assert good(answers, 1.0) == 1
    assert quantile_ms(answers, 0.99) == 5_000


@pytest.mark.parametrize(
    ("output", "runs"),
    [
        ("", False),
        ("ready\n", True),
        ("2026-11-30 WARNING many replicas, not ready\nready\n", True),
        ("2026-11-30 WARNING not ready\nready or not\n", False),
        ("Traceback\nGraphError: already\n", False),
    ],
)
def test_a_graph_runs_when_it_says_so_whatever_else_ray_prints(output: str, runs: bool) -> None:
    assert says_ready(output) is runs


def test_a_server_that_ended_is_told_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = "import time; print('a warning', flush=True); time.sleep(0.3); raise SystemExit('the port is taken')"
    with (
        log.open("w") as output,
        subprocess.Popen([sys.executable, "-c", program], stdout=output, stderr=output) as process,
        pytest.raises(GraphError, match="a warning\nthe port is taken"),
    ):
        wait_for_start(process, log, lambda: says_ready(log.read_text()))


def test_load_is_sent_to_a_url_that_ends_in_a_path_too() -> None:
    async def session() -> list[HttpAnswer]:
        async def feed(request: web.Request) -> web.Response:
            user = (await request.json())["user_id"]
            return web.json_response({"degraded": False}, status=200 if user == "a" else 429)

        app = web.Application()
        app.router.add_post("/inline/v1/recommendations", feed)
        runner = web.AppRunner(app)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            return await closed_loop(f"http://127.0.0.1:{port}/inline", FEED, feed_bodies(["a", "b"], 10), 2, 0.2)
        finally:
            await runner.cleanup()

    answers = asyncio.run(session())
    assert {a.status for a in answers} == {200, 429}


def test_an_answer_must_have_the_scores_of_the_model_that_it_names(models: tuple[Path, LmdbStore]) -> None:
    root, store = models
    domain, _ = read_root(root)
    truth = Truth(root, None, ("a", "b"))
    at_ms = time.time_ns() // 1_000_000
    step_ms = at_ms // domain.statistics_step_ms * domain.statistics_step_ms

    def answer(version: str, of: str) -> RankAnswer:
        statistics = FreshStatistics(root, domain, store)
        call = RankCall.of("u", store.lookup("u"), at_ms, truth.item_ids, {})
        score_C = rank(load_model(root, of, domain), statistics, domain, call).probability_CH @ domain.utilities
        items = [
            {"item_id": item_id, "score": float(score)} for item_id, score in zip(truth.item_ids, score_C, strict=True)
        ]
        at = datetime.datetime.fromtimestamp(step_ms / 1000, datetime.UTC).isoformat()
        return RankAnswer("u", at_ms, {"model_version": version, "items": items[::-1], "statistics_at": at})

    right, others, unknown = answer("a", of="a"), answer("a", of="b"), answer("c", of="a")
    mixed = RankAnswer("u", at_ms, right.body | {"items": right.body["items"][:9] + others.body["items"][9:]})
    early = RankAnswer("u", at_ms, others.body | {"statistics_at": None})
    assert truth.wrong([early, right, others, answer("b", of="b"), mixed, unknown]) == [others, mixed, unknown]


def test_opponents_stand_side_by_side_with_their_numbers_of_replicas(tmp_path: Path) -> None:
    configs = {
        "inline": sized(serve_config(tmp_path, 1), {"Ranker": 3}),
        "apart": sized(serve_config(tmp_path, 1, inline=[]), {"Ranker": 3}),
        "empty": sized(empty_config([]), {}),
    }
    config = side_by_side(configs)
    assert [a["route_prefix"] for a in config["applications"]] == ["/inline", "/apart", "/empty"]
    for application, rankers in zip(config["applications"], (3, 3, 1), strict=True):
        counts = {d["name"]: d["autoscaling_config"] for d in application["deployments"]}
        assert (counts["Ranker"]["min_replicas"], counts["Ranker"]["max_replicas"]) == (rankers, rankers)
        assert application["args"]["apart"]["candidates"]["autoscaling_config"]["max_replicas"] == 1


def test_ratios_are_taken_within_a_round() -> None:
    loaded = {name: Loaded([30.0, 60.0], [1.0, 1.0]) for name in (GRAPH, PLAIN, PLAIN_INLINE, HANDWRITTEN)}
    loaded[PLAIN].per_s = [20.0, 30.0]
    ratios = _ratios(loaded, {ALONE: [46.0, 30.0], HANDWRITTEN: [40.0, 25.0], EMPTY: [5.0, 2.5]})
    assert ratios["throughput_vs_default_flags"] == [1.5, 2.0]
    assert ratios["overhead_ratio"] == [1.2, 2.0]
