"""The training loop, as one worker runs it: read, forward, backward, step; validate, stop early, resume exactly.

Every batch, mask and dropout draw is a function of the run's seed and the position in it, so a run that is resumed from
a checkpoint goes on as if it had never stopped.

Shapes: B requests, C candidates, H heads.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn

from rayapp.contracts.config import Domain, TrainConfig
from rayapp.contracts.json_values import from_json, to_json
from rayapp.model.inputs import FeatureTables
from rayapp.model.ranker import Ranker, ranking_loss
from rayapp.pipeline.window_loader import RequestBatch, WindowReader
from rayapp.training import TrainingError
from rayapp.training.schedule import Schedule, learning_rate, warmup_of
from rayapp.training.user_weights import user_weights

LOG_EVERY_S: Final = 2.0
LOGGED_SINGLY: Final = 50
"""The first steps are logged one by one: most mistakes show there."""
CHECKPOINT_EVERY_S: Final = 60.0
"""Besides the first evaluation and the end. Ray Train takes about a second for one, whatever its size."""
BATCH_REQUESTS: Final = 512
"""Of validation."""
STATE, POSITION = "state.safetensors", "position.json"
Prepare = Callable[[nn.Module], nn.Module]


@dataclass(slots=True)
class Position:
    """Where a run stands: the next batch, and what early stopping remembers."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    examples: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of this worker's process, validation included."""
    loss: float = float("nan")
    """Mean over the examples since the last line of the log."""
    best_loss: float = float("inf")
    evaluations_without_gain: int = 0
    """Since the best one; those within the warm-up do not count."""
    stopped: str = ""
    """Why the run ended, in words."""


def label_weights(domain: Domain) -> Tensor:
    """The label-weight matrix `[H, H + 1]`; the last column weighs impressions without any label."""
    if domain.label_weights:
        return torch.tensor(domain.label_weights, dtype=torch.float32)
    return torch.ones(len(domain.heads), len(domain.heads) + 1)


