"""Which of the models that a first training made becomes the champion: the ranker, with the sequence or without it, if
it has earned its place over the baselines; else the better baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rayapp.contracts.config import Domain
from rayapp.contracts.presets import NO_SEQUENCE
from rayapp.training.comparison import DRAWS, BootstrapInterval, Logits, auc_gap, request_auc_gap
from rayapp.training.evaluate import EvaluationSet, read_window, score_version

LIST_ITEMS: Final = 3
"""Lists that are as long on average are judged by their order within; shorter ones hold too few pairs."""
FEWEST_LABELS: Final = 50
"""With fewer, an interval over users is as narrow as chance has it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The variant to promote, and the sentence that says why; none where there was nothing to choose from."""

    variant: str
    why: str = ""


def choose(root: Path, domain: Domain, window_name: str, versions: Mapping[str, str]) -> Choice:
    """Between a variant with the sequence and the ranker without it, on the window that validated both.

    `versions`: variant -> version, the ranker without the sequence first. The test window is not looked at, so what is
    reported on it is a test of the choice, too.

    Raises:
        PublishError: a model or the window can't be read.
    """
    name = list(versions)[-1]
    if name == NO_SEQUENCE:
        return Choice(name)
    window = read_window(root, window_name, domain)
    logits = {each: score_version(root, version, window_name, domain) for each, version in versions.items()}
    return judge(
        name,
        auc_gap(window, logits[name], logits[NO_SEQUENCE], domain, domain.positive_head),
        f"AUC of {domain.positive_head!r}",
    )


def judge(name: str, gain: BootstrapInterval, measured: str) -> Choice:
    """The sequence is taken out only where it certainly orders lists worse: without it a feed no longer follows what
    people just did. `gain`: what was `measured` of it less that of the ranker without; NaN, where no label tells, keeps
    it."""
    out = gain.high < 0
    told = told_gain(gain)
    return Choice(
        NO_SEQUENCE if out else name,
        f"the sequence {'is taken out' if out else 'stays in'}: {measured} with it ({name}) less "
        f"without it is {told} on the validation window",
    )


def earned(
    window: EvaluationSet, ranker: str, logits: Mapping[str, Logits], baselines: Sequence[str], domain: Domain
) -> Choice:
    """The ranker, if its AUC on the positive head is certainly above that of the better baseline; else that baseline.

    `logits`: `[R, C, H]` by name, on a window that no model was trained, stopped or calibrated on.
    """
    better = better_of(window, logits, baselines, domain)
    labels = window.num_labels(domain.head_names.index(domain.positive_head))
    if labels < FEWEST_LABELS:
        return Choice(better, f"{better} goes live: {labels} labels on the test window tell nothing of {ranker}")
    measured, gain = advantage(window, logits[ranker], logits[better], domain)
    told = f"{measured} {told_gain(gain)} over {better}"
    if gain.low > 0:
        return Choice(ranker, f"{ranker} goes live: on the test window it has an {told}, the better baseline")
    return Choice(
        better,
        f"{better} goes live: on the test window {ranker} has an {told}, which is not certainly above it. It reacts "
        "all the same; train again when the log has more lists, or compare variants with `rayapp compare`",
    )


def better_of(window: EvaluationSet, logits: Mapping[str, Logits], names: Sequence[str], domain: Domain) -> str:
    """The best of some models; of equal ones the first."""
    better = names[0]
    for other in names[1:]:
        if advantage(window, logits[other], logits[better], domain, draws=1)[1].value > 0:
            better = other
    return better


def earned_over(
    root: Path, domain: Domain, window_name: str, versions: Mapping[str, str], ranker: str, baselines: Sequence[str]
) -> Choice:
    """`earned`, of published models. `versions`: name -> version; of equal baselines the first one goes live.

    Raises:
        PublishError: a model or the window can't be read.
    """
    logits = {name: score_version(root, versions[name], window_name, domain) for name in (*baselines, ranker)}
    return earned(read_window(root, window_name, domain), ranker, logits, baselines, domain)


def advantage(
    window: EvaluationSet, logit_RCH: Logits, other_RCH: Logits, domain: Domain, draws: int = DRAWS
) -> tuple[str, BootstrapInterval]:
    """`(what was measured, a model's less another's)`: AUC on the positive head, within lists where these are long."""
    head = domain.positive_head
    within = float(window.valid_RC.sum(axis=1).mean()) >= LIST_ITEMS
    measure, said = (request_auc_gap, "AUC within a list") if within else (auc_gap, "AUC")
    return f"{said} of {head!r}", measure(window, logit_RCH, other_RCH, domain, head, draws=draws)


def told_gain(gain: BootstrapInterval) -> str:
    """In digits."""
    return f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
