"""Bench `feedback`: a responsive feed changes the log that its own successor is trained on.

Two feeds show lists to the same people of the made-up world: an old one that hardly follows what was just done, and a
responsive one. A share of the users is on the responsive feed, the others on the old one, and everything is trained
anew on the log of all of them: at 1.5 % as in an A/B test, at 100 % as after the launch. The gain of the sequence is
then measured on the same lists, those of the responsive feed.

What it can't show: people here do not come more often because a feed is better, so the loop runs through the log alone.

Shapes: U users, T topics, K draws, the first of which is the value itself.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from benchmarks.decay import sized
from benchmarks.decay_report import Floats, Measure, estimate
from rayapp.contracts.config import Domain
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.json_values import to_json
from rayapp.contracts.presets import NO_SEQUENCE, PRESETS, variant
from rayapp.importing.domains import load_domain
from rayapp.launch.runtime import local_ray
from rayapp.loop.artifacts import Prepared, build_windows, item_table, train_model, training_run
from rayapp.loop.first_import import import_once
from rayapp.loop.first_training import split_of
from rayapp.record import Bars, record
from rayapp.registry.models import load_model
from rayapp.root.logs import read_log
from rayapp.root.places import EVENTS, REQUESTS, ROOT_FILE
from rayapp.root.publish import PublishError, exclusive
from rayapp.sources import Files
from rayapp.sources.synthetic import World, files_in, make_chunk, make_items, write_items
from rayapp.training.comparison import DRAWS, BootstrapInterval, over_seeds
from rayapp.training.evaluate import read_window, score_window
from rayapp.training.run import train_here

OLD, RESPONSIVE = 0.1, 0.45
"""Share of places that the two feeds fill with what the user wants now."""
NEWEST: Final = 20
"""Actions of a user whose topics are counted."""


@dataclass(frozen=True, slots=True)
class Log:
    """What a share of responsive traffic does to the log, each with its interval over users."""

    actions_per_list: BootstrapInterval
    saves_per_list: BootstrapInterval
    topics_bits: BootstrapInterval
    """Entropy of the topics of a user's newest actions, mean over users."""


def run_feedback(
    root: Path, preset_name: str, name: str, shares: Sequence[float], seeds: int, world: World, as_json: bool,
    write: Path | None,
) -> None:  # fmt: skip
    if not all(0 <= share <= 1 for share in shares):
        raise PublishError("a share of traffic is between 0 and 1")
    if (root / ROOT_FILE).exists():
        raise PublishError(f"{root} holds a data set; the worlds of this study want a --root of their own")
    root.mkdir(parents=True, exist_ok=True)
    domain = load_domain("synthetic").domain
    torch.set_num_threads(1)
    shares = sorted({*shares, 1.0})
    with exclusive(root, "a study"):
        roots = {share: root / f"share-{share:g}" for share in shares}
        with local_ray():
            made = {share: _prepare(roots[share], world, share, preset_name) for share in shares}
        test, everyone = made[1.0][0].test_window, roots[1.0]
        windows = {0: read_window(everyone, test, domain)}
        measure, base = Measure(windows, domain, root / "bench"), sized(PRESETS[preset_name](), windows)
        auc: dict[tuple[float, str], list[Floats]] = {}
        for seed in range(seeds):
            for share in shares:
                prepared, table = made[share]
                for each in (name, NO_SEQUENCE):
                    preset = variant(base.seeded(seed), each)
                    run = training_run(roots[share], prepared, preset, table)
                    train_model(run, domain, train_here)

                    def score(root: Path = roots[share], version: str = run.version) -> NDArray[np.float32]:
                        return score_window(load_model(root, version, domain).scorer, everyone, test, domain)

                    value_K = measure(f"{share:g}-{run.version}", 0, score)["auc"]
                    auc.setdefault((share, each), []).append(value_K)
                    click.echo(f"  seed {seed}, {share:.1%} of the traffic, {each}: AUC {value_K[0]:.4f}", err=True)
    logs = {share: describe(roots[share], domain) for share in shares}
    mean = {line: over_seeds(each) for line, each in auc.items()}
    _tell(mean, logs, name, f"Preset `{preset_name}`, {seeds} seeds", world, as_json, write)


def _prepare(root: Path, world: World, share: float, preset_name: str) -> tuple[Prepared, str]:
    domain_file = load_domain("synthetic")
    import_once(root, domain_file, lambda: mixed_world(world, share, root / "raw"))
    prepared, _ = build_windows(root, domain_file.domain, split_of(root))
    return prepared, item_table(root, prepared, PRESETS[preset_name]())[0]


def on_responsive(user_ids: pa.ChunkedArray, share: float) -> NDArray[np.bool_]:
    """Who is on the responsive feed; whoever is at one share is so at every larger one."""
    return np.asarray(hash64_column(user_ids) < share * 2.0**64)


