"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

DEFAULT_ROOT = Path("rayapp-data")
F = TypeVar("F", bound=Callable[..., Any])


def root_option(function: F) -> F:
    """`--root DIR`, the same everywhere, and absolute: Ray's workers have another working directory."""
    return click.option(
        "--root",
        type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
        default=DEFAULT_ROOT,
        show_default=True,
        help="Directory that holds everything: logs, windows, models, the sequence store.",
    )(function)
