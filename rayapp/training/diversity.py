"""How varied is the top of a list? The time mask trades a little accuracy for it (TransAct, section 4.3.4).

Shapes: R requests, C candidates, H heads, W category places of an item.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rayapp.config import Domain
from rayapp.features.attributes import ABSENT, AttributeEncoder
from rayapp.model.inputs import items_as_table
from rayapp.model.item_table import ItemTable
from rayapp.pipeline.reader import WindowReader
from rayapp.training.evaluate import BATCH_REQUESTS, Window, feed_score

TOP = 3


def categories_in_top(
    window: Window, logit_RCH: NDArray[np.float32], table: ItemTable, domain: Domain, root: Path, name: str
) -> float:
    """Mean number of different categories among the TOP items by feed score, over requests of more items than that."""
    encoder = AttributeEncoder.fit(items_as_table(table), domain.attributes)
    category_NW, _ = encoder.encode(items_as_table(table))
    category_NW = np.pad(category_NW, [(1, 0), (0, 0)])
    score_RC = feed_score(torch.sigmoid(torch.from_numpy(logit_RCH)).numpy(), domain)
    order_RC = np.argsort(-np.where(window.valid_RC, score_RC, -np.inf), axis=1, kind="stable")
    at, counts = 0, []
    for batch in WindowReader(root, [name], domain, 1, rates=False).in_order(BATCH_REQUESTS):
        rows_BC = table.rows_of(batch.requests.candidate_hash_BC)
        top_BT = np.take_along_axis(
            rows_BC, order_RC[at : at + len(batch), :TOP].clip(max=rows_BC.shape[1] - 1), axis=1
        )
        for b in np.flatnonzero(batch.valid_BC.sum(axis=1) > TOP):
            shown = category_NW[top_BT[b]]
            counts.append(len(np.unique(shown[shown != ABSENT])))
        at += len(batch)
    return float(np.mean(counts)) if counts else float("nan")
