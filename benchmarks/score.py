"""Bench `score`: the fast scorer against a plain PyTorch module of the same weights, on one thread.

Shapes: C candidates, B of them in a block, L actions, E item vector width, D encoder row width, F crossing width, G
read-out width.
"""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from benchmarks.score_gpu import measure_gpu, told_of
from benchmarks.scored import STEPS, Scored, trained_scorer
from rayapp.contracts.presets import DEFAULT_VARIANT, PRESETS, variant
from rayapp.importing.domains import load_domain
from rayapp.model.encoder import SequenceEncoder, TransActEncoder
from rayapp.model.fast import FastRanker, candidate_encoder
from rayapp.model.ranker import Batch, Ranker
from rayapp.record import Bars, say, tell

COUNTS: Final = (100, 500)
LATENCY_CALLS: Final = {100: 200, 500: 100, 2_000: 40}
"""Candidates of a request -> requests timed for p50 and p99."""
BLOCK: Final = 64
"""Candidates at a time of the plain module's second form: its activations are smaller than a cache."""
SCALE: Final = 5.0
"""Of query and key weights in the second check of exactness; the logits grow by its square."""
LIMITS: Final = {
    "speedup_c100": ("encoder, 100 candidates", "≥ 1.9"),
    "speedup_c500": ("encoder, 500 candidates", "≥ 2.3"),
    "ranker_speedup_c500": ("whole ranker, 500 candidates", "≥ 1.7"),
    "speedup_cross_c500": ("encoder of `cross`, 500 candidates, against the same module", "≥ 30"),
    "default_ranker_speedup_c100": (f"whole ranker of `{DEFAULT_VARIANT}`, 100 candidates, against V1.1's", "≥ 12"),
    "default_ranker_speedup_c500": (f"whole ranker of `{DEFAULT_VARIANT}`, 500 candidates, against V1.1's", "≥ 30"),
    "max_abs_error": ("largest difference of any number that the encoder puts out", "≤ 1e-5"),
}


@dataclass(frozen=True, slots=True)
class Plain:
    """The ranker as one would write it: every row with its candidate through `nn.TransformerEncoder`, all candidates
    at once or `block` at a time. Knows neither padding nor masks, since one full history has none."""

    ranker: Ranker
    block: int

    def encode(self, batch: Batch) -> Tensor:
        """`[C, G]`."""
        encoder = self.ranker.encoder
        assert isinstance(encoder, TransActEncoder)
        rows_1LD = encoder.actions(batch.action_BL, batch.history_BLE)
        parts = []
        for at in range(0, batch.candidate_BCE.shape[1], self.block):
            candidate_BE = batch.candidate_BCE[0, at : at + self.block]
            num, length = len(candidate_BE), rows_1LD.shape[1]
            fused = [rows_1LD.expand(num, -1, -1), candidate_BE[:, None].expand(-1, length, -1)]
            out_BLD = encoder.transformer(torch.cat(fused, dim=-1))
            parts.append(torch.cat([out_BLD[:, : encoder.config.latest_k].flatten(1), out_BLD.amax(dim=1)], dim=-1))
        return torch.cat(parts)

    def __call__(self, batch: Batch) -> Tensor:
        """`[C, H]`."""
        item_CF, user_1F = self.ranker.item_features(batch)[0], self.ranker.user_features(batch)
        x_CF = torch.cat([item_CF, user_1F.expand(len(item_CF), -1), self.encode(batch)], dim=-1)
        logits_CH: Tensor = self.ranker.mlp(self.ranker.cross(x_CF))
        return logits_CH


