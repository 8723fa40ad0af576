"""Long recordings in one piece or in windows: time, memory, and how far the frame embeddings agree.

Every pass runs in a process of its own, so that its peak memory is its own and too much of it ends only the pass. A pass
is what users run: `Embedder.embed` on a file, decoding included, once, after a few seconds of audio that warm it up.

Agreement is the cosine between the two embeddings of each time step, as they are, and after each side's mean over the
recording was subtracted (what all steps share would hide their differences).

Shapes: S samples, K time steps, D channels.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator

from ssamba.audio.files import Skipped
from ssamba.config import Config
from ssamba.embedder import load_model
from ssamba.errors import SsambaError
from ssamba.evaluation.caching import Array
from ssamba.studies.harness import (
    allocated_peak,
    in_child,
    is_out_of_memory,
    limit_memory,
    once_s,
    process_peak,
    resident_peak,
    surroundings,
)
from ssamba.studies.material import Material, check_there

Context = Literal["windows", "full"]
CONTEXTS: tuple[Context, ...] = ("windows", "full")
_BINS = 300
_WARM_S = 3.0


class LongOptions(Config):
    """What is embedded."""

    minutes: tuple[float, ...] = ()
    """Join all recordings to these lengths; none takes each recording as it is."""
    device: str | None = None
    """Where the model runs; None takes a GPU if there is one."""
    budget_s: float = Field(3600.0, gt=0)
    """A pass that takes longer is ended."""
    seed: int = Field(0, ge=0)
    """Of the order in which recordings are joined."""

    @model_validator(mode="after")
    def _check(self) -> LongOptions:
        if len(set(self.minutes)) != len(self.minutes) or any(not 0.1 <= m < float("inf") for m in self.minutes):
            raise ValueError(f"minutes must be different lengths of at least 0.1, got {self.minutes}")
        return self


@dataclass(frozen=True)
class LongPass:
    """What embedding one recording in one context took."""

    recording: str
    duration_s: float | None
    """Of audio; None where it did not run."""
    context: Context
    seconds: float | None = None
    frames: int | None = None
    """Time steps."""
    peak_bytes: int | None = None
    """Most memory beyond the loaded model: resident on a CPU, allocated on a GPU; None where the system does not tell."""
    process_bytes: int | None = None
    """Most memory of the whole process, Python, torch and model included; None where the system does not tell."""
    stopped: str | None = None
    """Why there is no result, in words."""


@dataclass(frozen=True)
class Agreement:
    """Cosine between the time steps of windows and of full context."""

    recording: str
    duration_s: float
    median: float
    low: float
    """5th percentile."""
    centered_median: float
    centered_low: float
    times_s: list[float]
    """Centers of the bins of what follows."""
    over_time: list[float]
    """Median of the centered cosine in each bin."""
    low_over_time: list[float]
    """5th percentile of it."""


@dataclass
class LongStudy:
    """All passes, and what they ran on."""

    options: LongOptions
    environment: dict[str, Any]
    passes: list[LongPass] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    finished: bool = False


class Progress(NamedTuple):
    """How far the study is."""

    done: int
    total: int
    """Passes."""
    what: str


def measure_long(
    recordings: Sequence[Path],
    options: LongOptions | None = None,
    *,
    checkpoint: str | None = None,
    on_progress: Callable[[Progress, LongStudy], None] | None = None,
) -> LongStudy:
    """Embed long recordings in windows and in full context.

    Args:
        recordings: files.
        options: joined to which lengths, where; None is the default.
        checkpoint: as `load_model` takes it; None is the shipped model.
        on_progress: called before each pass, with what there is so far (to show it, or to keep it safe).

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        DataError: a file does not exist, or none of the recordings to join can be used.
    """
    options = options or LongOptions()
    check_there(recordings)
    model = load_model(checkpoint, device=options.device)
    study = LongStudy(options, {**surroundings(model.device), "model": model.name})
    rate_hz, device = model.front_end.sample_rate_hz, model.device
    del model
    names = [f"{m:g} min joined" for m in sorted(options.minutes)] or [path.name for path in recordings]
    with tempfile.TemporaryDirectory(prefix="ssamba-long-") as folder:
        for number, name in enumerate(names):
            path = recordings[number] if not options.minutes else Path(folder) / "joined.wav"
            if options.minutes:
                _write_joined(path, recordings, sorted(options.minutes)[number], rate_hz, study)
            frames: dict[Context, Array] = {}
            for place, context in enumerate(CONTEXTS):
                if on_progress is not None:
                    on_progress(Progress(2 * number + place, 2 * len(names), f"{name}, {context}"), study)
                vectors = Path(folder) / "frames.npy"
                done = _pass(name, path, context, vectors, checkpoint, device, options.budget_s)
                study.passes.append(done)
                if not done.stopped:
                    frames[context] = np.load(vectors)
            if len(frames) == 2:
                study.agreements.append(agreement(name, study.passes[-1].duration_s or 0.0, *frames.values()))
    study.finished = True
    if on_progress is not None:
        on_progress(Progress(2 * len(names), 2 * len(names), "done"), study)
    return study


def _write_joined(path: Path, recordings: Sequence[Path], minutes: float, rate_hz: int, study: LongStudy) -> None:
    import soundfile

    material = Material(recordings, rate_hz)
    random = np.random.default_rng([study.options.seed, round(60_000 * minutes)])
    soundfile.write(path, material.joined(round(60 * minutes * rate_hz), random), rate_hz, subtype="FLOAT")
    study.skipped += [entry for entry in material.skipped if entry not in study.skipped]


def _pass(
    name: str,
    path: Path,
    context: Context,
    vectors: Path,
    checkpoint: str | None,
    device: torch.device,
    budget_s: float,
) -> LongPass:
    job = json.dumps([str(path), context, str(vectors), checkpoint, str(device), torch.get_num_threads()])
    code = "import sys; from ssamba.studies.long_audio import child_main; child_main(sys.argv[1])"
    try:
        result = in_child(code, [job], budget_s)
    except TimeoutError:
        stopped = f"longer than the budget of {budget_s:g} s"
    except MemoryError:
        stopped = "out of memory"
    except RuntimeError as error:
        stopped = str(error)
    else:
        if "stopped" not in result:
            return LongPass(name, context=context, **result)
        stopped = result["stopped"]
    return LongPass(name, None, context, stopped=stopped)


def child_main(job: str) -> None:
    """What a child does: embed one recording in one context, save its frames, print what that took."""
    path, context, vectors, checkpoint, device_name, threads = json.loads(job)
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    model = load_model(checkpoint, device=device)
    warm = np.random.default_rng(0).standard_normal(round(_WARM_S * model.front_end.sample_rate_hz)) * 0.01
    model.embed(warm, context=context)
    result: dict[str, Any] = {}

    def run() -> None:
        result["embedding"] = model.embed(path, context=context)

    timed: list[float] = []
    try:
        if device.type == "cuda":
            peak: int | None = allocated_peak(lambda: timed.append(once_s(run, device)), device)
        else:
            limit_memory()
            peak = resident_peak(lambda: timed.append(once_s(run)))
    except SsambaError as error:
        print(json.dumps({"stopped": str(error)}))
        return
    except (RuntimeError, MemoryError) as error:
        print(json.dumps({"stopped": "out of memory" if is_out_of_memory(error) else str(error)}))
        return
    whole = process_peak()
    embedding = result["embedding"]
    np.save(vectors, embedding.frames.numpy())
    facts = {"duration_s": embedding.duration_s, "seconds": timed[0], "frames": len(embedding.frames)}
    print(json.dumps({**facts, "peak_bytes": peak, "process_bytes": whole}))


def agreement(name: str, duration_s: float, windows: Array, full: Array) -> Agreement:
    """How far the time steps (K, D) of windows and of full context agree."""
    centered = _cosines(windows - windows.mean(0), full - full.mean(0))
    bins = np.array_split(centered, min(_BINS, len(centered)))
    edges_s = np.cumsum([0, *map(len, bins)]) * (duration_s / len(centered))
    low, median = np.percentile(_cosines(windows, full), (5, 50))
    centered_low, centered_median = np.percentile(centered, (5, 50))
    return Agreement(
        name,
        duration_s,
        median=float(median),
        low=float(low),
        centered_median=float(centered_median),
        centered_low=float(centered_low),
        times_s=[round(float(t), 2) for t in (edges_s[1:] + edges_s[:-1]) / 2],
        over_time=[round(float(np.median(part)), 4) for part in bins],
        low_over_time=[round(float(np.percentile(part, 5)), 4) for part in bins],
    )


def _cosines(a: Array, b: Array) -> Array:
    """Cosine of each row of (K, D) with its partner, (K,)."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: Array = np.einsum("kd,kd->k", a, b) / np.maximum(norms, 1e-12)
    return cosines
