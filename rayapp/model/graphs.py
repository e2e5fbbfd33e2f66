"""A function of a batch behind CUDA graphs: one captured for each shape, so that the host launches once and not once a
kernel. Without CUDA the function is simply called."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from rayapp.model.ranker import Batch

log = logging.getLogger(__name__)
WARM_UP_CALLS: Final = 3
"""On a side stream before a capture, as PyTorch asks: libraries set themselves up in their first calls."""


@dataclass(frozen=True, slots=True)
class Captured:
    graph: Any
    inputs: list[Tensor]
    output: Tensor

    def replay(self, tensors: list[Tensor]) -> Tensor:
        for place, tensor in zip(self.inputs, tensors, strict=True):
            place.copy_(tensor)
        self.graph.replay()
        return self.output


class Graphs:
    """Calls `function`, whose weights neither move nor change. For one thread at a time, in inference mode.

    A graph reads and writes fixed memory: its inputs are copied in, and the next call of any shape overwrites its
    output (all shapes share one pool). Item tables stay outside, since each new item makes other tensors of them.
    """

    def __init__(self, function: Callable[[Batch], Tensor], device: torch.device) -> None:
        self._function, self._device = function, device
        self._captured: dict[tuple[torch.Size, ...], Captured | None] = {}
        """By the shapes of a batch; None: it could not be captured."""
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Tensor:
        if self._device.type != "cuda":
            return self._function(batch)
        tensors = [getattr(batch, name) for name in Batch.__slots__]
        shapes = tuple(tensor.shape for tensor in tensors)
        if shapes not in self._captured:
            self._captured[shapes] = self._capture(tensors)
        captured = self._captured[shapes]
        return self._function(batch) if captured is None else captured.replay(tensors)

    def _capture(self, tensors: list[Tensor]) -> Captured | None:
        inputs = [tensor.clone() for tensor in tensors]
        batch, graph = Batch(*inputs), torch.cuda.CUDAGraph()
        side: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        try:
            with torch.cuda.stream(side):
                for _ in range(WARM_UP_CALLS):
                    self._function(batch)
                side.synchronize()
                # "thread_local": a model that another thread loads meanwhile may allocate.
                with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
                    output = self._function(batch)
        except RuntimeError as error:
            log.warning("no CUDA graph for candidates %s, scored slower: %s", tuple(batch.candidate_BCE.shape), error)
            return None
        return Captured(graph, inputs, output)
