"""The ranker, its loss, the scorer and the item table; the encoders have a file of their own."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rayapp.contracts.json_values import from_json, to_json
from rayapp.contracts.schema import FIRST_ACTION_ID, PAD, Attribute, AttributeKind, user_schema
from rayapp.features.attributes import ABSENT, AttributeEncoder
from rayapp.model.calibration import Calibration
from rayapp.model.inputs import FeatureTables
from rayapp.model.item_table import ItemTable
from rayapp.model.ranker import CrossNetwork, ranking_loss
from rayapp.model.tower import LinearTower, fit_linear_tower
from tests.scorers import ATTRIBUTES, CONFIG, hashes, make_scorer, request


def test_cross_network_is_dcn_v2() -> None:
    torch.manual_seed(1)
    cross = CrossNetwork(5, 2)
    x = torch.randn(3, 5)
    expected = x
    for layer in cross.layers:
        assert isinstance(layer, nn.Linear)
        expected = x * (expected @ layer.weight.T + layer.bias) + expected
    torch.testing.assert_close(cross(x), expected)


ONE = torch.ones(1)


def test_an_impression_without_an_action_has_weight() -> None:
    """Read to the letter the paper's matrix gives it none, and no negative would be learnt from."""
    logits = torch.zeros(1, 2, 2, requires_grad=True)
    label = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    ranking_loss(logits, label, valid, torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]]), ONE).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[0, 1], torch.zeros(2))  # a matrix without the column: the trap
    logits.grad = None
    ranking_loss(logits, label, valid, torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 1.0]]), ONE).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[[-0.5, 1.5], [1.0, 0.5]]]))


def test_padded_candidates_cost_nothing() -> None:
    logits, label = torch.randn(2, 3, 2), torch.zeros(2, 3, 2)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    weights = torch.ones(2, 3)
    loss = ranking_loss(logits, label, valid, weights, torch.ones(2))
    logits[~valid] = 1e3
    torch.testing.assert_close(ranking_loss(logits, label, valid, weights, torch.ones(2)), loss)


@settings(deadline=None, max_examples=25)
@given(
    order=st.permutations(range(30)),
    split=st.integers(1, 29),
    real=st.integers(0, CONFIG.history_length),
    padding=st.integers(0, 3),
)
def test_a_score_depends_on_the_user_and_the_item_alone(order: list[int], split: int, real: int, padding: int) -> None:
    """Defect: scores moved with batch mates. Any order, any split, any padding: the same scores."""
    scorer = make_scorer()
    action = np.full(CONFIG.history_length, PAD, np.uint8)
    action[:real] = FIRST_ACTION_ID + np.arange(real) % 3
    history = hashes(*(f"i{n}" for n in range(CONFIG.history_length)))
    ids = [f"i{n}" for n in order]
    whole = scorer.score(request(action, history, hashes(*ids)))
    assert whole.known.all()
    parts = [
        scorer.score(request(np.pad(action, (0, padding)), np.pad(history, (0, padding)), hashes(*part)))[0]
        for part in (ids[:split], ids[split:])
    ]
    np.testing.assert_allclose(whole.probability_CH, np.concatenate(parts), atol=2e-6)


def test_unknown_actions_and_items_are_scored_and_flagged() -> None:
    """Defect: an unknown action id crashed."""
    scorer = make_scorer()
    action = np.array([200, 99, 2], np.uint8)
    scores, row_C = scorer.score(request(action, hashes("i1", "nowhere", "i2"), hashes("i3", "nowhere")))
    assert (row_C != ABSENT).tolist() == [True, False]
    assert np.isfinite(scores).all()
    known_as = np.array([1, 1, 2], np.uint8)
    as_unknown, _ = scorer.score(request(known_as, hashes("i1", "nowhere", "i2"), hashes("i3", "nowhere")))
    np.testing.assert_array_equal(scores, as_unknown)


