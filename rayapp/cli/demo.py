"""`rayapp demo`: the whole loop, told stage by stage, and a session that shows the feed change."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import httpx

from rayapp.cli.serve import check_champion, wait
from rayapp.config import PRESETS, Domain, Preset
from rayapp.domains import load_domain
from rayapp.graph import check_port, local_ray, running_graph
from rayapp.publish import exclusive, read_json, read_manifest
from rayapp.registry.aliases import BASELINE, CHAMPION, promote, read_aliases
from rayapp.registry.item_tables import load_table
from rayapp.root import read_root
from rayapp.schema import ActionKind
from rayapp.session import Genres, Session, SessionError, strongest
from rayapp.sources import Files, movielens
from rayapp.sources.synthetic import World
from rayapp.training.run import TrainingRun, popularity_metrics
from rayapp.workflow import (
    build_windows,
    check_writable,
    import_once,
    item_table,
    make_world,
    seed_store,
    train_model,
    training_run,
    without_sequence,
)

NUM_SAVES = 5
FEED_SIZE = 10


class Stages:
    """Numbers the stages and says how long each took."""

    def __init__(self, count: int) -> None:
        self._count, self._number = count, 0

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[Callable[[bool], None]]:
        """Yields a function that is told whether the stage had anything to do."""
        self._number += 1
        click.echo(f"[{self._number}/{self._count}] {title} … ", nl=False)
        started, worked = time.monotonic(), True

        def tell(did_work: bool) -> None:
            nonlocal worked
            worked = did_work

        yield tell
        click.echo(f"{time.monotonic() - started:.1f} s" if worked else "done before")


def run_demo(root: Path, port: int, source: str, preset_name: str, exit_after: bool) -> None:
    check_writable(root)
    check_port(port)
    preset = PRESETS[preset_name]()
    raw = root / "download" / source
    domain_file = load_domain(source)

    def fetch() -> Files:
        return movielens.write_files(raw, raw) if source == "movielens" else make_world(World(), raw)

    stages = Stages(9)
    with exclusive(root, "the demo"):
        with stages.stage("start Ray"):
            ray_session = contextlib.ExitStack()
            ray_session.enter_context(local_ray())
        with ray_session:
            domain = domain_file.domain
            with stages.stage("import: catalogue, event log, request log") as tell:
                tell(import_once(root, domain_file, fetch))
            train_stages(root, domain, preset, stages)
            with stages.stage("seed the sequence store from the log") as tell:
                tell(seed_store(root)[1])
            check_champion(root)
            with contextlib.ExitStack() as graph:
                with stages.stage("start the Serve graph"):
                    url = graph.enter_context(running_graph(root, port))
                show_session(url, root, domain)
                if exit_after:
                    click.echo(f"the graph answered at {url}; stopping (--exit)")
                else:
                    wait(url)


def run_train(root: Path, preset_name: str) -> None:
    domain, _ = read_root(root)
    stages = Stages(7)
    with exclusive(root, "training"):
        with stages.stage("start Ray"):
            ray_session = contextlib.ExitStack()
            ray_session.enter_context(local_ray())
        with ray_session:
            train_stages(root, domain, PRESETS[preset_name](), stages)
            with stages.stage("seed the sequence store from the log") as tell:
                tell(seed_store(root)[1])
    click.echo(f"`rayapp serve --root {root}` serves it")


def train_stages(root: Path, domain: Domain, preset: Preset, stages: Stages) -> None:
    """All stages from the logs to the champion; prints the metric table."""
    with stages.stage("windows with Ray Data: histories and requests") as tell:
        prepared, worked = build_windows(root, domain)
        tell(worked)
    with stages.stage("item table: content tower and vectors") as tell:
        table, worked = item_table(root, prepared, preset)
        tell(worked)
    run = training_run(root, prepared, preset, table)
    baseline = training_run(root, prepared, without_sequence(preset), table)
    for title, each in (
        ("train TransAct with Ray Train", run),
        ("train the same ranker without the sequence", baseline),
    ):
        with stages.stage(title) as tell, training_progress(each):
            tell(train_model(each, domain))
    with stages.stage("evaluate and promote the champion") as tell:
        popular = popularity_metrics(root, domain, prepared.test_window, table)
        moved = [
            (alias, r.version)
            for alias, r in ((CHAMPION, run), (BASELINE, baseline))
            if read_aliases(root).get(alias) != r.version
        ]
        for alias, version in moved:
            promote(root, alias, version)
        tell(bool(moved))
    rows = {"popularity": popular}
    for name, each in (("no sequence", baseline), ("TransAct", run)):
        rows[name] = read_json(root / "models" / each.version / "metrics.json")["heads"]
    click.echo()
    click.echo(metric_table(rows, domain, prepared.test_window))


@contextlib.contextmanager
def training_progress(run: TrainingRun) -> Iterator[None]:
    """Shows steps, loss and the time left while another process trains: its log is followed."""
    done = threading.Event()

    def follow() -> None:
        shown = 0.0
        while not done.wait(1.0):
            try:
                line = json.loads(run.log.read_text().splitlines()[-1])
            except (OSError, IndexError, ValueError):
                continue  # not written yet
            share = line["step"] / max(line["num_steps"], 1)
            if share - shown >= 0.2 or (sys.stdout.isatty() and share > shown):
                shown = share
                left_s = line["seconds"] * (1 - share) / max(share, 1e-6)
                text = f"{share:4.0%}  loss {line['loss']:.4f}  {left_s:3.0f} s left "
                click.echo(
                    f"\r      {text}" if sys.stdout.isatty() else f"{share:.0%} ({left_s:.0f} s left) … ", nl=False
                )
                sys.stdout.flush()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def metric_table(rows: dict[str, dict[str, dict[str, float]]], domain: Domain, window: str) -> str:
    """The comparison on the test window: AUC and HIT@3 per head (HIT@3 of a negative head: lower is better)."""
    head = "".join(f"{name + ' AUC':>15}{'HIT@3':>8}" for name in domain.head_names)
    lines = [f"test window {window}", f"{'':14}{head}"]
    for name, metrics in rows.items():
        cells = "".join(f"{metrics[h]['auc']:15.4f}{metrics[h]['hit3']:8.4f}" for h in domain.head_names)
        lines.append(f"{name:14}{cells}")
    return "\n".join(lines)


def show_session(url: str, root: Path, domain: Domain) -> None:
    """A new user over real HTTP: feed, five saves of one genre, feed again."""
    table = load_table(root, read_manifest(root / "models" / read_aliases(root)[CHAMPION])["item_table"])
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
