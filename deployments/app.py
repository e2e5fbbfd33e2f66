"""Builds the Serve application; `deployments/serve.yaml` names this function and sizes the deployments."""

from pydantic import BaseModel, ConfigDict, Field
from ray.serve import Application

from deployments.ingress import Ingress
from deployments.sequences import Sequences
from deployments.stages import Candidates, Ranker


class AppArgs(BaseModel):
    """Arguments of the application. A changed argument restarts every replica; a model version is none of them."""

    model_config = ConfigDict(extra="forbid")

    root: str
    store: str | None = None
    """URL of the sequence store; None: LMDB in the root."""
    keys: bool = True
    """Whether callers need an API key (`rayapp keys add`). Off only where the port is on loopback."""
    random_share: float = Field(0.0, ge=0, le=0.2)
    """Share of feeds in random order, logged as such: for evaluation that no model has a hand in."""


def build(args: AppArgs) -> Application:
    """The graph: one ingress, three stages."""
    sequences = Sequences.bind(args.root, args.store)  # type: ignore[attr-defined]
    return Ingress.bind(  # type: ignore[attr-defined]
        args.root,
        sequences,
        Candidates.bind(args.root, args.store, sequences),  # type: ignore[attr-defined]
        Ranker.bind(args.root, args.store),  # type: ignore[attr-defined]
        args.keys,
        args.random_share,
    )