def run_score(preset_name: str, repeats: int, as_json: bool, write: Path | None) -> None:
    torch.set_num_threads(1)
    preset = PRESETS[preset_name]()
    config = preset.model
    scored = Scored.make(load_domain("synthetic").domain, config.item_dim)
    say(f"train {STEPS} steps at the sizes of {preset_name}")
    scorer, loss = trained_scorer(scored, config)
    cross, _ = trained_scorer(scored, variant(preset, "cross").model)
    default, _ = trained_scorer(scored, variant(preset, DEFAULT_VARIANT).model)
    rng = np.random.default_rng(2)
    batches = {
        count: scored.inputs.batch(scored.requests(rng, 1, count, config.history_length)[0]) for count in LATENCY_CALLS
    }
    with torch.inference_mode():
        say("exactness")
        detail: dict[str, Any] = {"loss": loss, "width": scorer.ranker.mlp[0].in_features}
        detail["default_width"] = default.ranker.mlp[0].in_features
        detail |= _errors(scorer.ranker, batches[COUNTS[-1]])
        result: dict[str, float] = {}
        for count in COUNTS:
            say(f"{count} candidates")
            seconds = _interleaved(_contenders(scorer.ranker, cross.ranker, default.ranker), batches[count], repeats)
            result |= {name: value for name, value in _speedups(seconds, count).items() if name in LIMITS}
            detail |= _speedups(seconds, count)
            detail |= {f"{name}_c{count}_ms": 1e3 * statistics.median(s) for name, s in seconds.items()}
    result["max_abs_error"] = max(detail["error_trained"], detail["error_scaled"])
    for count, calls in LATENCY_CALLS.items():
        say(f"whole requests of {count} candidates")
        asked = [scored.requests(rng, 1, count, config.history_length)[0] for _ in range(calls)]
        times_ms = [1e3 * _seconds(lambda one=one: scorer.score(one), time.perf_counter) for one in asked]  # type: ignore[misc]
        for percent in (50, 99):
            result[f"p{percent}_c{count}_ms"] = float(np.percentile(times_ms, percent))
    gpu = None
    if torch.cuda.is_available():
        say("on the GPU")
        gpu = measure_gpu(scorer, scored, LATENCY_CALLS, repeats, torch.device("cuda"))
    line = {
        "bench": "score",
        "preset": preset_name,
        "actions": config.history_length,
        "device": "cpu",
        "threads": 1,
        **{name: float(f"{value:.4g}") for name, value in (result | detail).items()},
        "gpu": gpu,
    }
    text = f"{_table(result, detail, preset_name)}\n\n{told_of(gpu, LATENCY_CALLS)}"
    names = [name for name in LIMITS if "speedup" in name and "cross" not in name]
    bars = Bars("times as fast", names, {"fast scorer": [result[name] for name in names]})
    tell(line, text, "Scoring", bars, as_json=as_json, write=write)


def _contenders(ranker: Ranker, cross: Ranker, default: Ranker) -> dict[str, Callable[[Batch], Tensor]]:
    assert ranker.encoder is not None
    whole, blocks = Plain(ranker, 1 << 30), Plain(ranker, BLOCK)
    return {
        "plain": whole.encode,
        "plain_blocks": blocks.encode,
        "fast": candidate_encoder(ranker.encoder),
        "cross": candidate_encoder(cross.encoder),
        "ranker_plain": whole,
        "ranker_plain_blocks": blocks,
        "ranker_fast": FastRanker(ranker),
        "ranker_default": FastRanker(default),
    }


def _interleaved(
    contenders: dict[str, Callable[[Batch], Tensor]], batch: Batch, repeats: int
) -> dict[str, list[float]]:
    """Seconds of this thread's CPU time, which neighbours on a shared machine lengthen less than the clock's."""
    for call in contenders.values():
        call(batch)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, call in contenders.items():
            seconds[name].append(_seconds(lambda call=call: call(batch), time.thread_time))  # type: ignore[misc]
    return seconds


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    call()
    return clock() - started


