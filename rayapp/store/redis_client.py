"""The connection to Redis: how it is made, its errors in our words, and whether its settings keep what we promise."""

from collections.abc import Callable
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, urlsplit

import redis
import redis.exceptions
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from rayapp.store import OutboxFull, StoreError

T = TypeVar("T")
RETRIES: Final = 3
CONNECT_TIMEOUT_S: Final = 2.0
ANSWER_TIMEOUT_S: Final = 5.0
SETTINGS: Final = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory", "maxmemory-policy")


def connect(url: str, cluster: bool) -> redis.Redis:
    """A client; it asks each thing a few times."""
    settings: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": ANSWER_TIMEOUT_S,
        "retry": Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), RETRIES),
    }
    return redis.RedisCluster.from_url(url, **settings) if cluster else redis.Redis.from_url(url, **settings)  # type: ignore[return-value]


def answered(ask: Callable[[], T], max_outbox: int) -> T:
    """What Redis answers, its errors in our words."""
    try:
        return ask()
    except redis.exceptions.ResponseError as error:
        if "OUTBOXFULL" in str(error):
            raise OutboxFull(
                f"the outbox holds {max_outbox} rows that nobody has exported; run `rayapp export`"
            ) from None
        raise StoreError(f"Redis refuses: {error}") from None
    except redis.exceptions.AuthenticationError:
        raise StoreError(
            "Redis wants a password, or another one: RAYAPP_STORE, or the file that RAYAPP_STORE_FILE names, holds "
            "the whole URL, redis://:PASSWORD@HOST:PORT/0"
        ) from None
    except (redis.exceptions.RedisError, OSError) as error:
        raise StoreError(f"Redis does not answer: {type(error).__name__}") from None  # its text may hold the URL


def problems_of(client: redis.Redis) -> list[str]:
    """What in the settings of a primary breaks the promise that nothing acknowledged is lost, in words."""
    problems: dict[str, None] = {}
    for node in primaries(client):
        try:
            found = {name: _text(node.config_get(name).get(name)) for name in SETTINGS}
        except redis.exceptions.ResponseError:
            return ["its settings can't be read; make sure that it syncs every write and evicts nothing"]
        if found["appendonly"] != "yes":
            problems["acknowledged events are lost when it ends: set `appendonly yes`, `appendfsync always`"] = None
        elif found["appendfsync"] != "always":
            problems["a crash loses the last second of acknowledged events: set `appendfsync always`"] = None
        elif found["no-appendfsync-on-rewrite"] == "yes":
            problems["it does not sync while it rewrites its file: set `no-appendfsync-on-rewrite no`"] = None
        if found["maxmemory"] != "0" and found["maxmemory-policy"] != "noeviction":
            problems[
                f"under pressure it throws users' events away ({found['maxmemory-policy']}): "
                "set `maxmemory-policy noeviction`"
            ] = None
    return list(problems)


def durability_problems(url: str) -> list[str]:
    """`problems_of` the Redis at a URL; nothing is made there.

    Raises:
        StoreError: it does not answer.
    """
    parts = urlsplit(url)
    cluster = parse_qs(parts.query).get("cluster", ["false"])[-1] == "true"

    def ask() -> list[str]:
        client = connect(parts._replace(query="").geturl(), cluster)
        try:
            client.ping()
            return problems_of(client)
        finally:
            client.close()

    return answered(ask, 0)


def primaries(client: redis.Redis) -> list[redis.Redis]:
    """The client itself, or one for each primary of a Redis Cluster."""
    cluster: Any = client
    if not hasattr(cluster, "get_primaries"):
        return [client]
    return [cluster.get_redis_connection(node) for node in cluster.get_primaries()]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
