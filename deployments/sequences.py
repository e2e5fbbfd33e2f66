"""The deployment of the stage that owns the sequence store."""

from pathlib import Path

from ray import serve
from ray.serve import metrics

from deployments.metrics import count_replica
from rayapp.serving.sequence_stage import SequenceStage
from rayapp.store.opening import open_for_graph

FRESHNESS_MS = [5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 60_000]


@serve.deployment(name="Sequences")
class SequencesDeployment(SequenceStage):
    """`SequenceStage` over the graph's store, which every command finds from now on."""

    async def __init__(self, root: str, store: str | None) -> None:  # type: ignore[misc]
        freshness = metrics.Histogram(
            "rayapp_freshness_ms", "From the receipt of an action to a look-up that shows it.", FRESHNESS_MS
        )
        super().__init__(Path(root), open_for_graph(Path(root), store), freshness.observe)

    async def check_health(self) -> None:
        count_replica()