def test_without_the_sequence_only_how_often_the_user_did_what_matters() -> None:
    """Item 5 has the genre of item 8, and neither is a candidate."""
    action, items, candidates = np.array([2, 4, 3, 2], np.uint8), hashes("i5", "i6", "i7", "i2"), hashes("i1", "i2")
    order = np.array([3, 1, 0, 2])
    asked = [
        request(action, items, candidates),
        request(action[order], items[order], candidates),
        request(action, hashes("i8", "i6", "i7", "i2"), candidates),
        request(action, hashes("i6", "i6", "i7", "i2"), candidates),
    ]
    plain, sequence = (make_scorer(config=dataclasses.replace(CONFIG, encoder=name)) for name in ("none", "transact"))
    scores, again, same_genre, other_genre = (plain.score(one).probability_CH for one in asked)
    np.testing.assert_array_equal(scores, again)
    np.testing.assert_array_equal(scores, same_genre)
    assert np.abs(scores - other_genre).max() > 1e-6
    scores, again, same_genre, _ = (sequence.score(one).probability_CH for one in asked)
    assert np.abs(scores - again).max() > 1e-6
    assert np.abs(scores - same_genre).max() > 1e-6


def test_a_new_item_is_embedded_by_the_table_s_own_tower() -> None:
    scorer = make_scorer()
    item = {"item_id": "new", "created_at_ms": 5, "title": "film new", "genres": ["g1", "never seen"]}
    table = scorer.inputs.table.with_items([item])
    (row,) = table.rows_of_ids(["new"])
    assert row == table.num_rows - 1
    assert scorer.inputs.table.rows_of_ids(["new"])[0] == ABSENT
    np.testing.assert_allclose(table.vectors_NE[row], table.tower.embed([item])[0])
    changed = table.with_items([{**item, "genres": ["g2"]}])
    assert changed.num_rows == table.num_rows
    assert changed.item(int(row))["genres"] == ["g2"]
    known = scorer.with_table(table).score(request(np.zeros(1, np.uint8), hashes("x"), hashes("new"))).known
    assert known.all()


puts = st.lists(st.tuples(st.integers(0, 29), st.sampled_from(["g0", "g1", "never seen"])), max_size=8)


@settings(deadline=None, max_examples=40)
@given(rounds=st.lists(puts, min_size=1, max_size=3))
def test_a_table_and_its_inputs_extended_are_as_if_made_whole(rounds: list[list[tuple[int, str]]]) -> None:
    inputs = make_scorer().inputs
    expected = {item["item_id"]: item for item in inputs.table.items}
    given_rows = {item_id: inputs.table.vectors_NE[n] for n, item_id in enumerate(expected, 1)}
    for number, put in enumerate(rounds):
        items = [
            {"item_id": f"i{n}", "created_at_ms": number, "title": f"film {n} {genre}", "genres": [genre]}
            for n, genre in put
        ]
        expected |= {item["item_id"]: item for item in items}
        given_rows |= {item["item_id"]: inputs.table.tower.embed([item])[0] for item in items}
        older, inputs = inputs, inputs.extended(inputs.table.with_items(items))
        changed = inputs.table.changed_since(older.table)
        assert {inputs.table.item(row)["item_id"] for row in changed.tolist()} == {item["item_id"] for item in items}
    table = inputs.table
    assert table.items == tuple(expected.values())
    assert table.rows_of_ids(list(expected)).tolist() == list(range(1, table.num_rows))
    np.testing.assert_array_equal(table.vectors_of(list(expected)), np.array(list(given_rows.values())))
    assert not table.vectors_of(["nowhere"]).any()
    whole = FeatureTables.of(table, inputs.users, inputs.encoders, inputs.domain, inputs.vocabulary_size)
    for name in ("vector_NE", "category_NW", "number_NM"):
        assert torch.equal(getattr(inputs, name), getattr(whole, name))
    for name in ("created_ms_T", "category_TW"):
        np.testing.assert_array_equal(getattr(inputs.facts, name), getattr(whole.facts, name))


def test_a_table_is_extended_by_its_own_line_only() -> None:
    table = make_scorer().inputs.table
    with pytest.raises(ValueError, match="does not extend other"):
        table.changed_since(dataclasses.replace(table, name="other"))


def test_two_items_of_one_id_are_refused() -> None:
    tower = LinearTower(np.zeros((8, 4), np.float32), ATTRIBUTES)
    items = [{"item_id": "a", "created_at_ms": 0}] * 2
    with pytest.raises(ValueError, match="'a'"):
        ItemTable.make("t", tower, items, np.zeros(2, np.int64), tower.embed(items), 0)


