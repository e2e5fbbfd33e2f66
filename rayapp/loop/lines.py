"""The model lines that a retraining renews: the champion's, and one for each arm of a running experiment."""

import time
from dataclasses import dataclass
from pathlib import Path

from rayapp.contracts.config import Domain
from rayapp.contracts.json_values import from_json
from rayapp.contracts.presets import PRESETS, Preset, variant
from rayapp.experiments.assignment import read_state
from rayapp.experiments.declaration import read_experiments
from rayapp.registry.aliases import CHAMPION, read_aliases
from rayapp.registry.models import model_manifest
from rayapp.training.baselines import COUNTED, WITHOUT_LISTS


@dataclass(frozen=True, slots=True)
class Line:
    """An alias, the version it points at when the run begins, and how its next model is made."""

    alias: str
    version: str | None
    preset: Preset
    item_table: str | None
    """Of `version`."""
    goes_on: bool = False
    """Whether `preset` is that of `version`."""
    to_earn: bool = False
    """Whether its next model, a ranker, has to be certainly better than counts to take the place of what is there: a
    baseline, or nothing."""


def read_root_lines(root: Path, domain: Domain, first: Preset, chosen: Preset | None) -> list[Line]:
    """The champion's line, then one for each other alias of the running experiment; each goes on with its own preset.

    `first` makes the first champion of a root that has none; what may take the place of a baseline is the ranker of
    its sizes, of the variant of `first`. `chosen`, if given, takes the place of the champion's preset.

    Raises:
        PublishError: a live model was written by another version of this program.
        ExperimentError: the experiments file is wrong.
    """
    aliases = read_aliases(root)
    lines = []
    for alias in dict.fromkeys([CHAMPION, *_arm_aliases(root, domain)]):
        version = aliases.get(alias)
        if version is None and alias != CHAMPION:
            continue  # an arm that was declared and not given a model yet is served by the champion
        if version is None:
            lines.append(Line(alias, None, chosen or first, None, to_earn=True))
            continue
        manifest = model_manifest(root, version)
        own, table = from_json(Preset, manifest["preset"]), str(manifest["item_table"])
        baseline = own.variant in WITHOUT_LISTS
        if alias == CHAMPION and (chosen is not None or baseline):
            preset = chosen or (variant(PRESETS[own.name](), first.variant) if own.name in PRESETS else first)
            lines.append(Line(alias, version, preset, table, to_earn=baseline))
        elif own.variant not in COUNTED:  # which have nothing to train
            lines.append(Line(alias, version, own, table, goes_on=True))
    return lines


def _arm_aliases(root: Path, domain: Domain) -> list[str]:
    """Aliases of the experiment that is on at this moment: experiments live by the clock, whatever a run simulates."""
    now_ms = time.time_ns() // 1_000_000
    state = read_state(root)
    for experiment in read_experiments(root, domain):
        stopped = state.get(experiment.name, {}).get("stopped")
        if experiment.starts_ms <= now_ms < experiment.ends_ms and not stopped:
            return [arm.alias for arm in experiment.arms]
    return []
