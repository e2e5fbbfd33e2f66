"""Which of the rankers that a first training made becomes the champion."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rayapp.contracts.config import Domain
from rayapp.contracts.presets import NO_SEQUENCE
from rayapp.registry.models import load_model
from rayapp.training.comparison import BootstrapInterval, auc_gap
from rayapp.training.evaluate import read_window, score_window


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
    logits = {
        each: score_window(load_model(root, version, domain).scorer, root, window_name, domain)
        for each, version in versions.items()
    }
    return judge(name, auc_gap(window, logits[name], logits[NO_SEQUENCE], domain, domain.positive_head), domain)


def judge(name: str, gain: BootstrapInterval, domain: Domain) -> Choice:
    """The sequence is taken out only where it certainly orders lists worse: without it a feed no longer follows what
    people just did. `gain`: its AUC less that of the ranker without; NaN, where no label tells, keeps it."""
    out = gain.high < 0
    told = f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
    return Choice(
        NO_SEQUENCE if out else name,
        f"the sequence {'is taken out' if out else 'stays in'}: on the validation window {name} has an AUC of "
        f"{domain.positive_head!r} of {told} over {NO_SEQUENCE}",
    )
