"""`rayapp demo`: the whole loop, told step by step, and a session that shows the feed change."""

import contextlib
import os
import sys
import time
import webbrowser
from pathlib import Path

import click
import httpx

from rayapp.cli.serve import wait
from rayapp.cli.train import Steps, train_and_tell
from rayapp.client.session import Genres, Session, SessionError, strongest
from rayapp.contracts.config import Domain
from rayapp.contracts.presets import DEFAULT_VARIANT, PRESETS, variant
from rayapp.contracts.schema import ActionKind
from rayapp.importing.domains import load_domain
from rayapp.launch.graph import running_graph
from rayapp.launch.ports import check_port
from rayapp.launch.runtime import local_ray
from rayapp.loop.first_import import import_once
from rayapp.loop.first_training import split_of
from rayapp.pipeline.restore import seed_store
from rayapp.pipeline.tasks import run_tasks
from rayapp.registry.aliases import CHAMPION, read_aliases
from rayapp.registry.item_tables import load_table
from rayapp.root.facts import check_writable, refuse_other_domain
from rayapp.root.places import DOWNLOADS, MODELS
from rayapp.root.publish import exclusive, read_manifest
from rayapp.sources import Size
from rayapp.sources.data_sets import data_set

NUM_SAVES = 5
FEED_SIZE = 10
SWAP_TIMEOUT_S = 60


def run_demo(root: Path, port: int, source: str, preset_name: str, exit_after: bool) -> None:
    check_writable(root)
    check_port(port)
    preset = variant(PRESETS[preset_name](), DEFAULT_VARIANT)
    chosen = data_set(source)
    domain_file = load_domain(chosen.domain)
    refuse_other_domain(root, domain_file.domain)  # nobody's feed becomes one of films

    steps = Steps(11)
    with exclusive(root, "the demo"):
        with steps.step("start Ray"):
            ray_session = contextlib.ExitStack()
            ray_session.enter_context(local_ray())
        with ray_session:
            domain = domain_file.domain
            with steps.step("import: catalogue, event log, request log") as done:
                done(import_once(root, domain_file, lambda: chosen.fetch(root / DOWNLOADS / source, Size(), run_tasks)))
            with contextlib.ExitStack() as graph:
                url = ""

                def serve() -> None:
                    nonlocal url
                    with steps.step("seed the sequence store from the log") as done:
                        done(seed_store(root)[1])
                    with steps.step("start the Serve graph"):
                        url = graph.enter_context(running_graph(root, port))
                    say_first_feed(url)
                    if not exit_after:
                        open_page(url)

                train_and_tell(root, domain, preset, split_of(root), steps, baselines_ready=serve)
                wait_for(url, read_aliases(root)[CHAMPION])
                show_session(url, root, domain)
                if exit_after:
                    click.echo(f"the graph answered at {url}; stopping (--exit)")
                else:
                    wait(url)


def say_first_feed(url: str) -> None:
    """A feed answers by what serves now, while the rankers train."""
    with httpx.Client(base_url=url, timeout=30) as client:
        feed = Session(client).feed(FEED_SIZE)
    click.echo(f"      the page at {url} shows a feed already: {len(feed['items'])} items by {feed['model_version']}")


def open_page(url: str) -> None:
    """Opens the page in a browser, where somebody sits at a terminal of a desktop; elsewhere nothing happens."""
    if sys.stdout.isatty() and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(url)


def wait_for(url: str, version: str) -> None:
    """Returns when the graph serves that version, which it does within seconds after a promotion.

    Raises:
        SessionError: it does not.
    """
    deadline = time.monotonic() + SWAP_TIMEOUT_S
    while (live := httpx.get(f"{url}/v1/models", timeout=30).json()["serving"]) != version:
        if time.monotonic() > deadline:
            raise SessionError(f"the graph still serves {live}, not the champion {version}")
        time.sleep(0.1)


def show_session(url: str, root: Path, domain: Domain) -> None:
    """A new user over real HTTP: feed, five saves of one genre, feed again."""
    table = load_table(root, read_manifest(root / MODELS / read_aliases(root)[CHAMPION])["item_table"])
    genres = Genres(domain, table)
    items = genres.items
    save = strongest(domain, ActionKind.POSITIVE)
    with httpx.Client(base_url=url, timeout=30) as client:
        session = Session(client)
        before = session.feed(FEED_SIZE)
        shown = [row["item_id"] for row in before["items"]]
        # Of the ten largest genres, the one that the popular feed shows least.
        genre = min(genres.common_in(items, 10), key=lambda name: genres.share(name, shown))
        saved = genres.pure(genre, NUM_SAVES, exclude=shown)
        for item_id in saved:
            session.act(item_id, save)
        posted = time.monotonic()
        after = session.feed(FEED_SIZE)
        seconds = time.monotonic() - posted
    if after["sequence"]["length"] != NUM_SAVES:
        raise SessionError(f"the feed after {NUM_SAVES} acknowledged actions saw {after['sequence']['length']} of them")
    title = {item_id: str(item[domain.title]) for item_id, item in items.items()}
    click.echo(
        f"\na new user asks for a feed, then does {NUM_SAVES} × {save!r} on {genre}:\n  "
        + ", ".join(title[i] for i in saved)
    )
    click.echo(f"\n     {'before (' + str(before['fallback_reason']) + ')':38}after")
    for n, (a, b) in enumerate(zip(before["items"], after["items"], strict=False), 1):
        cells = [
            ("* " if genre in genres.of(items[row["item_id"]]) else "  ") + title[row["item_id"]][:34] for row in (a, b)
        ]
        click.echo(f"{n:3}  {cells[0]:38}{cells[1]}")
    share = [genres.share(genre, [row["item_id"] for row in f["items"]]) for f in (before, after)]
    click.echo(
        f"\n{genre} (*) in the top {FEED_SIZE}: {share[0]:.0%} before, {share[1]:.0%} after; "
        f"{seconds:.2f} s from the last POST to the changed feed; model {after['model_version']}\n"
    )
