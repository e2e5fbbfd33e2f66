"""Opens the sequence store that a URL names."""

import logging
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from rayapp.root.facts import read_root
from rayapp.root.places import STORE
from rayapp.store import Store, StoreError
from rayapp.store.address import IN_ROOT, address_of, full_url, in_use, resolve, take_into_use

log = logging.getLogger(__name__)


def open_store(root: Path, url: str | None = None) -> Store:
    """The store of a root: `lmdb:///path`, `redis://host:port/0` or `rediss://…`; unless told the one that is in use
    (`address.py`), or LMDB in `ROOT/store`.

    `?cluster=true` behind a Redis URL says that it is a Redis Cluster. Any number of processes may hold a store open.

    Raises:
        StoreError: the URL is none of these, the root's events are in another store, or it can't be opened.
    """
    return open_url(root, resolve(root, url))


def open_for_graph(root: Path, url: str | None = None) -> Store:
    """`open_store`, and from now on every command finds that store.

    Raises:
        StoreError: the LMDB in the root holds what would stay behind; and as for `open_store`.
    """
    url = resolve(root, url)
    if in_use(root) is None and address_of(root, url) != IN_ROOT and (root / STORE).exists():
        _refuse_to_leave(root, IN_ROOT)
    store = open_url(root, url)
    take_into_use(root, url)
    return store


def move_store(root: Path, url: str) -> str | None:
    """Takes another store into use; the address of the one before it, which may be gone.

    Raises:
        StoreError: the one before it holds rows that nobody has exported, or the new one can't be opened.
    """
    before = in_use(root) or (IN_ROOT if (root / STORE).exists() else None)
    if before not in (None, address_of(root, url)):
        _refuse_to_leave(root, before)
    open_url(root, url).close()
    take_into_use(root, url)
    return before


def _refuse_to_leave(root: Path, address: str) -> None:
    """Raises:
    StoreError: the store holds rows that nobody has exported.
    """
    try:
        store = open_url(root, full_url(root, address))
    except StoreError as error:
        log.warning("%s is left as it is: %s", address, error)
        return
    rows = store.stats().outbox_rows
    store.close()
    if rows:
        raise StoreError(
            f"the store {address} of {root} holds {rows:,} rows that nobody has exported; bring them into the log "
            f"first: `rayapp export --root {root}`"
        )


def open_url(root: Path, url: str) -> Store:
    """The store at a URL, whichever the root's events are in."""
    domain, num_buckets = read_root(root)
    parts = urlsplit(url)
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
