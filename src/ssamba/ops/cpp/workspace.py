"""Working memory of the bidirectional mixer on CPUs, used again and again: the first touch of fresh memory costs more than the work in it.

Shapes: B batch, L tokens, E channels inside, N states, R rank of delta.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssamba.ops.cpp.mixer_kernels import Packed, Side, convolve, projects
from ssamba.ops.cpp.scan import rows
from ssamba.ops.matmul import made_new

VECTOR = 16
"""Columns of a matrix product come in so many, where they are ours to choose."""
KEPT_ELEMENTS = 2**25
"""Working memory of more is not kept."""
STRETCHES = 64
"""Shapes of working memory that are remembered."""


class Memory(threading.local):
    """Working memory of the calling thread, by name, up to a limit; what is larger is made anew each time."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.dtype], Tensor] = {}
        self.stretches: dict[tuple[Any, ...], Stretch] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialized tensor, which the next call with this name gives again."""
        size = math.prod(shape)
        if size > KEPT_ELEMENTS:
            return torch.empty(shape, dtype=dtype)
        memory = self.kept.get((name, dtype))
        if memory is None or memory.numel() < size:
            with torch.inference_mode(False):  # what is made in that mode may not be written to outside
                memory = self.kept[name, dtype] = torch.empty(size, dtype=dtype)
            self.stretches.clear()  # they stand in the old one
        return memory[:size].view(shape)

    def multiplied(self, name: str, a: Tensor, weight: Tensor) -> Tensor:
        """a (M, I) weight (O, I)^T, (M, O), until the next call with this name; in new memory where that saves a copy."""
        new = made_new(a, weight)
        if new is None:
            new = self.get(name, (a.shape[0], weight.shape[0]), a.dtype)
            torch.mm(a, weight.t(), out=new)
        return new

    def stretch(self, batch: int, length: int, side: Side, count: int, dtype: torch.dtype) -> Stretch:
        """What `count` directions work in on `length` tokens of `batch` clips."""
        key = batch, length, side.x_weight.shape, count, dtype, projects(dtype)
        found = self.stretches.get(key)
        if found is None:
            # Making one may clear those before, so it is kept afterwards.
            found = Stretch(self, batch, length, side, count, dtype)
            if len(self.stretches) >= STRETCHES:
                self.stretches.clear()
            self.stretches[key] = found
        return found


class Stretch:
    """Working memory of some tokens, with the views of it that the kernels and matrix products take."""

    def __init__(self, memory: Memory, batch: int, length: int, side: Side, count: int, dtype: torch.dtype):
        columns, inner = side.x_weight.shape
        tokens = batch * length
        self.is_fused = projects(dtype)
        width = columns if self.is_fused else -(-columns // VECTOR) * VECTOR
        self.u = memory.get("u", (count, batch, length, inner), dtype)
        projected = memory.get("projected", (count, batch, length, width), dtype)
        self.projected = list(projected)
        self.u_rows, self.projected_rows = [rows(u) for u in self.u], [rows(p) for p in self.projected]
        if self.is_fused:
            return
        self.u_flat, self.projected_flat = self.u.view(count, tokens, inner), projected.view(count, tokens, width)
        self.x_weight = memory.get("x_weight", (count, width, inner), dtype)
        self.x_weight_used = [weight[:columns] for weight in self.x_weight]
        self.x_weight_padding = self.x_weight[:, columns:]
        self.x_weight_transposed = self.x_weight.transpose(1, 2)

    def take_in(
        self, x: Tensor, lengths: Tensor | None, first: int, sides: Sequence[Side], packed: Packed | None = None
    ) -> None:
        """What the scans of tokens from `first` on read: `u_rows`, the convolutions over x (B, L, E), and `projected`, W_x u."""
        last = first + self.u.shape[2]
        if self.is_fused:
            convolve(x, lengths, first, last, sides, self.u_rows, packed, self.projected_rows)
            return
        convolve(x, lengths, first, last, sides, self.u_rows, packed)
        self.x_weight_padding.zero_()
        for weight, side in zip(self.x_weight_used, sides, strict=True):
            weight.copy_(side.x_weight)
        # In rows of whole vectors: MKL's products of 44 columns are slow.
        torch.bmm(self.u_flat, self.x_weight_transposed, out=self.projected_flat)


memory = Memory()
