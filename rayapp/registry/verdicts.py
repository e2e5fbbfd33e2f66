"""What the gates said about a model: `verdicts/<version>.json`, beside the models because these never change."""

from pathlib import Path
from typing import Any

from rayapp.root.places import VERDICTS
from rayapp.root.publish import read_json, write_json

Verdict = dict[str, Any]
"""`retraining` (the run's id), `alias`, `champion` (what it was compared with), `window`, `promoted`, and `gates`: a
list of `{name, passed, value, limit, words}`."""


def record_verdict(root: Path, version: str, verdict: Verdict) -> None:
    """Replaces the verdict on a model; one that was judged twice keeps the last."""
    (root / VERDICTS).mkdir(exist_ok=True)
    write_json(root / VERDICTS / f"{version}.json", verdict)


def read_verdict(root: Path, version: str) -> Verdict | None:
    """The last verdict, or None for a model that no gate has seen.

    Raises:
        PublishError: the file is damaged.
    """
    path = root / VERDICTS / f"{version}.json"
    if not path.exists():
        return None
    verdict: Verdict = read_json(path)
    return verdict
