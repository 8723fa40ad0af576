"""Measure how much sound lies above 8 kHz, to choose when to warn: `python -m benchmarks.above_band FOLDER...`.

For recordings as they are, by sample rate; for the same ones as ultrasound, played ten times faster at 250 kHz without
what lies below 15 kHz (real bats were not at hand), alone and with noise of a microphone and wind; for noise alone. The
folders hold recordings of any kind: 400 of each rate are drawn, and what is not audio is passed over. Writes
benchmarks/results/above_band.json and .md.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import soxr

from benchmarks.timing import save
from ssamba.audio.band import MUCH, BandMeter
from ssamba.audio.decode import decode, probe
from ssamba.audio.files import find_audio
from ssamba.studies.harness import environment, table

Samples: TypeAlias = npt.NDArray[np.float32]
RATE_HZ = 250_000
_PER_RATE = 400
_ULTRASOUNDS = 150
_LONGEST_S = 30.0
_MIXTURES = {
    "alone": (-6.0, -120.0, -120.0),
    "peak -20, noise -60 dBFS": (-20.0, -60.0, -120.0),
    "peak -30, noise -55 dBFS": (-30.0, -55.0, -120.0),
    "peak -20, noise -60, wind -30 dBFS": (-20.0, -60.0, -30.0),
    "peak -30, noise -60, wind -20 dBFS": (-30.0, -60.0, -20.0),
}
"""Peak of the sound, and levels of noise and wind."""


def share(samples: Samples, rate_hz: int) -> float:
    """Return the share of the sound of (S,) samples above 8 kHz."""
    meter = BandMeter(rate_hz, 8000.0)
    meter.add_all(samples)
    return meter.share


def noise(size: int, slope: float, corner_hz: float, generator: np.random.Generator) -> Samples:
    """Return noise (size,) of variance 1 whose amplitude falls with this power of the frequency above a corner."""
    spectrum = np.fft.rfft(generator.standard_normal(size))
    spectrum /= np.maximum(np.fft.rfftfreq(size, 1 / RATE_HZ), corner_hz) ** slope
    samples = np.fft.irfft(spectrum, size)
    scaled: Samples = (samples / samples.std()).astype(np.float32)
    return scaled


def ultrasound(samples: Samples, rate_hz: int) -> Samples:
    """Play a sound ten times faster, at 250 kHz, without what lies below 15 kHz; peak 1."""
    fast = soxr.resample(samples, 10 * rate_hz, RATE_HZ)
    spectrum = np.fft.rfft(fast)
    spectrum[np.fft.rfftfreq(len(fast), 1 / RATE_HZ) < 15_000] = 0
    high: Samples = np.fft.irfft(spectrum, len(fast)).astype(np.float32)
    return high / max(float(np.abs(high).max()), 1e-9)


def recordings(folders: list[Path]) -> dict[int, list[Path]]:
    """Return up to 400 recordings of each sample rate above 16 kHz."""
    by_rate = defaultdict(list)
    for path in find_audio(folders):
        try:
            by_rate[probe(path).sample_rate_hz].append(path)
        except ValueError:
            continue
    generator = np.random.default_rng(0)
    return {
        rate_hz: [paths[i] for i in generator.permutation(len(paths))[:_PER_RATE]]
        for rate_hz, paths in sorted(by_rate.items())
        if rate_hz > 16_000 and len(paths) >= 100
    }


def read(paths: list[Path], rate_hz: int) -> Iterator[Samples]:
    """Yield the samples of those recordings that last a tenth of a second and are not silent."""
    for path in paths:
        try:
            samples = decode(path, sample_rate_hz=rate_hz, duration_s=_LONGEST_S)
        except ValueError:
            continue
        if len(samples) > rate_hz / 10 and np.abs(samples).max() > 1e-3:
            yield samples


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    rows: list[dict[str, Any]] = []

    def add(what: str, shares: list[float]) -> None:
        quantiles = {f"q{q}": round(float(np.quantile(shares, q / 100)), 3) for q in (5, 50, 95)}
        warned = sum(one >= MUCH for one in shares)
        rows.append({"what": what, "count": len(shares), **quantiles, "warned": warned})

    found = recordings(parser.parse_args().folders)
    for rate_hz, paths in found.items():
        add(f"as they are, {rate_hz / 1000:g} kHz", [share(samples, rate_hz) for samples in read(paths, rate_hz)])
    generator = np.random.default_rng(1)
    fast = [ultrasound(s, 44_100) for s in read(found[44_100][:_ULTRASOUNDS], 44_100)]
    for name, levels_db in _MIXTURES.items():
        peak, hiss, wind = (10 ** (level / 20) for level in levels_db)
        shares = []
        for sound in fast:
            size = max(len(sound), RATE_HZ)
            mixed = hiss * noise(size, 0.0, 1.0, generator) + wind * noise(size, 2.0, 100.0, generator)
            mixed[: len(sound)] += peak * sound
            shares.append(share(mixed, RATE_HZ))
        add(f"ultrasound, {name}", shares)
    for slope in (0.0, 0.5, 1.0):
        levels = [10 ** (level / 20) * noise(3 * RATE_HZ, slope, 50.0, generator) for level in (-75, -65, -55)]
        add(f"noise falling with {3 * 2 * slope:g} dB an octave, to -55 dBFS", [share(one, RATE_HZ) for one in levels])
    columns = ["recordings", "number", "5 %", "median", "95 %", f"{MUCH:.0%} or more"]
    cells = [
        [r["what"], str(r["count"]), *(f"{r[q]:.3f}" for q in ("q5", "q50", "q95")), str(r["warned"])] for r in rows
    ]
    save("above_band", {**environment(), "threshold": MUCH, "rows": rows}, table(columns, cells))


if __name__ == "__main__":
    main()
