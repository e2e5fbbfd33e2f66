"""Arms: what a file may say, who is in which arm, and that nobody changes sides."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayapp.contracts.config import DAY_MS
from rayapp.experiments.assignment import FREE, ExperimentBook, lay_out, read_state, slot_of, stop
from rayapp.experiments.declaration import NUM_SLOTS, ExperimentError, parse_experiments
from rayapp.importing.domains import load_domain
from rayapp.root.places import EXPERIMENTS_STATE

DOMAIN = load_domain("synthetic").domain
HEAD = DOMAIN.head_names[0]
START_MS = 1_796_083_200_000  # 2026-12-01
USERS = [f"user-{n}" for n in range(4_000)]


def declared(**values: object) -> str:
    """One experiment with two arms; `values` replaces lines of the first arm or of the experiment by their key."""
    lines = {
        "name": '"longer"',
        "salt": '"longer-1"',
        "starts": "2026-12-01",
        "planned_days": "14",
        "control": "0.1",
        "treatment": "0.1",
        "alias": '"longer"',
        "utilities": f"{{ {HEAD} = 2.0 }}",
        "mix": "{ nearest = 0.5, explore = 0.05 }",
        "guardrails": f'[{{ head = "{HEAD}", must_not = "fall" }}]',
        "extra": "",
        **values,
    }
    return (
        f"[[experiments]]\nname = {lines['name']}\nsalt = {lines['salt']}\nstarts = {lines['starts']}\n"
        f"planned_days = {lines['planned_days']}\nguardrails = {lines['guardrails']}\n"
        f'[[experiments.arms]]\nname = "control"\nalias = "champion"\nshare = {lines["control"]}\n'
        f'[[experiments.arms]]\nname = "treatment"\nalias = {lines["alias"]}\nshare = {lines["treatment"]}\n'
        f"utilities = {lines['utilities']}\nmix = {lines['mix']}\n{lines['extra']}\n"
    )


def book_of(root: Path, text: str, now_ms: int = START_MS) -> ExperimentBook:
    (root / "experiments.toml").write_text(text)
    book = ExperimentBook(root, DOMAIN)
    book.refresh(now_ms)
    return book


def test_a_file_says_what_an_arm_is() -> None:
    (experiment,) = parse_experiments(declared(), DOMAIN)
    control, treatment = experiment.arms
    assert (experiment.starts_ms, experiment.ends_ms) == (START_MS, START_MS + 14 * DAY_MS)
    assert (control.alias, control.utilities, control.mix) == ("champion", None, None)
    assert treatment.utilities == (2.0, *DOMAIN.utilities[1:])
    assert treatment.mix == {"nearest": 0.5, "explore": 0.05}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"extra": "shar = 1"}, "experiments[1] arms[2] has no key 'shar'; known: name, alias, share, utilities, mix"),
        ({"treatment": "1.5"}, "experiments[1] arms[2] share: input should be less than or equal to 1, not 1.5"),
        ({"treatment": "0.95"}, "'longer': the shares of its arms sum to 1.05"),
        ({"treatment": "0.00005"}, "arm 'treatment': share 5e-05 is no multiple of 0.0001"),
        ({"treatment": '"0.1"'}, "arms[2] share: input should be a valid number"),
        ({"alias": '"../x"'}, "arms[2] alias: string should match pattern"),
        ({"utilities": "{ likes = 1 }"}, "arm 'treatment': utilities name head 'likes'; known: "),
        ({"utilities": f"{{ {HEAD} = nan }}"}, f"arms[2] utilities {HEAD}: input should be a finite number"),
        (
            {"mix": "{ magic = 0.5 }"},
            "mix names source 'magic'; known: beside, nearest, interests, categories, trending, newest",
        ),
        ({"mix": "{ nearest = 0.7, explore = 0.4 }"}, "mix sums to 1.1"),
        ({"starts": '"soon"'}, "experiments[1] starts: must be a date like 2026-12-01"),
        ({"planned_days": "0"}, "experiments[1] planned_days: input should be greater than or equal to 1, not 0"),
        ({"guardrails": '[{ head = "x", must_not = "rise" }]'}, "guardrails name head 'x'"),
        ({"guardrails": f'[{{ head = "{HEAD}", must_not = "up" }}]'}, "must_not: input should be 'rise' or 'fall'"),
        ({"name": '"a b"'}, "experiments[1] name: string should match pattern"),
        ({"salt": '"x'}, "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(change: dict[str, str], said: str) -> None:
    with pytest.raises(ExperimentError) as error:
        parse_experiments(declared(**change), DOMAIN)
    assert str(error.value).startswith("experiments.toml: ")
    assert said in str(error.value)


def test_two_experiments_need_two_names_and_salts() -> None:
    for second, said in (({"salt": '"b"'}, "the name 'longer'"), ({"name": '"b"'}, "the salt 'longer-1'")):
        with pytest.raises(ExperimentError, match=said):
            parse_experiments(declared() + declared(**second), DOMAIN)


@st.composite
def growing(draw: st.DrawFn) -> list[list[int]]:
    """Slots of each arm after each step; no arm shrinks and there are enough slots."""
    num_arms, num_steps = draw(st.integers(2, 5)), draw(st.integers(1, 5))
    cuts = st.lists(st.integers(0, NUM_SLOTS // num_arms), min_size=num_steps, max_size=num_steps).map(sorted)
    slack = draw(st.integers(0, num_arms - 1))  # one arm may also take what the others leave
    steps = [list(step) for step in zip(*(draw(cuts) for _ in range(num_arms)), strict=True)]
    steps[-1][slack] = NUM_SLOTS - sum(n for a, n in enumerate(steps[-1]) if a != slack)
    return steps


@settings(max_examples=60, deadline=None)
@given(growing())
def test_growing_adds_users_and_moves_none(steps: list[list[int]]) -> None:
    before = np.full(NUM_SLOTS, FREE)
    for k in range(len(steps)):
        layout = lay_out(steps[: k + 1])
        assert np.bincount(layout.arm_S[layout.arm_S >= 0], minlength=len(steps[k])).tolist() == steps[k]
        owned = before != FREE
        assert (layout.arm_S[owned] == before[owned]).all()
        assert ((layout.step_S == k) >= (~owned & (layout.arm_S != FREE))).all()
        before = layout.arm_S


@settings(max_examples=30, deadline=None)
@given(st.integers(0, NUM_SLOTS), st.data())
def test_with_two_arms_the_order_of_growth_does_not_matter(control: int, data: st.DataObject) -> None:
    treatment = data.draw(st.integers(0, NUM_SLOTS - control))
    first = [data.draw(st.integers(0, control)), data.draw(st.integers(0, treatment))]
    grown, at_once = lay_out([first, [control, treatment]]), lay_out([[control, treatment]])
    assert (grown.arm_S == at_once.arm_S).all()


def test_arms_get_their_share_and_salts_are_independent(tmp_path: Path) -> None:
    book = book_of(tmp_path, declared())
    arms = [getattr(book.arm_of(user, START_MS), "arm", None) for user in USERS]
    for arm in ("control", "treatment"):
        assert abs(arms.count(arm) / len(USERS) - 0.1) < 0.025  # five standard deviations
    a, b = (np.array([slot_of(salt, user) for user in USERS]) < NUM_SLOTS // 2 for salt in ("a", "b"))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.08


def test_a_book_follows_the_file_and_users_stay(tmp_path: Path) -> None:
    book = book_of(tmp_path, declared(), START_MS - 1)
    assert book.arm_of("user-1", START_MS - 1) is None
    assert not (tmp_path / EXPERIMENTS_STATE).exists(), "nothing is fixed before the start"
    book.refresh(START_MS)
    first = {user: book.arm_of(user, START_MS) for user in USERS}
    label = "longer/treatment"
    assert {a.label for a in first.values() if a} == {"longer/control", label}
    grown = book_of(tmp_path, declared(control=0.2, treatment=0.6), START_MS + 5)
    for user, old in first.items():
        new = grown.arm_of(user, START_MS + 5)
        assert old is None or (new is not None and new.label == old.label)
    assert [step["at_ms"] for step in read_state(tmp_path)["longer"]["steps"]] == [START_MS, START_MS + 5]
    book.refresh(START_MS + 6)
    assert all(book.arm_of(user, START_MS + 6) == grown.arm_of(user, START_MS + 6) for user in USERS)
    assert book.arm_of("user-1", START_MS + 14 * DAY_MS) is None, "the plan is over"


def test_three_arms_remember_how_they_grew(tmp_path: Path) -> None:
    third = '[[experiments.arms]]\nname = "third"\nalias = "third"\nshare = {}\n'
    book = book_of(tmp_path, declared(control=0.6, treatment=0.0, extra=third.format(0.0)))
    first = {user: book.arm_of(user, START_MS) for user in USERS}
    book_of(tmp_path, declared(control=0.6, treatment=0.2, extra=third.format(0.2)), START_MS + 1)
    again = ExperimentBook(tmp_path, DOMAIN)  # another process, later
    again.refresh(START_MS + 2)
    for user, old in first.items():
        new = again.arm_of(user, START_MS + 2)
        assert old is None or (new is not None and new.label == old.label)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"treatment": "0.05"}, "can't shrink from 0.1 to 0.05"),
        ({"salt": '"other"'}, "its salt can't change"),
        ({"planned_days": "28"}, "its planned_days can't change from 14 to 28"),
        ({"guardrails": "[]"}, "its guardrails can't change"),
        ({"alias": "7"}, "arms[2] alias"),
    ],
)
def test_what_would_spoil_a_running_experiment_is_refused_and_it_goes_on(
    tmp_path: Path, change: dict[str, str], said: str
) -> None:
    book = book_of(tmp_path, declared())
    before = [book.arm_of(user, START_MS) for user in USERS]
    (tmp_path / "experiments.toml").write_text(declared(**change))
    book.refresh(START_MS + 1)
    assert book.problem is not None
    assert said in book.problem
    assert [book.arm_of(user, START_MS + 1) for user in USERS] == before
    (tmp_path / "experiments.toml").write_text(declared())
    book.refresh(START_MS + 2)
    assert book.problem is None


def test_an_emptied_file_ends_nothing(tmp_path: Path) -> None:
    book = book_of(tmp_path, declared())
    before = [book.arm_of(user, START_MS) for user in USERS]
    (tmp_path / "experiments.toml").write_text("")
    book.refresh(START_MS + 1)
    assert "'longer' is on and the file does not declare it any more" in str(book.problem)
    assert [book.arm_of(user, START_MS + 1) for user in USERS] == before
    stop(tmp_path, DOMAIN, "longer", "over", START_MS + 2)
    book.refresh(START_MS + 3)
    assert (book.problem, book.running(START_MS + 3)) == (None, None)


def test_one_experiment_at_a_time(tmp_path: Path) -> None:
    second = {"name": '"second"', "salt": '"second-1"'}
    book = book_of(tmp_path, declared() + declared(**second, starts="2026-12-10"))
    assert "'longer' and 'second' are on at the same time" in str(book.problem)
    assert book.running(START_MS) is None
    book = book_of(tmp_path, declared() + declared(**second, starts="2026-12-15"))
    assert book.problem is None
    assert {getattr(book.arm_of(user, START_MS + 14 * DAY_MS), "experiment", "second") for user in USERS} == {"second"}


def test_a_stop_gives_everybody_the_champion_again(tmp_path: Path) -> None:
    book = book_of(tmp_path, declared())
    assert any(book.arm_of(user, START_MS) for user in USERS)
    stop(tmp_path, DOMAIN, "longer", "hides rose", START_MS + 1)
    book.refresh(START_MS + 2)
    assert not any(book.arm_of(user, START_MS + 2) for user in USERS)
    with pytest.raises(ExperimentError, match="stopped already: hides rose"):
        stop(tmp_path, DOMAIN, "longer", "again", START_MS + 3)
    with pytest.raises(ExperimentError, match=r"there is no experiment 'x' in .*; known: longer"):
        stop(tmp_path, DOMAIN, "x", "", START_MS + 3)
    restarted = book_of(tmp_path, declared(treatment="0.05"), START_MS + 4)
    assert restarted.problem is None, "nobody is in an arm that could shrink"
    assert restarted.running(START_MS + 4) is None


def test_a_stop_is_followed_while_the_file_is_broken(tmp_path: Path) -> None:
    book = book_of(tmp_path, declared())
    (tmp_path / "experiments.toml").write_text("[[experiments")
    book.refresh(START_MS + 1)
    assert any(book.arm_of(user, START_MS + 1) for user in USERS)
    stop(tmp_path, DOMAIN, "longer", "now", START_MS + 2)
    book.refresh(START_MS + 3)
    assert not any(book.arm_of(user, START_MS + 3) for user in USERS)
    assert "not valid TOML" in str(book.problem)


def test_no_file_no_experiment_and_nothing_is_written(tmp_path: Path) -> None:
    book = ExperimentBook(tmp_path, DOMAIN)
    book.refresh(START_MS)
    assert (book.problem, book.arm_of("user-1", START_MS)) == (None, None)
    assert list(tmp_path.iterdir()) == []
