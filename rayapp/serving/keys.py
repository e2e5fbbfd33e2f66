"""API keys: who may call what. A root keeps only the hashes of its keys; a key is shown once, when it is made.

A client key may send events and ask for feeds, an admin key may also erase users and move models.
"""

import enum
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rayapp.root.places import KEYS_FILE
from rayapp.root.publish import PublishError, read_json, write_json

KEY_BYTES: Final = 32
MAX_KEYS: Final = 1_000


class Role(enum.StrEnum):
    """What a key allows; an admin may do all that a client may."""

    CLIENT = "client"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one root."""

    rows: tuple[tuple[str, Role, str], ...]
    """Name, role and SHA-256 of each key."""

    @staticmethod
    def load(root: Path) -> "Keys":
        """Those of `ROOT/keys.json`; none where there is no such file.

        Raises:
            PublishError: the file is damaged.
        """
        path = root / KEYS_FILE
        if not path.exists():
            return Keys(())
        rows = read_json(path)
        try:
            return Keys(tuple((str(row["name"]), Role(row["role"]), str(row["sha256"])) for row in rows))
        except (TypeError, KeyError, ValueError) as error:
            raise PublishError(f"{path} is damaged ({error!r}); restore it, or remove it and add keys again") from None

    def role_of(self, key: str) -> Role | None:
        """The role that a key gives. Takes as long for a wrong key as for a right one, wherever it stands."""
        digest = _digest(key)
        found = None
        for _, role, known in self.rows:
            if hmac.compare_digest(digest, known):
                found = role
        return found


def add_key(root: Path, name: str, role: Role) -> str:
    """Makes a key and returns it; nobody can read it again.

    Raises:
        PublishError: the name is taken, or there are too many keys.
    """
    rows = Keys.load(root).rows
    if any(known == name for known, _, _ in rows):
        raise PublishError(f"there is a key named {name!r} already; remove it first, or choose another name")
    if len(rows) >= MAX_KEYS:
        raise PublishError(f"{MAX_KEYS} keys are the most that a root keeps; remove some")
    key = f"rayapp_{role.value}_{secrets.token_urlsafe(KEY_BYTES)}"
    _write(root, (*rows, (name, role, _digest(key))))
    return key


def remove_key(root: Path, name: str) -> None:
    """A running graph refuses it within a second.

    Raises:
        PublishError: there is no such key.
    """
    rows = Keys.load(root).rows
    kept = tuple(row for row in rows if row[0] != name)
    if len(kept) == len(rows):
        raise PublishError(f"there is no key named {name!r}; `rayapp keys list` shows them")
    _write(root, kept)


def _write(root: Path, rows: tuple[tuple[str, Role, str], ...]) -> None:
    value: list[dict[str, Any]] = [{"name": n, "role": role.value, "sha256": digest} for n, role, digest in rows]
    write_json(root / KEYS_FILE, value)
    (root / KEYS_FILE).chmod(0o600)


def _digest(key: str) -> str:
    # A fast hash will do: a key holds 256 random bits, so nobody guesses it from its hash.
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
