"""What the HTTP routes work with: the stages, the feed over them, keys, and what is kept of answers."""

from dataclasses import dataclass
from pathlib import Path

from fastapi import Request

from deployments.http import Problem
from rayapp.contracts.config import Domain
from rayapp.serving.answer_log import AnswerLog
from rayapp.serving.feed import Feed
from rayapp.serving.keys import Keys, Role
from rayapp.serving.live import Live
from rayapp.serving.stages import Stages


@dataclass(slots=True)
class Service:
    """One ingress replica's working parts."""

    root: Path
    domain: Domain
    stages: Stages
    live: Live
    feed: Feed
    answers: AnswerLog
    keys: Keys
    keys_needed: bool

    async def any_key(self, request: Request) -> None:
        """Lets whoever has a key through.

        Raises:
            Problem: 401.
        """
        self._role(request)

    async def admin_only(self, request: Request) -> None:
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