class Loop:
    """One worker of a run. `prepare` is Ray Train's wrapper (device, DDP); `world` workers do the same steps."""

    def __init__(
        self,
        ranker: Ranker,
        inputs: FeatureTables,
        domain: Domain,
        settings: TrainConfig,
        train: WindowReader,
        validation: WindowReader | None,
        *,
        run: str = "",
        rank: int = 0,
        world: int = 1,
        prepare: Prepare = lambda module: module,
        log: Path | None = None,
        warm: bool = False,
    ) -> None:
        """`warm`: the ranker holds weights worth keeping, so they are validated first and stay the best until an epoch
        beats them. Parameters that need no gradient stay as they are."""
        self.ranker, self.position = ranker, Position()
        self.inputs, self._settings = inputs, settings
        self.train, self._validation = train, validation
        self._run, self._rank, self._world, self._log, self._warm = run, rank, world, log, warm
        self._model = prepare(ranker)
        self._device = inputs.vector_NE.device
        self._names = {name: p for name, p in ranker.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.Adam(
            self._names.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._weight_HA = label_weights(domain).to(self._device)
        self._weight_U = user_weights(domain, inputs)
        self._best: dict[str, Tensor] = {}
        self._schedule = Schedule.of(
            settings, lambda epoch: train.num_batches(settings.batch_requests, seed=settings.seed, epoch=epoch)
        )
        self.num_steps = self._schedule.num_steps
        self._sums, self._started, self._cpu_started, self._logged = torch.zeros(2), 0.0, 0.0, 0.0
        self._saved, self._kept = time.monotonic(), False

    def run(self, checkpoint: Callable[[], None] = lambda: None) -> Position:
        """Trains to the end or to the early stop and leaves the best weights in the ranker.

        `checkpoint` is called by every rank at the same steps.

        Raises:
            TrainingError: the loss became NaN or infinite; the message holds the batch's coordinates.
        """
        position = self.position
        self._started, self._logged = time.monotonic() - position.seconds, position.seconds
        self._cpu_started = time.process_time() - position.cpu_seconds
        self._model.train()
        if self._warm and position.step == 0:
            self._validate()
        while not self._ended():
            for batch in self._rest_of_epoch():
                due = self._advance(batch)
                evaluated = position.step in self._schedule.points
                if evaluated:
                    self._validate()
                if self._ended():
                    break
                if due or (evaluated and not self._kept):
                    self._checkpoint(checkpoint)
        self._checkpoint(checkpoint)
        self.ranker.load_state_dict(self._best)
        return position

    def _ended(self) -> bool:
        """Whether the run is over, and if so the position says why."""
        position = self.position
        if position.step >= self.num_steps:
            position.stopped = "the schedule ended"
        elif position.evaluations_without_gain > self._schedule.patience:
            position.stopped = f"{position.evaluations_without_gain} evaluations without gain"
        return bool(position.stopped)

    def _rest_of_epoch(self) -> Iterator[RequestBatch]:
        return self.train.batches(
            self._settings.batch_requests,
            seed=self._settings.seed,
            epoch=self.position.epoch,
            first=self.position.batch,
            rank=self._rank,
            world=self._world,
        )

    def _advance(self, batch: RequestBatch) -> bool:
        """One step, and the position behind it; whether a checkpoint is due."""
        position = self.position
        now = self.step(batch)
        self._sums += now[:2]
        position.step, position.batch = position.step + 1, position.batch + 1
        position.examples += int(now[1])
        position.seconds = time.monotonic() - self._started
        position.cpu_seconds = time.process_time() - self._cpu_started
        told = position.step in self._schedule.points or position.step <= LOGGED_SINGLY
        if told or position.seconds - self._logged > LOG_EVERY_S:
            position.loss, self._logged = float(self._sums[0] / self._sums[1]), position.seconds
            self._sums.zero_()
            self._write({"num_steps": self.num_steps, **to_json(position)})
        if position.batch == self._schedule.batches_E[position.epoch]:
            position.epoch, position.batch = position.epoch + 1, 0
        return bool(now[2])

    def _checkpoint(self, checkpoint: Callable[[], None]) -> None:
        self.position.cpu_seconds = time.process_time() - self._cpu_started
        checkpoint()
        self._saved, self._kept = time.monotonic(), True

    def step(self, batch: RequestBatch) -> Tensor:
        """One optimizer step; `(sum of the loss, examples, whether rank 0 wants a checkpoint)` over all workers."""
        position, settings = self.position, self._settings
        torch.manual_seed(hash((settings.seed, position.step, self._rank)) & 0x7FFF_FFFF)  # ints: no process salts them
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(position.step, self.num_steps, settings.learning_rate, settings.warmup_steps)
        loss, examples = self.loss(batch, self._model)
        due = self._rank == 0 and time.monotonic() - self._saved > CHECKPOINT_EVERY_S
        sums = self._total(torch.stack([loss.detach(), *loss.new_tensor([examples, due])]))
        if not math.isfinite(float(sums[0])):
            where = f"step {position.step} (epoch {position.epoch}, batch {position.batch}, seed {settings.seed})"
            raise TrainingError(
                f"the loss is {float(sums[0])} at {where}; its first request is {batch.request_id_B[0]!r}"
            )
        self._optimizer.zero_grad(set_to_none=True)
        # DDP averages the workers' gradients; the mean over the examples of all of them is wanted.
        (loss * (self._world / sums[1])).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._names.values(), settings.max_gradient_norm)
        self._optimizer.step()
        return sums.cpu()

    def loss(self, batch: RequestBatch, model: nn.Module) -> tuple[Tensor, int]:
        """`(weighted sum over the examples, examples)` of this worker's share of a batch."""
        requests = batch.requests
        valid_BC = torch.from_numpy(requests.valid()).to(self._device)
        label_BCH = torch.from_numpy(requests.pad(batch.label_NH)).to(self._device)
        user_B = self.inputs.users.rows_of(requests.user_hash_R, requests.timestamp_ms_R)
        weight_B = torch.from_numpy(self._weight_U[user_B]).to(self._device)
        with torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda"):
            logits_BCH = model(self.inputs.batch(requests))
        loss = ranking_loss(logits_BCH.float(), label_BCH, valid_BC, self._weight_HA, weight_B)
        return loss, len(batch.label_NH)

    def _total(self, values: Tensor) -> Tensor:
        if self._world > 1:
            distributed.all_reduce(values)
        return values

    def _validate(self) -> None:
        """Keeps the weights if they are the best so far, else counts towards the early stop."""
        position = self.position
        sums = torch.zeros(2, device=self._device)
        if self._validation is not None:
            self.ranker.eval()
            with torch.inference_mode():
                for number, batch in enumerate(self._validation.in_order(BATCH_REQUESTS)):
                    if number % self._world == self._rank:
                        loss, examples = self.loss(batch, self.ranker)  # not DDP: ranks differ in batches
                        sums += torch.stack([loss, loss.new_tensor(examples)])
            self.ranker.train()
        sums = self._total(sums)
        mean = float(sums[0] / sums[1]) if sums[1] else position.loss
        if not math.isfinite(mean):
            raise TrainingError(f"the loss on the validation window is {mean} after step {position.step}")
        gained = mean < position.best_loss or self._validation is None
        warm = position.step > warmup_of(self.num_steps, self._settings.warmup_steps)
        position.evaluations_without_gain = 0 if gained or not warm else position.evaluations_without_gain + 1
        if gained:
            position.best_loss = mean
            self._best = {name: tensor.detach().clone() for name, tensor in self.ranker.state_dict().items()}
        self._write({"step": position.step, "epoch": position.epoch, "validation_loss": mean})

    def _write(self, line: dict[str, Any]) -> None:
        if self._rank == 0 and self._log is not None:
            with self._log.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def save(self, directory: Path) -> None:
        """Weights, optimizer and position, as a checkpoint that `restore` reads."""
        tensors = {f"model/{name}": tensor for name, tensor in self.ranker.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self._best.items()}
        for name, parameter in self._names.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"adam/{key}/{name}"] = value
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, directory / STATE)
        (directory / POSITION).write_text(json.dumps({"run": self._run, "position": to_json(self.position)}))

    def restore(self, directory: Path) -> None:
        """Goes on from a checkpoint of this very run.

        Raises:
            TrainingError: it belongs to another run, or another version of this program wrote it.
        """
        saved = json.loads((directory / POSITION).read_text())
        if saved["run"] != self._run:
            raise TrainingError(
                f"the checkpoint in {directory} belongs to run {saved['run']}, this is {self._run}: other data, "
                "settings or sizes. Remove the directory to start anew"
            )
        try:
            self.position = from_json(Position, saved["position"])
        except ValueError as error:
            raise TrainingError(
                f"the checkpoint in {directory} was written by another version ({error}). Remove the directory to "
                "start anew"
            ) from None
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "adam": {}}
        for name, tensor in load_file(directory / STATE).items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        self.ranker.load_state_dict(parts["model"])
        self._best = parts["best"]
        for name, tensor in parts["adam"].items():
            key, _, parameter = name.partition("/")
            device = "cpu" if key == "step" else self._device
            self._optimizer.state[self._names[parameter]][key] = tensor.to(device)
