"""Bench `sizes`: what the first training of small, middling and larger logs puts live, and whether it is the right one.

Each cell is a root of its own with the last so many lists before the test, trained by the steps of `rayapp train` with
its default preset; all cells of a data set are tested on the same lists. A cell that is on record is not made again.

Shapes: R rows of a log, L of its lists before the test.
"""

import contextlib
import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayapp.contracts.config import DAY_MS, Domain, day_start_ms
from rayapp.contracts.hashing import hash64_column
from rayapp.contracts.presets import DEFAULT_VARIANT, NO_SEQUENCE, auto, variant
from rayapp.importing.domains import load_domain
from rayapp.launch.runtime import local_ray
from rayapp.loop.choose import advantage, better_of
from rayapp.loop.first_import import import_once
from rayapp.loop.first_training import Done, FirstTraining, train_first
from rayapp.loop.plan import Split, make_split
from rayapp.pipeline.tasks import run_tasks
from rayapp.record import Bars, say, tell
from rayapp.registry.aliases import CHAMPION, read_aliases
from rayapp.registry.models import model_manifest
from rayapp.root.facts import make_root, read_root
from rayapp.root.logs import log_schema, read_log, sort_log, write_file
from rayapp.root.places import EVENTS, ITEMS, REQUESTS, USERS
from rayapp.root.publish import commit_log, read_json, write_json
from rayapp.sources import Size
from rayapp.sources.data_sets import data_set
from rayapp.training.baselines import BASELINES
from rayapp.training.evaluate import read_window, score_version
from rayapp.training.run import TrainingRun

DATA: Final = ("synthetic", "news", "movielens")
LISTS: Final = (500, 3_000, 30_000)
TEST_LISTS: Final = 3_000
FEWEST_DAYS: Final = 2
"""A training and a validation."""
TOLERANCE: Final = 0.005


@dataclass(frozen=True, slots=True)
class Cut:
    """Which rows of a log are left."""

    split: Split
    last_hash: np.uint64
    """Before the test, users whose hash is greater are left out."""
    lists: int
    """Before the test."""

    @staticmethod
    def of(requests: pa.Table, lists: int) -> "Cut":
        """About so many lists before the last days that hold TEST_LISTS: the newest days, and of these some users."""
        time_R, hash_R = requests["timestamp_ms"].to_numpy(), hash64_column(requests["user_id"])
        newest_first = np.sort(time_R)[::-1]
        test_ms = day_start_ms(newest_first[min(TEST_LISTS, len(time_R)) - 1])
        before = newest_first[newest_first < test_ms]
        since_ms = day_start_ms(before[min(lists, len(before)) - 1])
        since_ms = min(since_ms, test_ms - FEWEST_DAYS * DAY_MS)
        hash_L = np.sort(hash_R[(time_R >= since_ms) & (time_R < test_ms)])
        last_hash = hash_L[min(lists, len(hash_L)) - 1]
        split = make_split(since_ms, day_start_ms(newest_first[0]) + DAY_MS, test_ms)
        return Cut(split, last_hash, int((hash_L <= last_hash).sum()))

    def holds(self, rows: pa.Table) -> NDArray[np.bool_]:
        """`[R]`."""
        time_R, hash_R = rows["timestamp_ms"].to_numpy(), hash64_column(rows["user_id"])
        kept_R: NDArray[np.bool_] = (time_R >= self.split.test_ms) | (hash_R <= self.last_hash)
        return np.asarray(kept_R & (time_R >= self.split.since_ms))


class Told:
    """The steps, a line each."""

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Done]:
        say(title)
        yield lambda _worked: None

    @contextlib.contextmanager
    def training(self, run: TrainingRun) -> Iterator[None]:
        say(run.version)
        yield


def run_sizes(
    root: Path, data: Sequence[str], lists: Sequence[int], seeds: int, as_json: bool, write: Path | None
) -> None:
    cells = [kept_cell(root, *of_cell) for of_cell in itertools.product(data, lists, range(seeds))]
    bad = [c for c in cells if c["gain"] is not None and c["gain"][0] < -TOLERANCE]
    result = {
        "cells": len(cells),
        "rankers_live": sum(c["live"] not in BASELINES for c in cells),
        "worse_than_a_baseline": len(bad),
    }
    groups = list(dict.fromkeys(f"{c['data']} {c['asked']:,}" for c in cells))
    series = {
        f"seed {seed}": [c["gain"][0] if c["gain"] else 0.0 for c in cells if c["seed"] == seed]
        for seed in range(seeds)
    }
    bars = Bars("AUC above the better baseline", groups, series)
    line = {"bench": "sizes", **result, "rows": cells}
    tell(line, _table(cells, result), "What goes live after a first training", bars, as_json=as_json, write=write)


