"""What bench `decay` found, as tables and pictures: ageing, cost against quality, stability, A/B tests.

Every difference is paired: on the same days, users and seeds. The draws of the bootstrap draw users once for all days,
and seeds, like `training.compare`.

Shapes: D days, S seeds, M metrics, K draws, the first of which is the value itself, R requests.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.contracts.presets import NO_SEQUENCE
from rayapp.contracts.schema import fingerprint
from rayapp.picture import svg
from rayapp.record import write_result
from rayapp.training.comparison import DRAWS, BootstrapInterval, Logits, over_seeds
from rayapp.training.evaluate import EvaluationSet, measures

Floats = NDArray[np.float64]
METRICS: Final = ("auc", "normalised_entropy")
PARTS: Final = 3
"""The days are told in this many stretches."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one training."""

    cpu_seconds: float
    examples: int


@dataclass(frozen=True, slots=True)
class Day:
    """One day of one policy of one model of one seed: how well it scored that day, metric -> `[K]`."""

    variant: str
    policy: str
    seed: int
    day: int
    values: Mapping[str, Floats]
    replaced: Mapping[str, Floats] | None
    """The same of the model that was in its place the day before, where it was trained again."""
    cost: Cost | None
    """Of the training for this day; the first model, the same for all policies, is not counted."""


class Measure:
    """Measures a model on a day once, however many policies have it there and however often the study is continued:
    what was measured is kept in `directory`, one file for a model and a day."""

    def __init__(self, windows: Mapping[int, EvaluationSet], domain: Domain, directory: Path) -> None:
        self._windows, self._domain = windows, domain
        self._directory = directory / fingerprint((METRICS, DRAWS, sorted(windows), domain.positive_head))[:8]
        self._directory.mkdir(parents=True, exist_ok=True)
        users = np.unique(np.concatenate([w.user_hash_R for w in windows.values()]))
        weight_KU = np.random.default_rng(0).poisson(1.0, (DRAWS, len(users))).astype(np.float64)
        weight_KU = np.concatenate([np.ones((1, len(users))), weight_KU])
        self._weight_KR = {d: weight_KU[:, np.searchsorted(users, w.user_hash_R)] for d, w in windows.items()}
        self._head = domain.head_names.index(domain.positive_head)

    def __call__(self, version: str, day: int, score: Callable[[], Logits]) -> dict[str, Floats]:
        path = self._directory / f"{version}_{day}.npy"
        if not path.exists():
            of_metric = measures(self._windows[day], score(), self._domain, self._head)
            value_MK = np.stack([of_metric[name](self._weight_KR[day]) for name in METRICS])
            temporary = path.with_suffix(".tmp")
            with temporary.open("wb") as file:
                np.save(file, value_MK)
            temporary.replace(path)
        return dict(zip(METRICS, np.load(path), strict=True))


class Ages:
    """The days of a study, as arrays."""

    def __init__(self, days: Sequence[Day]) -> None:
        self.days = days
        self.numbers = sorted({d.day for d in days})
        self.seeds = sorted({d.seed for d in days})
        self.lines = list(dict.fromkeys((d.variant, d.policy) for d in days))
        self._at = {(d.variant, d.policy, d.seed, d.day): d for d in days}
        self.variants = list(dict.fromkeys(variant for variant, _ in self.lines))
        known = [policy for _, policy in self.lines]
        self.reference = next(p for p in ("daily", "twice-weekly", known[0]) if p in known)
        """The policy that differences are to: from scratch as often as was tried."""

    def has(self, variant: str, policy: str) -> bool:
        return (variant, policy) in self.lines

    def of_seeds(self, variant: str, policy: str, metric: str = "auc") -> Floats:
        """`[S, D, K]`."""
        return np.array([[self._at[variant, policy, s, d].values[metric] for d in self.numbers] for s in self.seeds])

    def values(self, variant: str, policy: str, metric: str = "auc") -> Floats:
        """`[D, K]`, the mean over seeds, each draw with seeds of its own."""
        each_SDK = self.of_seeds(variant, policy, metric)
        return np.stack([over_seeds(list(each_SDK[:, d])) for d in range(len(self.numbers))])

    def gap(self, one: tuple[str, str], other: tuple[str, str], metric: str = "auc") -> Floats:
        """`[D, K]`: one line less another."""
        return self.values(*one, metric) - self.values(*other, metric)

    def trainings(self, variant: str, policy: str) -> list[Day]:
        return [d for d in self.days if (d.variant, d.policy) == (variant, policy) and d.cost is not None]

    def cpu_seconds(self, variant: str, policy: str) -> float:
        """Of all trainings of a policy, for one seed."""
        return sum(d.cost.cpu_seconds for d in self.trainings(variant, policy) if d.cost) / len(self.seeds)

    def examples(self, variant: str, policy: str) -> float:
        return sum(d.cost.examples for d in self.trainings(variant, policy) if d.cost) / len(self.seeds)

    def parts(self) -> list[tuple[str, NDArray[np.int64]]]:
        """Stretches of days, counted from the first scored one."""
        split = np.array_split(np.arange(len(self.numbers)), min(PARTS, len(self.numbers)))
        return [(f"day {p[0] + 1}" if len(p) == 1 else f"days {p[0] + 1}–{p[-1] + 1}", p) for p in split]


