"""From log-mel features back to sound, roughly: what a spectrogram sounds like.

The mel bands are spread back over frequencies by the filters' pseudo-inverse, and a phase that fits is found by Griffin
and Lim's iteration (1984), with the momentum of Perraudin, Balazs and Sondergaard (2013, "A fast Griffin-Lim algorithm").

Shapes: S samples, T frames, M mel bins, K frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssamba.audio.fbank import mel_matrix
from ssamba.config import FrontEndConfig

_MOMENTUM = 0.99


def features_to_waveform(features: Tensor, config: FrontEndConfig | None = None, iterations: int = 60) -> Tensor:
    """A waveform whose log-mel features are about these.

    Args:
        features: normalized as the encoder takes them, (T, M).
        config: the front end that made them; None is the official one.
        iterations: of the search for a phase.

    Returns:
        Mono samples (S,), float32, peak 0.9, S = (T - 1) * shift + frame.
    """
    config = config or FrontEndConfig()
    power = (features.float() * (2 * config.std) + config.mean).exp()
    mel = mel_matrix(config)
    # Least squares, then no negative power; each band keeps its own energy.
    linear = (power @ torch.linalg.pinv(mel)).clamp(min=0)
    linear = linear * (power.sum(1, keepdim=True) / (linear @ mel).sum(1, keepdim=True).clamp(min=1e-20))
    wave = _fit_phase(linear.sqrt(), config, iterations)
    wave = _without_preemphasis(wave)
    return 0.9 * wave / wave.abs().max().clamp(min=1e-9)


def _fit_phase(magnitude: Tensor, config: FrontEndConfig, iterations: int) -> Tensor:
    """(T, K) -> (S,): the waveform whose short-time spectra have these magnitudes as nearly as can be."""
    size = 2 * (magnitude.shape[1] - 1)
    window = torch.hann_window(config.frame_samples, periodic=False)
    samples = (len(magnitude) - 1) * config.shift_samples + config.frame_samples

    def to_wave(spectra: Tensor) -> Tensor:
        frames = torch.fft.irfft(spectra, n=size)[:, : config.frame_samples] * window
        places = torch.arange(len(frames))[:, None] * config.shift_samples + torch.arange(config.frame_samples)
        total = torch.zeros(samples).index_add(0, places.flatten(), frames.flatten())
        weight = torch.zeros(samples).index_add(0, places.flatten(), window.square().repeat(len(frames)))
        return total / weight.clamp(min=1e-3)

    def to_spectra(wave: Tensor) -> Tensor:
        spectra: Tensor = torch.fft.rfft(wave.unfold(0, config.frame_samples, config.shift_samples) * window, n=size)
        return spectra

    generator = torch.Generator().manual_seed(0)
    phase = torch.polar(torch.ones_like(magnitude), 2 * torch.pi * torch.rand(magnitude.shape, generator=generator))
    before = torch.zeros_like(phase)
    for _ in range(iterations):
        rebuilt = to_spectra(to_wave(magnitude * phase))
        moved = rebuilt - _MOMENTUM / (1 + _MOMENTUM) * before
        before = rebuilt
        phase = moved / moved.abs().clamp(min=1e-9)
    return to_wave(magnitude * phase)


def _without_preemphasis(wave: Tensor) -> Tensor:
    """Undo y[t] = x[t] - 0.97 x[t - 1] by its impulse response, long enough to have died away."""
    response = 0.97 ** torch.arange(400.0)
    size = len(wave) + len(response)
    spectrum = torch.fft.rfft(wave, n=size) * torch.fft.rfft(response, n=size)
    original: Tensor = torch.fft.irfft(spectrum, n=size)[: len(wave)]
    return original
