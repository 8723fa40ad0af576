"""Vectors of all layers of an encoder from one pass, for each pooling and readout.

A pooling says how the tokens of one time step become a vector, a readout how the time steps of a recording do: `mean`
with the readout `clip` is `Embedding.clip`, with `parts` it is `Embedding.parts`.

Shapes: P prefix tokens, L patch tokens, R rows and K columns (time steps) of the patch grid, D channels, V layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ssamba.config import BaseEncoderConfig, FrontEndConfig
from ssamba.embedding import Readout
from ssamba.inference import Accumulator, FrameMerger, GrowingRows, RunningMean, Window, centers_s
from ssamba.model.patches import tokens_to_grid

Pooling = Literal["mean", "cls", "rows"]
"""`mean`: over patch tokens; `cls`: over prefix tokens; `rows`: of each row of patches, one after the other."""


def view_suffix(pooling: str, readout: str = "clip") -> str:
    """Return what follows the layer in the name of a view: `mean`, `mean.parts`."""
    return pooling if readout == "clip" else f"{pooling}.{readout}"


class LayerVectors(NamedTuple):
    """A recording's vectors of all layers."""

    by_suffix: dict[str, Tensor]
    """By `view_suffix`: (1, V * dims), for `parts` (4, V * dims), of time steps (K, V * dims); dims is D, or R * D for
    `rows`."""
    times_s: Tensor
    """Center of each time step, in seconds from the start of the recording, (K,)."""


class LayerVectorsAccumulator(Accumulator[LayerVectors]):
    """A recording's vectors of all layers for each pooling and readout, or those of its time steps for each pooling."""

    def __init__(
        self,
        config: BaseEncoderConfig,
        front_end: FrontEndConfig,
        poolings: Sequence[Pooling],
        readouts: Sequence[Readout] = ("clip",),
        *,
        time_steps: bool = False,
    ):
        self.config, self.front_end, self.poolings, self.time_steps = config, front_end, poolings, time_steps
        self.readouts = readouts
        self.mergers: dict[Pooling, FrameMerger] = {pooling: FrameMerger() for pooling in poolings if pooling != "cls"}
        self.means = {pooling: RunningMean() for pooling in self.mergers}
        self.rows = {pooling: GrowingRows() for pooling in self.mergers if time_steps}
        self.thirds = {pooling: RunningMean() for pooling in self.mergers}
        self.prefix = RunningMean()

    def add(self, window: Window, tokens: Tensor, thirds: Tensor) -> None:
        """Pool the tokens, (P + L, D) or (V, P + L, D)."""
        tokens, prefix = tokens.reshape(-1, *tokens.shape[-2:]), self.config.num_prefix_tokens
        grid = tokens_to_grid(tokens[:, prefix:], self.config.rows, window.columns, self.config)
        for pooling, merger in self.mergers.items():
            if pooling == "mean":
                steps = rearrange(grid.mean(1), "v k d -> k (v d)")
            else:
                steps = rearrange(grid, "v r k d -> k (v r d)")
            steps = steps.cpu().float()
            self._add(pooling, merger.add(window.first_column, steps))
            if "parts" in self.readouts:
                self.thirds[pooling].add(thirds @ steps, window.valid_frames)
        if "cls" in self.poolings:
            self.prefix.add(tokens[:, :prefix].mean(1).flatten(), window.columns)

    def _add(self, pooling: Pooling, steps: Tensor) -> None:
        self.means[pooling].add_rows(steps)
        if self.time_steps:
            self.rows[pooling].append(steps)

    def result(self, num_columns: int, num_samples: int) -> LayerVectors:
        """Return the vectors of the recording, or of its time steps."""
        for pooling, merger in self.mergers.items():
            self._add(pooling, merger.finish())
        duration_s = num_samples / self.front_end.sample_rate_hz
        times_s = centers_s(num_columns, duration_s, self.config, self.front_end)
        if self.time_steps:
            return LayerVectors({key: rows.tensor()[:num_columns] for key, rows in self.rows.items()}, times_s)
        found: dict[str, Tensor] = {}
        for pooling in self.poolings:
            if pooling == "cls":
                found[pooling] = self.prefix.mean()[None]
                continue
            mean = self.means[pooling].mean()[None]
            for readout in self.readouts:
                own = mean if readout == "clip" else torch.cat((mean, self.thirds[pooling].mean()))
                found[view_suffix(pooling, readout)] = own
        return LayerVectors(found, times_s)
