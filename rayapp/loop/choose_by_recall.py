"""Which model goes live where nobody saw a list: `loop.choose` by recall@20 over the whole catalogue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rayapp.contracts.config import Domain
from rayapp.contracts.presets import NO_SEQUENCE
from rayapp.loop.choose import FEWEST_LABELS, Choice, judge, told_gain
from rayapp.training.baselines import COVISITATION
from rayapp.training.catalogue_recall import Hits, K, NextActions, hit_gap, read_next_actions, version_hits
from rayapp.training.comparison import BootstrapInterval

MEASURED = f"recall@{K}"


@dataclass(frozen=True, slots=True)
class Recalls:
    """How often the next action was among the first 20, for each of some models."""

    window: str
    actions: NextActions
    hits: Mapping[str, Hits]

    @staticmethod
    def of(root: Path, domain: Domain, window: str, versions: Mapping[str, str]) -> "Recalls":
        """Of published models; `versions`: name -> version.

        Raises:
            PublishError: a model or the window can't be read.
        """
        actions = read_next_actions(root, window, domain)
        hits: dict[str, Hits] = {}
        for version in dict.fromkeys(versions.values()):
            hits[version] = version_hits(root, version, actions, domain)
        return Recalls(window, actions, {name: hits[version] for name, version in versions.items()})

    def gap(self, one: str, other: str) -> BootstrapInterval:
        """Of one model over another."""
        return hit_gap(self.hits[one], self.hits[other], self.actions.requests.user_hash_R)

    def value(self, name: str) -> float:
        return float(self.hits[name].mean()) if len(self.actions) else float("nan")

    def best_of(self, names: Sequence[str]) -> str:
        """Of equal ones the first."""
        return max(names, key=lambda name: (self.value(name), -names.index(name)))

    @property
    def sample(self) -> str:
        """What was looked at, in words."""
        actions = self.actions
        some = f"{len(actions):,} of {actions.num_all:,}" if len(actions) < actions.num_all else f"{len(actions):,}"
        return f"{some} next actions in {self.window}, all {len(actions.hash_N):,} items as candidates"


def recall_note(root: Path, domain: Domain, window: str, versions: Mapping[str, str]) -> str:
    """What a comparison of published models on made-up lists has to say besides."""
    recalls = Recalls.of(root, domain, window, versions)
    told = ", ".join(f"{name} {recalls.value(name):.4f}" for name in versions)
    return (
        "Nobody saw the lists of this window (docs/data.md#logs-without-shown-lists): their order says less than "
        f"{MEASURED} over the whole catalogue does. {MEASURED}, {recalls.sample}: {told}."
    )


def keep_sequence(recalls: Recalls, name: str) -> Choice:
    """`choose.judge` by recall."""
    return judge(name, recalls.gap(name, NO_SEQUENCE), MEASURED)


def earned_by_recall(recalls: Recalls, ranker: str, baselines: Sequence[str]) -> Choice:
    """`choose.earned` by recall: the ranker, if it is certainly above the better baseline; else that baseline."""
    better = recalls.best_of(baselines)
    if len(recalls.actions) < FEWEST_LABELS:
        return Choice(better, f"{better} goes live: {len(recalls.actions)} next actions tell nothing of {ranker}")
    gain = recalls.gap(ranker, better)
    told = f"{MEASURED} of {ranker} is {told_gain(gain)} over {better}"
    if gain.low > 0:
        return Choice(ranker, f"{ranker} goes live: {told}, the better baseline")
    advice = "it shows what people act on beside the items that a user acted on last, and reacts to the next action"
    if better != COVISITATION:
        advice = "it reacts all the same"
    return Choice(
        better,
        f"{better} goes live: {told}, which is not certainly above it; {advice}. Train again when the log has grown, "
        "or when the graph has served for some days: its own lists then take the place of the made-up ones",
    )


def recall_table(recalls: Recalls, made: str) -> str:
    """The comparison for people. `made`: how the lists of the windows came about."""
    width = max(map(len, recalls.hits)) + 2
    lines = [made, f"{MEASURED}: {recalls.sample}", f"{'':{width}}{MEASURED:>10}"]
    return "\n".join([*lines, *(f"{name:{width}}{recalls.value(name):>10.4f}" for name in recalls.hits)])
