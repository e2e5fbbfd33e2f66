"""The training loop, as one Ray Train worker runs it: read, forward, backward, step; checkpoint at the end.

Shapes: B requests, C candidates, H heads, L history rows.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayapp.config import Domain, Preset
from rayapp.features.sequence import known_to
from rayapp.model.item_table import ItemTable
from rayapp.model.ranker import Batch, Ranker, ranking_loss
from rayapp.model.scorer import ItemArrays
from rayapp.pipeline.reader import RequestBatch, WindowReader

LOG_EVERY_S = 2.0
Prepare = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of `train.jsonl`."""

    step: int
    num_steps: int
    loss: float
    examples: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def to_tensors(
    batch: RequestBatch, table: ItemTable, arrays: ItemArrays, vocabulary_size: int
) -> tuple[Batch, Tensor, Tensor]:
    """`(model input, labels [B, C, H], valid [B, C])` on the device of `arrays`."""
    device = arrays.vector_NE.device
    action_BL = torch.from_numpy(known_to(vocabulary_size, batch.sequences.action_RL).astype(np.int64)).to(device)
    row_BL = torch.from_numpy(table.rows_of(batch.sequences.item_hash_RL)).to(device)
    row_BC = torch.from_numpy(table.rows_of(batch.candidate_hash_BC)).to(device)
    return (
        arrays.batch(action_BL, row_BL, row_BC),
        torch.from_numpy(batch.label_BCH).to(device),
        torch.from_numpy(batch.valid_BC).to(device),
    )


def label_weights(domain: Domain) -> Tensor:
    """The label-weight matrix `[H, H + 1]`; the last column weighs impressions without any label."""
    if domain.label_weights:
        return torch.tensor(domain.label_weights, dtype=torch.float32)
    return torch.ones(len(domain.heads), len(domain.heads) + 1)


def learning_rate(step: int, num_steps: int, peak: float, warmup_steps: int) -> float:
    """Linear warm-up, then a cosine down to zero (TransAct, appendix); warm-up takes a tenth of a short run."""
    warmup = min(warmup_steps, max(1, num_steps // 10))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def train(
    ranker: Ranker,
    reader: WindowReader,
    table: ItemTable,
    arrays: ItemArrays,
    domain: Domain,
    preset: Preset,
    *,
    rank: int = 0,
    world: int = 1,
    prepare: Prepare = lambda module: module,
    log: Path | None = None,
) -> Progress:
    """Trains `ranker` in place and returns the last progress line; `prepare` is Ray Train's wrapper.

    Raises:
        FloatingPointError: the loss became NaN or infinite; names the step, epoch and batch.
    """
    settings = preset.train
    model = prepare(ranker)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    weight_HA = label_weights(domain).to(arrays.vector_NE.device)
    epochs = range(settings.num_epochs)
    num_steps = sum(reader.num_batches(settings.batch_requests, seed=settings.seed, epoch=e) for e in epochs)
    started, logged, step, examples = time.monotonic(), 0.0, 0, 0
    recent: list[float] = []
    line = Progress(0, num_steps, float("nan"), 0, 0.0)
    model.train()
    for epoch in epochs:
        batches = reader.batches(settings.batch_requests, seed=settings.seed, epoch=epoch, rank=rank, world=world)
        for number, requests in enumerate(batches):
            torch.manual_seed(hash((settings.seed, step, rank)) & 0x7FFF_FFFF)  # ints only: the same in any process
            batch, label_BCH, valid_BC = to_tensors(requests, table, arrays, domain.vocabulary.size)
            loss = ranking_loss(model(batch), label_BCH, valid_BC, weight_HA)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value} at step {step} (epoch {epoch}, batch {number})")
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, num_steps, settings.learning_rate, settings.warmup_steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
            optimizer.step()
            step += 1
            examples += int(valid_BC.sum())
            recent.append(value)
            seconds = time.monotonic() - started
            if rank == 0 and (seconds - logged > LOG_EVERY_S or step == num_steps):
                line = Progress(step, num_steps, float(np.mean(recent)), examples * world, seconds)
                recent, logged = [], seconds
                if log is not None:
                    with log.open("a") as file:
                        file.write(json.dumps(line.to_json()) + "\n")
    return line
