"""The efficiency study: time and memory of SSAMBA and SSAST over the number of patches, and clips per second.

Sides are warm and take turns; figures are medians with their quartiles. Random input, random weights: neither changes
the work. Memory is what one call holds beyond model and input: by the allocator's count on a GPU, as the resident peak of
a process of its own on a CPU, which also keeps a side that needs too much from taking the study down.

A side stops, with the reason on record, when it runs out of memory or when one call takes longer than the budget.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import nn

from ssamba.config import Config
from ssamba.errors import ConfigError
from ssamba.model import create_encoder
from ssamba.ops.dispatch import resolve
from ssamba.ops.matmul import library
from ssamba.studies.harness import (
    Run,
    allocated_peak,
    changed_surroundings,
    in_child,
    is_out_of_memory,
    limit_memory,
    once_s,
    process_peak,
    resident_peak,
    surroundings,
    timings_s,
)

Size = Literal["tiny", "small", "base"]
Pass = Literal["inference", "training"]

ROWS, FRAMES_PER_PATCH, BINS = 8, 16, 128  # the official grid
_GAIN = 1.05  # a larger batch must give so many times the clips per second to go on
_LARGEST_BATCH = 1024
_CHILD_PATIENCE = 4  # a child may take so many times the budget of a call, and the seconds that it needs to start
_COLD = 2  # a first call may take so many times the budget and be followed by a warm one
_CHILD_START_S = 60.0


class Side(NamedTuple):
    """A model, how its attention is computed, and the precision that it runs in."""

    title: str
    variant: Literal["official", "ssast"]
    precision: Literal["fp32", "bf16"]
    attention: Literal["fused", "unfused"] | None = None


SIDES: dict[str, Side] = {
    "ssamba-fp32": Side("SSAMBA fp32", "official", "fp32"),
    "ssamba-bf16": Side("SSAMBA bf16", "official", "bf16"),
    "ssast-fp32": Side("SSAST fp32", "ssast", "fp32", "fused"),
    "ssast-bf16": Side("SSAST bf16", "ssast", "bf16", "fused"),
    "ssast-unfused-fp32": Side("SSAST unfused fp32", "ssast", "fp32", "unfused"),
    "ssast-unfused-bf16": Side("SSAST unfused bf16", "ssast", "bf16", "unfused"),
}


class EfficiencyOptions(Config):
    """What is measured. The default compares every side at its best."""

    sizes: tuple[Size, ...] = ("tiny", "small", "base")
    """Sizes of both models."""
    patches: tuple[int, ...] = (512, 1024, 2048, 4096, 8192, 16_384, 32_768)
    """Numbers of patches, multiples of 8 (the rows of a spectrogram): 512 are 10.24 s."""
    batches: tuple[int, ...] = (1, 4)
    """Clips in a batch."""
    passes: tuple[Pass, ...] = ("inference", "training")
    """`training` is forward and backward, without the optimizer, whose cost does not depend on the input."""
    sides: tuple[str, ...] = ("ssamba-fp32", "ssamba-bf16", "ssast-fp32", "ssast-bf16", "ssast-unfused-fp32")
    """Names of `SIDES`; bf16 is autocast."""
    throughput: bool = True
    """Whether the batch is doubled at the smallest number of patches until clips per second stop growing."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; `auto` takes a GPU if there is one."""
    budget_s: float = Field(20.0, gt=0)
    """A side stops after a call that took longer."""
    each_s: float = Field(2.0, gt=0)
    """About how long one side is repeated at one shape."""
    repeats: int = Field(20, ge=3)
    """Rounds at most."""
    depth: int | None = Field(None, gt=0)
    """Blocks of both models instead of their own number, to try the study out."""

    @model_validator(mode="after")
    def _check(self) -> EfficiencyOptions:
        for name in ("sizes", "patches", "batches", "passes", "sides"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must name each thing once, and at least one, got {values}")
        unknown = [name for name in self.sides if name not in SIDES]
        if unknown:
            raise ValueError(f"unknown side {unknown[0]!r}: expected some of {', '.join(SIDES)}")
        if any(count < ROWS or count % ROWS for count in self.patches):
            raise ValueError(f"patches must be multiples of {ROWS}, the rows of the grid, got {self.patches}")
        if any(batch < 1 for batch in self.batches):
            raise ValueError(f"batches must be positive, got {self.batches}")
        if self.device != "auto" and torch.device(self.device).type not in ("cpu", "cuda"):
            raise ValueError(f"device must be auto, cpu or cuda, got {self.device!r}")
        return self

    @classmethod
    def paper(cls, **changes: Any) -> EfficiencyOptions:
        """The paper's setting: batches of 4 and 2, single precision, random input, inference, from 512 patches to the
        40,700 of the authors' script (its figures are quoted at 22,000)."""
        setting: dict[str, Any] = {
            "patches": (512, 1024, 2048, 4096, 8192, 16_384, 22_000, 40_704),
            "batches": (4, 2),
            "passes": ("inference",),
            "sides": ("ssamba-fp32", "ssast-unfused-fp32", "ssast-fp32"),
            "throughput": False,
        }
        return cls.parse({**setting, **changes}, "efficiency study")

    def resolved_device(self) -> torch.device:
        """Where to measure; ConfigError if it is not there."""
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.device(name).type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f"device {name!r} was asked for, but torch sees no GPU: use cpu, or a CUDA build of torch"
            )
        return torch.device(name)


