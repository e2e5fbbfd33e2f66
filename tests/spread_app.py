"""The smallest application with replicas, for a test of where they run."""

import os

from ray import serve

from deployments.metrics import count_replica


@serve.deployment(ray_actor_options={"num_cpus": 0.5})
class Echo:
    """Answers with its process."""

    async def check_health(self) -> None:
        count_replica()

    async def __call__(self) -> int:
        return os.getpid()


app = Echo.bind()  # type: ignore[attr-defined]
