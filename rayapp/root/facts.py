"""A root directory's facts: its bucket count, fixed when it is made, and its domain with all its revisions."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rayapp.contracts.config import Domain
from rayapp.contracts.domain_changes import Change, changes
from rayapp.contracts.json_values import from_json, to_json
from rayapp.root.places import MODELS, ROOT_FILE
from rayapp.root.publish import PublishError, exclusive, read_json, write_json

DEFAULT_NUM_BUCKETS: Final = 16
FORMER_SETTINGS: Final = ("rates_every_days",)
"""Of domains that earlier releases wrote; they mean nothing any more."""
REVISIONS: Final = "revisions"
TOLD: Final = 3
"""Changes that a refusal names."""


@dataclass(frozen=True, slots=True)
class Revision:
    """One change of a root's domain."""

    at_ms: int
    changes: tuple[str, ...]
    """In words."""
    before: Domain
    """What it was until then."""


def make_root(root: Path, domain: Domain, num_buckets: int = DEFAULT_NUM_BUCKETS) -> None:
    """Creates the root, or checks that it is of this domain.

    Raises:
        PublishError: it holds another domain's data.
    """
    refuse_other_domain(root, domain)
    if not (root / ROOT_FILE).exists():
        root.mkdir(parents=True, exist_ok=True)
        write_json(root / ROOT_FILE, {"num_buckets": num_buckets, "domain": to_json(domain)})


def refuse_other_domain(root: Path, domain: Domain) -> None:
    """Raises:
    PublishError: the root is of another domain. One that is not made yet is anybody's.
    """
    if not (root / ROOT_FILE).exists() or (found := read_root(root)[0]) == domain:
        return
    differences = changes(found, domain)
    refused = [change for change in differences if not change.allowed]
    said = _said(refused or differences)
    if refused:
        raise PublishError(
            f"{root} was made for the domain {found.name!r} with other settings than {domain.name!r} has now, and it "
            f"can't follow: {said} (`rayapp domain diff` says why); choose another --root or remove that directory"
        )
    raise PublishError(
        f"{root} was made for the domain {found.name!r} with other settings than {domain.name!r} has now: {said}. "
        f"`rayapp domain apply --root {root} FILE` takes them over, after `rayapp domain diff` has said what that means"
    )


def _said(differences: list[Change]) -> str:
    more = f"; and {len(differences) - TOLD} more" if len(differences) > TOLD else ""
    return "; ".join(change.words for change in differences[:TOLD]) + more


def apply_domain(root: Path, domain: Domain, at_ms: int) -> list[Change]:
    """Makes `domain` the root's, whole or not at all, and records it; what changed. A running graph follows.

    Raises:
        PublishError: this is no root, it can't follow, or another process works on it.
    """
    with exclusive(root, "a change of the domain"):
        found = read_root(root)[0]
        differences = changes(found, domain)
        if refused := [change for change in differences if not change.allowed]:
            raise PublishError(
                f"{root} keeps its domain: {_said(refused)}; `rayapp domain diff` says what to do instead"
            )
        if differences:
            values = read_json(root / ROOT_FILE)
            revision = Revision(at_ms, tuple(change.words for change in differences), found)
            revisions = [*values.get(REVISIONS, []), to_json(revision)]
            write_json(root / ROOT_FILE, {**values, "domain": to_json(domain), REVISIONS: revisions})
    return differences


def read_root(root: Path) -> tuple[Domain, int]:
    """`(domain, number of buckets)`.

    Raises:
        PublishError: this is no root.
    """
    values = _read(root)
    return _domain(values["domain"]), int(values["num_buckets"])


def read_revisions(root: Path) -> list[Revision]:
    """Every change of the root's domain, the oldest first.

    Raises:
        PublishError: this is no root.
    """
    rows = _read(root).get(REVISIONS, [])
    return [Revision(row["at_ms"], tuple(row["changes"]), _domain(row["before"])) for row in rows]


def domain_of_schema(root: Path, schema: Mapping[str, Any], domain: Domain) -> Domain:
    """The domain that a model was trained under, by its `schema.json`; `domain` is the root's. A model that does not
    tell it was trained before a domain could change."""
    if "domain" in schema:
        return _domain(schema["domain"])
    revisions = read_revisions(root) if (root / ROOT_FILE).exists() else []
    return revisions[0].before if revisions else domain


def trained_domains(root: Path, domain: Domain) -> dict[str, Domain]:
    """Version -> the domain that its model was trained under; versions that are gone or damaged are missing."""
    found = {}
    for path in (root / MODELS).glob("[!.]*/schema.json"):
        with contextlib.suppress(PublishError, TypeError, ValueError):
            found[path.parent.name] = domain_of_schema(root, read_json(path), domain)
    return found


def _read(root: Path) -> dict[str, Any]:
    if not (root / ROOT_FILE).exists():
        raise PublishError(
            f"{root} holds no data yet ({ROOT_FILE} is missing); `rayapp import --root {root}` brings yours "
            "(docs/data.md)"
        )
    values: dict[str, Any] = read_json(root / ROOT_FILE)
    return values


def _domain(values: dict[str, Any]) -> Domain:
    return from_json(Domain, {name: value for name, value in values.items() if name not in FORMER_SETTINGS})


def check_writable(root: Path) -> None:
    """Makes the root and a file in it.

    Raises:
        PublishError: says why not.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PublishError(f"{root} can't be written ({error.strerror}); choose another --root") from None
