"""The opponent of the request-centred loader: a Parquet file with a row per shown item, each with its whole sequence.

Shapes: N rows, L history rows, H heads, K statistics.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayapp.features.requests import Requests
from rayapp.features.sequence import Sequences
from rayapp.pipeline.window_loader import RequestBatch, WindowReader

BATCH_REQUESTS = 256


def write_expanded(reader: WindowReader, path: Path, seed: int = 0) -> int:
    """Writes every example of the reader's windows as a row of its own, shuffled; how many there are."""
    parts = [_rows(batch) for batch in reader.in_order(BATCH_REQUESTS)]
    table = pa.concat_tables(parts).combine_chunks()
    shuffled = np.random.default_rng(seed).permutation(table.num_rows)
    pq.write_table(table.take(pa.array(shuffled)), path, compression="zstd", row_group_size=20_000)
    return int(table.num_rows)


def _rows(batch: RequestBatch) -> pa.Table:
    requests = batch.requests
    request_N = np.repeat(np.arange(len(requests)), requests.sizes)
    sequences = requests.sequences.take(request_N)
    columns = {
        "user_hash": pa.array(requests.user_hash_R[request_N]),
        "candidate": pa.array(requests.candidate_hash_N),
        "length": pa.array(sequences.length_R),
        "action": _fixed(sequences.action_RL),
        "item": _fixed(sequences.item_hash_RL),
        "time": _fixed(sequences.timestamp_ms_RL),
        "user_statistic": _fixed(requests.user_statistic_RK[request_N]),
        "item_statistic": _fixed(requests.item_statistic_NK),
        "label": _fixed(batch.label_NH),
    }
    context = requests.context.take(pa.array(request_N))
    return pa.table(columns | {name: context[name] for name in context.column_names})


def _fixed(array_NX: NDArray[np.generic]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(array_NX.ravel()), array_NX.shape[1])


def read_expanded(path: Path, batch_rows: int, context: list[str]) -> Iterator[RequestBatch]:
    """Batches of rows as requests of one candidate each."""
    for rows in pq.ParquetFile(path).iter_batches(batch_rows):
        table = pa.Table.from_batches([rows])
        size = table.num_rows

        def matrix(name: str, table: pa.Table = table, size: int = size) -> Any:
            return table[name].combine_chunks().flatten().to_numpy().reshape(size, -1)

        sequences = Sequences(matrix("action"), matrix("item"), matrix("time"), table["length"].to_numpy())
        requests = Requests(
            table["user_hash"].to_numpy(),
            table["timestamp_ms"].to_numpy(),
            table.select(context),
            sequences,
            np.arange(size + 1),
            table["candidate"].to_numpy(),
            matrix("user_statistic"),
            matrix("item_statistic").copy(),  # torch warns of memory that it may not write
        )
        yield RequestBatch(np.full(size, "", object), requests, matrix("label"))
