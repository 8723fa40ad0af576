"""Recordings in memory or in files, as mono blocks at the rate a model wants.

Shapes: B recordings, S samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from torch import Tensor

from ssamba.audio import decode

Waveform = np.ndarray[Any, Any] | Tensor
Source = str | Path | Waveform


def blocks(source: Source, sample_rate: int | None, target_rate_hz: int) -> Iterator[np.ndarray[Any, Any]]:
    """Mono float32 blocks at `target_rate_hz`; files are streamed, so memory does not grow with their length.

    Args:
        source: a file's path, or a waveform (S,).
        sample_rate: of a waveform; None means `target_rate_hz`. Files know theirs.
        target_rate_hz: wanted rate.

    Raises:
        AudioDecodeError: a file cannot be read.
        ValueError: a waveform has another shape, another type, NaN or infinity.
    """
    if isinstance(source, str | Path):
        yield from decode.stream(Path(source).expanduser(), sample_rate_hz=target_rate_hz)
        return
    samples = to_mono_float(source)
    if sample_rate is not None and decode.checked_rate(sample_rate) != target_rate_hz:
        samples = soxr.resample(samples, sample_rate, target_rate_hz)
    yield samples


def to_mono_float(waveform: Waveform) -> np.ndarray[Any, Any]:
    """A waveform (S,) as float32; integers are taken as PCM of full scale.

    Raises:
        ValueError: another shape or type, or NaN or infinite samples.
    """
    if isinstance(waveform, Tensor):
        array = waveform.detach().cpu()
        samples = (array.float() if array.is_floating_point() else array).numpy()
    else:
        samples = np.asarray(waveform)
    if samples.ndim != 1:
        raise ValueError(f"a waveform must be mono, of shape (samples,), got shape {samples.shape}")
    if np.issubdtype(samples.dtype, np.signedinteger):
        samples = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    elif np.issubdtype(samples.dtype, np.floating):
        samples = samples.astype(np.float32)
    else:
        raise ValueError(f"a waveform must be floating point or signed integer PCM, got {samples.dtype}")
    finite = np.isfinite(samples)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ValueError(f"the waveform holds NaN or infinity, first at sample {first}: repair or leave it out")
    return samples


def as_list(source: Source | Sequence[Source]) -> tuple[list[Source], bool]:
    """The recordings that `source` stands for, and whether it is a single one.

    Raises:
        ValueError: it is neither a path, nor a waveform, nor a list of these.
    """
    if isinstance(source, str | Path):
        return [source], True
    if isinstance(source, np.ndarray | Tensor):
        if source.ndim == 2:
            if source.shape[1] <= 32 < source.shape[0]:
                raise ValueError(
                    f"a waveform of shape {tuple(source.shape)} looks like (samples, channels): expected (samples,) or "
                    "(batch, samples). Average the channels first: waveform.mean(axis=1)"
                )
            return list(source), False
        return [source], True
    expected = "expected a path, a waveform (NumPy array or tensor) or a list of these"
    if not isinstance(source, Iterable) or isinstance(source, Mapping | bytes):
        raise ValueError(f"{expected}, got {type(source).__name__}")
    items = list(source)
    for item in items:
        if not isinstance(item, str | Path | np.ndarray | Tensor):
            raise ValueError(f"{expected}, got a list with {type(item).__name__} in it")
    return items, False
