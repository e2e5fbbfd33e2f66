"""Simulated experiments, judged by the functions that judge real ones: false alarms, power, a broken split.

A simulated user is one as feeds have them: how often somebody comes, and how often somebody acts, differ by orders of
magnitude between users and stay with the user from day to day, and most of a day's users were there before.

Shapes: U users, D days.
"""

import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from rayapp.contracts.config import DAY_MS
from rayapp.experiments.assignment import Layout, lay_out, slots_of
from rayapp.experiments.decision import ALPHA, judge
from rayapp.experiments.declaration import NUM_SLOTS, Arm, Experiment, Guardrail
from rayapp.experiments.effects import rates
from rayapp.experiments.moments import Moments, cumulative
from rayapp.experiments.sample_ratio import ALARM_P, sample_ratio
from rayapp.record import Bars, say, tell

HEAD: Final = "hide"
SHOWN: Final = 10
"""Items of one request."""
NAIVE: Final = 1.6449
"""What somebody who looks once would compare with."""
LIFTS: Final = (0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the daily looks at one simulated experiment said."""

    crossed_day: int | None
    naive: bool
    """A comparison with the boundary of a single look would have alarmed on some day."""
    mismatch: bool


def simulate(
    number: int, num_users: int, planned_days: int, lift: float = 0.0, lost: float = 0.0, seed: int = 0
) -> Outcome:
    """One experiment of two equal arms and one guardrail: `hide` must not rise.

    `lift` raises the treatment's rate by that share; `lost` is the share of the treatment's users that never reach the
    log.
    """
    rng = np.random.default_rng((seed, number))
    arms = (Arm("control", 0.5, "champion"), Arm("treatment", 0.5, "champion"))
    experiment = Experiment(
        f"a-a-{number}", f"salt-{seed}-{number}", DAY_MS, planned_days, arms, (Guardrail(HEAD, "rise"),)
    )
    layout = _halves()
    users = pa.array([f"user-{n}" for n in range(num_users)])
    arm_U = layout.arm_S[slots_of(experiment.salt, users)]
    requests_U = rng.lognormal(-1.0, 1.2, num_users)  # a day; half of all requests are made by 5 % of the users
    rate_U = rng.beta(0.5, 24.5, num_users)  # 2 % of shown items; many users never do it
    shown_UD = rng.poisson(requests_U[:, None], (num_users, planned_days)) * SHOWN
    rate_U = np.minimum(np.where(arm_U == 1, rate_U * (1 + lift), rate_U), 1.0)
    hidden_UD = rng.binomial(shown_UD, rate_U[:, None])
    seen_U = (shown_UD.sum(1) > 0) & ~((arm_U == 1) & (rng.random(num_users) < lost))
    groups = [np.flatnonzero(seen_U & (arm_U == a)) for a in (0, 1)]
    per_item = [
        Moments.of_users(shown_UD[rows], hidden_UD[rows][:, :, None]).grouped(cumulative(planned_days))
        for rows in groups
    ]
    (guarded,) = judge(experiment, per_item, (HEAD,))
    difference = rates(per_item[1], 0) - rates(per_item[0], 0)
    users_1A = np.array([[len(rows) for rows in groups]])
    return Outcome(
        guarded.crossed_day,
        bool((difference.rate_Q > NAIVE * difference.deviations).any()),
        sample_ratio(users_1A, layout.count(1, 2)).alarm,
    )


@functools.cache
def _halves() -> Layout:
    return lay_out([[NUM_SLOTS // 2, NUM_SLOTS // 2]])


def share(hits: int, trials: int) -> dict[str, float]:
    """A share and its 95 % interval (Wilson's)."""
    z2 = 1.959964**2
    middle = (hits + z2 / 2) / (trials + z2)
    width = math.sqrt(z2 * (hits * (trials - hits) / trials + z2 / 4)) / (trials + z2)
    return {"share": hits / trials, "low": middle - width, "high": middle + width}


def measure(num_experiments: int, num_users: int, planned_days: int) -> Iterator[dict[str, Any]]:
    """One row per world: what is true in it, and the shares of experiments that alarmed."""
    few = max(num_experiments // 8, 1)
    worlds = [("no effect (A/A)", 0.0, 0.0, num_experiments)]
    worlds += [(f"hides +{lift:.0%}", lift, 0.0, few) for lift in LIFTS]
    worlds += [("20% of treated users lost", 0.0, 0.2, few)]
    for world, lift, lost, trials in worlds:
        outcomes = [simulate(n, num_users, planned_days, lift, lost) for n in range(trials)]
        days = sorted(o.crossed_day for o in outcomes if o.crossed_day)
        yield {
            "world": world,
            "experiments": trials,
            "stopped": share(len(days), trials),
            "median_day": days[len(days) // 2] if days else None,
            "stopped_if_each_look_were_the_only_one": share(sum(o.naive for o in outcomes), trials),
            "mismatch": share(sum(o.mismatch for o in outcomes), trials),
        }


def run_experiments(num_experiments: int, num_users: int, days: int, as_json: bool, write: Path | None) -> None:
    started, rows = time.process_time(), []
    for row in measure(num_experiments, num_users, days):
        rows.append(row)
        say(f"{row['world']}: {row['stopped']['share']:.1%} stopped")
    seconds = time.process_time() - started
    values = {"users": num_users, "days": days, "alpha": ALPHA, "cpu_seconds": round(seconds, 1), "worlds": rows}
    body = _table(rows) + (
        f"\n\n{num_users:,} users, two equal arms, {days} daily looks, one guardrail (`{HEAD}` must not rise), "
        f"{seconds:.0f} s of one core. *Stopped*: the rule of `rayapp experiment check`, made for {ALPHA:.0%}. *Each "
        f"look the only one*: the same looks, each compared with {NAIVE:.2f} standard errors. *Mismatch*: the "
        f"chi-square test of the arms' users, p < {ALARM_P}. Brackets: 95 % intervals (Wilson)."
    )
    series = {"stopped": "stopped", "if each look were the only one": "stopped_if_each_look_were_the_only_one"}
    heights = {name: [100 * row[key]["share"] for row in rows[:-1]] for name, key in series.items()}
    spread = {
        name: tuple([100 * abs(row[key]["share"] - row[key][end]) for row in rows[:-1]] for end in ("low", "high"))
        for name, key in series.items()
    }
    bars = Bars("% of experiments stopped", [row["world"] for row in rows[:-1]], heights, spread)  # type: ignore[arg-type]
    tell(values, body, "Automatic stops under daily looks", bars, as_json=as_json, write=write)


def _table(rows: list[dict[str, Any]]) -> str:
    def told(value: dict[str, float]) -> str:
        return f"{value['share']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"

    lines = [
        "| world | experiments | stopped | median day | each look the only one | mismatch |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        single = told(row["stopped_if_each_look_were_the_only_one"])
        day = "" if row["median_day"] is None else row["median_day"]
        lines.append(
            f"| {row['world']} | {row['experiments']} | {told(row['stopped'])} | {day} | {single} | "
            f"{told(row['mismatch'])} |"
        )
    return "\n".join(lines)
