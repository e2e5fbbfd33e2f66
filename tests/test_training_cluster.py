"""Ray Train on a small synthetic world: one worker or two, undisturbed or killed, the same result."""

import contextlib
import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rayapp.contracts.presets import Preset, nano
from rayapp.importing.domains import load_domain
from rayapp.loop.artifacts import Prepared, item_table, training_run
from rayapp.root.publish import read_json
from rayapp.training import TrainingError
from rayapp.training.run import TRAIN_LOG, TrainingRun, train_and_publish, train_here

pytestmark = pytest.mark.cluster
DOMAIN = load_domain("synthetic")


@pytest.fixture(scope="module")
def prepared(world: tuple[Path, Prepared]) -> tuple[Path, Prepared, str]:
    root, windows = world
    return root, windows, item_table(root, windows, nano())[0]


def run_of(prepared: tuple[Path, Prepared, str], version: str, num_workers: int = 1) -> TrainingRun:
    root, windows, table = prepared
    preset: Preset = nano().replace(dropout=0.0)
    # At nano's 5e-3 Adam amplifies the rounding of the last bit a thousandfold within 50 steps.
    settings = dataclasses.replace(preset.train, num_epochs=3, batch_requests=20, learning_rate=1e-3)
    preset = dataclasses.replace(preset, train=settings)
    run = training_run(root, windows, preset, table, num_workers=num_workers)
    return dataclasses.replace(run, version=version)


def losses(root: Path, version: str) -> dict[int, float]:
    lines = map(json.loads, (root / "models" / version / TRAIN_LOG).read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "num_steps" in line}


@pytest.fixture(scope="module")
def undisturbed(prepared: tuple[Path, Prepared, str]) -> str:
    """Trained by the same loop in this process: Ray Train has nothing to add to its steps."""
    train_here(run_of(prepared, "one"), DOMAIN.domain)
    return "one"


def test_two_workers_one_of_which_is_killed_have_the_loss_curve_of_one(
    prepared: tuple[Path, Prepared, str], undisturbed: str
) -> None:
    """gloo, the same global batches: within 1e-4 for 50 steps."""
    root = prepared[0]
    with killed_once(run := run_of(prepared, "two", num_workers=2)):
        train_and_publish(run, DOMAIN.domain)
    one, two = losses(root, undisturbed), losses(root, "two")
    assert set(range(1, 51)) <= set(one) & set(two)
    gaps = [abs(one[step] - two[step]) for step in range(1, 51)]
    assert max(gaps) < 1e-4, [(step, gap) for step, gap in enumerate(gaps, 1) if gap >= 1e-5]


@contextlib.contextmanager
def killed_once(run: TrainingRun) -> Iterator[None]:
    """SIGKILL of a worker in the middle of the second epoch, when a checkpoint has been kept."""
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not killed:
            text = run.log.read_text() if run.log.exists() else ""
            if '"validation_loss"' in text and list((run.log.parent / "ray").glob("checkpoint*")):
                for path in Path("/proc").glob("[0-9]*/cmdline"):
                    with contextlib.suppress(OSError):  # it ended meanwhile
                        if not killed and b"RayTrainWorker" in path.read_bytes():
                            os.kill(int(path.parent.name), signal.SIGKILL)
                            killed.append(int(path.parent.name))
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    yield
    killer.join()
    assert killed


@pytest.mark.extended
def test_a_killed_worker_costs_a_restart_and_changes_nothing(
    prepared: tuple[Path, Prepared, str], undisturbed: str
) -> None:
    root = prepared[0]
    with killed_once(run := run_of(prepared, "killed")):
        metrics = train_and_publish(run, DOMAIN.domain)
    before = read_json(root / "models" / undisturbed / "metrics.json")
    for key in ("steps", "examples", "best_loss"):
        assert metrics["train"][key] == pytest.approx(before["train"][key], rel=1e-6)
    one, other = (load_file(root / "models" / v / "weights.safetensors") for v in (undisturbed, "killed"))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-6, atol=1e-6)


def test_a_loss_that_is_no_number_ends_the_run_in_words(prepared: tuple[Path, Prepared, str]) -> None:
    root = prepared[0]
    run = run_of(prepared, "diverges")
    preset = dataclasses.replace(run.preset, train=dataclasses.replace(run.preset.train, learning_rate=1e30))
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+ \(epoch \d+, batch \d+, seed 0\)"):
        train_and_publish(dataclasses.replace(run, preset=preset), DOMAIN.domain)
    assert not (root / "models" / "diverges").exists()
    assert run.log.exists(), "the log stays for whoever looks into it"
