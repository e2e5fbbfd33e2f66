"""A made-up shop, whose customers come every other week: `sources.synthetic_world.SHOP`."""

from pathlib import Path

from rayapp.sources import Files, RunParts, Size
from rayapp.sources.synthetic import of_size, write_world
from rayapp.sources.synthetic_world import SHOP


def write_files(directory: Path, size: Size, run_parts: RunParts) -> Files:
    """The world of that size as files that `domains/synthetic.toml` reads."""
    return write_world(of_size(SHOP, size), directory, run_parts)