def estimate(value_K: Floats) -> BootstrapInterval:
    return BootstrapInterval.of(float(value_K[0]), value_K[1:])


def tell(ages: Ages, domain: Domain, title: str, notes: Sequence[str], as_json: bool, write: Path | None) -> str:
    """The result as text; with `write` also as a file with two pictures."""
    head = domain.positive_head
    body = [
        *notes,
        f"Head `{head}`; AUC over all shown items of a day, then the mean over days. Intervals: 95 %, over users and "
        "seeds; differences are paired. `daily` trains from scratch on a sliding window as long as window 0; the warm "
        "policies start each day from the model of the day before and train on the one day that has come since. CPU "
        "seconds are those of the training loop with its validation, on one thread, for one seed, without the first "
        "model, which is everyone's.",
        *(f"## {name}\n\n{_policies(ages, name)}" for name in ages.variants),
        f"## Ageing\n\n{_ageing(ages)}",
        f"## The lead over {NO_SEQUENCE}, as an A/B test would see it\n\n{_leads(ages)}",
        f"## Stability\n\n{_stability(ages)}",
    ]
    text = "\n\n".join(body)
    if write is not None:
        curves, costs = write.with_suffix(".svg"), write.with_name(f"{write.stem}_cost.svg")
        pictures = [f"![Ageing]({curves.name})", f"![Cost against quality]({costs.name})"]

        def draw() -> None:
            draw_curves(curves, title, ages)
            draw_costs(costs, title, ages)

        write_result(write, title, "\n\n".join([*pictures, text]), draw)
    if as_json:
        rows = [
            {
                "model": variant,
                "policy": policy,
                "auc": [round(float(v), 6) for v in ages.values(variant, policy)[:, 0]],
                "cpu_seconds": ages.cpu_seconds(variant, policy),
                "examples": ages.examples(variant, policy),
            }
            for variant, policy in ages.lines
        ]
        return json.dumps({"bench": "decay", "notes": list(notes), "rows": rows})
    return text


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _signed(e: BootstrapInterval) -> str:
    return f"{e.value:+.4f} [{e.low:+.4f}, {e.high:+.4f}]"


def _policies(ages: Ages, variant: str) -> str:
    rows = []
    base = (variant, ages.reference)
    for policy in (p for v, p in ages.lines if v == variant):
        line = (variant, policy)
        quality = estimate(ages.values(*line).mean(axis=0))
        trainings = ages.trainings(*line)
        cells = [policy, f"{quality.value:.4f} [{quality.low:.4f}, {quality.high:.4f}]"]
        gaps = [estimate(ages.gap(line, base, metric).mean(axis=0)) for metric in METRICS]
        cells += ["–" if line == base else _signed(gap) for gap in gaps]
        cells.append(f"{ages.of_seeds(*line)[:, :, 0].mean(axis=1).std(ddof=1):.4f}" if len(ages.seeds) > 1 else "–")
        cells.append(f"{len(trainings) / len(ages.seeds):.0f}")
        cells.append(f"{ages.cpu_seconds(*line):,.0f}")
        cells.append(_share(ages, line, base))
        cells.append(f"{ages.examples(*line):,.0f}")
        rows.append(cells)
    less = f"less {ages.reference}"
    heads = ["policy", "AUC", f"AUC {less}", f"normalised entropy {less}", "deviation over seeds", "trainings",
             "CPU s", f"a training's share of {ages.reference}'s", "examples"]  # fmt: skip
    return _table(heads, rows)


def _share(ages: Ages, line: tuple[str, str], base: tuple[str, str]) -> str:
    """CPU seconds of a training over those of the reference's, for the same seed; the spread over trainings."""
    of_base = [d.cost.cpu_seconds for d in ages.trainings(*base) if d.cost]
    of_line = [d.cost.cpu_seconds for d in ages.trainings(*line) if d.cost]
    if not of_base or not of_line:
        return "–"
    share = np.array(of_line) / np.mean(of_base)
    low, high = np.quantile(share, [0.025, 0.975])
    return f"{share.mean():.0%} [{low:.0%}, {high:.0%}]"


def _ageing(ages: Ages) -> str:
    """AUC without retraining less AUC with it, by stretches of days; then how much faster one model ages."""
    parts = ages.parts()
    aged = {
        v: ages.gap((v, "none"), (v, ages.reference)) for v in ages.variants if ages.has(v, "none")
    }  # fmt: skip
    if ages.reference == "none" or not aged:
        return "No policy to compare with."
    rows = [[f"{v}: none less {ages.reference}", *_in_parts(gap, parts)] for v, gap in aged.items()]
    if NO_SEQUENCE in aged:
        rows += [
            [f"{v} less {NO_SEQUENCE}", *_in_parts(gap - aged[NO_SEQUENCE], parts)]
            for v, gap in aged.items()
            if v != NO_SEQUENCE
        ]
    return _table(["", *(name for name, _ in parts), "all days"], rows)


