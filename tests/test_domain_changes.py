"""A domain that changes: what may, what may not and why; the change of a root, whole or not at all; who follows."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from rayapp.cli.main import cli
from rayapp.contracts.config import DAY_MS, FOREVER, HOUR_MS, Cap, Domain, Head
from rayapp.contracts.domain_changes import COMPARED_BY_NAME, RULES, changes
from rayapp.contracts.json_values import to_json
from rayapp.contracts.schema import Action, ActionKind, Attribute, AttributeKind, Vocabulary
from rayapp.experiments.declaration import Arm, with_arm
from rayapp.importing.domains import BUILT_IN, load_domain
from rayapp.root.facts import apply_domain, make_root, read_revisions, read_root, refuse_other_domain
from rayapp.root.places import ROOT_FILE
from rayapp.root.publish import PublishError, exclusive, read_json
from rayapp.serving.followed_domain import FollowedDomain

Changed = Callable[[Domain], Domain]
SHARE = Action(name="share", kind=ActionKind.POSITIVE)
SHARED = Head(name="share", actions=("share",), utility=2.0)
NUMBER, CATEGORIES = AttributeKind.NUMBER, AttributeKind.CATEGORIES


def given(**values: Any) -> Changed:
    return lambda domain: dataclasses.replace(domain, **values)


def actions(*more: Action, old: Callable[[tuple[Action, ...]], tuple[Action, ...]] = lambda old: old) -> Changed:
    return lambda domain: dataclasses.replace(domain, vocabulary=Vocabulary((*old(domain.vocabulary.actions), *more)))


def heads(of: Callable[[tuple[Head, ...]], tuple[Head, ...]]) -> Changed:
    return lambda domain: dataclasses.replace(domain, heads=of(domain.heads))


def added(group: str, *attributes: Attribute) -> Changed:
    return lambda domain: dataclasses.replace(domain, **{group: (*attributes, *getattr(domain, group))})


def grown(domain: Domain) -> Domain:
    """With an appended action, and a head of it."""
    return heads(lambda old: (*old, SHARED))(actions(SHARE)(domain))


def without_genres(domain: Domain) -> Domain:
    return dataclasses.replace(domain, attributes=tuple(a for a in domain.attributes if a.name != "genres"))


def genres_as_number(domain: Domain) -> Domain:
    kinds = {"genres": NUMBER}
    return dataclasses.replace(
        domain, attributes=tuple(Attribute(a.name, kinds.get(a.name, a.kind)) for a in domain.attributes)
    )


@pytest.mark.parametrize(
    ("changed", "words", "meaning"),
    [
        (given(name="other"), "name: 'test' → 'other'", "called so"),
        (heads(lambda h: (dataclasses.replace(h[0], utility=3.0), h[1])), "heads.save.utility: 1 → 3",
         "nothing is trained"),
        (given(mix={"nearest": 0.5}), "mix: – → { nearest = 0.5 }", "within seconds"),
        (given(seen_ms={"save": FOREVER, "click": 2 * DAY_MS}), 'seen.actions: – → { save = "forever", click = "2d" }',
         "within seconds"),
        (given(seen_again_after_ms=None), 'seen.again_after: "0s" → "forever"', "within seconds"),
        (given(rest_ms=HOUR_MS), 'seen.rest: "0s" → "1h"', "before it was set"),
        (given(rest_items=9), "seen.rest_items: 200 → 9", "within seconds"),
        (given(caps={"genres": Cap(most=2, of=10)}), "caps: – → { genres = 2 of 10 }", "within seconds"),
        (given(attribution_ms=HOUR_MS), 'attribution: "1d" → "1h"', "mixed windows"),
        (given(time_mask_ms=HOUR_MS), "time_mask: ", "next training"),
        (given(earliest_ms=0), "earliest: ", "from now on"),
        (given(label_weights=((1.0, 1.0, 1.0), (2.0, 1.0, 1.0))), "heads.hide.loss_weights: – → { save = 2 }",
         "next training"),
        (given(half_lives_ms=(HOUR_MS, FOREVER)), '→ ["1h", "never"]', "counts the statistics anew"),
        (given(flag_delay_ms=HOUR_MS), "flag_delay: ", "counts the statistics anew"),
        (given(positive_head="hide"), "positive_head: 'save' → 'hide'", "from now on"),
        (actions(SHARE), "actions.share: – → positive", "unknown kind"),
        (grown, "heads.share: – → share, utility 2", "windows anew"),
        (added("attributes", Attribute("price", NUMBER)), "items.price: – → number", "PUT must name it"),
        (added("user_attributes", Attribute("age", NUMBER)), "users.age: – → number", "from scratch"),
        (added("context_attributes", Attribute("tab", CATEGORIES)), "context.tab: – → categories", "windows anew"),
    ],
)  # fmt: skip
def test_what_may_change_says_what_it_means(domain: Domain, changed: Changed, words: str, meaning: str) -> None:
    found = changes(domain, changed(domain))
    assert all(change.allowed for change in found)
    assert any(words in change.words and meaning in change.meaning for change in found), found


@pytest.mark.parametrize(
    ("changed", "key", "instead"),
    [
        (actions(old=lambda old: old[::-1]), "actions", "append what is new"),
        (actions(old=lambda old: (SHARE, *old)), "actions", "append what is new"),
        (actions(old=lambda old: tuple(a for a in old if a.name != "click")), "actions.click", "append the new name"),
        (actions(old=lambda old: tuple(dataclasses.replace(a, name="tap") if a.name == "click" else a for a in old)),
         "actions.click", "append the new name"),
        (actions(old=lambda old: tuple(dataclasses.replace(a, priority=9) if a.name == "click" else a for a in old)),
         "actions.click.priority", "another name"),
        (actions(old=lambda old: tuple(dataclasses.replace(a, kind=ActionKind.POSITIVE) for a in old)),
         "actions.hide.kind", "another name"),
        (heads(lambda h: (h[0],)), "heads.hide", "utility = 0"),
        (heads(lambda h: h[::-1]), "heads", "append what is new"),
        (heads(lambda h: (dataclasses.replace(h[0], actions=("click",)), h[1])), "heads.save.actions", "another name"),
        (without_genres, "items.genres", "send it no more"),
        (genres_as_number, "items.genres", "another name"),
        (given(statistics_step_ms=HOUR_MS), "statistics_step", "another --root"),
        (given(time_zone="Asia/Tokyo"), "time_zone", "another --root"),
    ],
)  # fmt: skip
def test_what_would_change_the_meaning_of_stored_rows_is_refused_with_what_to_do(
    root: Path, domain: Domain, changed: Changed, key: str, instead: str
) -> None:
    before, wanted = (root / ROOT_FILE).read_bytes(), changed(domain)
    refused = {change.key: change.meaning for change in changes(domain, wanted) if not change.allowed}
    assert refused[key].startswith("refused: ")
    assert instead in refused[key]
    with pytest.raises(PublishError, match="keeps its domain"):
        apply_domain(root, wanted, 1)
    assert (root / ROOT_FILE).read_bytes() == before


def test_every_field_of_a_domain_has_its_rule(domain: Domain) -> None:
    assert {field.name for field in dataclasses.fields(domain)} == {*RULES, *COMPARED_BY_NAME}
    assert changes(domain, domain) == []
    for name in BUILT_IN:
        assert changes(load_domain(name).domain, load_domain(name).domain) == []


def test_a_change_is_recorded_with_its_time_and_what_was_before(root: Path, domain: Domain) -> None:
    assert read_revisions(root) == []
    assert apply_domain(root, domain, 1) == []
    assert read_revisions(root) == [], "nothing differed"
    apply_domain(root, actions(SHARE)(domain), 2)
    apply_domain(root, grown(domain), 3)
    assert read_root(root) == (grown(domain), 4)
    first, second = read_revisions(root)
    assert (first.at_ms, first.changes, first.before) == (2, ("actions.share: – → positive",), domain)
    assert (second.at_ms, second.before) == (3, actions(SHARE)(domain))


def test_a_change_that_fails_half_way_leaves_the_root_as_it_was(
    root: Path, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, files = (root / ROOT_FILE).read_bytes(), set(os.listdir(root))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            apply_domain(root, grown(domain), 2)
    assert (root / ROOT_FILE).read_bytes() == before
    assert set(os.listdir(root)) - files <= {".lock"}, "nothing half-written is left"
    with exclusive(root, "a retraining"), pytest.raises(PublishError, match="another process"):
        apply_domain(root, grown(domain), 2)
    assert apply_domain(root, grown(domain), 2)


def test_an_import_with_a_changed_file_says_how_the_root_follows(root: Path, domain: Domain) -> None:
    with pytest.raises(PublishError, match=r"heads\.save\.utility: 1 → 5.*rayapp domain apply"):
        refuse_other_domain(root, heads(lambda h: (dataclasses.replace(h[0], utility=5.0), h[1]))(domain))
    with pytest.raises(PublishError, match=r"can't follow: heads\.hide"):
        refuse_other_domain(root, heads(lambda h: (h[0],))(domain))


def test_the_commands_diff_apply_and_history(tmp_path: Path) -> None:
    root, text = tmp_path / "root", BUILT_IN["synthetic"].read_text()
    make_root(root, load_domain("synthetic").domain)

    def run(command: str, *words: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, ["domain", command, "--root", str(root), *words])
        return done.exit_code, f"{done.output}{done.exception or ''}"

    file = tmp_path / "domain.toml"
    more = '[mix]\nnearest = 0.5\npopular = 0.5\n\n[[actions]]\nname = "share"\nkind = "positive"\n'
    file.write_text(f"{text}\n{more}")
    assert run("diff", "synthetic") == (0, f"{root} has this very domain\n")
    code, said = run("diff", str(file))
    assert code == 0
    assert "actions.share: – → positive" in said
    assert f"rayapp domain apply --root {root} {file}" in said
    assert run("history")[1] == f"the domain of {root} is what it was made with\n"
    assert "2 changes made" in run("apply", str(file))[1]
    assert read_root(root)[0].mix == {"nearest": 0.5, "popular": 0.5}
    assert run("apply", str(file)) == (0, "nothing differs\n")
    assert "  mix: – → { nearest = 0.5, popular = 0.5 }" in run("history")[1]
    code, said = run("diff", "synthetic")
    assert code == 1
    assert "REFUSED  actions.share" in said
    assert "so none can be made" in said
    assert run("apply", "synthetic")[0] == 1
    file.write_text(f"{text}\n[mix]\nwizardry = 1.0\n")
    assert "mix names ['wizardry'], not among the sources of candidates: beside" in run("diff", str(file))[1]


def test_an_arm_that_won_becomes_the_domain_s(root: Path, domain: Domain) -> None:
    won = Arm("treatment", 0.5, "champion", utilities=(4.0, -1.0), mix={"nearest": 0.7})
    wanted = with_arm(domain, won)
    assert (wanted.utilities, wanted.mix) == ((4.0, -1.0), {"nearest": 0.7})
    assert with_arm(wanted, Arm("control", 0.5, "champion")) == wanted, "an arm without its own changes nothing"
    arm = '[[experiments.arms]]\nalias = "champion"\nshare = 0.5\n'
    text = '[[experiments]]\nname = "x"\nsalt = "x"\nstarts = 2026-01-01\nplanned_days = 7\n'
    text += f'{arm}name = "control"\n{arm}name = "treatment"\nutilities = {{ save = 4.0 }}\nmix = {{ nearest = 0.7 }}\n'
    (root / "experiments.toml").write_text(text)
    words = ["experiment", "adopt", "--root", str(root), "x"]
    done = CliRunner().invoke(cli, [*words, "treatment"])
    assert done.exit_code == 0, done.exception
    assert "heads.save.utility: 1 → 4" in done.output
    assert "nearest = 0.7" in done.output
    assert read_root(root)[0] == wanted
    assert len(read_revisions(root)) == 1
    assert "there are: x control, x treatment" in str(CliRunner().invoke(cli, [*words, "third"]).exception)


def test_a_replica_follows_and_one_that_reads_an_action_first_follows_at_once(root: Path, domain: Domain) -> None:
    followed = FollowedDomain(root)
    assert followed.now == domain
    assert not followed.refresh()
    apply_domain(root, grown(domain), 1)
    appended = np.array([grown(domain).vocabulary.id_of("share")], np.uint8)
    assert followed.knowing(np.array([2], np.uint8)) == domain
    assert followed.knowing(appended) == grown(domain)
    assert not followed.refresh()
    (root / ROOT_FILE).write_text("{")
    with pytest.raises(PublishError):
        followed.refresh()
    assert followed.now == grown(domain), "what can't be read leaves what was known"


def test_a_root_of_an_earlier_release_has_no_revisions_and_follows(root: Path, domain: Domain) -> None:
    assert set(read_json(root / ROOT_FILE)) == {"num_buckets", "domain"}
    assert to_json(grown(domain))["vocabulary"] != to_json(domain)["vocabulary"]
    apply_domain(root, grown(domain), 1)
    assert read_json(root / ROOT_FILE)["num_buckets"] == 4
