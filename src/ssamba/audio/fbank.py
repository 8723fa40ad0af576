"""Compute Kaldi-compatible log-mel features in torch (batched, differentiable, any device), and invert them.

The result equals `torchaudio.compliance.kaldi.fbank(htk_compat=True, use_energy=False, window_type="hanning",
dither=0)` on the waveform minus its mean, which is what SSAMBA was trained with: frames of 25 ms every 10 ms without
padding, the frame's mean removed, pre-emphasis 0.97, symmetric Hann window, FFT of the next power of two, power
spectrum, triangular mel bins on the HTK scale, logarithm floored at float32's epsilon.

The order of operations is exactly torchaudio's, because in quiet bins the float32 rounding of the FFT is visible: two
FFT libraries, or one library on two processors, differ there by up to 1e-3 in the logarithm.

`features_to_waveform` reconstructs a waveform approximately: the filters' pseudo-inverse spreads the mel bins over
frequencies, and Griffin and Lim's iteration (1984) with the momentum of Perraudin, Balazs and Sondergaard (2013, "A
fast Griffin-Lim algorithm") finds a phase.

Shapes: B clips, S samples, T frames, M mel bins, F frequencies of the FFT.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.config import FrontEndConfig

PREEMPHASIS = 0.97
LOG_FLOOR = torch.finfo(torch.float32).eps
_MOMENTUM = 0.99  # of the Griffin-Lim iteration


def fbank(waveform: Tensor, lengths: Tensor | None = None, config: FrontEndConfig | None = None) -> Tensor:
    """Compute log-mel features without normalization.

    Args:
        waveform: mono samples at `config.sample_rate_hz`, (S,) or (B, S), float32 or float64.
        lengths: valid samples of each clip (B,). Samples beyond (NaN included) change no valid frame; frames that
            reach beyond are zero, as the original pads.
        config: the front end; None means the official one.

    Returns:
        Natural logarithm of power, (T, M) or (B, T, M) in the waveform's dtype, T = config.num_frames(S).

    Raises:
        ValueError: wrong shape or dtype, or fewer samples than one frame.
    """
    config = config or FrontEndConfig()
    _check(waveform, lengths, config)
    if lengths is None:
        waveform = waveform - waveform.mean(-1, keepdim=True)
    else:
        lengths = lengths.to(waveform.device)
        valid = torch.arange(waveform.shape[1], device=waveform.device) < lengths[:, None]
        waveform = torch.where(valid, waveform, 0)
        waveform = torch.where(valid, waveform - waveform.sum(-1, keepdim=True) / lengths[:, None].clamp(min=1), 0)
    frames = waveform.unfold(-1, config.frame_samples, config.shift_samples)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat((frames[..., :1], frames[..., :-1]), -1)
    window, mel = _constants(config, waveform.dtype, waveform.device)
    spectrum = torch.fft.rfft((frames - PREEMPHASIS * before) * window, n=_fft_size(config))
    power: Tensor = spectrum.real.square() + spectrum.imag.square()
    features: Tensor = (power @ mel).clamp(min=LOG_FLOOR).log()
    if lengths is None:
        return features
    whole = torch.arange(features.shape[1], device=features.device) < frame_lengths(lengths, config)[:, None]
    return torch.where(whole[..., None], features, 0)


def log_mel(waveform: Tensor, lengths: Tensor | None = None, config: FrontEndConfig | None = None) -> Tensor:
    """Compute the encoder's input: `fbank`, normalized to (x - mean) / (2 std). Arguments and errors as `fbank`."""
    config = config or FrontEndConfig()
    return normalize(fbank(waveform, lengths, config), config)


def _check(waveform: Tensor, lengths: Tensor | None, config: FrontEndConfig) -> None:
    if waveform.ndim not in (1, 2):
        raise ValueError(f"waveform must be (samples,) or (batch, samples), got shape {tuple(waveform.shape)}")
    if waveform.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"waveform must be float32 or float64, got {waveform.dtype}: convert it with .float()")
    if waveform.shape[-1] < config.frame_samples:
        raise ValueError(
            f"waveform has {waveform.shape[-1]} samples, but one frame of {config.frame_ms:g} ms at "
            f"{config.sample_rate_hz} Hz needs {config.frame_samples}: give at least {config.frame_ms:g} ms of audio"
        )
    if lengths is not None and (waveform.ndim != 2 or tuple(lengths.shape) != waveform.shape[:1]):
        raise ValueError(
            f"lengths {tuple(lengths.shape)} do not fit a waveform of shape {tuple(waveform.shape)}: "
            "give (batch, samples) and one length for each row"
        )


def normalize(features: Tensor, config: FrontEndConfig) -> Tensor:
    """Return (features - mean) / (2 std), as SSAMBA and SSAST normalize."""
    return (features - config.mean) / (2 * config.std)


