"""The smallest application with replicas, for a test of where they run."""

import os

from ray import serve


@serve.deployment(ray_actor_options={"num_cpus": 0.5})
class Echo:
    """Answers with its process."""

    async def __call__(self) -> int:
        return os.getpid()


app = Echo.bind()  # type: ignore[attr-defined]