def kept_cell(root: Path, name: str, lists: int, seed: int) -> dict[str, Any]:
    """`cell`, unless it is on record."""
    kept = root / "cells" / f"{name}-{lists}-{seed}.json"
    if not kept.exists():
        say(f"{name}, {lists:,} lists, seed {seed}")
        with local_ray():
            found = cell(root, name, lists, seed)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, found)
    record: dict[str, Any] = read_json(kept)
    return record


def cell(root: Path, name: str, lists: int, seed: int) -> dict[str, Any]:
    """Cuts, trains and judges one root. Ray must be initialised."""
    whole = root / name
    domain_file = load_domain(data_set(name).domain)
    import_once(whole, domain_file, lambda: data_set(name).fetch(whole / "raw", Size(original_times=True), run_tasks))
    domain, _ = read_root(whole)
    cut = Cut.of(read_log(whole, REQUESTS, ["user_id", "timestamp_ms"]), lists)
    own = root / f"{name}-{lists}-{seed}"
    shutil.rmtree(own, ignore_errors=True)  # of a run that was killed
    _copy(whole, own, domain, cut)
    trained = train_first(own, domain, variant(auto(), DEFAULT_VARIANT).seeded(seed), cut.split, Told())
    found = {"data": name, "asked": lists, "lists": cut.lists, "seed": seed, **_judged(own, domain, trained)}
    shutil.rmtree(own)
    return found


def _copy(whole: Path, own: Path, domain: Domain, cut: Cut) -> None:
    """The rows of the cut, in a root of their own."""
    num_buckets = read_root(whole)[1]
    make_root(own, domain, num_buckets)
    for kind in (ITEMS, USERS):
        if (whole / kind).exists():
            shutil.copytree(whole / kind, own / kind)
    for kind in (EVENTS, REQUESTS):
        rows = read_log(whole, kind, log_schema(kind, domain).names)
        rows = rows.filter(pa.array(cut.holds(rows)))
        bucket_R, files = hash64_column(rows["user_id"]) % np.uint64(num_buckets), []
        for bucket in np.unique(bucket_R).tolist():
            table = sort_log(rows.filter(pa.array(bucket_R == bucket)))
            files.append(write_file(own / kind, "cut", int(bucket), "cut", table))
        commit_log(own / kind, 0, {"files": files})


def _judged(root: Path, domain: Domain, trained: FirstTraining) -> dict[str, Any]:
    """What went live, and how far it is above the better baseline on the test."""
    window = read_window(root, trained.test_window, domain)
    aliases = read_aliases(root)
    names = (CHAMPION, *BASELINES)
    logits = {name: score_version(root, aliases[name], trained.test_window, domain) for name in names}
    better = better_of(window, logits, BASELINES, domain)
    gain = advantage(window, logits[CHAMPION], logits[better], domain)[1]
    return {
        "live": model_manifest(root, aliases[CHAMPION])["preset"]["variant"],
        "better_baseline": better,
        "gain": None if np.isnan(gain.value) else [gain.value, gain.low, gain.high],
        "auc": {name: report[domain.positive_head]["auc"] for name, report in trained.reports.items()},
        "test_lists": len(window.valid_RC),
        "why": [choice.why for choice in trained.choices],
    }


def _table(cells: Sequence[dict[str, Any]], result: dict[str, Any]) -> str:
    lines = [
        "| log | lists | seed | live | above the better baseline | AUC: "
        f"{' | '.join((*BASELINES, NO_SEQUENCE, DEFAULT_VARIANT))} |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for c in cells:
        gain = "–" if c["gain"] is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*c["gain"])
        auc = (f"{c['auc'][name]:.4f}" for name in (*BASELINES, NO_SEQUENCE, DEFAULT_VARIANT))
        told = (c["data"], f"{c['lists']:,}", c["seed"], c["live"], f"{gain} ({c['better_baseline']})", *auc)
        lines.append(f"| {' | '.join(map(str, told))} |")
    lines += [
        "",
        f"`rayapp train` with its default preset, on the last lists before a test of {TEST_LISTS:,} or more. Above the "
        "better baseline: AUC of the positive head (within lists where they have three items or more) of what went "
        "live less that of the better of `popularity` and `counts`, with its 95 % interval over users. The other "
        "columns are AUC over all pairs.",
        "",
        f"- a ranker went live in {result['rankers_live']} of {result['cells']}",
        f"- below the better baseline by more than {TOLERANCE}: {result['worse_than_a_baseline']}",
    ]
    return "\n".join(lines)
