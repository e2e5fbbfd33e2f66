"""The item tower: it learns who engages with what next, and says it of items nobody has seen."""

import numpy as np
import pyarrow.compute as pc
import pytest

from rayapp.importing.domains import load_domain
from rayapp.pipeline.engagements import Engagements
from rayapp.sources.synthetic import STYLES, TOPICS, World, make_chunk, make_items
from rayapp.training.recall import recall_report
from rayapp.training.two_tower import FEWEST_ENGAGEMENTS, Content, TowerConfig, TwoTower, fit, train_two_tower

WORLD = World(num_users=250, num_items=300, num_days=10)


def world() -> tuple[list[dict[str, object]], Engagements]:
    items = make_items(WORLD)
    rows = [
        {
            "item_id": i,
            "created_at_ms": 0,
            "title": f"{STYLES[s]} {TOPICS[t]}",
            "topics": [TOPICS[t]],
            "style": [STYLES[s]],
            "quality": float(q),
        }
        for i, t, s, q in zip(items.id_N.tolist(), items.topic_N, items.style_N, items.quality_N, strict=True)
    ]
    events = make_chunk(WORLD, items, 0)["events"]
    saves = events.filter(pc.field("action") == "save").sort_by(
        [("user_id", "ascending"), ("timestamp_ms", "ascending")]
    )
    user = saves["user_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    row_of = {i: n for n, i in enumerate(items.id_N.tolist())}
    item = np.array([row_of[i] for i in saves["item_id"].to_pylist()])
    return rows, Engagements(user, item, saves["timestamp_ms"].to_numpy())


def test_contexts_are_the_user_s_own_past_newest_first() -> None:
    engagements = Engagements(np.array([0, 0, 0, 1, 1]), np.array([5, 6, 7, 8, 9]), np.arange(5))
    assert engagements.contexts(2).tolist() == [[-1, -1], [5, -1], [6, 5], [-1, -1], [8, -1]]


@pytest.mark.slow
def test_the_tower_finds_the_next_item_better_than_popularity_and_chance_also_unseen_ones() -> None:
    items, engagements = world()
    until_ms = WORLD.start_ms + 7 * 86_400_000
    train = engagements.before(until_ms)
    attributes = load_domain("synthetic").domain.attributes
    tower = train_two_tower(items, attributes, train, TowerConfig(width=16, epochs=20, batch_size=256))
    report = recall_report(tower.embed(items), engagements, until_ms)
    assert report["seen"]["n"] > 50
    assert report["seen"]["tower"] > max(report["seen"]["popularity"], report["seen"]["random"])
    assert report["unseen"]["n"] > 20
    assert report["unseen"]["tower"] > report["unseen"]["random"]


def test_a_tower_without_engagements_still_tells_categories_apart() -> None:
    items, engagements = world()
    none = engagements.before(0)
    attributes = load_domain("synthetic").domain.attributes
    content, config = Content.of(items, attributes, np.zeros(len(items), np.int64)), TowerConfig(width=16, max_steps=1)
    model = TwoTower(content.num_tokens, content.num_categories, config)
    assert np.isfinite(fit(model, content, none.item_P, none.contexts(config.context_length), config))
    assert recall_report(np.zeros((len(items), 16), np.float32), none, 0) == {"seen": {"n": 0}, "unseen": {"n": 0}}
    tower = train_two_tower(items, attributes, none, config)
    assert (np.linalg.norm(tower.embed(items), axis=1) > 0.99).all()


def test_a_word_of_one_item_is_learned_only_where_many_engaged_with_it() -> None:
    """Else it would keep who engaged with that item, and a ranker that trains on these engagements would read it."""
    attributes = load_domain("synthetic").domain.attributes
    items = [{"item_id": f"i{n}", "title": f"shared word{n}", "topics": ["a"], "style": []} for n in range(40)]
    known, seldom = np.arange(40) == 0, np.arange(40) == 1
    user_P = np.repeat(np.arange(FEWEST_ENGAGEMENTS), 3)
    item_P = np.where(np.arange(len(user_P)) % 3 == 0, 0, 2 + np.arange(len(user_P)) % 38)
    item_P[1] = 1
    tower = train_two_tower(
        items, attributes, Engagements(user_P, item_P, np.arange(len(user_P))), TowerConfig(width=8)
    )
    vector_NE = tower.embed(items)
    np.testing.assert_allclose(vector_NE[~known], np.broadcast_to(vector_NE[seldom], (39, 8)), atol=1e-6)
    assert np.abs(vector_NE[known] - vector_NE[seldom]).max() > 0.1
    only_a_name = [{"item_id": "new", "title": "word1", "topics": [], "style": []}]
    assert not tower.embed(only_a_name).any(), "what was not learned says nothing of a new item"
