"""Decoding files in worker processes, ahead of the model, in order.

Workers import soundfile and soxr, not torch. A file longer than `LONG_S` is not sent between processes: its path
comes back instead, to be streamed where it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.audio.decode import decode, probe
from ssamba.errors import AudioDecodeError, WorkerDiedError
from ssamba.worker_pool import map_in_processes

LONG_S = 300.0

Decoded = np.ndarray[Any, Any] | Path | Exception


def decode_file(path: Path, sample_rate_hz: int) -> Decoded:
    """Mono samples at `sample_rate_hz`; the path itself when the file is long; or why it cannot be read."""
    try:
        duration_s = probe(path).duration_s
        if duration_s is None or duration_s > LONG_S:
            return path
        return decode(path, sample_rate_hz=sample_rate_hz)
    except (ValueError, OSError) as error:
        return error
    except Exception as error:  # whatever a damaged file provokes, it must not cost the other files
        return AudioDecodeError(
            f"{path}: cannot be decoded ({type(error).__name__}: {error}). Re-encode or leave it out"
        )


def decode_files(paths: Sequence[Path], sample_rate_hz: int, workers: int) -> Iterator[tuple[Path, Decoded]]:
    """Decode many files, in order, `workers` at a time; 0 decodes in this process.

    A file on which a worker dies (a fault inside a codec) gives an `AudioDecodeError`; the others go on.
    """
    for path, decoded in map_in_processes(partial(decode_file, sample_rate_hz=sample_rate_hz), paths, workers):
        if isinstance(decoded, WorkerDiedError):
            decoded = AudioDecodeError(
                f"{path}: the decoder crashed on this file, so it is damaged: re-encode or leave it out"
            )
        yield path, decoded
