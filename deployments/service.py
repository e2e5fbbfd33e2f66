"""What the HTTP routes work with: the stages, the feed over them, keys, and what is kept of answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from deployments.http import Problem
from deployments.metrics import Metrics
from rayapp.contracts.config import Domain
from rayapp.experiments.assignment import ExperimentBook
from rayapp.serving.answer_log import AnswerLog
from rayapp.serving.feed import Feed
from rayapp.serving.keys import Keys, Role
from rayapp.serving.live import Live
from rayapp.serving.stages import Stages

KEY: Final = "A key of `rayapp keys add NAME`; none is needed where the graph listens on loopback alone"
Bearer = Annotated[Any, Security(HTTPBearer(auto_error=False, scheme_name="Bearer", description=KEY))]
Header = Annotated[Any, Security(APIKeyHeader(name="X-API-Key", auto_error=False, description=KEY))]
"""For the OpenAPI document and its key button; `_role` reads both headers itself."""


@dataclass(slots=True)
class Service:
    """One ingress replica's working parts."""

    root: Path
    domain: Domain
    stages: Stages
    live: Live
    feed: Feed
    answers: AnswerLog
    metrics: Metrics
    book: ExperimentBook
    keys: Keys
    keys_needed: bool

    def __post_init__(self) -> None:
        self._let_rest()

    def _let_rest(self) -> None:
        self.answers.rest_items = self.domain.rest_items if self.domain.rest_ms else 0

    def follow(self, domain: Domain) -> None:
        """All of it goes by another domain from now on."""
        self.domain = self.feed.domain = self.metrics.domain = domain
        self.book.follow(domain)
        self._let_rest()

    async def any_key(self, request: Request, _bearer: Bearer, _header: Header) -> None:
        """Lets whoever has a key through.

        Raises:
            Problem: 401.
        """
        self._role(request)

    async def admin_only(self, request: Request, _bearer: Bearer, _header: Header) -> None:
        """Lets admins through.

        Raises:
            Problem: 401 or 403.
        """
        if self._role(request) is not Role.ADMIN:
            raise Problem(403, "this needs an admin key")

    def _role(self, request: Request) -> Role:
        if not self.keys_needed:
            return Role.ADMIN
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        key = bearer.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        role = self.keys.role_of(key) if key else None
        if role is None:
            raise Problem(401, "send a key: Authorization: Bearer KEY, or X-API-Key: KEY")
        return role
