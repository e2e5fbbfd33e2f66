"""Pictures: SVG files that are the same when drawn again from the same numbers; that of a run's losses."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def svg(path: Path, width: float, height: float) -> Iterator[Any]:
    """Yields Matplotlib axes to draw on, of a size in inches; the file is written at the end."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "rayapp"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    yield axes
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_losses(log: Path, picture: Path) -> None:
    """The loss of a run's steps, and after each epoch that of the validation window, from the JSON lines of its log."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [line for line in lines if "num_steps" in line]
    epochs = [line for line in lines if "validation_loss" in line]
    with svg(picture, 7, 3.2) as axes:
        axes.plot([line["step"] for line in steps], [line["loss"] for line in steps], label="training", linewidth=1)
        axes.plot(
            [line["step"] for line in epochs], [line["validation_loss"] for line in epochs], "o", label="validation"
        )
        axes.set_xlabel("step")
        axes.set_ylabel("loss of a shown item")
