"""Opens the sequence store that a URL names."""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from rayapp.root import read_root
from rayapp.store import SequenceStore, StoreError


def open_store(root: Path, url: str | None = None) -> SequenceStore:
    """The store of a root: `lmdb:///path`, `redis://host:port/0` or `rediss://…`, by default LMDB in `ROOT/store`.

    `?cluster=true` behind a Redis URL says that it is a Redis Cluster. Any number of processes may hold a store open.

    Raises:
        StoreError: the URL is none of these, or the store can't be opened.
    """
    domain, num_buckets = read_root(root)
    parts = urlsplit(url or f"lmdb://{(root / 'store').absolute()}")
    if parts.scheme == "lmdb" and not parts.netloc and parts.path:
        from rayapp.store.lmdb import LmdbStore

        return LmdbStore(Path(parts.path), domain.vocabulary, num_buckets)
    if parts.scheme in ("redis", "rediss") and parts.hostname:
        try:
            from rayapp.store.redis import RedisStore
        except ModuleNotFoundError:
            raise StoreError("a Redis store needs the client: pip install 'rayapp[redis]'") from None
        cluster = parse_qs(parts.query).get("cluster", ["false"])[-1] == "true"
        return RedisStore(parts._replace(query="").geturl(), domain.vocabulary, num_buckets, cluster=cluster)
    # The URL itself may hold a password, so only its scheme is named.
    raise StoreError(
        f"a store URL starts with lmdb:///, redis:// or rediss:// and names a path or a host; this one's scheme is "
        f"{parts.scheme!r}"
    )