def mixed_world(world: World, share: float, directory: Path) -> Files:
    """The same people, visits and catalogue at every share; only the feed that a user sees differs."""
    write_items(world, directory)
    items = make_items(world)
    for chunk in range(world.num_chunks):
        old, new = (make_chunk(dataclasses.replace(world, shown_by_intent=s), items, chunk) for s in (OLD, RESPONSIVE))
        for kind in ("events", "requests", "users"):
            parts = [
                table.filter(pa.array(on_responsive(table["user_id"], share) == responsive))
                for table, responsive in ((old[kind], False), (new[kind], True))
            ]
            path = directory / kind / f"part-{chunk:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.concat_tables(parts), path, compression="zstd")
    return files_in(directory)


def describe(root: Path, domain: Domain) -> Log:
    """What the log of a root is made of."""
    events = read_log(root, EVENTS, ["user_id", "item_id", "action", "timestamp_ms"]).sort_by("timestamp_ms")
    requests = read_log(root, REQUESTS, ["user_id"])
    users = pc.unique(requests["user_id"])
    user_E = pc.index_in(events["user_id"], value_set=users).to_numpy()
    user_R = pc.index_in(requests["user_id"], value_set=users).to_numpy()
    positive_E = pc.is_in(events["action"], pa.array([domain.positive_head])).to_numpy(zero_copy_only=False)
    topic_of = _topics(root)
    bits_U = np.full(len(users), np.nan)
    topic_E = np.array([topic_of[i] for i in events["item_id"].to_pylist()])
    for user in np.unique(user_E):
        topic = topic_E[user_E == user][-NEWEST:]
        if len(topic) == NEWEST:
            p = np.unique(topic, return_counts=True)[1] / NEWEST
            bits_U[user] = -(p * np.log2(p)).sum()
    weight_KU = np.random.default_rng(0).poisson(1.0, (DRAWS, len(users)))
    weight_KU = np.concatenate([np.ones((1, len(users))), weight_KU])

    def count(user: NDArray[np.int64]) -> Floats:
        return np.bincount(user, minlength=len(users)).astype(np.float64)

    def ratio(above_U: Floats, below_U: Floats) -> BootstrapInterval:
        return estimate((weight_KU @ above_U) / (weight_KU @ below_U))

    known_U = ~np.isnan(bits_U)
    return Log(
        ratio(count(user_E), count(user_R)),
        ratio(count(user_E[positive_E]), count(user_R)),
        ratio(np.where(known_U, bits_U, 0.0), known_U.astype(np.float64)),
    )


def _topics(root: Path) -> Mapping[str, str]:
    """Each item's first topic."""
    items = pq.read_table(root / "raw" / "items.parquet", columns=["item_id", "topics"])
    return {row["item_id"]: row["topics"][0] for row in items.to_pylist()}


def _tell(
    mean: Mapping[tuple[float, str], Floats], logs: Mapping[float, Log], name: str, trained: str, world: World,
    as_json: bool, write: Path | None,
) -> None:  # fmt: skip
    gain = {share: mean[share, name] - mean[share, NO_SEQUENCE] for share in logs}
    first = min(gain)
    heads = ["on the responsive feed", "actions a list", "saves a list", "entropy of 20 actions' topics, bits",
             f"AUC {NO_SEQUENCE}", f"AUC {name}", "gain of the sequence", f"less the gain at {first:.1%}"]  # fmt: skip
    rows = []
    for share, log in logs.items():
        told = (log.actions_per_list, log.saves_per_list, log.topics_bits)
        cells = [f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for e in told]
        cells += [f"{mean[share, each][0]:.4f}" for each in (NO_SEQUENCE, name)]
        gaps = [estimate(gain[share]), estimate(gain[share] - gain[first])]
        cells += [f"{e.value:+.4f} [{e.low:+.4f}, {e.high:+.4f}]" for e in gaps]
        rows.append(f"| {share:.1%} | " + " | ".join(cells[:-1] + (["–"] if share == first else cells[-1:])) + " |")
    text = "\n".join(
        [
            f"{world.num_users} users, {world.num_days} days. {trained}. All models are scored on the same lists, "
            f"those of the responsive feed, which fills {RESPONSIVE:.0%} of its places with what the user wants now; "
            f"the old one fills {OLD:.0%}. Intervals: 95 % over users and seeds, differences paired.",
            "",
            "| " + " | ".join(heads) + " |",
            "|---|" + "---:|" * (len(heads) - 1),
            *rows,
        ]
    )
    if as_json:
        values = {f"{share:g}": to_json(estimate(gain_K)) for share, gain_K in gain.items()}
        click.echo(json.dumps({"bench": "feedback", "gain": values}))
    else:
        click.echo(text)
    if write is not None:
        gains = [estimate(gain_K) for gain_K in gain.values()]
        bars = Bars(
            f"AUC of {name} less {NO_SEQUENCE}",
            [f"{share:.1%}" for share in gain],
            {"gain": [g.value for g in gains]},
            {"gain": ([g.value - g.low for g in gains], [g.high - g.value for g in gains])},
        )
        record(write, "Feedback: the gain after training on a share of responsive traffic", text, bars)
