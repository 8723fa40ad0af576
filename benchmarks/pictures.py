"""Draw the committed pictures again from what is committed: `python -m benchmarks.pictures`.

Those of the scorecard and the studies come from the JSON in benchmarks/results. In docs/images: masked patches of the
demo's recordings, predicted by the shipped weights; and what models hear of a 250 kHz recording. No ultrasound was at
hand: its sounds are the demo's, played ten times faster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch

from benchmarks.peers import scorecard
from benchmarks.timing import DEMO_AUDIO, RESULTS
from ssamba.audio.decode import decode
from ssamba.audio.fbank import hertz_ticks, log_mel
from ssamba.checkpoint import load_checkpoint
from ssamba.config import FrontEndConfig
from ssamba.model.pretraining import PretrainingModel
from ssamba.plotting import blank_figure, save_figure, spectrogram, styled
from ssamba.studies.efficiency_report import plot_study, read_study
from ssamba.studies.long_audio import plot_long, read_long
from ssamba.training.pretraining.reconstruct import plot_reconstructions, reconstruct

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
_RATE_HZ = 250_000
_SOUNDS = ("misc_crow", "vinyl_scratch", "misc_crow", "drum_cymbal_soft", "misc_crow")
_CLIPS = ("loop_amen", "guit_harmonics", "ambi_piano")


def plot_ultrasound(output: Path) -> Path:
    """Plot a 250 kHz recording, and what models with three front ends hear of it."""
    gap = np.zeros(_RATE_HZ // 25, np.float32)
    parts = [gap]
    for name in _SOUNDS:
        fast = soxr.resample(decode(DEMO_AUDIO / f"{name}.flac", sample_rate_hz=44_100), 441_000, _RATE_HZ)
        parts += [0.5 * fast / np.abs(fast).max(), gap]
    recording = np.concatenate(parts)
    seconds = len(recording) / _RATE_HZ
    with styled():
        figure = blank_figure(9, 8)
        figure.suptitle("A 250 kHz recording (the demo's sounds, ten times faster), and what a model hears of it")
        axes = figure.subplots(4, 1, sharex=True)
        image = _plot_recording(axes[0], recording)
        figure.colorbar(image, ax=axes[0], label="dB below the loudest")
        for axis, name in zip(axes[1:], ("16khz", "48khz", "x10"), strict=True):
            front_end = FrontEndConfig().named(name)
            wave = torch.from_numpy(soxr.resample(recording, _RATE_HZ, front_end.sample_rate_hz, "VHQ"))
            features = log_mel(wave, config=front_end)
            image = spectrogram(axis, features.numpy(), seconds, hertz_ticks(front_end), vmin=-1.0, vmax=1.0)
            figure.colorbar(image, ax=axis, label="normalized log-mel")
            axis.set_title(f"--front-end {name}: {front_end.low_hz:g} to {front_end.sample_rate_hz // 2:,} Hz, "
                           f"a frame every {front_end.shift_ms:g} ms")  # fmt: skip
        for axis in axes:
            axis.label_outer()
        return save_figure(figure, output)


def _plot_recording(axis: Any, recording: Any) -> Any:
    """Draw the power spectrum (frames of 2 ms) of samples at 250 kHz over time, in dB, and return the image."""
    size, hop = 512, 256
    frames = np.lib.stride_tricks.sliding_window_view(recording, size)[::hop] * np.hanning(size)
    decibels = 20 * np.log10(np.abs(np.fft.rfft(frames)) + 1e-9)
    ticks = [size * khz / 250 for khz in (8, 40, 80, 120)]
    labels = ["8k", "40k", "80k", "120k"]
    image = spectrogram(axis, decibels - decibels.max(), len(recording) / _RATE_HZ, (ticks, labels), vmin=-70, vmax=0)
    axis.axhline(ticks[0], color="white", linewidth=0.8, linestyle="--")
    axis.set_title("recorded (dashed: 8 kHz, above which a 16 kHz model hears nothing)")
    return image


def plot_demo_reconstructions(output: Path) -> Path:
    """Plot how the shipped weights fill in masked patches of three recordings."""
    loaded = load_checkpoint()
    model, front_end = loaded.model, loaded.front_end
    if not isinstance(model, PretrainingModel):
        raise TypeError(f"{loaded.report.name} has no prediction heads")
    waves = [torch.from_numpy(decode(DEMO_AUDIO / f"{name}.flac")) for name in _CLIPS]
    results = [reconstruct(model, log_mel(wave, config=front_end), 0, 400 / 512, None) for wave in waves]
    with styled():
        return save_figure(plot_reconstructions(results, _CLIPS, front_end), output)


def main() -> None:
    """Draw all of them."""
    print(plot_ultrasound(IMAGES / "ultrasound.png"))
    print(plot_demo_reconstructions(IMAGES / "tiny-reconstruction.png"))
    scorecard.plot(scorecard.read(RESULTS / "scorecard.json"), RESULTS / "scorecard.png")
    for path in sorted(RESULTS.rglob("efficiency_batch*.png")):
        batch = int(path.stem.removeprefix("efficiency_batch"))
        print(plot_study(read_study(path.parent), batch, path))
    for path in sorted(RESULTS.rglob("long.png")):
        print(plot_long(read_long(path.parent), path))


if __name__ == "__main__":
    main()
