"""What a client needs before it can draw a feed: the domain, and a few users to look at."""

import asyncio
from typing import Any, Final

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse

from deployments.domain_answers import DomainAnswer, SampleAnswer
from deployments.http import Problem
from deployments.openapi import ERRORS
from deployments.reading import stored
from deployments.service import Service
from rayapp.contracts.config import Domain
from rayapp.serving.bounded import or_none
from rayapp.serving.user_sample import logged_users, of_each_size

MAX_CATEGORIES: Final = 200
"""Values of one attribute that an answer names, the most frequent ones."""


def domain_routes(service: Service) -> APIRouter:
    """The routes, for one service."""
    router = APIRouter(tags=["domain"], responses=ERRORS)
    content = _content(service.domain)

    @router.get("/v1/domain", response_model=DomainAnswer, dependencies=[Depends(service.any_key)])
    async def domain() -> JSONResponse:
        """The actions, heads and attributes of this feed, and the most frequent values of its categories."""
        counts = await or_none(service.stages.candidates.categories(service.live.version, MAX_CATEGORIES)) or {}
        categories = {
            name: [{"value": value, "items": items} for value, items in values] for name, values in counts.items()
        }
        return JSONResponse({**content, "categories": categories})

    @router.get("/v1/users:sample", response_model=SampleAnswer, dependencies=[Depends(service.admin_only)])
    async def sample() -> JSONResponse:
        """A few users of the log with fewer than 5 stored actions, with fewer than 50, and with more. Needs an admin
        key, since nobody else may learn who the users are."""
        try:
            users = await asyncio.to_thread(logged_users, service.root)
        except OSError as error:
            raise Problem(503, f"the event log can't be read now: {error}", retry_after_s=5) from None
        found = await stored(asyncio.gather(*(service.stages.sequences.lookup(user) for user in users)))
        lengths = {user: len(sequence.history) for user, sequence in zip(users, found, strict=True)}
        rows = [{"user_id": user, "length": length} for user, length in of_each_size(lengths)]
        return JSONResponse({"users": rows})

    return router


def _content(domain: Domain) -> dict[str, Any]:
    """The parts that stay while the graph runs."""
    return {
        "name": domain.name,
        "actions": [
            {"name": a.name, "kind": a.kind.value, "in_sequence": a.in_sequence} for a in domain.vocabulary.actions
        ],
        "heads": [{"name": h.name, "actions": list(h.actions), "utility": h.utility} for h in domain.heads],
        "positive_head": domain.positive_head,
        "title": domain.title,
        "attributes": [{"name": a.name, "kind": a.kind.value} for a in domain.attributes],
        "context_attributes": [{"name": a.name, "kind": a.kind.value} for a in domain.context_attributes],
    }
