"""Compare two ways to embed long recordings, in windows and in full context: time, memory, agreement of time steps.

Every pass runs in a process of its own, so that its peak memory is its own and running out of memory ends only that
pass. A pass is what users run: `Embedder.embed` on a file, decoding included, once, after a few seconds of audio as
warm-up.

Agreement is the cosine between the two embeddings of each time step: as they are, and centered, i.e. after subtracting
each context's mean over the recording (a component that all steps share would hide their differences).

Shapes: K time steps, D channels.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator

from ssamba.audio.files import Skipped
from ssamba.config import Config, settings_differences
from ssamba.embedder import load_model
from ssamba.errors import OtherSettingsError, SsambaError
from ssamba.files import soundfile_path
from ssamba.plotting import GREEN, RED, LineEnd, blank_figure, draw_table, label_lines, save_figure, styled
from ssamba.studies.harness import (
    Progress,
    environment,
    in_child,
    is_out_of_memory,
    list_section,
    machine_name,
    measure_call,
    process_peak,
    read_report,
    report_head,
    table,
    write_report,
)
from ssamba.studies.recordings import RecordingPool, require_files

Context = Literal["windows", "full"]
CONTEXTS: tuple[Context, ...] = ("windows", "full")
_COLORS: dict[Context, str] = {"windows": GREEN, "full": RED}
_BINS = 300
_WARM_UP_S = 3.0


class LongOptions(Config):
    """Options of the study."""

    minutes: tuple[float, ...] = ()
    """Concatenate all recordings to these durations; if empty, embed each recording as it is."""
    device: str | None = None
    """Device of the model; None uses a GPU if there is one."""
    budget_s: float = Field(3600.0, gt=0)
    """Time limit of a pass."""
    seed: int = Field(0, ge=0)
    """Seed of the order in which recordings are concatenated."""

    @model_validator(mode="after")
    def _check(self) -> LongOptions:
        if len(set(self.minutes)) != len(self.minutes) or any(not 0.1 <= m < float("inf") for m in self.minutes):
            raise ValueError(f"minutes must be different lengths of at least 0.1, got {self.minutes}")
        return self


@dataclass(frozen=True)
class LongPass:
    """Cost of embedding one recording in one context."""

    recording: str
    duration_s: float | None
    """Duration of the audio; None if the pass did not run."""
    context: Context
    seconds: float | None = None
    frames: int | None = None
    """Number of time steps."""
    peak_bytes: int | None = None
    """Peak memory beyond the loaded model: resident on a CPU, allocated on a GPU; None if not reported."""
    process_bytes: int | None = None
    """Peak memory of the whole process, including Python, torch and the model; None if not reported."""
    stopped: str | None = None
    """Reason if there is no result."""


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
    """Centers of the bins of the two lists below."""
    over_time: list[float]
    """Median of the centered cosine in each bin."""
    low_over_time: list[float]
    """5th percentile of the centered cosine in each bin."""


@dataclass
class LongStudy:
    """All passes, and the environment they ran in."""

    options: LongOptions
    environment: dict[str, Any]
    """Date, hardware and versions; `model` and `weights_digest`."""
    recordings: list[str] = field(default_factory=list)
    """Name and size of each file, in order: with other ones, a study is not resumed. Old studies do not have them."""
    passes: list[LongPass] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    finished: bool = False


def measure_long(
    recordings: Sequence[Path],
    options: LongOptions | None = None,
    *,
    checkpoint: str | None = None,
    before: LongStudy | None = None,
    on_progress: Callable[[Progress, LongStudy], None] | None = None,
) -> LongStudy:
    """Embed long recordings in windows and in full context.

    Args:
        recordings: files.
        options: durations and device; None means the default.
        checkpoint: as `load_model` takes it; None means the shipped model.
        before: an interrupted or finished study; recordings that it has in both contexts are not embedded again.
        on_progress: called before each pass with the study so far, to show or save it.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        DataError: a file does not exist, or none of the recordings to concatenate can be used.
        OtherSettingsError: `before` has other options, recordings, weights, or another environment.
    """
    options = options or LongOptions()
    require_files(recordings)
    model = load_model(checkpoint, device=options.device)
    study = LongStudy(
        options,
        {**environment(model.device), "model": model.name, "weights_digest": model.identity.weights_digest},
        [f"{path.name} ({path.stat().st_size:,} bytes)" for path in recordings],
    )
    done = 0
    if before is not None:
        study, done = _resume(before, study)
    rate_hz, device = model.front_end.sample_rate_hz, model.device
    del model
    names = [f"{m:g} min joined" for m in sorted(options.minutes)] or [path.name for path in recordings]
    with tempfile.TemporaryDirectory(prefix="ssamba-long-") as folder:
        for number, name in list(enumerate(names))[done:]:
            path = recordings[number] if not options.minutes else Path(folder) / "joined.wav"
            if options.minutes:
                _write_joined(path, recordings, sorted(options.minutes)[number], rate_hz, study)
            frames: dict[Context, npt.NDArray[Any]] = {}
            for index, context in enumerate(CONTEXTS):
                if on_progress is not None:
                    on_progress(Progress(2 * number + index, 2 * len(names), f"{name}, {context}"), study)
                vectors = Path(folder) / "frames.npy"
                one = embed_in_child(name, path, context, vectors, checkpoint, device, options.budget_s)
                if not one.stopped:
                    frames[context] = np.load(vectors)
                if len(frames) == 2:
                    study.agreements.append(agreement(name, one.duration_s or 0.0, *frames.values()))
                study.passes.append(one)  # last, so that the passes of a saved study say how far it got
    study.finished = True
    if on_progress is not None:
        on_progress(Progress(2 * len(names), 2 * len(names), "done"), study)
    return study


def _resume(before: LongStudy, now: LongStudy) -> tuple[LongStudy, int]:
    """Return the earlier study as far as it has recordings in both contexts, and the number of these recordings.

    Raises:
        OtherSettingsError: the studies differ in more than the date.
    """
    changed = settings_differences(_settings(before), _settings(now))
    missing, extra = Counter(before.recordings), Counter(now.recordings)
    missing, extra = missing - extra, extra - missing
    changed += [f"recordings: {text} is not given now" for text in missing]
    changed += [f"recordings: {text} is new" for text in extra]
    if not missing and not extra and before.recordings != now.recordings:
        changed.append("recordings are given in another order")
    if changed:
        raise OtherSettingsError(f"the study was made with other settings: {'; '.join(changed)}")
    done = len(before.passes) // len(CONTEXTS)  # the frames of a single context are gone
    passes = before.passes[: len(CONTEXTS) * done]
    stopped = {number // len(CONTEXTS) for number, one in enumerate(passes) if one.stopped}
    agreements = before.agreements[: done - len(stopped)]
    return replace(before, passes=passes, agreements=agreements), done


def _settings(study: LongStudy) -> dict[str, Any]:
    """Return what must be equal for a study to be resumed, recordings aside."""
    values = {**study.options.model_dump(mode="json"), **study.environment}
    return {name: value for name, value in values.items() if name != "date"}


def _write_joined(path: Path, recordings: Sequence[Path], minutes: float, rate_hz: int, study: LongStudy) -> None:
    import soundfile

    pool = RecordingPool(recordings, rate_hz)
    rng = np.random.default_rng([study.options.seed, round(60_000 * minutes)])
    soundfile.write(
        soundfile_path(path), pool.concatenate(round(60 * minutes * rate_hz), rng), rate_hz, subtype="FLOAT"
    )
    study.skipped += [entry for entry in pool.skipped if entry not in study.skipped]


def embed_in_child(
    name: str,
    path: Path,
    context: Context,
    vectors: Path,
    checkpoint: str | None,
    device: torch.device,
    budget_s: float,
) -> LongPass:
    """Embed a recording in a child process; write its frame embeddings (K, D) to the .npy file `vectors`."""
    job = json.dumps([str(path), context, str(vectors), checkpoint, str(device), torch.get_num_threads()])
    code = "import sys; from ssamba.studies.long_audio import child_main; child_main(sys.argv[1])"
    try:
        result = in_child(code, [job], budget_s)
    except TimeoutError:
        result = {"stopped": f"longer than the budget of {budget_s:g} s"}
    except MemoryError:
        result = {"stopped": "out of memory"}
    except RuntimeError as error:
        result = {"stopped": str(error)}
    return LongPass(name, context=context, **{"duration_s": None, **result})


def child_main(job: str) -> None:
    """Run in the child: embed one recording in one context, save its frames, and print its cost as JSON."""
    path, context, vectors, checkpoint, device_name, threads = json.loads(job)
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    model = load_model(checkpoint, device=device)
    noise = np.random.default_rng(0).standard_normal(round(_WARM_UP_S * model.front_end.sample_rate_hz)) * 0.01
    model.embed(noise, context=context)
    result: dict[str, Any] = {}

    def run() -> None:
        result["embedding"] = model.embed(path, context=context)

    try:
        cost = measure_call(run, device)
    except SsambaError as error:
        print(json.dumps({"stopped": str(error)}))
        return
    except (RuntimeError, MemoryError) as error:
        print(json.dumps({"stopped": "out of memory" if is_out_of_memory(error) else str(error)}))
        return
    process_bytes = process_peak()
    embedding = result["embedding"]
    np.save(vectors, embedding.frames.numpy())
    facts = {"duration_s": embedding.duration_s, "seconds": cost.seconds, "frames": len(embedding.frames)}
    print(json.dumps({**facts, "peak_bytes": cost.peak_bytes, "process_bytes": process_bytes}))


def agreement(name: str, duration_s: float, windows: npt.NDArray[Any], full: npt.NDArray[Any]) -> Agreement:
    """Compare the time steps (K, D) of windows with those of full context."""
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


def _cosines(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the cosine of each row of `a` (K, D) with the same row of `b`: (K,)."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: npt.NDArray[Any] = np.einsum("kd,kd->k", a, b) / np.maximum(norms, 1e-12)
    return cosines


def headlines(study: LongStudy) -> list[str]:
    """Return one sentence for each pass and one for each agreement."""
    lines = []
    for p in study.passes:
        cost = p.stopped or f"{_seconds(p)} s, {_megabytes(p.process_bytes)} MB in all"
        lines.append(f"{p.recording}, {p.context}: {cost}")
    lines += [
        f"{a.recording}: cosine of time steps {a.median:.3f} in the median, {a.low:.3f} at the 5th percentile; "
        f"centered {a.centered_median:.3f}, {a.centered_low:.3f}"
        for a in study.agreements
    ]
    return lines


def markdown(study: LongStudy) -> str:
    """Return the whole study as Markdown."""
    parts = report_head("Long recordings", study.environment, study.finished)
    parts.append(
        "Each pass runs once, warm, in a process of its own, decoding included. `peak` is memory beyond the loaded "
        "model, `in all` that of the whole process."
    )
    columns = ["recording", "minutes", "context", "s", "x real time", "peak MB", "in all MB", "time steps"]
    parts.append(table(columns, [_row(p) for p in study.passes]))
    if study.agreements:
        columns = ["recording", "minutes", "cosine, median", "5th percentile", "centered, median", "5th percentile"]
        rows = [
            [
                a.recording,
                f"{a.duration_s / 60:.3g}",
                *(f"{x:.3f}" for x in (a.median, a.low, a.centered_median, a.centered_low)),
            ]
            for a in study.agreements
        ]
        parts += ["## Time steps of windows against full context", table(columns, rows)]
    stopped = [f"{p.recording}, {p.context}: {p.stopped}" for p in study.passes if p.stopped]
    parts += list_section("Passes without a result", stopped)
    parts += list_section("Skipped recordings", [entry.reason for entry in study.skipped])
    return "\n\n".join(parts) + "\n"


def _row(p: LongPass) -> list[str]:
    if p.stopped or p.duration_s is None or p.seconds is None:
        return [p.recording, "-", p.context, *["-"] * 5]
    rate = f"{p.duration_s / p.seconds:.0f}"
    memory = [_megabytes(p.peak_bytes), _megabytes(p.process_bytes)]
    return [p.recording, f"{p.duration_s / 60:.3g}", p.context, _seconds(p), rate, *memory, f"{p.frames:,}"]


def _seconds(p: LongPass) -> str:
    assert p.seconds is not None
    return f"{p.seconds:.0f}" if p.seconds >= 100 else f"{p.seconds:.3g}"


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:,.0f}"


def save_long(study: LongStudy, folder: str | Path, *, picture: bool = True) -> list[Path]:
    """Write `long.json`, `long.md` and `long.png` into a folder, each atomically; return the files.

    Raises:
        MissingExtraError: matplotlib is not installed; JSON and Markdown are written before.
    """
    folder = Path(folder)
    content = {**asdict(study), "options": study.options.model_dump(mode="json")}
    files = write_report(folder, "long", content, markdown(study))
    if picture:
        files.append(plot_long(study, folder / "long.png"))
    return files


def read_long(folder: str | Path) -> LongStudy:
    """Read the study, complete or not, that `save_long` wrote into a folder.

    Raises:
        DataError: the file holds something else.
    """
    path = Path(folder) / "long.json"

    def build(content: dict[str, Any]) -> LongStudy:
        return LongStudy(
            LongOptions.parse(content.pop("options"), str(path)),
            passes=[LongPass(**entry) for entry in content.pop("passes")],
            agreements=[Agreement(**entry) for entry in content.pop("agreements")],
            skipped=[Skipped(**entry) for entry in content.pop("skipped")],
            **content,
        )

    return read_report(path, "a study of long recordings", build)


def plot_long(study: LongStudy, output: Path) -> Path:
    """Plot time and memory over duration, and the agreement of the longest recording over its time.

    Where a single duration was measured, time and memory are a table.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    measured = [p for p in study.passes if p.duration_s and p.seconds]
    longest = max(study.agreements, key=lambda a: a.duration_s, default=None)
    with styled([] if longest is None else [longest.recording]) as show:
        ends: dict[Any, list[LineEnd]] = {}
        is_single = len({p.duration_s for p in measured}) < 2
        figure = blank_figure(9, (1.0 if is_single else 2.9) + (0.6 if longest is None else 3.0))
        figure.suptitle(f"Long recordings, {show(study.environment['model'])} ({machine_name(study.environment)})")
        ratios = [0.5 if is_single else 1.0, *([] if longest is None else [1.0])]
        above, *below = figure.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
        if is_single:
            columns = ["context", "minutes", "s", "MB, whole process"]
            rows = [[p.context, f"{p.duration_s / 60:g}", _seconds(p), _megabytes(p.process_bytes)]
                    for p in measured if p.duration_s]  # fmt: skip
            draw_table(above.subplots(), columns, rows)
        else:
            left, right = above.subplots(1, 2, sharex=True)
            ends[left] = _plot_cost(left, study, "seconds", 1.0, "s")
            ends[right] = _plot_cost(right, study, "process_bytes", 2**-20, "MB, whole process")
        if longest is not None:
            axis = below[0].subplots()
            ends[axis] = _plot_agreement(axis, longest, show(longest.recording))
        label_lines(ends)
        return save_figure(figure, output)


