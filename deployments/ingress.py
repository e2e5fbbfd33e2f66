"""The HTTP ingress: validates, calls the stages, blends, and degrades an answer rather than failing it.

The request path is `recommend`; everything a reader needs to follow one feed is in that function.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.http import LimitBody, Problem, RankBody, RecommendationsBody, install_errors
from deployments.stages import POLL_S, RankedBy
from rayapp import __version__
from rayapp.registry.aliases import CHAMPION, read_aliases
from rayapp.registry.models import list_models
from rayapp.root import read_root
from rayapp.schema import FIRST_ACTION_ID, UNKNOWN, id_problem
from rayapp.serving.blend import blend
from rayapp.serving.candidates import Candidates
from rayapp.serving.events import BadBody, EventBody, check_events, parse_body
from rayapp.serving.items import BadAttribute, check_attributes, check_item
from rayapp.store import OutboxFull, Outcome, UserSequence

log = logging.getLogger(__name__)
STAGE_TIMEOUT_S = 5.0
T = TypeVar("T")

app = FastAPI(
    title="rayapp",
    version=__version__,
    description="A feed that reacts to what the user just did.",
)
app.add_middleware(LimitBody)
install_errors(app)


class Timing:
    """Milliseconds per stage, for the `Server-Timing` header."""

    def __init__(self) -> None:
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._stages[name] = (time.perf_counter() - started) * 1000

    def header(self) -> str:
        return ", ".join(f"{name};dur={ms:.1f}" for name, ms in self._stages.items())


def now_ms() -> int:
    return time.time_ns() // 1_000_000


# Helpers stand above the class: Serve pickles it, with the module's names so far, when it is decorated.


async def _or_none(response: Awaitable[T] | Coroutine[Any, Any, T], stage: str) -> T | None:
    """The stage's answer, or None when it failed or took too long: the caller degrades."""
    try:
        return await asyncio.wait_for(_awaited(response), STAGE_TIMEOUT_S)
    except Exception:
        log.exception("stage %s failed", stage)
        return None


async def _awaited(response: Awaitable[T]) -> T:
    return await response


def _sequence(user: UserSequence, ranked: RankedBy | None) -> dict[str, Any]:
    last_ms = int(user.history.timestamp_ms_E[0]) if len(user.history) else None
    last = (
        datetime.fromtimestamp(last_ms / 1000, UTC).isoformat(timespec="milliseconds") if last_ms is not None else None
    )
    return {
        "length": ranked.sequence_length if ranked else len(user.history),
        "last_event_at": last,
        "watermark": user.watermark,
        "hash": f"{ranked.sequence_hash:016x}" if ranked else None,
    }


