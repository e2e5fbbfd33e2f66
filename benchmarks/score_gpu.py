"""The GPU's part of bench `score`: whole requests by packed copy and CUDA graph, against the plain module.

Shapes: C candidates, H heads.
"""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.scored import Scored
from rayapp.features.requests import Requests
from rayapp.model.batched import LARGEST_BATCH
from rayapp.model.scorer import Scorer

COMPARED = 500
"""Candidates of the requests of the speed-up."""


def measure_gpu(
    scorer: Scorer, scored: Scored, calls: dict[int, int], repeats: int, device: torch.device
) -> dict[str, Any]:
    """`speedup_gpu_graph` of a request at a time, `speedup_gpu_batch` of LARGEST_BATCH that came together, and p50 and
    p99 of `calls[C]` requests of C candidates, one at a time; by the clock, from hashes to probabilities on the host.
    Shapes are captured before they are timed."""
    on_gpu, plain = scorer.on(device), copy.deepcopy(scorer.ranker).to(device).eval()
    assert on_gpu.batched is not None
    inputs, rng = on_gpu.batched.inputs, np.random.default_rng(3)

    def asked(count: int, number: int) -> Sequence[Requests]:
        return [scored.requests(rng, 1, count, scorer.history_length)[0] for _ in range(number)]

    def by_plain(requests: Sequence[Requests]) -> None:
        with torch.inference_mode():
            for one in requests:
                torch.sigmoid(scorer.calibration.apply(plain(inputs.batch(one)))).cpu()

    result: dict[str, Any] = {
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "bf16": on_gpu.batched.probabilities.bf16,
    }
    for name, together in (("speedup_gpu_graph", 1), ("speedup_gpu_batch", LARGEST_BATCH)):
        ratios = []
        for n in range(repeats + 1):
            requests = asked(COMPARED, together)
            ratio = _seconds(by_plain, requests) / _seconds(on_gpu.score_many, requests)
            if n:  # the first call of each sets it up
                ratios.append(ratio)
        result |= {name: statistics.median(ratios), f"{name}_least": min(ratios), f"{name}_most": max(ratios)}
    for count, number in calls.items():
        times_ms = [1e3 * _seconds(on_gpu.score_many, [one]) for one in asked(count, number + 1)][1:]
        result |= {f"p{percent}_c{count}_ms": float(np.percentile(times_ms, percent)) for percent in (50, 99)}
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in result.items()}


def _seconds(call: Callable[[Sequence[Requests]], object], requests: Sequence[Requests]) -> float:
    started = time.perf_counter()
    call(requests)
    return time.perf_counter() - started


def told_of(gpu: dict[str, Any] | None, calls: dict[int, int]) -> str:
    """The paragraph of the report."""
    if gpu is None:
        return "On a GPU: not measured, there was none."
    times = "; ".join(f"{count:,}: {gpu[f'p50_c{count}_ms']} and {gpu[f'p99_c{count}_ms']} ms" for count in calls)
    return (
        f"On {gpu['name']}, {'bf16' if gpu['bf16'] else 'float32'}: packed copy and CUDA graph against the plain "
        f"module (float32, no graph) on the same GPU, whole requests of {COMPARED} candidates: "
        f"{gpu['speedup_gpu_graph']:.2f} times as fast ({gpu['speedup_gpu_graph_least']:.2f}–"
        f"{gpu['speedup_gpu_graph_most']:.2f}); {LARGEST_BATCH} requests at once, against one after the other "
        f"through the plain module: {gpu['speedup_gpu_batch']:.2f} ({gpu['speedup_gpu_batch_least']:.2f}–"
        f"{gpu['speedup_gpu_batch_most']:.2f}). p50 and p99 by candidates: {times}."
    )
