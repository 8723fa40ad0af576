"""Plot recordings and their embeddings with matplotlib (the `figures` extra)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ssamba.audio.fbank import hertz_ticks
from ssamba.config import FrontEndConfig
from ssamba.embedder import Embedding
from ssamba.plotting import blank_figure, save_figure, spectrogram, styled
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
    ticks = hertz_ticks(front_end)
    with styled([title or "", *(name for name, _, _ in recordings)]) as show:
        figure = blank_figure(10, 2.2 * len(recordings) + 0.6)
        if title:
            figure.suptitle(show(title))
        axes = figure.subplots(len(recordings), 2, width_ratios=(2.4, 1), squeeze=False)
        for (name, features, embedding), (left, right) in zip(recordings, axes, strict=True):
            image = spectrogram(left, features.numpy(), embedding.duration_s, ticks)
            left.set_title(show(name))
            figure.colorbar(image, ax=left, label="normalized log-mel")
            similarity = similarities(embedding.frames.numpy(), "centered")
            extent = (0, embedding.duration_s, embedding.duration_s, 0)
            image = right.imshow(similarity, cmap="RdBu_r", vmin=-1, vmax=1, extent=extent, aspect="equal")
            right.set(xlabel="seconds", ylabel="seconds")
            figure.colorbar(image, ax=right, label="centered cosine")
        axes[0, 1].set_title("similarity of time steps")
        return save_figure(figure, output, dpi=110)
