"""Models published, loaded, and held while aliases move and items arrive. No Ray, no HTTP."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rayapp.contracts.config import DAY_MS, Domain
from rayapp.contracts.hashing import hash64
from rayapp.contracts.schema import Action, ActionKind, Vocabulary, user_schema
from rayapp.features.sequence import History
from rayapp.registry.aliases import CHAMPION, promote, read_aliases
from rayapp.registry.item_tables import load_table, publish_table
from rayapp.registry.models import list_models, load_model
from rayapp.retrieval.candidates import Query, fetch
from rayapp.root.catalogue_writer import merge
from rayapp.root.places import USERS
from rayapp.root.publish import PublishError, read_json, write_json
from rayapp.serving import index_shelf
from rayapp.serving.index_shelf import IndexShelf
from rayapp.serving.shelf import ModelShelf
from rayapp.store.lmdb import LmdbStore
from tests.conftest import T0, make_request
from tests.tiny_models import item_table


def test_an_item_table_round_trips(root: Path, domain: Domain) -> None:
    table = item_table(domain)
    publish_table(root, table, {})
    loaded = load_table(root, "table")
    assert loaded.items == table.items
    np.testing.assert_array_equal(loaded.vectors_NE, table.vectors_NE)
    np.testing.assert_array_equal(loaded.likes_N, table.likes_N)


def test_a_model_scores_alike_after_a_round_trip(models: tuple[Path, LmdbStore], domain: Domain) -> None:
    root, _ = models
    one, two = load_model(root, "a", domain), load_model(root, "a", domain)
    request = make_request(
        np.array([3, 2], np.uint8),
        np.array([hash64("i1"), hash64("i2")], np.uint64),
        np.array([hash64("i5")], np.uint64),
        num_heads=len(domain.heads),
    )
    np.testing.assert_array_equal(one.scorer.score(request)[0], two.scorer.score(request)[0])


def test_a_longer_vocabulary_still_loads_an_older_model_and_another_one_is_refused(
    models: tuple[Path, LmdbStore], domain: Domain
) -> None:
    root, _ = models
    grown = Vocabulary((*domain.vocabulary.actions, Action(name="share", kind=ActionKind.POSITIVE)))
    load_model(root, "a", dataclasses.replace(domain, vocabulary=grown))
    turned = dataclasses.replace(domain, vocabulary=Vocabulary(domain.vocabulary.actions[::-1]))
    with pytest.raises(PublishError, match=r"trained with the actions \['click'.*the domain has \['impression'"):
        load_model(root, "a", turned)


def test_a_model_is_refused_where_the_domains_clocks_are_others(models: tuple[Path, LmdbStore], domain: Domain) -> None:
    says = "model a was trained with the clocks of UTC, the domain has the time_zone Asia/Tokyo; train it again"
    with pytest.raises(PublishError, match=says):
        load_model(models[0], "a", dataclasses.replace(domain, time_zone="Asia/Tokyo"))


@pytest.mark.parametrize("reads_weekday", [False, True])
def test_a_served_model_reads_the_day_of_the_week_as_it_was_trained(
    models: tuple[Path, LmdbStore], domain: Domain, reads_weekday: bool
) -> None:
    root, _ = models
    path = root / "models" / "a" / "config.json"
    write_json(path, {**read_json(path), "reads_weekday": reads_weekday})
    scorer = load_model(root, "a", domain).scorer
    scorer = scorer.with_table(scorer.inputs.table.with_items([{"item_id": "new", "created_at_ms": 0, "title": "t"}]))
    sunday, monday = (
        make_request(
            np.zeros(1, np.uint8),
            np.zeros(1, np.uint64),
            np.array([hash64("i5")], np.uint64),
            num_heads=len(domain.heads),
            timestamp_ms=T0 + day * DAY_MS,
        )
        for day in (3, 4)
    )
    numbers = [scorer.inputs.batch(request).user_number_BM[0, -5:-3].tolist() for request in (sunday, monday)]
    assert (numbers[0] != numbers[1]) == any(numbers[0]) == reads_weekday


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("weights.safetensors", lambda data: data[: len(data) // 2], "is damaged"),
        ("weights.safetensors", lambda data: b"", "is damaged"),
        ("config.json", lambda data: data[:10], "not valid JSON"),
        ("manifest.json", lambda data: b'{"format": 99}', "format 99"),
    ],
)
def test_damaged_models_are_refused_in_one_sentence(
    models: tuple[Path, LmdbStore], domain: Domain, name: str, damage: object, says: str
) -> None:
    root, _ = models
    path = root / "models" / "a" / name
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(PublishError, match=says):
        load_model(root, "a", domain)


def test_promoting_what_is_not_there_changes_nothing(models: tuple[Path, LmdbStore]) -> None:
    root, _ = models
    with pytest.raises(PublishError, match="no model 'zzz'"):
        promote(root, CHAMPION, "zzz")
    with pytest.raises(PublishError, match="can't be an alias"):
        promote(root, "../up", "a")
    assert read_aliases(root) == {CHAMPION: "a"}
    (root / "models" / "a" / "metrics.json").unlink()
    assert {row["version"]: bool(row["error"]) for row in list_models(root)} == {"a": True, "b": False}


def test_the_shelf_follows_aliases_and_keeps_the_previous_champion(
    models: tuple[Path, LmdbStore], domain: Domain
) -> None:
    root, store = models
    shelf = ModelShelf(root, domain, store)
    assert shelf.versions == ["a"]
    assert shelf.get("b") is None
    promote(root, CHAMPION, "b")
    shelf.refresh()
    assert shelf.champion == "b"
    assert set(shelf.versions) == {"a", "b"}


def test_a_corrupt_champion_is_refused_and_the_old_one_stays(
    models: tuple[Path, LmdbStore], domain: Domain, caplog: pytest.LogCaptureFixture
) -> None:
    root, store = models
    shelf = ModelShelf(root, domain, store)
    (root / "models" / "b" / "weights.safetensors").write_bytes(b"junk")
    promote(root, CHAMPION, "b")
    shelf.refresh()
    assert shelf.champion == "a"
    assert shelf.versions == ["a"]
    assert "was refused" in caplog.text
    assert list(shelf.refused) == ["b"]
    assert "damaged" in shelf.refused["b"]
    promote(root, CHAMPION, "a")
    shelf.refresh()
    assert shelf.refused == {}


def test_new_items_reach_every_held_model_and_its_candidates(models: tuple[Path, LmdbStore], domain: Domain) -> None:
    root, store = models
    shelf, indexes = ModelShelf(root, domain, store), IndexShelf(root, store)
    store.put_item({"item_id": "new", "created_at_ms": 99, "title": "brand new", "genres": ["g1"], "year": None})
    indexes.refresh()
    shelf.refresh()
    index = indexes.get("a")
    assert index is not None
    assert "new" in fetch(index, History.empty(), domain.vocabulary, Query(10, now_ms=100)).item_ids
    promote(root, CHAMPION, "b")
    shelf.refresh()  # a model loaded later gets the items put before
    model = shelf.get("b")
    assert model is not None
    assert model.table.rows_of_ids(["new"])[0] > 0


def test_models_over_one_item_table_share_it_and_its_index(models: tuple[Path, LmdbStore], domain: Domain) -> None:
    root, store = models
    promote(root, "shadow", "b")
    shelf, indexes = ModelShelf(root, domain, store), IndexShelf(root, store)
    for n in (100, 101):
        store.put_item({"item_id": f"i{n}", "created_at_ms": n, "title": "brand new", "genres": ["g1"], "year": None})
        shelf.refresh()
        indexes.refresh()
        a, b = shelf.get("a"), shelf.get("b")
        assert a is not None
        assert b is not None
        assert a.table is b.table is a.scorer.inputs.table is b.scorer.inputs.table
        index = indexes.get("a")
        assert index is indexes.get("b")
        assert index is not None
        assert index.table.items == a.table.items
        assert fetch(index, History.empty(), domain.vocabulary, Query(1, now_ms=n)).item_ids == ["i29"]
        newest = Query(5, now_ms=n, mix={"newest": 1.0})
        assert fetch(index, History.empty(), domain.vocabulary, newest).item_ids[0] == f"i{n}"
    assert indexes.get("zzz") is None


def test_an_item_taken_out_of_feeds_still_ranks(models: tuple[Path, LmdbStore], domain: Domain) -> None:
    root, store = models
    shelf, indexes = ModelShelf(root, domain, store), IndexShelf(root, store)
    everything = Query(100, now_ms=100)
    index = indexes.get("a")
    assert index is not None
    assert "i3" in fetch(index, History.empty(), domain.vocabulary, everything).item_ids
    store.put_item({"item_id": "i3", "available": False, "created_at_ms": 3})
    shelf.refresh()
    indexes.refresh()
    index, model = indexes.get("a"), shelf.get("a")
    assert index is not None
    assert "i3" not in fetch(index, History.empty(), domain.vocabulary, everything).item_ids
    assert model is not None
    nothing = np.zeros(1, np.uint8), np.zeros(1, np.uint64)
    known = model.scorer.score(make_request(*nothing, np.array([hash64("i3")], np.uint64), num_heads=2)).known
    assert known.all()


def test_a_champion_that_rankers_refuse_takes_the_one_that_answers_out_of_no_candidates(
    models: tuple[Path, LmdbStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Item tables are readable whatever a model's weights are, and two broken champions may follow one another."""
    root, store = models
    for name in ("junk", "more-junk"):
        shutil.copytree(root / "models" / "b", root / "models" / name)
        (root / "models" / name / "weights.safetensors").write_bytes(b"junk")
    indexes = IndexShelf(root, store)
    for name in ("junk", "more-junk"):
        assert indexes.get("a") is not None
        promote(root, CHAMPION, name)
        indexes.refresh()
    assert set(indexes.versions) == {"a", "junk", "more-junk"}
    started_later = IndexShelf(root, store)
    assert started_later.get("a") is None, "not held yet"
    started_later.refresh()
    assert started_later.get("a") is not None, "held, since it was asked for"
    monkeypatch.setattr(index_shelf, "HELD_S", 0.0)
    indexes.refresh()
    assert indexes.versions == ["more-junk"]