class Job(NamedTuple):
    """One side at one shape."""

    side: str
    size: Size
    mode: Pass
    batch: int
    patches: int
    depth: int | None = None


@dataclass(frozen=True)
class Point:
    """What one side costs at one shape."""

    section: Literal["length", "batch"]
    """Whether it belongs to the sweep over patches or to the one over batch sizes."""
    side: str
    size: Size
    mode: Pass
    batch: int
    patches: int
    median_s: float | None = None
    """Seconds of a call; None where it did not run."""
    low_s: float | None = None
    """First quartile."""
    high_s: float | None = None
    """Third quartile."""
    rounds: int = 0
    """Calls that were timed."""
    peak_bytes: int | None = None
    """Most memory beyond model and input; None where the system does not tell."""
    total_bytes: int | None = None
    """Most memory in all: what the allocator of a GPU had given out, or the whole process on a CPU."""
    stopped: str | None = None
    """Why the side goes no further, in words."""

    @property
    def is_single(self) -> bool:
        """Whether only one call was timed, in a process of its own: more than nothing, but no median."""
        return self.median_s is not None and self.rounds < 2

    @property
    def clips_per_s(self) -> float | None:
        """Clips that the side works through in a second."""
        return None if self.median_s is None else self.batch / self.median_s


@dataclass
class Study:
    """All points, and what they were measured on."""

    options: EfficiencyOptions
    environment: dict[str, Any]
    points: list[Point] = field(default_factory=list)
    finished: bool = False

    def best_batches(self) -> list[Point]:
        """For each size, pass and side the point of the batch sweep with the most clips per second."""
        best: dict[tuple[str, str, str], Point] = {}
        for point in self.points:
            if point.section == "batch" and point.clips_per_s is not None:
                key = (point.mode, point.size, point.side)
                if key not in best or point.clips_per_s > (best[key].clips_per_s or 0):
                    best[key] = point
        return list(best.values())


class Progress(NamedTuple):
    """How far the study is."""

    done: int
    total: int
    """Shapes, of the sweeps over patches and those over batch sizes; the latter may end early."""
    what: str


def measure_efficiency(
    options: EfficiencyOptions,
    on_progress: Callable[[Progress, Study], None] | None = None,
    *,
    before: Study | None = None,
) -> Study:
    """Run the study.

    Args:
        options: what to measure.
        on_progress: called before each shape, with what there is so far (to show it, or to keep it safe).
        before: a study that was interrupted; shapes that it has are not measured again.

    Raises:
        ConfigError: the device is not there, or `before` has other options or was made on something else.
    """
    device = options.resolved_device()
    study = Study(options, {**surroundings(device), **_kernels(device)})
    known: dict[tuple[Any, ...], list[Point]] = {}
    if before is not None:
        _check_same(before, study)
        study.environment = before.environment
        for point in before.points:
            shape = (point.section, point.size, point.mode, point.batch, point.patches)
            known.setdefault(shape, []).append(point)
    sweeps = list(_sweeps(options))
    total, done = sum(len(shapes) for _, _, _, shapes in sweeps), 0
    for section, size, mode, shapes in sweeps:
        running = list(options.sides)
        clips_per_s: dict[str, float] = {}
        for index, (batch, patches) in enumerate(shapes):
            if not running:
                break
            if on_progress is not None:
                what = f"{size}, {mode}, batch {batch}, {patches:,} patches"
                on_progress(Progress(done + index, total, what), study)
            jobs = [Job(side, size, mode, batch, patches, options.depth) for side in running]
            had = known.get((section, size, mode, batch, patches))
            for point in had or _measure(section, jobs, options, device):
                study.points.append(point)
                rate, last = point.clips_per_s, clips_per_s.get(point.side, 0.0)
                if point.stopped or rate is None or (section == "batch" and rate < _GAIN * last):
                    running.remove(point.side)
                clips_per_s[point.side] = rate or 0.0
        done += len(shapes)
    study.finished = True
    if on_progress is not None:
        on_progress(Progress(total, total, "done"), study)
    return study


def _kernels(device: torch.device) -> dict[str, str]:
    """What computes the scan, and the matrix products of both models."""
    kernels = {"scan": resolve("auto", device, torch.float32).name}
    return {**kernels, "products": library()} if device.type == "cpu" else kernels


def _check_same(before: Study, now: Study) -> None:
    changed = [] if before.options == now.options else ["options"]
    changed += changed_surroundings(before.environment, now.environment)
    if changed:
        raise ConfigError(
            f"the study to go on with differs in {', '.join(changed)}: repeat its command on the same machine, or start a "
            "new one"
        )