def _speedups(seconds: dict[str, list[float]], count: int) -> dict[str, float]:
    """The repeats' ratios, against the quicker form of the plain module: median, least and most."""
    ratios = {}
    for name, ours, theirs in (
        ("speedup", "fast", "plain"),
        ("speedup_cross", "cross", "plain"),
        ("ranker_speedup", "ranker_fast", "ranker_plain"),
        ("default_ranker_speedup", "ranker_default", "ranker_plain"),
    ):
        quicker = min((theirs, f"{theirs}_blocks"), key=lambda form: statistics.median(seconds[form]))
        ratio = [their / our for their, our in zip(seconds[quicker], seconds[ours], strict=True)]
        ratios[f"{name}_c{count}"] = statistics.median(ratio)
        ratios[f"{name}_c{count}_least"], ratios[f"{name}_c{count}_most"] = min(ratio), max(ratio)
    return ratios


def _errors(ranker: Ranker, batch: Batch) -> dict[str, float]:
    """Largest differences of the read-out to the plain module's, with the trained weights and with scaled ones; and
    those of both to the plain module in float64."""
    errors: dict[str, float] = {}
    scaled = copy.deepcopy(ranker)
    assert scaled.encoder is not None
    for layer in scaled.encoder.transformer.layers:
        for weights in (layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias):
            weights[: 2 * len(weights) // 3] *= SCALE
    for name, model in (("trained", ranker), ("scaled", scaled)):
        encoder = model.encoder
        assert isinstance(encoder, SequenceEncoder)
        fast_CG, plain_CG = candidate_encoder(encoder)(batch), Plain(model, BLOCK).encode(batch)
        exact_CG = Plain(copy.deepcopy(model).double(), BLOCK).encode(_doubled(batch))
        for key, a_CG, b_CG in (
            (f"error_{name}", fast_CG, plain_CG),
            (f"error_{name}_to_float64", fast_CG, exact_CG),
            (f"error_{name}_of_plain_to_float64", plain_CG, exact_CG),
        ):
            errors[key] = float((a_CG - b_CG).abs().max())
    return errors


def _doubled(batch: Batch) -> Batch:
    values = {name: getattr(batch, name) for name in Batch.__slots__}
    return Batch(**{name: x.double() if x.is_floating_point() else x for name, x in values.items()})


def _table(result: dict[str, float], detail: dict[str, Any], preset: str) -> str:
    lines = ["| measure | what | result | over the repeats | wanted |", "|---|---|---:|---:|---:|"]
    for name, (what, limit) in LIMITS.items():
        spread = f"{detail[f'{name}_least']:.2f}–{detail[f'{name}_most']:.2f}" if "speedup" in name else "–"
        value = f"{result[name]:.2f}" if "speedup" in name else f"{result[name]:.1e}"
        lines.append(f"| `{name}` | {what} | {value} | {spread} | {limit} |")
    lines += ["", "| candidates | p50 ms | p99 ms | requests |", "|---:|---:|---:|---:|"]
    lines += [
        f"| {count:,} | {result[f'p50_c{count}_ms']:.1f} | {result[f'p99_c{count}_ms']:.1f} | {calls} |"
        for count, calls in LATENCY_CALLS.items()
    ]
    return "\n".join(lines) + (
        f"\n\nPreset `{preset}`, crossing of width {detail['width']} (of `{DEFAULT_VARIANT}` "
        f"{detail['default_width']}), full histories, one CPU thread, float32. "
        "Speedups: CPU time of the plain module (`nn.TransformerEncoder`, the candidate in every row; all candidates "
        "at once or 64 at a time, whichever is quicker) ÷ that of the fast form of the same weights, alternating in "
        "one run; the median of the ratios and their range. p50 and p99: a whole `Scorer.score`, look-ups included, "
        "by the clock.\n\n"
        f"Weights after {STEPS} training steps, and with queries and keys times {SCALE:.0f}. Largest error of the "
        "read-out against the plain module in float32, and of both against it in float64: trained "
        f"{detail['error_trained']:.1e}, {detail['error_trained_to_float64']:.1e} (plain "
        f"{detail['error_trained_of_plain_to_float64']:.1e}); scaled {detail['error_scaled']:.1e}, "
        f"{detail['error_scaled_to_float64']:.1e} (plain {detail['error_scaled_of_plain_to_float64']:.1e})."
    )
