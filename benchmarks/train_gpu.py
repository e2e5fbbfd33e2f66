"""The GPU's part of bench `train`: the model of the published sizes trained there, what of the card its steps
use, and its scores there against the CPU's.

Shapes: C candidates, H heads.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rayapp.contracts.config import Domain
from rayapp.model.scorer import Scorer
from rayapp.pipeline.window_loader import RequestBatch, WindowReader
from rayapp.registry.models import load_model
from rayapp.training.run import TrainingRun, make_loop, train_and_publish

MATRIX: Final = 8_192
"""Rows and columns of the bf16 product that tells the card's arithmetic."""
COPIED_BYTES: Final = 1 << 31
REPEATS: Final = 10
WARM_UP_STEPS: Final = 3
TIMED_STEPS: Final = 30
SCORED_REQUESTS: Final = 256


def measure_gpu(run: TrainingRun, domain: Domain) -> dict[str, Any]:
    """Trains `run` with Ray Train, one worker on the GPU, and publishes it; then single steps, the card's ceilings and
    the scores. Ray must be running."""
    device = torch.device("cuda")
    metrics = train_and_publish(run, domain)
    trained = metrics["train"]
    result: dict[str, Any] = {
        "name": torch.cuda.get_device_name(device),
        "trained_examples_per_s": trained["examples"] / trained["seconds"],
        "trained_s": trained["seconds"],
        "trained_steps": trained["steps"],
        "auc": {head: row["auc"] for head, row in metrics["heads"].items()},
    }
    result |= _ceilings(device) | _steps(run, domain, device)
    step_s = result["examples_a_step"] / result["step_examples_per_s"]
    result["share_of_flops"] = result["flops_a_step"] / step_s / result["flops_per_s"]
    result["share_of_bandwidth"] = result["bytes_a_step"] / step_s / result["bytes_per_s"]
    scorer = load_model(run.root, run.version, domain).scorer
    reader = WindowReader(run.root, [run.test_window], domain, scorer.history_length)
    return result | parity(scorer, reader, device)


def parity(scorer: Scorer, reader: WindowReader, device: torch.device) -> dict[str, float | bool]:
    """The largest difference of a probability between `Scorer.score` on the CPU and `score_many` on the device, over
    the first SCORED_REQUESTS requests of a window: in float32, and in the arithmetic that the device serves with."""
    asked = list(itertools.islice(reader.in_order(1), SCORED_REQUESTS))
    expected = [scorer.score(one.requests)[0] for one in asked]
    batched = scorer.on(device).batched
    assert batched is not None
    served_bf16, differences = batched.probabilities.bf16, {}
    for name, bf16 in (("parity_float32", False), ("parity_served", served_bf16)):
        probabilities = scorer.on(device).batched
        assert probabilities is not None
        probabilities.probabilities.bf16 = bf16
        scores = probabilities.score_many([one.requests for one in asked])
        differences[name] = max(
            float(np.abs(got_CH - want_CH).max()) for (got_CH, _), want_CH in zip(scores, expected, strict=True)
        )
    return {**differences, "served_bf16": served_bf16}


def _steps(run: TrainingRun, domain: Domain, device: torch.device) -> dict[str, float]:
    """Examples a second of steps at the preset's batch, with their loader and with batches that lie ready; operations
    and bytes of one step."""
    size = run.preset.train.batch_requests
    loop = make_loop(run.settings, domain, device, prepare=lambda module: module.to(device))

    def endless() -> Iterator[RequestBatch]:
        for epoch in itertools.count():
            yield from loop.train.batches(size, seed=0, epoch=epoch)

    def rate(batches: Iterator[RequestBatch]) -> float:
        for _ in range(WARM_UP_STEPS):
            loop.step(next(batches))
        started, examples = time.perf_counter(), 0
        for _ in range(TIMED_STEPS):
            batch = next(batches)
            loop.step(batch)  # reads the loss, so the device has finished
            examples += len(batch.label_NH)
        return examples / (time.perf_counter() - started)

    torch.cuda.reset_peak_memory_stats(device)
    ready = [batch for batch in itertools.islice(endless(), 4) if len(batch) == size]
    result = {
        "loaded_examples_per_s": rate(endless()),
        "step_examples_per_s": rate(itertools.cycle(ready)),
        "peak_memory_bytes": float(torch.cuda.max_memory_allocated(device)),
        "examples_a_step": statistics.mean(float(len(batch.label_NH)) for batch in ready),
    }
    with FlopCounterMode(display=False) as flops, Traffic() as traffic:
        loop.step(ready[0])
    return result | {"flops_a_step": float(flops.get_total_flops()), "bytes_a_step": float(traffic.num_bytes)}


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every operation's tensors, inputs and outputs: what an eager step moves through the device's
    memory if nothing stays in its caches. A view moves nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = torch.utils._pytree.tree_leaves((args, kwargs, output))
            self.num_bytes += sum(x.nbytes for x in tensors if isinstance(x, Tensor))
        return output


def _ceilings(device: torch.device) -> dict[str, float]:
    """What the card does at best: a large bf16 product and a large copy, bytes read and written."""
    a, b = (torch.randn(MATRIX, MATRIX, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randint(0, 255, (COPIED_BYTES,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return {
        "flops_per_s": 2 * MATRIX**3 / _device_seconds(lambda: torch.matmul(a, b)),
        "bytes_per_s": 2 * COPIED_BYTES / _device_seconds(lambda: target.copy_(source)),
    }


def _device_seconds(call: Callable[[], object]) -> float:
    """Median of the device's own clock."""
    for _ in range(WARM_UP_STEPS):
        call()
    times = []
    for _ in range(REPEATS):
        events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        events[0].record()
        call()
        events[1].record()
        events[1].synchronize()
        times.append(float(events[0].elapsed_time(events[1])) / 1e3)
    return statistics.median(times)


def told_of(gpu: dict[str, Any], preset: str) -> str:
    """The paragraph of the report."""
    auc = ", ".join(f"`{head}` {value:.3f}" for head, value in gpu["auc"].items() if value is not None)
    return (
        f"`{preset}`, V1.1, on {gpu['name']}, bf16 autocast. Trained by Ray Train with one worker: "
        f"{gpu['trained_steps']:,} steps in {gpu['trained_s']:.1f} s, validation included, "
        f"{gpu['trained_examples_per_s']:,.0f} examples/s; AUC on the test window {auc}. Steps of "
        f"{gpu['examples_a_step']:,.0f} examples: {gpu['loaded_examples_per_s']:,.0f} examples/s with their loader, "
        f"{gpu['step_examples_per_s']:,.0f} from batches that lie ready. Such a step takes "
        f"{gpu['flops_a_step'] / 1e12:.2f} TFLOP and its operations read and write {gpu['bytes_a_step'] / 1e9:.1f} GB: "
        f"{gpu['share_of_flops']:.1%} of the {gpu['flops_per_s'] / 1e12:,.0f} TFLOP/s of a large bf16 product on this "
        f"card, {gpu['share_of_bandwidth']:.0%} of the {gpu['bytes_per_s'] / 1e12:.2f} TB/s of a large copy; "
        f"{gpu['peak_memory_bytes'] / 1e9:.1f} GB of its memory at most.\n\n"
        f"The trained model's probabilities on the GPU against `Scorer.score` on the CPU, first {SCORED_REQUESTS} "
        f"requests of the test window: at most {gpu['parity_float32']:.1e} apart in float32, "
        f"{gpu['parity_served']:.1e} as served ({'bf16' if gpu['served_bf16'] else 'float32'})."
    )
