"""What errors tell people to do next is right for their own root."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rayapp.cli.main import cli
from rayapp.contracts.config import Domain
from rayapp.loop.first_training import split_of
from rayapp.registry.models import list_models
from rayapp.root.facts import read_root
from rayapp.root.publish import PublishError
from rayapp.serving.shelf import ModelShelf
from rayapp.store.lmdb import LmdbStore

ROOT = Path(__file__).parents[1]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def test_no_root_is_sent_to_the_demo(root: Path, domain: Domain, tmp_path: Path) -> None:
    store = LmdbStore(root / "store", domain.vocabulary, 4)
    with pytest.raises(PublishError) as shelf:
        ModelShelf(root, domain, store)
    store.close()
    train = f"`rayapp train --root {root}`"
    assert train in str(shelf.value)
    assert train in str(run("serve", "--root", root).exception)
    assert train in run("models", "list", "--root", root).output
    with pytest.raises(PublishError, match=r"rayapp import --root \S+/nothing"):
        read_root(tmp_path / "nothing")
    assert not list_models(root)
    for path in (ROOT / "rayapp").rglob("*.py"):
        assert not re.search(r"rayapp demo.{0,3}--root", path.read_text()), f"{path}: would put films into that root"


def test_the_demo_leaves_another_domain_s_root_alone(root: Path) -> None:
    before = sorted(root.rglob("*"))
    done = run("demo", "--root", root, "--source", "movielens", "--exit")
    assert isinstance(done.exception, PublishError)
    assert "made for the domain 'test'" in str(done.exception)
    assert sorted(root.rglob("*")) == before


def test_an_empty_log_is_told_what_it_lacks(root: Path) -> None:
    with pytest.raises(PublishError, match=r"no actions and no shown lists yet.*`rayapp import`"):
        split_of(root)
    done = run("train", "--root", root)
    assert isinstance(done.exception, PublishError)
    assert "no shown lists" in str(done.exception)
