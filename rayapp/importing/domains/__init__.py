"""Domain files: the built-in ones beside this module, and a team's own."""

import importlib.resources
from pathlib import Path
from typing import Final

from rayapp.importing.domains.layout import DomainFile
from rayapp.importing.domains.parse import DomainError, parse_domain

__all__ = ["BUILT_IN", "DomainError", "load_domain"]

BUILT_IN: Final = {
    file.name.removesuffix(".toml"): file
    for file in sorted(importlib.resources.files(__name__).iterdir(), key=lambda file: file.name)
    if file.name.endswith(".toml")
}
"""By name: the domain files that lie here."""


def load_domain(name_or_path: str) -> DomainFile:
    """A built-in domain by its name, or a file.

    Raises:
        DomainError: no such file, or what is wrong in it.
    """
    if name_or_path in BUILT_IN:
        return parse_domain(BUILT_IN[name_or_path].read_text())
    try:
        text = Path(name_or_path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DomainError(
            f"the domain file {name_or_path} can't be read ({reason}); built in are {', '.join(BUILT_IN)}, and "
            "`rayapp init-domain` writes a first one from your own files"
        ) from None
    try:
        return parse_domain(text)
    except DomainError as error:
        raise DomainError(f"{name_or_path}: {error}") from None
