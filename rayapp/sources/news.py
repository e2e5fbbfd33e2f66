"""A made-up news site, whose articles live for a day: `sources.synthetic_world.NEWS`."""

from pathlib import Path

from rayapp.sources import Files, RunParts, Size
from rayapp.sources.synthetic import of_size, write_world
from rayapp.sources.synthetic_world import NEWS


def write_files(directory: Path, size: Size, run_parts: RunParts) -> Files:
    """The world of that size as files that `domains/synthetic.toml` reads."""
    return write_world(of_size(NEWS, size), directory, run_parts)