def frame_lengths(lengths: Tensor, config: FrontEndConfig) -> Tensor:
    """Return the number of frames of clips of `lengths` (B,) samples."""
    whole = torch.div(lengths - config.frame_samples, config.shift_samples, rounding_mode="floor") + 1
    return whole.clamp(min=0)


def _fft_size(config: FrontEndConfig) -> int:
    return 1 << (config.frame_samples - 1).bit_length()


@lru_cache(maxsize=32)
def _constants(config: FrontEndConfig, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the window (frame_samples,) and the mel matrix (F, M)."""
    with torch.inference_mode(False):  # cached tensors must also serve a later call that needs gradients
        window = torch.hann_window(config.frame_samples, periodic=False, dtype=dtype, device=device)
        return window, mel_matrix(config).to(device, dtype)


def hertz_to_mel(hertz: Tensor) -> Tensor:
    """Convert hertz to the HTK mel scale."""
    return 1127.0 * (1.0 + hertz / 700.0).log()


def mel_band(config: FrontEndConfig) -> tuple[float, float]:
    """Return the lower edge of the lowest filter and the filter spacing, in mel of the (slowed) recording.

    Filter i has its center at edge + (i + 1) * spacing.
    """
    high_hz = config.sample_rate_hz / 2 if config.high_hz is None else config.high_hz
    edges_hz = (hz / config.time_expansion for hz in (config.low_hz, high_hz))
    low_mel, high_mel = (1127.0 * math.log(1.0 + hz / 700.0) for hz in edges_hz)
    return low_mel, (high_mel - low_mel) / (config.num_mel_bins + 1)


def mel_centers(config: FrontEndConfig) -> Tensor:
    """Return the centers of the filters in hertz, (M,) float32."""
    low_mel, step = mel_band(config)
    slowed_hz = 700.0 * torch.expm1((low_mel + (torch.arange(config.num_mel_bins) + 1) * step) / 1127.0)
    return config.time_expansion * slowed_hz


def hertz_ticks(config: FrontEndConfig) -> tuple[list[float], list[str]]:
    """Return places in mel bins (bin i reaches from i to i + 1) and labels for an axis of frequencies in hertz."""
    high_hz = config.sample_rate_hz / 2 if config.high_hz is None else config.high_hz
    hertz = [125.0 * 2**octave for octave in range(14) if config.low_hz < 125.0 * 2**octave <= high_hz]
    hertz = [hz for hz in hertz if hz >= 250 * config.time_expansion]
    low_mel, step = mel_band(config)
    places = (hertz_to_mel(torch.tensor(hertz) / config.time_expansion) - low_mel) / step - 0.5
    places = places.clamp(max=config.num_mel_bins)
    return places.tolist(), [f"{hz / 1000:g}k" if hz >= 1000 else f"{hz:g}" for hz in hertz]


def mel_matrix(config: FrontEndConfig) -> Tensor:
    """Return the triangular filters (F, M) in float32, HTK mel scale 1127 ln(1 + f / 700), f of the slowed recording.

    The arithmetic is float32 throughout, as in the original: in the narrow low bins its rounding is visible at 1e-4 in
    the logarithm.
    """
    fft_size = _fft_size(config)
    low_mel, step = mel_band(config)
    bins = torch.arange(config.num_mel_bins, dtype=torch.float32)[:, None]
    left, center, right = (low_mel + (bins + i) * step for i in range(3))
    bin_hz = config.sample_rate_hz / fft_size / config.time_expansion
    mel = hertz_to_mel(bin_hz * torch.arange(fft_size // 2, dtype=torch.float32))
    rising, falling = (mel - left) / (center - left), (right - mel) / (right - center)
    weights = torch.minimum(rising, falling).clamp(min=0)
    return F.pad(weights, (0, 1)).T.contiguous()


def features_to_waveform(features: Tensor, config: FrontEndConfig | None = None, iterations: int = 60) -> Tensor:
    """Reconstruct a waveform whose log-mel features are close to `features`.

    Args:
        features: normalized features (T, M), as the encoder reads them.
        config: the front end that made them; None means the official one.
        iterations: Griffin-Lim iterations.

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
    """(T, F) -> (S,): the waveform whose short-time spectra have about these magnitudes."""
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
    """Undo y[t] = x[t] - 0.97 x[t - 1]: convolve (S,) with the truncated inverse impulse response."""
    response = PREEMPHASIS ** torch.arange(400.0)
    size = len(wave) + len(response)
    spectrum = torch.fft.rfft(wave, n=size) * torch.fft.rfft(response, n=size)
    original: Tensor = torch.fft.irfft(spectrum, n=size)[: len(wave)]
    return original
