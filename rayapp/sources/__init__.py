"""Data sets turned into the four things every domain has: events, requests, items and a `Domain`.

One module each. A source knows nothing of models or of where its rows will be stored.
"""

from dataclasses import dataclass

import pyarrow as pa

from rayapp.config import Domain


class SourceError(RuntimeError):
    """The data can't be had; the message says why and what to do instead."""


@dataclass(frozen=True, slots=True)
class Source:
    """A whole data set in memory, in the schemas of `rayapp.schema`."""

    domain: Domain
    events: pa.Table
    requests: pa.Table
    items: pa.Table
    split_ms: int
    """Requests at or after this time are the test set."""
