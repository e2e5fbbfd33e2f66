"""The picture of a run: the loss of its steps, and after each epoch that of the validation window."""

import json
from pathlib import Path


def draw_losses(log: Path, picture: Path) -> None:
    """Reads the JSON lines of a run's log and writes an SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "rayapp"
    from matplotlib import pyplot as plt

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [line for line in lines if "num_steps" in line]
    epochs = [line for line in lines if "validation_loss" in line]
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    axes.plot([line["step"] for line in steps], [line["loss"] for line in steps], label="training", linewidth=1)
    axes.plot([line["step"] for line in epochs], [line["validation_loss"] for line in epochs], "o", label="validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss of a shown item")
    axes.legend(frameon=False)
    figure.savefig(picture, metadata={"Date": None})
    plt.close(figure)
