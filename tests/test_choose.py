"""The ranker goes live where it is certainly above the better baseline, and the baseline where it is not."""

import numpy as np
import pytest

from rayapp.contracts.config import Domain
from rayapp.contracts.presets import COUNTS
from rayapp.loop.choose import earned
from rayapp.training.baselines import POPULARITY
from rayapp.training.evaluate import EvaluationSet

LISTS, ITEMS = 400, 5


@pytest.fixture
def window(domain: Domain, rng: np.random.Generator) -> EvaluationSet:
    """One item of each list is liked."""
    label_RCH = np.zeros((LISTS, ITEMS, len(domain.heads)), np.float32)
    label_RCH[np.arange(LISTS), rng.integers(ITEMS, size=LISTS), domain.head_names.index(domain.positive_head)] = 1
    return EvaluationSet(
        label_RCH,
        np.ones((LISTS, ITEMS), bool),
        (np.arange(LISTS) // 4).astype(np.uint64),
        np.zeros(LISTS, np.int64),
        np.array([f"r{n}" for n in range(LISTS)], object),
    )


def logits(window: EvaluationSet, skill: float, seed: int, by_list: float = 0.0) -> np.ndarray:
    """Noise around the labels; `by_list`: noise that all items of a list share."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=window.label_RCH.shape) + by_list * rng.normal(size=(LISTS, 1, 1))
    return (skill * window.label_RCH + noise).astype(np.float32)


@pytest.mark.parametrize(
    ("ranker", "counts", "popularity", "live", "over"),
    [
        (2.0, 1.0, 0.5, "v1.1", COUNTS),
        (2.0, 0.5, 1.0, "v1.1", POPULARITY),
        (0.5, 1.5, 0.5, COUNTS, COUNTS),
        (0.5, 0.2, 1.5, POPULARITY, POPULARITY),
        (1.0, 1.0, 0.2, COUNTS, COUNTS),
    ],
)
def test_merit_decides(
    domain: Domain, window: EvaluationSet, ranker: float, counts: float, popularity: float, live: str, over: str
) -> None:
    made = {
        "v1.1": logits(window, ranker, 1),
        COUNTS: logits(window, counts, 2),
        POPULARITY: logits(window, popularity, 3),
    }
    choice = earned(window, "v1.1", made, (COUNTS, POPULARITY), domain)
    assert choice.variant == live
    assert choice.why.startswith(f"{live} goes live: on the test window")
    assert "AUC within a list of 'save'" in choice.why
    assert f"over {over}" in choice.why


def test_long_lists_are_judged_by_their_order_within(domain: Domain, window: EvaluationSet) -> None:
    """A model that knows which lists are liked, and nothing of which item, orders no list."""
    level = np.repeat(np.arange(LISTS, dtype=np.float32)[:, None, None], ITEMS, axis=1) * np.ones(len(domain.heads))
    lists_only = (level + 0 * window.label_RCH).astype(np.float32)
    made = {"v1.1": lists_only, COUNTS: logits(window, 0.5, 2, by_list=9), POPULARITY: logits(window, 0.1, 3)}
    assert earned(window, "v1.1", made, (COUNTS, POPULARITY), domain).variant == COUNTS
