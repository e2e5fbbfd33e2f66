"""The deployment of the stage that fetches items worth ranking."""

from pathlib import Path

from ray import serve

from deployments.metrics import count_replica
from rayapp.serving.candidate_stage import CandidateStage
from rayapp.store.opening import open_store


@serve.deployment(name="Candidates")
class CandidatesDeployment(CandidateStage):
    """`CandidateStage` over the root's item tables and the graph's store."""

    async def __init__(self, root: str, store: str | None) -> None:  # type: ignore[misc]
        super().__init__(Path(root), open_store(Path(root), store))

    async def check_health(self) -> None:
        count_replica()
        await super().check_health()