def test_an_item_table_that_is_damaged_leaves_the_candidates_of_the_others(
    models: tuple[Path, LmdbStore], domain: Domain, caplog: pytest.LogCaptureFixture
) -> None:
    root, store = models
    indexes = IndexShelf(root, store)
    publish_table(root, dataclasses.replace(item_table(domain), name="other"), {})
    (root / "item_tables" / "other" / "items.parquet").write_bytes(b"junk")
    manifest = root / "models" / "b" / "manifest.json"
    write_json(manifest, read_json(manifest) | {"item_table": "other"})
    promote(root, CHAMPION, "b")
    indexes.refresh()
    assert indexes.versions == ["a"]
    assert "damaged" in caplog.text


def test_users_attributes_are_those_of_the_last_export(models: tuple[Path, LmdbStore], domain: Domain) -> None:
    root, store = models
    shelf = ModelShelf(root, domain, store)

    def known() -> int:
        model = shelf.get("a")
        assert model is not None
        return len(model.scorer.inputs.users.hash_U)

    assert known() == 0
    row = {"user_id": "ann", "effective_at_ms": 5}
    merge(root, USERS, pa.Table.from_pylist([row], schema=user_schema(domain.user_attributes)), domain)
    shelf.refresh()
    assert known() == 1


def test_a_root_without_a_champion_says_what_to_do(root: Path, domain: Domain) -> None:
    store = LmdbStore(root / "store", domain.vocabulary, 4, map_bytes=1 << 24)
    with pytest.raises(PublishError, match="rayapp train"):
        ModelShelf(root, domain, store)
    store.close()


def test_aliases_are_whole_files(models: tuple[Path, LmdbStore]) -> None:
    root, _ = models
    write_json(root / "aliases" / "shadow.json", {"version": "b"})
    assert read_aliases(root) == {CHAMPION: "a", "shadow": "b"}