def _in_parts(gap_DK: Floats, parts: Sequence[tuple[str, NDArray[np.int64]]]) -> list[str]:
    return [
        *(_signed(estimate(gap_DK[days].mean(axis=0))) for _, days in parts),
        _signed(estimate(gap_DK.mean(axis=0))),
    ]


def _leads(ages: Ages) -> str:
    """The model with the sequence less the one without, each under a policy of its own."""
    parts, rows = ages.parts(), []
    wanted = dict.fromkeys(("none", "twice-weekly", "daily-warm", ages.reference))
    for variant in (v for v in ages.variants if v != NO_SEQUENCE):
        for mine, theirs in itertools.product(wanted, wanted):
            same = mine == theirs
            crossed = {mine, theirs} == {"none", ages.reference}
            if (same or crossed) and ages.has(variant, mine) and ages.has(NO_SEQUENCE, theirs):
                gap = ages.gap((variant, mine), (NO_SEQUENCE, theirs))
                rows.append([f"{variant} {mine}, {NO_SEQUENCE} {theirs}", *_in_parts(gap, parts)])
    return _table(["", *(name for name, _ in parts), "all days"], rows) if rows else "One model alone."


def _stability(ages: Ages) -> str:
    """Each new model against the one that it replaced, on the day that it first scored."""
    rows = []
    for line in ages.lines:
        pairs = [(d.values["auc"], d.replaced["auc"]) for d in ages.trainings(*line) if d.replaced is not None]
        if not pairs:
            continue
        gain_TK = np.array([new - old for new, old in pairs])
        gain = estimate(gain_TK.mean(axis=0))
        rows.append(
            [
                " ".join(line), _signed(gain), f"{(gain_TK[:, 0] < 0).mean():.0%}", f"{gain_TK[:, 0].min():+.4f}",
                f"{gain_TK[:, 0].std(ddof=1):.4f}" if len(pairs) > 1 else "–",
            ]
        )  # fmt: skip
    heads = ["policy", "new model less the one it replaced", "new is worse", "worst", "deviation"]
    return _table(heads, rows) if rows else "Nothing was trained again."


def draw_curves(path: Path, title: str, ages: Ages) -> None:
    """AUC less that of the reference policy of the same model, day by day; a band around no retraining at all."""
    x = np.arange(1, len(ages.numbers) + 1)
    with svg(path, 9, 4.2) as axes:
        for variant, policy in ages.lines:
            if policy == ages.reference:
                continue
            gap_DK = ages.gap((variant, policy), (variant, ages.reference))
            style = "--" if variant == NO_SEQUENCE else "-"
            color = _color(ages, policy)
            width = 2.2 if policy == "none" else 1.0
            axes.plot(x, gap_DK[:, 0], style, color=color, linewidth=width, label=f"{variant} {policy}")
            if policy == "none":
                low_D, high_D = np.quantile(gap_DK[:, 1:], [0.025, 0.975], axis=1)
                axes.fill_between(x, low_D, high_D, color=color, alpha=0.15 if style == "-" else 0.08, linewidth=0)
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set_xticks(x)
        axes.set_xlabel("scored day")
        axes.set_ylabel(f"AUC less {ages.reference}")
        axes.set_title(title)


def draw_costs(path: Path, title: str, ages: Ages) -> None:
    """Mean AUC over the days against the CPU seconds of all trainings."""
    with svg(path, 9, 4.2) as axes:
        for variant, policy in ages.lines:
            of_seeds = ages.of_seeds(variant, policy)[:, :, 0].mean(axis=1)
            quality = estimate(ages.values(variant, policy).mean(axis=0)).value
            marker = "s" if variant == NO_SEQUENCE else "o"
            axes.errorbar(
                ages.cpu_seconds(variant, policy), quality, yerr=of_seeds.std(), fmt=marker, capsize=3,
                color=_color(ages, policy), label=f"{variant} {policy}",
            )  # fmt: skip
        axes.set_xlabel("CPU seconds of training in all")
        axes.set_ylabel("AUC, mean of the days (bars: seeds)")
        axes.set_title(title)


def _color(ages: Ages, policy: str) -> str:
    """The same for a policy in both pictures."""
    return f"C{list(dict.fromkeys(p for _, p in ages.lines)).index(policy)}"


def costs_told(days: Sequence[Day]) -> str:
    """One line of progress."""
    costs = [d.cost for d in days if d.cost is not None]
    auc: Any = np.mean([d.values["auc"][0] for d in days])
    return f"AUC {auc:.4f}, {len(costs)} trainings, {sum(c.cpu_seconds for c in costs):.0f} CPU s"
