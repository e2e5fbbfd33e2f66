"""How long work tells that it lives: one line a stage, rewritten on a terminal, a few lines in a log."""

import sys
import time

import click

from rayapp.pipeline.tasks import Told

LOG_EVERY_S = 20.0


def progress(title: str) -> Told:
    """Prints `title … 12/64, 40 s left` on stderr as the tasks of one stage end."""
    started = shown = time.monotonic()

    def told(done: int, count: int) -> None:
        nonlocal shown
        now = time.monotonic()
        passed = now - started
        if done == count:
            again = "\r" if sys.stderr.isatty() else ""
            click.echo(f"{again}{title} … {passed:.1f} s".ljust(70 * len(again)), err=True)
        elif sys.stderr.isatty():
            left = passed * (count - done) / done
            click.echo(f"\r{title} … {done}/{count}, {left:.0f} s left   ", err=True, nl=False)
        elif now - shown > LOG_EVERY_S:
            shown = now
            click.echo(f"{title} … {done}/{count}, {passed * (count - done) / done:.0f} s left", err=True)

    return told
