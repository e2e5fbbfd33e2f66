"""Small scorers, and requests to ask them, for the tests of models."""

import dataclasses
import functools

import numpy as np
import pyarrow as pa
import torch

from rayapp.contracts.config import Domain, Head, ModelConfig
from rayapp.contracts.hashing import hash64
from rayapp.contracts.presets import nano
from rayapp.contracts.schema import FIRST_ACTION_ID, PAD, Action, ActionKind, Attribute, AttributeKind, Vocabulary
from rayapp.features.attributes import AttributeEncoder, Encoders
from rayapp.features.requests import Requests
from rayapp.model.calibration import Calibration
from rayapp.model.inputs import FeatureTables, UserTable, items_as_table
from rayapp.model.item_table import ItemTable
from rayapp.model.ranker import Ranker
from rayapp.model.scorer import Scorer
from rayapp.model.tower import LinearTower
from tests.conftest import make_request

CONFIG = nano().model
ACTIONS = ("save", "click", "hide", "share")
VOCABULARY_SIZE = FIRST_ACTION_ID + len(ACTIONS)
USER_ATTRIBUTES = (Attribute("country", AttributeKind.CATEGORIES),)
CONTEXT_ATTRIBUTES = (Attribute("hour", AttributeKind.NUMBER),)
ATTRIBUTES = (Attribute("title", AttributeKind.TEXT), Attribute("genres", AttributeKind.CATEGORIES))
LENGTH = CONFIG.history_length
KINDS = {"save": ActionKind.POSITIVE, "hide": ActionKind.NEGATIVE}
DOMAIN = Domain(
    name="films",
    vocabulary=Vocabulary(tuple(Action(name=name, kind=KINDS.get(name, ActionKind.NEUTRAL)) for name in ACTIONS)),
    heads=(Head(name="save", actions=("save",), utility=1.0), Head(name="hide", actions=("hide",), utility=-1.0)),
    positive_head="save",
    attributes=ATTRIBUTES,
    title="title",
    user_attributes=USER_ATTRIBUTES,
    context_attributes=CONTEXT_ATTRIBUTES,
)


def make_scorer(num_items: int = 40, config: ModelConfig = CONFIG) -> Scorer:
    rng = np.random.default_rng(0)
    items = [
        {"item_id": f"i{n}", "created_at_ms": n, "title": f"film {n}", "genres": [f"g{n % 3}"]}
        for n in range(num_items)
    ]
    tower = LinearTower(rng.normal(size=(64, config.item_dim)).astype(np.float32), ATTRIBUTES)
    table = ItemTable.make("t", tower, items, np.arange(num_items), tower.embed(items), 0)
    users = pa.table(
        {
            "user_id": ["u1", "u1", *(f"x{n}" for n in range(10))],
            "effective_at_ms": [0, 100, *[0] * 10],
            "country": pa.array([["nl"], ["de"], *[["nl"], ["de"]] * 5], pa.large_list(pa.string())),
        }
    )
    context = pa.table({"timestamp_ms": [1, 2, 3], "hour": [1.0, 2.0, 3.0]})
    encoders = Encoders(
        AttributeEncoder.fit(items_as_table(table), ATTRIBUTES),
        AttributeEncoder.fit(users, USER_ATTRIBUTES),
        AttributeEncoder.fit(context, CONTEXT_ATTRIBUTES),
    )
    inputs = FeatureTables.of(table, UserTable.of(users, encoders.user), encoders, DOMAIN, config=config)
    torch.manual_seed(0)
    ranker = Ranker(config, encoders, DOMAIN)
    return Scorer(ranker.eval(), inputs, Calibration.none(2))


def request(
    action: np.ndarray, history: np.ndarray, candidates: np.ndarray, *, at: int = 50, hour: float = 2.0
) -> Requests:
    return make_request(
        action, history, candidates, num_heads=2, attributes=CONTEXT_ATTRIBUTES, timestamp_ms=at, hour=hour
    )


def hashes(*ids: str) -> np.ndarray:
    return np.array([hash64(i) for i in ids], np.uint64)


@functools.cache
def scorer_of(config: ModelConfig, scale: float = 1.0, layers: str = "") -> Scorer:
    """Weights far from their initial values, as training leaves them; queries and keys `scale` times as large, of all
    layers or of those whose names hold `layers`."""
    scorer = make_scorer(config=config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in scorer.ranker.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        if scorer.ranker.encoder is not None:
            for name, parameter in scorer.ranker.encoder.named_parameters():
                if "in_proj" in name and layers in name:
                    parameter[: 2 * len(parameter) // 3] *= scale
    return Scorer(scorer.ranker, scorer.inputs, scorer.calibration)


def some_request(real: int, candidates: int, seed: int = 0) -> Requests:
    rng = np.random.default_rng((real, candidates, seed))
    action = np.full(LENGTH, PAD, np.uint8)
    action[:real] = rng.integers(FIRST_ACTION_ID, VOCABULARY_SIZE, real)
    items = [f"i{n}" for n in rng.integers(0, 45, LENGTH + candidates)]  # some the table does not hold
    asked = request(action, hashes(*items[:LENGTH]), hashes(*items[LENGTH:]))
    return dataclasses.replace(
        asked,
        user_statistic_RK=rng.normal(size=asked.user_statistic_RK.shape).astype(np.float32),
        item_statistic_NK=rng.normal(size=asked.item_statistic_NK.shape).astype(np.float32),
    )
