"""The main job as a process of its own: it ends well, leaves nothing behind, and can be killed and run again."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayapp.graph import free_port

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[1]


def ray_processes() -> set[int]:
    """Process ids of everything of Ray on this machine."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"raylet" in command or b"gcs_server" in command or command.startswith(b"ray::"):
                found.add(int(entry.name))
    return found


def start_demo(root: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-u",
        "-c",
        "from rayapp.cli.main import main; main()",
        "demo",
        "--root",
        str(root),
        "--source",
        "synthetic",
        "--preset",
        "nano",
        "--port",
        str(free_port()),
        "--exit",
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


def wait_for_no_new(before: set[int], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while ray_processes() - before:
        assert time.monotonic() < deadline, f"Ray processes were left behind: {ray_processes() - before}"
        time.sleep(0.2)


def test_killed_in_the_middle_run_again_and_run_a_third_time(tmp_path: Path) -> None:
    before = ray_processes()
    killed = start_demo(tmp_path / "root")
    assert killed.stdout is not None
    seen = ""
    while "train TransAct" not in seen:  # kill it in the middle of training
        character = killed.stdout.read(1)
        assert character, seen
        seen += character
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    wait_for_no_new(before)

    again = start_demo(tmp_path / "root")
    text, _ = again.communicate(timeout=300)
    assert again.returncode == 0, text
    assert re.search(r"import.*done before", text), text
    assert "before (unknown_user)" in text
    assert re.search(r"in the top 10: \d+% before, \d+% after", text), text
    wait_for_no_new(before)

    third = start_demo(tmp_path / "root")
    text, _ = third.communicate(timeout=300)
    assert third.returncode == 0, text
    assert text.count("done before") == 7, text
    assert not list((tmp_path / "root").rglob(".*.tmp-*")), "nothing half-written is left"
    wait_for_no_new(before)