@pytest.mark.slow
def test_a_tower_fitted_to_given_vectors_says_them_for_new_items() -> None:
    items = [{"item_id": f"i{n}", "created_at_ms": 0, "title": f"t{n}", "genres": [f"g{n % 2}"]} for n in range(60)]
    given = np.eye(2, dtype=np.float32)[np.arange(60) % 2]
    tower = fit_linear_tower(items, ATTRIBUTES, given, np.ones(60, np.float32))
    new = tower.embed([{"item_id": "n", "created_at_ms": 0, "title": "unseen", "genres": ["g0"]}])[0]
    np.testing.assert_allclose(new, given[0], atol=0.05)
    assert np.isfinite(tower.embed([{"item_id": "bare", "created_at_ms": 0}])).all()


def test_user_attributes_are_those_of_the_request_s_time() -> None:
    scorer = make_scorer()
    users = scorer.inputs.users
    row = users.rows_of(hashes("u1", "u1", "u1", "nobody"), np.array([50, 100, 10**6, 50]))
    known = scorer.inputs.encoders.user.categories["country"]
    names = [known[i - 2] if i else None for i in users.category_UW[row][:, 0]]
    assert names == ["nl", "de", "de", None]
    assert users.rows_of(hashes("u1"), np.array([-1])).tolist() == [0], "before anything was known"
    args = (np.array([2], np.uint8), hashes("i1"), hashes("i2", "i3"))
    before, after = (scorer.score(request(*args, at=at))[0] for at in (50, 200))
    assert np.abs(before - after).max() > 1e-6
    other_hour, _ = scorer.score(request(*args, at=50, hour=3.0))
    assert np.abs(before - other_hour).max() > 1e-6


def test_attributes_unknown_rare_missing_and_too_many() -> None:
    attributes = (Attribute("tags", AttributeKind.CATEGORIES), Attribute("price", AttributeKind.NUMBER))
    tags = [["a"]] * 6 + [["b", "a"]] * 5 + [["rare"], None]
    table = pa.table({"tags": pa.array(tags, pa.large_list(pa.string())), "price": [1.0] * 6 + [3.0] * 6 + [None]})
    fitted = AttributeEncoder.fit(table, attributes)
    encoder = from_json(AttributeEncoder, to_json(fitted))
    assert encoder == fitted
    asked = pa.table(
        {
            "tags": pa.array([["b", "a", "a"], ["rare"], [], None], pa.large_list(pa.string())),
            "price": [2, None, 1e9, 1.0],
        }
    )
    category, number = encoder.encode(asked)
    assert category.tolist() == [[3, 2], [1, 0], [0, 0], [0, 0]]
    np.testing.assert_allclose(number[:, 0], [0.0, 0.0, 5.0, -1.0], atol=1e-6)
    assert AttributeEncoder.fit(user_schema(()).empty_table(), ()).encode(asked)[0].shape == (4, 0)


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(0.3, 3.0), shift=st.floats(-3, 3), seed=st.integers(0, 100))
def test_calibration_finds_the_line_it_was_drawn_with(scale: float, shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 2, (20_000, 1)).astype(np.float32)
    label = (rng.random((20_000, 1)) < 1 / (1 + np.exp(-(scale * logit + shift)))).astype(np.float32)
    fitted = Calibration.fit(logit, label)
    assert abs(fitted.scale_H[0] - scale) < 0.1 + 0.1 * scale
    assert abs(fitted.shift_H[0] - shift) < 0.3
    probability = torch.sigmoid(fitted.apply(torch.from_numpy(logit))).numpy()
    assert abs(probability.sum() / max(label.sum(), 1) - 1) < 0.01


def test_calibration_undoes_thinned_negatives_and_leaves_hopeless_heads_alone() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(-2, 1, (50_000, 3)).astype(np.float32)
    label = (rng.random(logit.shape) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    label[:, 1], label[:, 2] = 0.0, 0.0
    label[:5, 2] = 1.0
    thinned = logit.copy()
    thinned[:, 0] -= np.float32(np.log(0.1))  # what a model of a tenth of the negatives says
    fitted = Calibration.fit(thinned, label)
    assert fitted.shift_H[0] == pytest.approx(np.log(0.1), abs=0.1)
    assert (fitted.scale_H[1], fitted.shift_H[1]) == (1.0, 0.0), "a head without positives"
    assert fitted.scale_H[2] == 1.0, "five positives move the level only"
    assert Calibration.of_heads(fitted.by_head(["a", "b", "c"]), ["a", "b", "c"]) == fitted
