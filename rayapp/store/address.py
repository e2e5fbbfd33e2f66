"""Where a root's events are: `ROOT/store.json` holds the address of the store that its graph took into use.

Every command finds the same store by it. A job that made a store of its own would see no event for ever, while the
graph's outbox fills. The address is without a password, which comes from the environment: `RAYAPP_STORE` holds a whole
URL, or `RAYAPP_STORE_FILE` names a file that does, as secrets are mounted.
"""

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from rayapp.root.places import STORE, STORE_FILE
from rayapp.root.publish import read_json, write_json
from rayapp.store import StoreError

IN_ROOT: Final = "lmdb"
"""Address of the LMDB in `ROOT/store`, wherever the root lies."""
REDIS_PORT: Final = 6379
URL: Final = "RAYAPP_STORE"
URL_FILE: Final = "RAYAPP_STORE_FILE"


def resolve(root: Path, given: str | None) -> str:
    """The URL of the root's store: `given`, or the environment's, or the one in use, or LMDB in the root. A password
    that `given` lacks is the environment's, if that names the same address.

    Raises:
        StoreError: the root's events are in another store.
    """
    address = in_use(root)
    if named := given or _from_environment():
        wanted = address_of(root, named)
        if address is not None and wanted != address:
            raise StoreError(
                f"the events of {root} are in the store {address} ({STORE_FILE}), not in {wanted}; leave --store and "
                f"{URL} out, or move the root to that store: `rayapp store use --root {root} URL`"
            )
        address = wanted
    return full_url(root, address or IN_ROOT, given)


def full_url(root: Path, address: str, given: str | None = None) -> str:
    """The URL of an address, with the user and password that the `given` URL or the environment's has for it."""
    if address == IN_ROOT:
        return f"lmdb://{(root / STORE).absolute()}"
    urls = (url for url in (given, _from_environment()) if url)
    return next((url for url in urls if address_of(root, url) == address and "@" in urlsplit(url).netloc), address)


def address_of(root: Path, url: str) -> str:
    """What of a URL may be shown and kept: everything but user and password, equal places alike."""
    parts = urlsplit(url)
    if parts.scheme == "lmdb":
        return IN_ROOT if Path(parts.path) == (root / STORE).absolute() else f"lmdb://{parts.path}"
    place = parts.netloc.rpartition("@")[2].lower()
    if parts.scheme in ("redis", "rediss"):
        place += "" if re.search(r":\d+$", place) else f":{REDIS_PORT}"
        parts = parts._replace(path=parts.path if parts.path.strip("/") else "/0")
    return parts._replace(netloc=place).geturl()


def in_use(root: Path) -> str | None:
    """The address of the store that a graph took into use; None where none did yet."""
    path = root / STORE_FILE
    return str(read_json(path)["address"]) if path.exists() else None


def take_into_use(root: Path, url: str) -> None:
    """From now on every command finds this store."""
    address = address_of(root, url)
    if in_use(root) != address:
        write_json(root / STORE_FILE, {"address": address})


def _from_environment() -> str | None:
    if url := os.environ.get(URL):
        return url
    if path := os.environ.get(URL_FILE):
        try:
            return Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{URL_FILE} names {path}, which can't be read ({error})") from None
    return None
