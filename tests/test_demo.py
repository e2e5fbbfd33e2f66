"""The main job as a process of its own: it ends well, leaves nothing behind, and can be killed and run again."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from rayapp.launch.ports import free_port
from tests.conftest import RAYAPP

pytestmark = [pytest.mark.cluster, pytest.mark.extended]


def processes_of(session_id: int) -> set[int]:
    """Process ids of everything in a process session: the demo's own and all that Ray started for it."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, sid = (entry / "stat").read_text().rpartition(")")[2].split()[0:4:3]
            except OSError:
                continue  # it ended meanwhile
            if int(sid) == session_id and state != "Z":
                found.add(int(entry.name))
    return found


def start_demo(root: Path) -> subprocess.Popen[str]:
    command = [RAYAPP, "demo", "--root", root.name, "--source", "synthetic", "--preset", "nano"]
    command += ["--port", str(free_port()), "--exit"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root.parent, start_new_session=True
    )


def wait_until_gone(session_id: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while left := processes_of(session_id):
        assert time.monotonic() < deadline, f"processes were left behind: {left}"
        time.sleep(0.2)


def test_killed_in_the_middle_run_again_and_run_a_third_time(tmp_path: Path) -> None:
    killed = start_demo(tmp_path / "root")
    assert killed.stdout is not None
    seen = ""
    while "train TransAct" not in seen:  # kill it in the middle of training
        character = killed.stdout.read(1)
        assert character, seen
        seen += character
    assert len(processes_of(killed.pid)) > 3, "Ray's processes are in the session that is looked at"
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    killed.stdout.close()

    again = start_demo(tmp_path / "root")
    text, _ = again.communicate(timeout=300)
    assert again.returncode == 0, text
    assert re.search(r"import.*done before", text), text
    assert "before (unknown_user)" in text
    assert re.search(r"in the top 10: \d+% before, \d+% after", text), text
    wait_until_gone(again.pid)

    third = start_demo(tmp_path / "root")
    text, _ = third.communicate(timeout=300)
    assert third.returncode == 0, text
    assert text.count("done before") == 9, text
    assert not list((tmp_path / "root").rglob(".*.tmp-*")), "nothing half-written is left"
    wait_until_gone(third.pid)
    # Ray's two agents outlive a killed driver by a minute or so: they try to report to the head that died with it.
    wait_until_gone(killed.pid, seconds=180)
