"""A root directory's fixed facts: its domain and its bucket count, written once when it is made."""

from pathlib import Path
from typing import Final

from rayapp.contracts.config import Domain
from rayapp.contracts.json_values import from_json, to_json
from rayapp.root.places import ROOT_FILE
from rayapp.root.publish import PublishError, read_json, write_json

DEFAULT_NUM_BUCKETS: Final = 16
FORMER_SETTINGS: Final = ("rates_every_days",)
"""Of domains that earlier releases wrote; they mean nothing any more."""


def make_root(root: Path, domain: Domain, num_buckets: int = DEFAULT_NUM_BUCKETS) -> None:
    """Creates the root, or checks that it was made for this domain.

    Raises:
        PublishError: it holds another domain's data.
    """
    refuse_other_domain(root, domain)
    if not (root / ROOT_FILE).exists():
        root.mkdir(parents=True, exist_ok=True)
        write_json(root / ROOT_FILE, {"num_buckets": num_buckets, "domain": to_json(domain)})


def refuse_other_domain(root: Path, domain: Domain) -> None:
    """Raises:
    PublishError: the root was made for another domain. One that is not made yet is anybody's.
    """
    if (root / ROOT_FILE).exists() and (found := read_root(root)[0]) != domain:
        raise PublishError(
            f"{root} was made for the domain {found.name!r} with other settings than {domain.name!r} has now; choose "
            "another --root or remove that directory"
        )


def read_root(root: Path) -> tuple[Domain, int]:
    """`(domain, number of buckets)`.

    Raises:
        PublishError: this is no root.
    """
    if not (root / ROOT_FILE).exists():
        raise PublishError(
            f"{root} holds no data yet ({ROOT_FILE} is missing); `rayapp import --root {root}` brings yours "
            "(docs/data.md)"
        )
    values = read_json(root / ROOT_FILE)
    domain = {name: value for name, value in values["domain"].items() if name not in FORMER_SETTINGS}
    return from_json(Domain, domain), int(values["num_buckets"])


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
