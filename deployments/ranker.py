"""The deployment of the stage that scores: each call alone on a CPU, several at once on a GPU."""

from pathlib import Path

import ray
import torch
from ray import serve

from deployments.metrics import count_replica
from rayapp.model.batched import LARGEST_BATCH
from rayapp.serving.ranking import RankCall, Ranking
from rayapp.serving.ranking_stage import RankingStage
from rayapp.store.opening import open_store

BATCH_WAIT_S = 0.002
"""How long a GPU waits for calls of other users to be scored at once."""


@serve.deployment(name="Ranker")
class RankerDeployment(RankingStage):
    """`RankingStage` on the device that Ray gave this replica."""

    async def __init__(self, root: str, store: str | None) -> None:  # type: ignore[misc]
        self._gpu = own_gpu()
        super().__init__(Path(root), open_store(Path(root), store), self._gpu)

    async def check_health(self) -> None:
        count_replica()
        await super().check_health()

    async def rank(self, version: str, call: RankCall) -> Ranking | None:
        """None when this replica does not hold `version`."""
        if self._gpu is None:
            return await super().rank(version, call)
        answer: Ranking | Exception | None = await self._rank_together((version, call))
        if isinstance(answer, Exception):
            raise answer
        return answer

    @serve.batch(max_batch_size=LARGEST_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)  # type: ignore[untyped-decorator]
    async def _rank_together(self, calls: list[tuple[str, RankCall]]) -> list[Ranking | Exception | None]:
        return await self.rank_many(calls)


def own_gpu() -> torch.device | None:
    """The GPU that Ray reserved for this replica (`num_gpus` in its `ray_actor_options`): without one, none is used,
    even if the machine has some."""
    mine = torch.cuda.is_available() and ray.is_initialized() and ray.get_gpu_ids()
    return torch.device("cuda") if mine else None
