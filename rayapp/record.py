"""Tells what was measured: on the terminal, and on record as the documentation keeps it, which is command, commit,
hardware, date, table, and a picture beside it."""

import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import torch
from click.core import ParameterSource

from rayapp.picture import svg
from rayapp.revision import commit
from rayapp.root.publish import PublishError


@dataclass(frozen=True, slots=True)
class Bars:
    """Grouped bars: a group per label, a bar per series; `spread` holds (below, above) for each bar or nothing."""

    label: str
    groups: Sequence[str]
    series: Mapping[str, Sequence[float]]
    spread: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None


NOT_TOLD: Final = frozenset({"root", "write", "as_json"})
GIVEN: Final = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
MOST_BARS: Final = 10
"""Of a group. More series are drawn as a line each, with a point for each group: there are ten colours."""


def say(text: str) -> None:
    """A line about where the work is: on stderr, since stdout is for the result."""
    click.echo(f"  {text}", err=True)


def tell(result: Mapping[str, Any], text: str, title: str, bars: Bars, *, as_json: bool, write: Path | None) -> None:
    """Prints the result as one JSON line or as the text, and puts the text on record where `write` says so."""
    click.echo(json.dumps(result) if as_json else text)
    if write is not None:
        record(write, title, text, bars)


def draw(path: Path, title: str, bars: Bars) -> None:
    """Writes an SVG that reads the same when drawn again from the same numbers."""
    if len(bars.series) > MOST_BARS:
        _draw_lines(path, title, bars)
        return
    width = 0.8 / len(bars.series)
    with svg(path, 9, 3.6) as axes:
        for n, (name, values) in enumerate(bars.series.items()):
            at = [g + (n - (len(bars.series) - 1) / 2) * width for g in range(len(bars.groups))]
            error = bars.spread[name] if bars.spread else None
            axes.bar(at, values, width, label=name, yerr=error, capsize=3)
        axes.set_xticks(range(len(bars.groups)), bars.groups)
        axes.set_ylabel(bars.label)
        axes.set_title(title)


def _draw_lines(path: Path, title: str, bars: Bars) -> None:
    """A line for each series, its name at the left; the groups are the points on it."""
    names = list(bars.series)
    with svg(path, 9, 1.2 + 0.25 * len(names)) as axes:
        for g, group in enumerate(bars.groups):
            at = [n + (g - (len(bars.groups) - 1) / 2) * 0.2 for n in range(len(names))]
            spread = bars.spread
            error = [[spread[name][end][g] for name in names] for end in (0, 1)] if spread else None
            values = [bars.series[name][g] for name in names]
            axes.errorbar(values, at, xerr=error, fmt="o", markersize=3, capsize=2, label=group)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()  # the first one on top
        axes.grid(axis="y", alpha=0.3)
        axes.set_xlabel(bars.label)
        axes.set_title(title)


def record(path: Path, title: str, body: str, bars: Bars) -> None:
    """Replaces `path` with the result and the picture of the same name.

    Raises:
        PublishError: it can't be written.
    """
    picture = path.with_suffix(".svg")
    write_result(path, title, f"{body}\n\n![{title}]({picture.name})", lambda: draw(picture, title, bars))


def typed_command() -> str:
    """The command that runs, with what was given to it but for where it reads and writes. What was left out had its
    default, which the commit tells."""
    context = click.get_current_context()
    words = [context.command_path]
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in NOT_TOLD or context.get_parameter_source(name) not in GIVEN:
            continue
        value = context.params[name]
        option = [max(parameter.opts, key=len)] if isinstance(parameter, click.Option) else []
        if isinstance(value, bool):
            words += option
            continue
        for each in value if isinstance(value, tuple) else (value,):
            words += [*option, _told(each)]
    return " ".join(words)


def _told(value: object) -> str:
    """Without what belongs to one machine, or must not be told: a store's address may hold a password."""
    if isinstance(value, Path):
        return value.name
    return f"{value:g}" if isinstance(value, float) else re.sub("://.*", "://…", str(value))


def write_result(path: Path, title: str, body: str, draw_pictures: Callable[[], None]) -> None:
    """Replaces `path` with the body under what was run, when and where, once its pictures are drawn.

    Raises:
        PublishError: it can't be written.
    """
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    text = (
        f"# {title}\n\nCommand: `{typed_command()}`\\\nDate: {time.strftime('%Y-%m-%d')}, commit {commit()}\\\n"
        f"Hardware: {os.cpu_count()} {platform.machine()} cores, {gpu}; Python {platform.python_version()}\n\n"
        f"{body}\n"
    )
    try:
        draw_pictures()
        path.write_text(text)
    except OSError as error:
        raise PublishError(f"{path} can't be written ({error.strerror})") from None
