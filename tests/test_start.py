"""What can keep Ray from starting, or stop what runs on it, is one sentence; where it can be helped it is no error."""

import errno
import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayapp.cli.main import main
from rayapp.launch.ports import GraphError
from rayapp.launch.runtime import local_ray
from rayapp.pipeline.tasks import run_tasks
from rayapp.root.publish import PublishError
from rayapp.training import TrainingError
from rayapp.training.run import stopped_by
from tests.conftest import RAYAPP


def compact(
    root: Path, cwd: Path, limit: Callable[[], None] | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """A command that starts a Ray of its own and runs tasks on it."""
    command = [RAYAPP, "compact", "--root", str(root)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | more
    return subprocess.run(
        command, cwd=cwd, env=environment, preexec_fn=limit, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.cluster
def test_files_where_the_user_stands_are_not_taken_for_modules(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    here = tmp_path_factory.mktemp("here")
    (here / "pandas.py").write_text("raise RuntimeError('this is not pandas')\n")
    (here / "rayapp" / "rayapp").mkdir(parents=True)
    done = compact(root, here)
    assert done.returncode == 0, done.stderr


@pytest.mark.cluster
def test_a_long_name_for_temporary_files_is_told_in_a_sentence(root: Path, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    done = compact(root, tmp_path, TMPDIR=str(long))
    assert done.returncode == 1
    assert "RAY_TMPDIR" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_too_few_file_handles_are_told_in_a_sentence(root: Path, tmp_path: Path) -> None:
    done = compact(root, tmp_path, lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)))
    assert done.returncode == 1
    assert "256 files" in done.stderr
    assert "ulimit" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("failures", [1, 2])
def test_ray_is_started_twice_before_it_is_given_up(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    tries: list[str] = []

    def init(**_: Any) -> None:
        tries.append(os.getcwd())
        if len(tries) <= failures:
            raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    here = os.getcwd()
    if failures == 1:
        with local_ray():
            pass
    else:
        with pytest.raises(GraphError, match=r"tried twice .*timed out"), local_ray():
            pass
    assert len(tries) == 2
    assert os.getcwd() == here
    assert here not in tries


@pytest.mark.cluster
def test_a_disk_that_fills_inside_a_task_is_told_in_a_sentence(ray_session: None) -> None:
    def full(number: int) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"/data/{number}")

    with pytest.raises(PublishError, match=r"no space is left on the disk of /data/\d"):
        run_tasks(3, full)
    assert run_tasks(3, lambda number: {"n": number}) == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_a_disk_that_fills_inside_a_training_worker_is_told_in_a_sentence() -> None:
    from ray.train import WorkerGroupError

    full = WorkerGroupError("words", {0: OSError(errno.ENOSPC, "No space left on device")})
    assert isinstance(stopped_by(full), TrainingError)
    assert "no space is left" in str(stopped_by(full))
    assert stopped_by(WorkerGroupError("words", {0: KeyError("bug")})) is None


def test_a_full_disk_is_told_in_a_sentence_by_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], root: Path
) -> None:
    def full(_path: Path) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", "/data")

    monkeypatch.setattr("rayapp.root.facts.read_json", full)
    monkeypatch.setattr("sys.argv", ["rayapp", "models", "list", "--root", str(root)])
    with pytest.raises(SystemExit):
        main()
    assert (
        capsys.readouterr().err
        == "rayapp: no space is left on the disk of /data; free some, then run the command again\n"
    )
