"""What a run starts from: drawn weights, or those of a published model; and which of them it trains."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from rayapp.contracts.config import Domain, Scope
from rayapp.contracts.presets import Preset
from rayapp.features.attributes import AttributeEncoder, Encoders
from rayapp.model.inputs import FeatureTables, UserTable, items_as_table
from rayapp.model.item_table import ItemTable
from rayapp.model.ranker import Ranker
from rayapp.registry.item_tables import load_table
from rayapp.registry.models import load_model
from rayapp.root.catalogue import read_users
from rayapp.root.logs import read_log
from rayapp.root.places import REQUESTS
from rayapp.training import TrainingError

PARTS: Final[dict[Scope, tuple[str, ...]]] = {"full": ("",), "sequence": ("encoder.", "matches."), "heads": ("mlp.",)}
"""Scope -> prefixes of the names of the parameters that it trains."""
BY_ACTION: Final = ("encoder.action_embedding.weight", "matches.action_AK")
"""Weights with a row for each action of the vocabulary."""


@dataclass(frozen=True, slots=True)
class Start:
    """A ranker before the first step of a run, and what it reads."""

    ranker: Ranker
    inputs: FeatureTables
    drawn: tuple[str, ...] = ()
    """Weights that a warm start did not find in the model that it starts from."""

    @property
    def num_trained(self) -> int:
        """Parameters of the ranker that the run trains."""
        return sum(p.numel() for p in self.ranker.parameters() if p.requires_grad)


def start(root: Path, preset: Preset, item_table: str, domain: Domain, init_from: str | None) -> Start:
    """Weights drawn by the preset's seed; with `init_from`, that model's wherever name and shape agree.

    The model's encoders come with them, so a category keeps its embedding; one that came up since is UNKNOWN until a
    model is trained from scratch. Actions that the vocabulary gained keep their drawn embedding. Item vectors are
    inputs, not weights: those of `item_table` are read, and a table whose tower was trained anew means other things by
    the same places. What the scope leaves out needs no gradient.

    Raises:
        PublishError: there is no such model or table, or the model is of another vocabulary or of other heads.
        TrainingError: the scope would freeze weights that the model has not.
    """
    table = load_table(root, item_table)
    if init_from is None:
        inputs = _read_inputs(root, preset, table, domain, _fit_encoders(root, table, domain))
        return Start(_draw(preset, inputs, domain), inputs)
    parent = load_model(root, init_from, domain).scorer
    inputs = _read_inputs(root, preset, table, domain, parent.inputs.encoders)
    ranker = _draw(preset, inputs, domain)
    trained = PARTS[preset.train.scope]
    if not any(name.startswith(trained) for name, _ in ranker.named_parameters()):
        raise TrainingError(f"{preset.variant} has no sequence encoder, so there is none to train alone")
    theirs, drawn = parent.ranker.state_dict(), []
    for name, tensor in ranker.state_dict().items():
        given = theirs.get(name)
        if given is not None and given.shape[1:] == tensor.shape[1:] and name in BY_ACTION:
            tensor[: len(given)] = given  # the vocabulary is theirs, or theirs and more behind it
        elif given is not None and given.shape == tensor.shape:
            tensor.copy_(given)
        elif not name.startswith(trained):
            raise TrainingError(
                f"{init_from} has no {name} of shape {tuple(tensor.shape)}, and scope {preset.train.scope!r} would "
                "leave it untrained; start from a model of the same variant and preset, or train all of it"
            )
        else:
            drawn.append(name)
    for name, parameter in ranker.named_parameters():
        if not name.startswith(trained):
            parameter.requires_grad_(False)
    return Start(ranker, inputs, tuple(drawn))


def _fit_encoders(root: Path, table: ItemTable, domain: Domain) -> Encoders:
    context = read_log(root, REQUESTS, ["timestamp_ms", *(a.name for a in domain.context_attributes)])
    return Encoders(
        AttributeEncoder.fit(items_as_table(table), domain.attributes),
        AttributeEncoder.fit(read_users(root, domain), domain.user_attributes),
        AttributeEncoder.fit(context, domain.context_attributes),
    )


def _read_inputs(root: Path, preset: Preset, table: ItemTable, domain: Domain, encoders: Encoders) -> FeatureTables:
    users = UserTable.of(read_users(root, domain), encoders.user)
    return FeatureTables.of(table, users, encoders, domain, config=preset.model)


def _draw(preset: Preset, inputs: FeatureTables, domain: Domain) -> Ranker:
    torch.manual_seed(preset.train.seed)
    return Ranker(preset.model, inputs.encoders, domain)
