"""xxh64 (seed 0) of text: one value, or a whole Arrow column at once in numpy.

The library hashes one value a call, and a call from Python costs ten times the hash. A column is hashed here by groups
of equal length, each step of the algorithm (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md, XXH64) for
all values of a group together; a test holds both to the same answer.

Shapes: N values, G values of one length.
"""

from typing import Any, Final

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

P1: Final = np.uint64(0x9E3779B185EBCA87)
P2: Final = np.uint64(0xC2B2AE3D27D4EB4F)
P3: Final = np.uint64(0x165667B19E3779F9)
P4: Final = np.uint64(0x85EBCA77C2B2AE63)
P5: Final = np.uint64(0x27D4EB2F165667C5)
STRIPE: Final = 32
LONGEST: Final = 256
"""Longer values are no ids; the library hashes the few there are."""
PART: Final = 16_384
FEW: Final = 64
"""Below this many values the library is quicker."""


def hash64(text: str) -> int:
    """The 8-byte hash that orders ties, buckets users and stands for an id inside arrays."""
    return xxhash.xxh64_intdigest(text.encode())


def places_of(sorted_K: NDArray[Any], wanted_Q: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where each wanted value, in any shape, stands among sorted ones, and whether it does; 0 where it does not."""
    if not len(sorted_K):
        return np.zeros(wanted_Q.shape, np.int64), np.zeros(wanted_Q.shape, bool)
    place_Q = np.minimum(np.searchsorted(sorted_K, wanted_Q), len(sorted_K) - 1)
    known_Q = sorted_K[place_Q] == wanted_Q
    return np.where(known_Q, place_Q, 0), known_Q


def hash64_column(column: pa.ChunkedArray | pa.Array) -> U64:
    """`hash64` of a text column. A null's hash is the empty text's."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        hashes = hash64_column(column.dictionary)
        index = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)  # the last: of nothing
        hashes = np.append(hashes, np.uint64(hash64("")))
        return np.asarray(hashes[index], np.uint64)
    column = column.fill_null("") if column.null_count else column
    if len(column) < FEW:
        return np.array([hash64(value) for value in column.to_pylist()], np.uint64)
    wide = column.cast(pa.large_string())
    _, offset_buffer, data = wide.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[wide.offset : wide.offset + len(wide) + 1]
    data_bytes = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    # A few bytes more, so that a word may be read at any place.
    padded = np.concatenate([data_bytes[offsets[0] : offsets[-1]], np.zeros(8, np.uint8)])
    offsets = offsets - offsets[0]
    # In parts that stay in the processor's cache.
    parts = [_by_length(padded, offsets[at : at + PART + 1]) for at in range(0, len(column), PART)]
    return np.concatenate(parts)


def _by_length(padded: NDArray[np.uint8], offsets: NDArray[np.int64]) -> U64:
    start_N, size_N = offsets[:-1], np.diff(offsets)
    hash_N = np.empty(len(size_N), np.uint64)
    shortest, longest = int(size_N.min()), int(size_N.max())
    if shortest == longest <= LONGEST:
        return _equal_length(padded, start_N, longest)
    short = np.minimum(size_N, LONGEST + 1)
    order = np.argsort(short.astype(np.int16), kind="stable")  # radix sort
    bounds = np.r_[0, np.cumsum(np.bincount(short, minlength=LONGEST + 2))]
    for size in np.flatnonzero(np.diff(bounds)):
        rows = order[bounds[size] : bounds[size + 1]]
        if size <= LONGEST:
            hash_N[rows] = _equal_length(padded, start_N[rows], int(size))
        else:
            values = (padded[offsets[n] : offsets[n + 1]].tobytes() for n in rows)
            hash_N[rows] = [xxhash.xxh64_intdigest(value) for value in values]
    return hash_N


def _equal_length(padded: NDArray[np.uint8], start_G: NDArray[np.int64], size: int) -> U64:
    # Words of 8 and of 4 bytes at every byte of the data.
    word8 = np.ndarray((len(padded) - 7,), np.dtype("<u8"), padded.data, strides=(1,))
    word4 = np.ndarray((len(padded) - 3,), np.dtype("<u4"), padded.data, strides=(1,))
    at = 0
    with np.errstate(over="ignore"):
        if size >= STRIPE:
            lanes = [np.full(len(start_G), v, np.uint64) for v in (P1 + P2, P2, np.uint64(0), np.uint64(0) - P1)]
            while size - at >= STRIPE:
                lanes = [_round(lane, word8[start_G + (at + 8 * k)]) for k, lane in enumerate(lanes)]
                at += STRIPE
            turned = [_rotate(lane, turn) for lane, turn in zip(lanes, (1, 7, 12, 18), strict=True)]
            hash_G = turned[0] + turned[1] + turned[2] + turned[3]
            for lane in lanes:
                hash_G = (hash_G ^ _round(np.uint64(0), lane)) * P1 + P4
        else:
            hash_G = np.full(len(start_G), P5, np.uint64)
        hash_G = hash_G + np.uint64(size)
        while size - at >= 8:
            hash_G = _rotate(hash_G ^ _round(np.uint64(0), word8[start_G + at]), 27) * P1 + P4
            at += 8
        if size - at >= 4:
            hash_G = _rotate(hash_G ^ (word4[start_G + at].astype(np.uint64) * P1), 23) * P2 + P3
            at += 4
        while at < size:
            hash_G = _rotate(hash_G ^ (padded[start_G + at].astype(np.uint64) * P5), 11) * P1
            at += 1
        hash_G = (hash_G ^ (hash_G >> np.uint64(33))) * P2
        hash_G = (hash_G ^ (hash_G >> np.uint64(29))) * P3
        return hash_G ^ (hash_G >> np.uint64(32))


def _rotate(x: U64, bits: int) -> U64:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


def _round(lane: U64 | np.uint64, word: U64) -> U64:
    return _rotate(lane + word * P2, 31) * P1