@serve.deployment
@serve.ingress(app)
class Ingress:
    """Holds handles to the stages and the version that answers; nothing else lives here."""

    async def __init__(  # type: ignore[misc]
        self, root: str, sequences: DeploymentHandle, candidates: DeploymentHandle, ranker: DeploymentHandle
    ) -> None:
        self._root = Path(root)
        self._domain, _ = read_root(self._root)
        self._sequences, self._candidates, self._ranker = sequences, candidates, ranker
        self._version = self._previous = read_aliases(self._root)[CHAMPION]
        self._aliases = read_aliases(self._root)
        self._follow = asyncio.get_running_loop().create_task(self._follow_aliases())

    async def _follow_aliases(self) -> None:
        """Switches to a newly promoted champion once the stages say that they hold it."""
        while True:
            try:
                self._aliases = read_aliases(self._root)
                wanted = self._aliases[CHAMPION]
                if wanted != self._version:
                    held = await asyncio.gather(self._ranker.versions.remote(), self._candidates.versions.remote())
                    if all(wanted in versions for versions in held):
                        self._previous, self._version = self._version, wanted
            except Exception:  # the answering version stays; the next round tries again
                log.exception("following the aliases failed")
            await asyncio.sleep(POLL_S)

    # ---- feeds -----------------------------------------------------------------------------------------------------

    @app.post("/v1/recommendations")
    async def recommendations(self, body: RecommendationsBody) -> JSONResponse:
        """The user's feed: fetch candidates, look up the sequence, rank, blend."""
        request_id, timing = str(uuid.uuid4()), Timing()
        answer = await self._recommend(body, request_id, timing)
        return JSONResponse(answer, headers={"Server-Timing": timing.header()})

    async def _recommend(self, body: RecommendationsBody, request_id: str, timing: Timing) -> dict[str, Any]:
        at_ms, context = now_ms(), self._context(body.context)
        reasons: list[str] = []
        with timing.stage("sequence"):
            user = await _or_none(self._sequences.lookup.remote(body.user_id), "sequences")
        if user is None:
            user = UserSequence.unknown()
            reasons.append("store_unavailable")
        with timing.stage("candidates"):
            version, found = await self._with_model(
                None, lambda v: self._candidates.fetch.remote(v, user, body.num_candidates), "candidates"
            )
        if found is None:
            raise Problem(503, "no candidates can be fetched right now", retry_after_s=1)
        with timing.stage("rank"):
            _, ranked = await self._with_model(
                version,
                lambda v: self._ranker.rank.remote(v, body.user_id, user, at_ms, found.item_ids, context),
                "ranker",
            )
        if ranked is None:
            reasons.append("ranker_unavailable")
        degraded = bool(reasons)
        if len(user.history) == 0 and not degraded:
            reasons.append("unknown_user")
        return {
            "request_id": request_id,
            "items": self._items(found, ranked, body.num_results, body.explain),
            "model_version": ranked.model_version if ranked else None,
            "rate_snapshot": ranked.rate_snapshot if ranked else None,
            "experiment": None,
            "degraded": degraded,
            "fallback_reason": reasons[0] if reasons else None,
            "sequence": _sequence(user, ranked),
        }

    def _context(self, values: dict[str, Any]) -> dict[str, Any]:
        try:
            return check_attributes(values, self._domain.context_attributes)
        except BadAttribute as error:
            field = f"context.{error.field}"
            raise Problem(
                422, f"context: {error}", errors=[{"field": field, "code": "invalid", "message": str(error)}]
            ) from None

    def _items(
        self, found: Candidates, ranked: RankedBy | None, num_results: int, explain: bool
    ) -> list[dict[str, Any]]:
        """The answer's rows; without a ranker the candidates' own order stands."""
        if ranked is None:
            rows = zip(found.item_ids[:num_results], found.sources, strict=False)
            return [{"item_id": i, "rank": n, "score": None, "sources": [s]} for n, (i, s) in enumerate(rows, 1)]
        items = []
        for rank, row in enumerate(blend(ranked.probability_CH, self._domain.utilities, num_results), 1):
            item = {
                "item_id": found.item_ids[row.index],
                "rank": rank,
                "score": row.score,
                "sources": [found.sources[row.index]],
            }
            if explain:
                item["probabilities"] = self._probabilities(ranked.probability_CH[row.index])
            items.append(item)
        return items

    @app.post("/v1/rank")
    async def rank(self, body: RankBody) -> JSONResponse:
        """Ranks the caller's candidates for a user."""
        if len(set(body.item_ids)) != len(body.item_ids):
            raise Problem(
                422,
                "item_ids holds an item twice",
                errors=[{"field": "item_ids", "code": "duplicate", "message": "each item may be named once"}],
            )
        request_id, timing, at_ms = str(uuid.uuid4()), Timing(), now_ms()
        context = self._context(body.context)
        with timing.stage("sequence"):
            user = await _or_none(self._sequences.lookup.remote(body.user_id), "sequences")
        if user is None:
            raise Problem(503, "the sequence store is unavailable", retry_after_s=1)
        wanted = self._aliases.get(body.model, body.model) if body.model else None
        with timing.stage("rank"):
            _, ranked = await self._with_model(
                wanted,
                lambda v: self._ranker.rank.remote(v, body.user_id, user, at_ms, body.item_ids, context),
                "ranker",
            )
        if ranked is None:
            if wanted and wanted not in self._aliases.values():
                raise Problem(404, f"no loaded model is called {body.model!r}; GET /v1/models lists the aliases")
            raise Problem(503, "the ranker is unavailable", retry_after_s=1)
        items = []
        for rank, row in enumerate(blend(ranked.probability_CH, self._domain.utilities, len(body.item_ids)), 1):
            item = {
                "item_id": body.item_ids[row.index],
                "rank": rank,
                "score": row.score,
                "known": bool(ranked.known_C[row.index]),
            }
            if body.explain:
                item["probabilities"] = self._probabilities(ranked.probability_CH[row.index])
            items.append(item)
        answer = {
            "request_id": request_id,
            "items": items,
            "model_version": ranked.model_version,
            "rate_snapshot": ranked.rate_snapshot,
            "experiment": None,
            "degraded": False,
            "fallback_reason": None,
            "sequence": _sequence(user, ranked),
        }
        return JSONResponse(answer, headers={"Server-Timing": timing.header()})

    def _probabilities(self, probability_H: np.ndarray[Any, np.dtype[np.float32]]) -> dict[str, float]:
        return {name: float(p) for name, p in zip(self._domain.head_names, probability_H, strict=True)}

    async def _with_model(self, version: str | None, call: Any, stage: str) -> tuple[str, Any]:
        """Calls a stage with the asked version, and with the one before it where a replica lacks the new one."""
        tries = (
            [version]
            if version and version not in (self._version, self._previous)
            else [version or self._version, self._previous]
        )
        for v in dict.fromkeys(tries):
            answer = await _or_none(call(v), stage)
            if answer is not None:
                return v, answer
        return tries[0], None

    # ---- events and items ------------------------------------------------------------------------------------------

    @app.post(
        "/v1/events",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": EventBody.model_json_schema()}},
            }
        },
    )
    async def events(self, request: Request) -> JSONResponse:
        """Takes one event, a list, or NDJSON; answers when the good ones are durable."""
        try:
            values, unreadable = parse_body(await request.body(), request.headers.get("content-type", ""))
        except BadBody as error:
            raise Problem(400, str(error)) from None
        good, rejected = check_events(
            values, self._domain.vocabulary, now_ms(), skip=frozenset(r.index for r in unreadable)
        )
        rejected = sorted([*unreadable, *rejected], key=lambda r: r.index)
        if rejected and not good:
            first = rejected[0]
            raise Problem(422, f"{first.field or 'event'}: {first.message}", errors=[asdict(r) for r in rejected])
        try:
            outcomes = await self._sequences.append.remote([event for _, event in good]) if good else []
        except OutboxFull as error:
            raise Problem(503, str(error), retry_after_s=5) from None
        except Exception:
            log.exception("appending events failed")
            raise Problem(503, "the events could not be made durable; send them again", retry_after_s=1) from None
        return JSONResponse(
            {
                "accepted": outcomes.count(Outcome.ACCEPTED),
                "duplicates": outcomes.count(Outcome.DUPLICATE),
                "rejected": [asdict(r) for r in rejected],
            }
        )

    @app.put("/v1/items/{item_id}")
    async def put_item(self, item_id: str, request: Request) -> JSONResponse:
        """Adds or replaces an item; the model embeds it from its attributes, without retraining."""
        try:
            values, _ = parse_body(await request.body(), "application/json")
            item = check_item(item_id, values[0] if len(values) == 1 else values, self._domain.attributes, now_ms())
        except BadBody as error:
            raise Problem(400, str(error)) from None
        except BadAttribute as error:
            raise Problem(
                422, str(error), errors=[{"field": error.field, "code": "invalid", "message": str(error)}]
            ) from None
        try:
            await self._sequences.put_item.remote(item)
        except Exception:
            log.exception("storing an item failed")
            raise Problem(503, "the item could not be made durable; send it again", retry_after_s=1) from None
        return JSONResponse({"item_id": item_id})

    @app.get("/v1/users/{user_id}/sequence")
    async def sequence(self, user_id: str, limit: int = 100) -> JSONResponse:
        """The user's stored actions, newest first."""
        if problem := id_problem(user_id):
            raise Problem(
                422,
                f"user_id {problem}",
                errors=[{"field": "user_id", "code": "bad_id", "message": f"user_id {problem}"}],
            )
        if not 1 <= limit <= 512:
            raise Problem(
                422,
                "limit must be from 1 to 512",
                errors=[{"field": "limit", "code": "out_of_range", "message": "limit must be from 1 to 512"}],
            )
        user: UserSequence | None = await _or_none(self._sequences.lookup.remote(user_id), "sequences")
        if user is None:
            raise Problem(503, "the sequence store is unavailable", retry_after_s=1)
        names = self._domain.vocabulary.names
        events = [
            {
                "item_id": user.item_ids[n],
                "action": names[a - FIRST_ACTION_ID] if a > UNKNOWN else None,
                "timestamp_ms": int(user.history.timestamp_ms_E[n]),
                "received_at_ms": int(user.history.received_at_ms_E[n]),
            }
            for n, a in enumerate(user.history.action_E[:limit].tolist())
        ]
        return JSONResponse({"user_id": user_id, "length": len(user.history), "events": events})

    # ---- operations ------------------------------------------------------------------------------------------------

    @app.get("/v1/models")
    async def models(self) -> JSONResponse:
        """Published models with their metrics, the aliases, and the version that answers now."""
        rows = await asyncio.to_thread(list_models, self._root)
        return JSONResponse({"serving": self._version, "aliases": self._aliases, "models": rows})

    @app.get("/health/live")
    async def live(self) -> JSONResponse:
        """The process answers."""
        return JSONResponse({"status": "live"})

    @app.get("/health/ready")
    async def ready(self) -> JSONResponse:
        """The store answers and the stages hold the serving model."""
        user = await _or_none(self._sequences.lookup.remote("health"), "sequences")
        held = await asyncio.gather(
            _or_none(self._ranker.versions.remote(), "ranker"),
            _or_none(self._candidates.versions.remote(), "candidates"),
        )
        if user is None:
            raise Problem(503, "the sequence store does not answer", retry_after_s=1)
        if any(versions is None or self._version not in versions for versions in held):
            raise Problem(503, f"model {self._version} is not loaded everywhere", retry_after_s=1)
        return JSONResponse({"status": "ready", "model_version": self._version})

    @app.get("/", include_in_schema=False)
    async def home(self) -> RedirectResponse:
        return RedirectResponse("/docs")
