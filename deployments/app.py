"""Builds the Serve application; `deployments/serve.yaml` names this function and sizes the deployments."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray.serve import Application

from deployments.candidates import CandidatesDeployment
from deployments.ingress import Ingress
from deployments.placement import StageName, placed
from deployments.ranker import RankerDeployment
from deployments.sequences import SequencesDeployment


class AppArgs(BaseModel):
    """Arguments of the application. A changed argument restarts every replica; a model version is none of them."""

    model_config = ConfigDict(extra="forbid")

    root: str
    store: str | None = None
    """URL of the sequence store, without a password, which comes from `RAYAPP_STORE` on the nodes. None: what that
    says, or the store that is in use, or LMDB in the root."""
    keys: bool = True
    """Whether callers need an API key (`rayapp keys add`). Off only where the port is on loopback."""
    ranker_calls: int = Field(8, ge=1)
    """Calls to rankers that one ingress has under way. All ingresses together should ask no more than all rankers
    take (their `max_ongoing_requests`)."""
    random_share: float = Field(0.0, ge=0, le=0.2)
    """Share of feeds in random order, logged as such: for evaluation that no model has a hand in."""
    inline: list[StageName] = []
    """Stages that run inside the ingress's process instead of as deployments of their own."""
    apart: dict[StageName, dict[str, Any]] = {}
    """Deployment options of these stages, where they are not inline."""


def build(args: AppArgs) -> Application:
    """The graph: one ingress, three stages."""
    where = args.root, args.store
    return Ingress.bind(  # type: ignore[attr-defined]
        args.root,
        placed("sequences", SequencesDeployment, args.inline, args.apart, *where),
        placed("candidates", CandidatesDeployment, args.inline, args.apart, *where),
        RankerDeployment.bind(*where),  # type: ignore[attr-defined]
        ranker_calls=args.ranker_calls,
        keys_needed=args.keys,
        random_share=args.random_share,
    )