def _plot_agreement(axis: Any, longest: Agreement, name: str) -> list[LineEnd]:
    at_min = np.array(longest.times_s) / 60
    axis.plot(at_min, longest.low_over_time, color="#8fb3c7", linewidth=0.9)
    axis.plot(at_min, longest.over_time, color="#22577a", linewidth=0.9)
    axis.set_title(f"{name}: centered cosine of windows to full context")
    axis.set_xlabel("minutes from the start")
    axis.set_ylabel("cosine")
    axis.set_xlim(0, 1.12 * at_min[-1])
    lowest = min(longest.low_over_time)
    axis.set_ylim(lowest - 0.1 * (1 - lowest) - 0.01, 1 + 0.1 * (1 - lowest))
    axis.grid()
    ends = [(longest.low_over_time, "5th percentile", "#8fb3c7"), (longest.over_time, "median", "#22577a")]
    return [(float(at_min[-1]), values[-1], text, color) for values, text, color in ends]


def _plot_cost(axis: Any, study: LongStudy, name: str, scale: float, unit: str) -> list[LineEnd]:
    ends: list[LineEnd] = []
    for context in CONTEXTS:
        points = sorted(
            (p.duration_s / 60, scale * value)
            for p in study.passes
            if p.context == context and p.duration_s and (value := getattr(p, name))
        )
        if not points:
            continue
        axis.plot(*zip(*points, strict=True), "o-", color=_COLORS[context])
        above = 1 if context == "full" else -1
        for x, y in points:
            axis.annotate(f"{y:,.3g}" if y < 100 else f"{y:,.0f}", (x, y), (0, 7 * above - 3), fontsize=6.5,
                          textcoords="offset points", ha="center", color=_COLORS[context])  # fmt: skip
        ends.append((*points[-1], context, _COLORS[context]))
        axis.set(xscale="log", yscale="log")
    minutes = sorted({round(p.duration_s / 60, 1) for p in study.passes if p.duration_s})
    axis.set_xticks(minutes, [f"{m:g}" for m in minutes])
    axis.margins(0.15)
    axis.minorticks_off()
    axis.set_xlabel("minutes of audio")
    axis.set_ylabel(unit)
    axis.grid()
    return ends
