"""HTTP load from one asyncio process: clients that wait for each answer, or requests that come at a rate of their own.

An answer is kept as a few numbers; the body is looked into only for the words that say whether it is degraded.
"""

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

GIVE_UP_S: Final = 30.0
NO_ANSWER: Final = 0
FEED: Final = "/v1/recommendations"


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """One request and what came of it."""

    at_s: float
    """When it was sent, on the monotonic clock."""
    seconds: float
    status: int
    """NO_ANSWER: the connection was refused or broke."""
    retry_after: bool
    degraded: bool

    @property
    def whole(self) -> bool:
        return self.status == 200 and not self.degraded


Body = Callable[[], dict[str, Any]]


@asynccontextmanager
async def session(url: str, headers: Mapping[str, str] | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    """As many connections as there are requests under way, kept open."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    timeout = aiohttp.ClientTimeout(total=GIVE_UP_S)
    async with aiohttp.ClientSession(f"{url}/", connector=connector, timeout=timeout, headers=headers) as opened:
        yield opened


async def ask(client: aiohttp.ClientSession, path: str, body: Any) -> tuple[HttpAnswer, bytes]:
    """One POST; never raises for what a server or a network does."""
    started = time.monotonic()
    try:
        async with client.post(path.lstrip("/"), json=body) as response:  # relative: the URL may end in a path
            text = await response.read()
            status, retry_after = response.status, "Retry-After" in response.headers
    except (aiohttp.ClientError, TimeoutError, OSError):
        text, status, retry_after = b"", NO_ANSWER, False
    seconds = time.monotonic() - started
    return HttpAnswer(started, seconds, status, retry_after, b'"degraded":true' in text), text


async def closed_loop(url: str, path: str, body: Body, clients: int, seconds: float) -> list[HttpAnswer]:
    """Each client sends its next request when it has the answer to the last one."""
    answers: list[HttpAnswer] = []
    until = time.monotonic() + seconds

    async def one(client: aiohttp.ClientSession) -> None:
        while time.monotonic() < until:
            answers.append((await ask(client, path, body()))[0])

    async with session(url) as client:
        await asyncio.gather(*(one(client) for _ in range(clients)))
    return answers


async def alternating(urls: Mapping[str, str], path: str, body: Body, seconds: float) -> dict[str, list[HttpAnswer]]:
    """One client that asks every server once, then every one again in the opposite order, and so on."""
    answers: dict[str, list[HttpAnswer]] = {name: [] for name in urls}
    until = time.monotonic() + seconds
    async with AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(session(url)) for name, url in urls.items()}
        order = list(clients)
        while time.monotonic() < until:
            for name in order:
                answers[name].append((await ask(clients[name], path, body()))[0])
            order.reverse()
    return answers


async def open_loop(
    client: aiohttp.ClientSession, path: str, body: Body, rate: Callable[[float], float], seconds: float
) -> list[HttpAnswer]:
    """Sends at `rate(seconds since the start)` a second, whatever comes back: users do not wait for one another."""
    tasks: list[asyncio.Task[tuple[HttpAnswer, bytes]]] = []
    started = time.monotonic()
    due = started
    while (now := time.monotonic()) < started + seconds:
        if now < due:
            await asyncio.sleep(due - now)
        tasks.append(asyncio.create_task(ask(client, path, body())))
        due += 1 / rate(due - started)
    return [answer for answer, _ in await asyncio.gather(*tasks)]


def feed_bodies(users: Sequence[str], candidates: int, results: int = 20) -> Body:
    """Feeds of these users, one after another."""
    turn: Iterator[str] = itertools.cycle(users)
    return lambda: {"user_id": next(turn), "num_candidates": candidates, "num_results": results}


def good(answers: Sequence[HttpAnswer], within_s: float) -> int:
    """Whole answers that came in time."""
    return sum(a.whole and a.seconds <= within_s for a in answers)


def quantile_ms(answers: Sequence[HttpAnswer], q: float) -> float:
    """Of the answers with status 200."""
    seconds = sorted(a.seconds for a in answers if a.status == 200)
    return 1000 * seconds[min(int(q * len(seconds)), len(seconds) - 1)] if seconds else float("nan")


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")
