"""Results on record: pictures whose every name can be read, and the command that was typed."""

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from rayapp.record import MOST_BARS, Bars, draw, record


@pytest.mark.slow
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


@click.command("rayapp")
@click.option("--preset", default="study")
@click.option("--seeds", type=int, default=3)
@click.option("--rate", type=float)
@click.option("--synthetic", is_flag=True)
@click.option("--target", "targets", multiple=True)
@click.option("--store", "store_url", envvar="RAYAPP_STORE")
@click.option("--root", type=Path)
@click.option("--truth", type=Path)
@click.option("--write", type=Path, required=True)
@click.argument("names", nargs=-1)
def bench(write: Path, **_: object) -> None:
    record(write, "A title", "a table", Bars("AUC", ["save"], {"one": [0.6]}))


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("", "rayapp"),
        ("--seeds 2 --synthetic --truth /home/ann/truth", "rayapp --seeds 2 --synthetic --truth truth"),
        ("--rate 8.0 --target a --target b --root /srv/r", "rayapp --rate 8 --target a --target b"),
        ("--store redis://:secret@host:6379/0 one two", "rayapp --store redis://… one two"),
    ],
)
def test_a_record_tells_the_command_that_was_typed_without_paths_and_passwords(
    tmp_path: Path, typed: str, told: str
) -> None:
    path = tmp_path / "record.md"
    done = CliRunner().invoke(bench, [*typed.split(), "--write", str(path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert f"Command: `{told}`\\\n" in path.read_text()
    assert path.with_suffix(".svg").exists()


def test_a_store_that_the_environment_names_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYAPP_STORE", "redis://:secret@host")
    path = tmp_path / "record.md"
    CliRunner().invoke(bench, ["--write", str(path)], catch_exceptions=False)
    assert "`rayapp --store redis://…`" in path.read_text()