def _sweeps(
    options: EfficiencyOptions,
) -> Iterator[tuple[Literal["length", "batch"], Size, Pass, Sequence[tuple[int, int]]]]:
    """Section, size, pass, and the (batch, patches) to go through."""
    lengths = sorted(options.patches)
    doubling = [(2**power, lengths[0]) for power in range(int(math.log2(_LARGEST_BATCH)) + 1)]
    for size in options.sizes:
        for mode in options.passes:
            for batch in options.batches:
                yield "length", size, mode, [(batch, patches) for patches in lengths]
            if options.throughput:
                yield "batch", size, mode, doubling


def _measure(
    section: Literal["length", "batch"], jobs: Sequence[Job], options: EfficiencyOptions, device: torch.device
) -> Iterable[Point]:
    """A point for each side at one shape."""
    peaks: dict[str, tuple[int | None, int | None]] = {}
    failed: dict[str, str] = {}
    broken = 0
    runs: dict[str, Run] = {}
    slow: dict[str, float] = {}
    for job in jobs:
        try:
            if device.type == "cpu":
                # In a process of its own first: what it cannot do there, this one does not try.
                peak, total, seconds = _cost_in_child(job, options)
                peaks[job.side] = peak, total
                run = prepare(job, device)
            else:
                run = prepare(job, device)
                run()  # warm: kernels are compiled, workspaces allocated
                beyond = allocated_peak(run, device)
                peaks[job.side] = beyond, torch.cuda.max_memory_allocated(device)
                seconds = once_s(run, device)
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError among them
            failed[job.side] = "out of memory"
            if not is_out_of_memory(error):  # one side's failure is no reason to lose the others
                failed[job.side] = f"failed: {error}"
                broken += 1
                if broken == len(jobs):
                    raise
            continue
        except TimeoutError as error:
            failed[job.side] = str(error)
            continue
        if seconds > options.budget_s:
            slow[job.side] = seconds
        else:
            runs[job.side] = _Guarded(run, job.side, failed)
    times = timings_s(runs, repeats=options.repeats, device=device, each_s=options.each_s) if runs else {}
    points = []
    for job in jobs:
        shape = (section, *job[:5])
        if job.side in failed:
            points.append(Point(*shape, stopped=failed[job.side]))
            continue
        memory = peaks[job.side]
        if job.side in slow:
            seconds = slow[job.side]
            reason = f"a call took {seconds:.0f} s, longer than the budget of {options.budget_s:g} s"
            points.append(Point(*shape, seconds, seconds, seconds, 1, *memory, reason))
        else:
            low, median, high = statistics.quantiles(times[job.side], n=4, method="inclusive")
            points.append(Point(*shape, median, low, high, len(times[job.side]), *memory))
    return points


class _Guarded:
    """A call that notes when memory ends, and does nothing from then on."""

    def __init__(self, run: Run, side: str, failed: dict[str, str]):
        self.run, self.side, self.failed = run, side, failed

    def __call__(self) -> None:
        if self.side in self.failed:
            return
        try:
            self.run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.failed[self.side] = "out of memory beside the other sides"


def prepare(job: Job, device: torch.device) -> Run:
    """The model and input of a job, and the call to be measured."""
    side = SIDES[job.side]
    frames = job.patches // ROWS * FRAMES_PER_PATCH
    overrides: dict[str, Any] = {
        "num_frames": frames
    }  # a table of positions of the right size, so none is interpolated
    if job.depth is not None:
        overrides["depth"] = job.depth
    if side.attention is not None:
        overrides["attention"] = side.attention
    torch.manual_seed(0)
    with torch.device(device):
        model: nn.Module = create_encoder(job.size, side.variant, **overrides)
        features = torch.randn(job.batch, frames, BINS)
    model.train(job.mode == "training")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=side.precision == "bf16")

    def infer() -> None:
        with torch.inference_mode(), autocast:
            model(features)

    def train() -> None:
        with autocast:
            loss = model(features).float().square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return train if job.mode == "training" else infer


def _cost_in_child(job: Job, options: EfficiencyOptions) -> tuple[int | None, int | None, float]:
    """Peak extra memory, the process's own peak, and the seconds of a call, in a process of its own."""
    code = "import sys; from ssamba.studies.efficiency import child_main; child_main(*sys.argv[1:])"
    limit_s = _CHILD_START_S + _CHILD_PATIENCE * options.budget_s
    arguments = [json.dumps(job), str(torch.get_num_threads()), str(options.budget_s)]
    peak, total, seconds = in_child(code, arguments, limit_s)
    return peak, total, seconds


def child_main(job: str, threads: str, budget_s: str) -> None:
    """What a child does: print the peaks and the seconds of a job's call, after a small one, which warms up.

    The first call at full size meets memory that was never touched: unless it takes more than twice the budget, a second
    one is timed.
    """
    torch.set_num_threads(int(threads))
    device, wanted = torch.device("cpu"), Job(*json.loads(job))
    prepare(wanted._replace(batch=1, patches=ROWS), device)()
    run = prepare(wanted, device)
    limit_memory()
    seconds: list[float] = []
    peak = resident_peak(lambda: seconds.append(once_s(run)))
    total = process_peak()
    if seconds[0] <= _COLD * float(budget_s):
        seconds.append(once_s(run))
    print(json.dumps([peak, total, seconds[-1]]))
