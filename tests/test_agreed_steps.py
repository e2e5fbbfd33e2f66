"""The root's file of agreed steps: whole lines, each step of a store once, whenever an export is killed."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayapp.root.agreed_steps import add_agreed_steps, agreed_steps
from rayapp.root.places import AGREED_STEPS
from rayapp.root.publish import PublishError

LINE = json.dumps({"store": "a", "step": 99, "cursors": [1, 2]}).encode()


def lines(root: Path) -> list[bytes]:
    return (root / AGREED_STEPS).read_bytes().splitlines()


@pytest.mark.parametrize("torn", [LINE[:1], LINE[:20], LINE, b"\0\0\0"])
@pytest.mark.parametrize("before", [{}, {1: (3, 4)}])
def test_a_line_that_was_torn_is_passed_over_and_mended(
    tmp_path: Path, torn: bytes, before: dict[int, tuple[int, ...]]
) -> None:
    add_agreed_steps(tmp_path, "a", before)
    with (tmp_path / AGREED_STEPS).open("ab") as file:
        file.write(torn)
    assert agreed_steps(tmp_path) == {("a", step): cursors for step, cursors in before.items()}
    assert add_agreed_steps(tmp_path, "a", {**before, 99: (1, 2)}) == 1
    assert agreed_steps(tmp_path) == {("a", step): cursors for step, cursors in {**before, 99: (1, 2)}.items()}
    assert len(lines(tmp_path)) == len(before) + 1


def test_of_a_step_s_lines_the_first_counts(tmp_path: Path) -> None:
    add_agreed_steps(tmp_path, "a", {1: (3, 4)})
    repeated = (tmp_path / AGREED_STEPS).read_bytes()
    with (tmp_path / AGREED_STEPS).open("ab") as file:
        file.write(repeated + repeated.replace(b"3", b"7"))
    assert agreed_steps(tmp_path) == {("a", 1): (3, 4)}
    assert add_agreed_steps(tmp_path, "a", {1: (3, 4)}) == 0


@pytest.mark.parametrize("damaged", [b"[]", b"{", b"{}", LINE.replace(b"99", b"null"), b"", b"\xff"])
def test_a_damaged_line_is_told(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / AGREED_STEPS).write_bytes(damaged + b"\n" + LINE + b"\n")
    with pytest.raises(PublishError, match="is no agreed step; mend that line"):
        agreed_steps(tmp_path)
    with pytest.raises(PublishError, match="is no agreed step; mend that line"):
        add_agreed_steps(tmp_path, "b", {1: (3, 4)})


KEPT = 4
ROUNDS = st.lists(
    st.tuples(
        st.sampled_from("ab"),  # the store
        st.lists(st.integers(0, 2), max_size=6),  # what it agrees on: the next step, or one that is that many behind
        st.integers(0, len(LINE)),  # what a killed export leaves of a line
    ),
    max_size=12,
)


@given(ROUNDS)
def test_each_step_is_written_once(rounds: list[tuple[str, list[int], int]]) -> None:
    """Two stores of one root, whose replicas agree on some steps late; each round exports what one of them keeps."""
    kept: dict[str, dict[int, tuple[int, ...]]] = {"a": {}, "b": {}}
    newest, written, expected = {"a": 0, "b": 0}, 0, dict[tuple[str, int], tuple[int, ...]]()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for number, (store, behind, torn) in enumerate(rounds):
            for late in behind:
                newest[store] += late == 0
                step, steps = max(newest[store] - late, 0), kept[store]
                if len(steps) < KEPT or step > min(steps):
                    steps.setdefault(step, (number, step))
                    kept[store] = dict(sorted(steps.items())[-KEPT:])
            written += add_agreed_steps(root, store, kept[store])
            expected |= {(store, step): cursors for step, cursors in kept[store].items()}
            with (root / AGREED_STEPS).open("ab") as file:
                file.write(LINE[:torn])
        assert agreed_steps(root) == expected
        assert written == len(expected)


WRITER = """
import sys
from pathlib import Path
from rayapp.root.agreed_steps import add_agreed_steps
for step in range(1_000_000):
    add_agreed_steps(Path(sys.argv[1]), "a", {n: (n, n) for n in range(max(step - 50, 0), step + 1)})
    print(step, flush=True)
"""


def test_what_was_added_survives_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 20:
            agreed_steps(tmp_path)  # a reader beside it sees whole lines only
        process.kill()
        last = max((int(line) for line in process.stdout.read().splitlines()), default=20)
    found = agreed_steps(tmp_path)
    assert list(found) == [("a", step) for step in range(len(found))]
    assert len(found) > last
    assert all(cursors == (step, step) for (_, step), cursors in found.items())
