"""What the sequence buys: TransAct against the same ranker without it and against popularity, over seeds."""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import click

from rayapp.bench.record import Bars, record
from rayapp.config import PRESETS
from rayapp.domains import load_domain
from rayapp.graph import local_ray
from rayapp.publish import exclusive, read_json
from rayapp.sources import movielens
from rayapp.training.run import popularity_metrics
from rayapp.workflow import (
    build_windows,
    check_writable,
    import_once,
    item_table,
    train_model,
    training_run,
    without_sequence,
)

METRICS = ("auc", "hit3", "normalised_entropy")


def run_quality(root: Path, seeds: int, preset_name: str, as_json: bool, write: Path | None) -> None:
    check_writable(root)
    base = PRESETS[preset_name]()
    results: dict[str, list[dict[str, dict[str, float]]]] = {"popularity": [], "no sequence": [], "TransAct": []}
    trained_s = 0.0
    with exclusive(root, "a benchmark"), local_ray():
        raw, domain_file = root / "download" / "movielens", load_domain("movielens")
        import_once(root, domain_file, lambda: movielens.write_files(raw, raw))
        domain = domain_file.domain
        prepared, _ = build_windows(root, domain)
        table, _ = item_table(root, prepared, base)
        results["popularity"].append(popularity_metrics(root, domain, prepared.test_window, table))
        for seed in range(seeds):
            seeded = dataclasses.replace(base, train=dataclasses.replace(base.train, seed=seed))
            for name, preset in (("no sequence", without_sequence(seeded)), ("TransAct", seeded)):
                run = training_run(root, prepared, preset, table)
                train_model(run, domain)
                metrics = read_json(root / "models" / run.version / "metrics.json")
                results[name].append(metrics["heads"])
                trained_s += metrics["train"]["seconds"]
                click.echo(f"  seed {seed} {name}: {results[name][-1][domain.positive_head]}", err=True)
    head = domain.positive_head
    summary: dict[str, Any] = {
        name: {m: _mean_spread([run[head][m] for run in runs]) for m in METRICS} for name, runs in results.items()
    }
    if as_json:
        click.echo(
            json.dumps(
                {
                    "bench": "quality",
                    "preset": base.name,
                    "seeds": seeds,
                    "head": head,
                    "test_window": prepared.test_window,
                    "models": summary,
                }
            )
        )
    text = _table(summary, head, prepared.test_window, base.name, seeds, trained_s)
    if not as_json:
        click.echo(text)
    if write is not None:
        command = f"rayapp bench quality --preset {base.name} --seeds {seeds}"
        record(write, "What the sequence buys", command, text, _bars(summary, head))


def _mean_spread(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "min": min(values), "max": max(values), "n": len(values)}


def _bars(summary: dict[str, Any], head: str) -> Bars:
    keys = METRICS[:2]
    return Bars(
        f"head {head!r}: mean, lowest and highest seed",
        ["AUC", "HIT@3"],
        {name: [m[k]["mean"] for k in keys] for name, m in summary.items()},
        {
            name: ([m[k]["mean"] - m[k]["min"] for k in keys], [m[k]["max"] - m[k]["mean"] for k in keys])
            for name, m in summary.items()
        },
    )


def _table(summary: dict[str, Any], head: str, window: str, preset: str, seeds: int, seconds: float) -> str:
    lines = [
        f"| ranker | AUC of `{head}` | HIT@3 of `{head}` | normalised entropy |",
        "|---|---:|---:|---:|",
    ]
    for name, metrics in summary.items():
        cells = [f"{m['mean']:.4f} ({m['min']:.4f}–{m['max']:.4f})" for m in (metrics[k] for k in METRICS)]
        if name == "popularity":
            cells = [f"{metrics[k]['mean']:.4f}" for k in METRICS[:2]] + ["not a probability"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Mean (lowest–highest) of {seeds} seeds, preset `{preset}`, test window {window}, {seconds:.0f} s of "
        "training in all. HIT@3 sorts each shown list of five by the feed score, over lists "
        "that hold the label; chance gives 0.6.",
    ]
    return "\n".join(lines)
