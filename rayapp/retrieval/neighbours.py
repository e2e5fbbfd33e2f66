"""Nearest items by their vectors: FAISS over a table's rows, and beside it a short tail of rows that were put since.

Shapes: N rows of the item table, E vector width, S queries, K neighbours of each, T rows of the tail.
"""

import copy
import math
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from rayapp.features.attributes import ABSENT

EXACT_ROWS: Final = 50_000
"""Up to here every row is compared. An exact search reads all vectors once a query (fifteen queries over 200,000 rows
of 64 numbers: about 100 ms on one thread), inverted lists a few percent of them (about 2 ms)."""
LISTS_PER_ROOT: Final = 2
"""Inverted lists per square root of the number of rows: then finding the lists costs about as much as reading them."""
PROBED_LISTS: Final = 64
TRAINING_ROWS_PER_LIST, TRAINING_ROUNDS = 64, 8
TAIL_ROWS: Final = 5_000
"""A longer tail goes into the index."""


class Neighbours:
    """Inner products with the rows of one table. The vectors have length 1 (or 0), so these are cosines."""

    def __init__(self, vectors_NE: NDArray[np.float32]) -> None:
        self._vectors_NE = vectors_NE
        self._num_indexed, width = vectors_NE.shape
        self._tail = np.zeros(0, np.int64)
        self._exact = self._num_indexed <= EXACT_ROWS
        _one_thread()
        self._index: Any = faiss.IndexFlatIP(width)
        if not self._exact:
            num_lists = int(LISTS_PER_ROOT * math.sqrt(self._num_indexed))
            self._index = faiss.IndexIVFFlat(self._index, width, num_lists, faiss.METRIC_INNER_PRODUCT)
            self._index.cp.max_points_per_centroid = TRAINING_ROWS_PER_LIST
            self._index.cp.niter = TRAINING_ROUNDS
            self._index.train(vectors_NE)
        self._index.add(vectors_NE)

    def extended(self, vectors_NE: NDArray[np.float32], changed: NDArray[np.int64]) -> "Neighbours":
        """The same rows with those of `changed` replaced or added; they join the tail, which FAISS does not know."""
        tail = np.union1d(self._tail, changed)
        if len(tail) > TAIL_ROWS and self._exact:
            return Neighbours(vectors_NE)
        more = copy.copy(self)  # FAISS's part is shared: it is never changed
        more._vectors_NE, more._tail = vectors_NE, tail
        if len(tail) > TAIL_ROWS:  # the lists stay those that were found for the table as it was made
            more._index = faiss.clone_index(self._index)
            more._index.remove_ids(faiss.IDSelectorBatch(tail))
            more._index.add_with_ids(vectors_NE[tail], tail)
            more._num_indexed, more._tail = len(vectors_NE), np.zeros(0, np.int64)
        return more

    def search(
        self, query_SE: NDArray[np.float32], count: int, allowed_N: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """`(rows [S, K], similarities [S, K])` of the nearest allowed rows, best first; ABSENT where there are fewer.

        What is not allowed is passed over during the search, so that a strict filter still finds `count` rows.
        """
        indexed_N = allowed_N[: self._num_indexed].copy()
        indexed_N[self._tail[self._tail < self._num_indexed]] = False
        selector = faiss.IDSelectorBitmap(np.packbits(indexed_N, bitorder="little"))
        if self._exact:
            parameters = faiss.SearchParameters(sel=selector)
        else:
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=PROBED_LISTS)
        _one_thread()
        similarity_SK, row_SK = self._index.search(query_SE, min(count, len(allowed_N)), params=parameters)
        row_SK = np.where(row_SK < 0, ABSENT, row_SK)
        tail_T = self._tail[allowed_N[self._tail]]
        if len(tail_T):
            similarity_SK = np.hstack([similarity_SK, query_SE @ self._vectors_NE[tail_T].T])
            row_SK = np.hstack([row_SK, np.broadcast_to(tail_T, (len(query_SE), len(tail_T)))])
            if row_SK.shape[1] > count:
                best_SK = np.argpartition(-similarity_SK, count - 1, axis=1)[:, :count]
                row_SK, similarity_SK = (np.take_along_axis(a, best_SK, axis=1) for a in (row_SK, similarity_SK))
            order_SK = np.argsort(-similarity_SK, axis=1, kind="stable")
            row_SK, similarity_SK = (np.take_along_axis(a, order_SK, axis=1) for a in (row_SK, similarity_SK))
        return row_SK, similarity_SK


def _one_thread() -> None:
    """Requests run beside each other; FAISS's own threads would only get in their way. OpenMP keeps the number per
    calling thread, so every call sets it."""
    faiss.omp_set_num_threads(1)
