"""What Ray does with a GPU: trains on it, ranks on it in a replica, scores a batch job on it. Skipped without one."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ray import serve

from deployments.ranker import RankerDeployment
from rayapp.batch.job import InputKind, Job
from rayapp.batch.score import ScorerPool, job_of_files, run_job
from rayapp.loop.artifacts import Prepared
from rayapp.model.batched import LARGEST_BF16_ERROR
from rayapp.registry.aliases import CHAMPION, read_aliases
from rayapp.registry.models import load_model
from rayapp.root.catalogue import read_catalogue
from rayapp.root.facts import read_root
from rayapp.root.logs import read_log
from rayapp.root.places import EVENTS
from rayapp.root.publish import read_manifest
from rayapp.serving.fresh_statistics import FreshStatistics
from rayapp.serving.ranking import RankCall, rank
from rayapp.store.opening import open_store

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def people(root: Path, count: int) -> list[str]:
    return sorted(set(read_log(root, EVENTS, ["user_id"])["user_id"].to_pylist()))[:count]


def test_ray_train_took_the_gpu(world: tuple[Path, Prepared]) -> None:
    root, _ = world
    assert read_manifest(root / "models" / read_aliases(root)[CHAMPION])["device"] == "GPU"


def test_a_replica_with_a_gpu_ranks_together_what_the_scorer_ranks_alone(world: tuple[Path, Prepared]) -> None:
    """Two dozen calls at once, so that `serve.batch` puts some together, of different lengths."""
    root, prepared = world
    domain, _ = read_root(root)
    version = read_aliases(root)[CHAMPION]
    items = read_catalogue(root)["item_id"].to_pylist()
    store = open_store(root)
    calls = [
        RankCall.of(user, store.lookup(user), prepared.test_ms, items[n : 2 * n + 30], {})
        for n, user in enumerate(people(root, 24))
    ]
    on_gpu = RankerDeployment.options(ray_actor_options={"num_cpus": 1, "num_gpus": 1})

    async def ask(handle: Any) -> list[Any]:
        return await asyncio.gather(*(handle.rank.remote(version, call) for call in calls))

    try:
        handle = serve.run(on_gpu.bind(str(root), None), name="gpu", route_prefix=None)
        answers = asyncio.run(ask(handle))
    finally:
        serve.shutdown()
    model, statistics = load_model(root, version, domain), FreshStatistics(root, domain, store)
    store.close()
    for call, answer in zip(calls, answers, strict=True):
        alone = rank(model, statistics, domain, call)
        np.testing.assert_allclose(answer.probability_CH, alone.probability_CH, atol=2 * LARGEST_BF16_ERROR)
        assert answer.sequence_hash == alone.sequence_hash
        assert answer.statistics.item_CK.any()


def test_a_batch_job_scores_the_same_on_a_gpu(world: tuple[Path, Prepared], tmp_path: Path) -> None:
    root, prepared = world
    users, items = people(root, 40), read_catalogue(root)["item_id"].to_pylist()[:50]
    pairs = {"user_id": [u for u in users for _ in items], "item_id": items * len(users)}
    pq.write_table(pa.table(pairs), tmp_path / "pairs.parquet")
    files, stamps = job_of_files([tmp_path / "pairs.parquet"])
    job = Job(
        root=str(root),
        kind=InputKind.PAIRS,
        inputs=stamps,
        model_version=read_aliases(root)[CHAMPION],
        as_of_ms=prepared.test_ms,
        rows_per_part=500,
    )
    scored = {}
    for name, pool in (("cpu", ScorerPool(1)), ("gpu", ScorerPool(2, gpus_each=0.5))):
        run_job(job, files, tmp_path / name, pool, now_ms=prepared.test_ms)
        table = pq.read_table(tmp_path / name / "scores", partitioning=None)
        scored[name] = table.sort_by([("user_id", "ascending"), ("item_id", "ascending")])
    assert scored["cpu"].num_rows == scored["gpu"].num_rows == len(users) * len(items)
    for head in prepared.domain.head_names:
        cpu, gpu = (scored[place][f"probability_{head}"].to_numpy() for place in ("cpu", "gpu"))
        np.testing.assert_allclose(gpu, cpu, atol=2 * LARGEST_BF16_ERROR)
