"""Pictures of results: every name can be read, and the same numbers give the same file."""

import re
from pathlib import Path

import pytest

from rayapp.bench.record import MOST_BARS, Bars, draw


@pytest.mark.parametrize("count", [2, MOST_BARS + 5])
def test_every_series_is_named_inside_the_picture_and_drawn_twice_it_is_the_same(tmp_path: Path, count: int) -> None:
    names = [f"variant-{n}" for n in range(count)]
    bars = Bars("AUC", ["save", "hide"], {n: [0.6, 0.7] for n in names}, {n: ([0.01] * 2, [0.02] * 2) for n in names})
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    draw(first, "variants", bars)
    draw(second, "variants", bars)
    text = first.read_text()
    assert text == second.read_text()
    height = float(re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', text)[1])  # type: ignore[index]
    for name in names:
        (at,) = re.findall(rf'<!-- {name} -->\s*<g transform="translate\([\d.]+ ([\d.]+)\)', text)
        assert 0 < float(at) < height
