"""Options that several commands share."""

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

DEFAULT_ROOT = Path("rayapp-data")
GROUP_SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
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


def store_option(function: F) -> F:
    """`--store URL`."""
    return click.option(
        "--store",
        "store_url",
        help="URL of the sequence store: lmdb:///path, or redis://host:port/0 (rediss:// with TLS; ?cluster=true for "
        "a Redis Cluster). Also read from RAYAPP_STORE, or from the file that RAYAPP_STORE_FILE names, where others do "
        "not see a password. [default: the store that the root's graph took into use, or LMDB in the root]",
    )(function)


FIXED_PRESETS: Final = ("nano", "study", "demo", "paper")
PRESET_NAMES: Final = ("auto", *FIXED_PRESETS)


def preset_option(default: str, names: Sequence[str] = FIXED_PRESETS) -> Callable[[F], F]:
    """`--preset NAME`."""
    auto = "auto works sizes and schedule out from the log, " if "auto" in names else ""
    return click.option(
        "--preset",
        type=click.Choice(names),
        default=default,
        show_default=True,
        help=f"Size of the model: {auto}nano and study are quicker and worse, paper wants a GPU.",
    )


epochs_option = click.option(
    "--epochs",
    type=click.IntRange(1),
    help="Passes over the training window, at most; the learning rate falls over all of them. [default: the preset's]",
)

write_option = click.option(
    "--write",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the result to this Markdown file, and a picture beside it.",
)


def moment(text: str, option: str) -> int:
    """Milliseconds of a day or an ISO 8601 moment, UTC unless it says otherwise.

    Raises:
        UsageError: it is neither.
    """
    try:
        parsed = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f"{option} must be a day or an ISO 8601 moment, not {text!r}") from None
    return int((parsed if parsed.tzinfo else parsed.replace(tzinfo=datetime.UTC)).timestamp() * 1000)
