"""Many small tensors in one copy to a GPU: packed into one pinned buffer, and viewed where they arrive."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

ALIGNMENT: Final = 64
"""Bytes. More than the widest number needs, and a cache line."""


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Where each tensor lies in a buffer of bytes."""

    parts: tuple[tuple[int, int, torch.dtype, torch.Size], ...]
    """First byte, bytes, type of the numbers, shape."""
    num_bytes: int

    @staticmethod
    def of(tensors: Sequence[Tensor]) -> "PackedLayout":
        parts, at = [], 0
        for tensor in tensors:
            size = tensor.numel() * tensor.element_size()
            parts.append((at, size, tensor.dtype, tensor.shape))
            at += -(-size // ALIGNMENT) * ALIGNMENT
        return PackedLayout(tuple(parts), at)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The tensors that lie in `buffer`, which is `[num_bytes]` of uint8; no copies."""
        return [buffer[at : at + size].view(dtype).view(shape) for at, size, dtype, shape in self.parts]


class OneCopy:
    """Brings tensors to a device with one copy. Each layout has buffers of its own, which the next call overwrites:
    what was returned must have been read by then, on the device too. For one thread at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[PackedLayout, tuple[Tensor, Tensor]] = {}

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The same tensors on the device. Without CUDA they are packed just the same, into ordinary memory."""
        layout, is_cuda = PackedLayout.of(tensors), self._device.type == "cuda"
        if layout not in self._buffers:
            host = torch.zeros(layout.num_bytes, dtype=torch.uint8, pin_memory=is_cuda)
            self._buffers[layout] = host, host.to(self._device)  # `to` copies nothing where both are one device
        host, there = self._buffers[layout]
        for view, tensor in zip(layout.views(host), tensors, strict=True):
            view.copy_(tensor)
        if is_cuda:
            there.copy_(host, non_blocking=True)
        return layout.views(there)
