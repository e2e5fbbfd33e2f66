"""How varied is the top of a list? The time mask trades a little accuracy for it (TransAct, section 4.3.4).

Shapes: R requests, C candidates, H heads, W category places of an item.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rayapp.contracts.config import Domain
from rayapp.features.attributes import ABSENT, AttributeEncoder
from rayapp.model.inputs import items_as_table
from rayapp.model.item_table import ItemTable
from rayapp.pipeline.window_loader import WindowReader
from rayapp.training.evaluate import EvaluationSet, feed_score, of_candidates

TOP = 3


def candidate_categories(table: ItemTable, domain: Domain, root: Path, name: str) -> NDArray[np.int32]:
    """Category ids `[R, C, W]` of what a window shows."""
    rows = items_as_table(table)
    category_NW, _ = AttributeEncoder.fit(rows, domain.attributes).encode(rows)
    category_NW = np.pad(category_NW, [(1, 0), (0, 0)])
    reader = WindowReader(root, [name], domain, 1)
    return of_candidates(reader, lambda requests: category_NW[table.rows_of(requests.candidate_hash_N)])


def categories_in_top(
    window: EvaluationSet, logit_RCH: NDArray[np.float32], category_RCW: NDArray[np.int32], domain: Domain
) -> float:
    """Mean number of different categories among the TOP items by feed score, over requests of more items than that."""
    score_RC = feed_score(torch.sigmoid(torch.from_numpy(logit_RCH)).numpy(), domain)
    order_RC = np.argsort(-np.where(window.valid_RC, score_RC, -np.inf), axis=1, kind="stable")
    top_RTW = np.take_along_axis(category_RCW, order_RC[:, :TOP, None], axis=1)
    shown = [top_TW[top_TW != ABSENT] for top_TW in top_RTW[window.valid_RC.sum(axis=1) > TOP]]
    return float(np.mean([len(np.unique(ids)) for ids in shown])) if shown else float("nan")
