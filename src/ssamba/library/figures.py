"""Plot recordings and their embeddings with matplotlib (the `figures` extra)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssamba.audio.fbank import hertz_to_mel, mel_band
from ssamba.config import FrontEndConfig
from ssamba.embedder import Embedding
from ssamba.plotting import blank_figure, save_figure
from ssamba.similarity import similarities


def plot_recordings(
    recordings: Sequence[tuple[str, Tensor, Embedding]],
    output: str | Path,
    front_end: FrontEndConfig | None = None,
    title: str | None = None,
) -> Path:
    """Plot each recording as a row: its log-mel spectrogram and the similarity of its frame embeddings.

    Args:
        recordings: name, normalized features (T, M) as from `Embedder.features`, and embedding.
        output: image file; the suffix chooses the format.
        front_end: defines the units of the axes; None means the official one.
        title: title of the figure.

    Returns:
        The path of the output.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ValueError: no recordings.
    """
    if not recordings:
        raise ValueError("no recordings to plot")
    front_end = front_end or FrontEndConfig()
    figure = blank_figure(10, 2.6 * len(recordings) + 0.6)
    if title:
        figure.suptitle(title)
    axes = figure.subplots(len(recordings), 2, width_ratios=(2.2, 1), squeeze=False)
    for (name, features, embedding), (left, right) in zip(recordings, axes, strict=True):
        _plot_features(left, name, features, embedding.duration_s, front_end)
        image = _plot_similarity(right, embedding)
        figure.colorbar(image, ax=right, shrink=0.8)
    axes[0, 1].set_title("frame similarity (centered cosine)", fontsize=9)
    return save_figure(figure, output, dpi=110)


def _plot_features(axis: Any, name: str, features: Tensor, duration_s: float, front_end: FrontEndConfig) -> None:
    axis.imshow(
        features.T.numpy(),
        origin="lower",
        aspect="auto",
        cmap="magma",
        extent=(0, duration_s, 0, front_end.num_mel_bins),
    )
    axis.set_title(name, fontsize=9, loc="left")
    axis.set_xlabel("s", fontsize=8)
    # Label mel bins by the frequency of their centers.
    low_hz, high_hz = front_end.low_hz, front_end.high_hz or front_end.sample_rate_hz / 2
    ticks_hz = [hz for hz in (125, 500, 1000, 2000, 4000, 8000, 16000, 32000, 64000) if low_hz < hz <= high_hz]
    low_mel, step = mel_band(front_end)
    # Bin i of the image reaches from i to i + 1.
    bins = ((hertz_to_mel(torch.tensor(ticks_hz)) - low_mel) / step - 0.5).tolist()
    axis.set_yticks(bins, [f"{hz / 1000:g}k" if hz >= 1000 else str(hz) for hz in ticks_hz], fontsize=7)
    axis.set_ylabel("Hz", fontsize=8)


def _plot_similarity(axis: Any, embedding: Embedding) -> Any:
    similarity = similarities(embedding.frames.numpy(), "centered")
    extent = (0, embedding.duration_s, embedding.duration_s, 0)
    axis.set_xlabel("s", fontsize=8)
    return axis.imshow(similarity, cmap="coolwarm", vmin=-1, vmax=1, extent=extent, aspect="equal")
