"""Builds the Serve application; `deployments/serve.yaml` names this function and sizes the deployments."""

from pydantic import BaseModel, ConfigDict
from ray.serve import Application

from deployments.ingress import Ingress
from deployments.stages import Candidates, Ranker, Sequences


class AppArgs(BaseModel):
    """Arguments of the application. A changed argument restarts every replica; a model version is none of them."""

    model_config = ConfigDict(extra="forbid")

    root: str
    store: str | None = None
    """URL of the sequence store; None: LMDB in the root."""


def build(args: AppArgs) -> Application:
    """The graph: one ingress, three stages."""
    return Ingress.bind(  # type: ignore[attr-defined]
        args.root,
        Sequences.bind(args.root, args.store),  # type: ignore[attr-defined]
        Candidates.bind(args.root, args.store),  # type: ignore[attr-defined]
        Ranker.bind(args.root, args.store),  # type: ignore[attr-defined]
    )
