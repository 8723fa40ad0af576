"""Measure time and memory of SSAMBA and SSAST over the number of patches, and their best throughput in clips per
second.

Sides are warm and timed in turns; figures are medians with quartiles. Input and weights are random, which does not
change the work. Memory is what one call holds beyond model and input: counted by the allocator on a GPU; on a CPU the
resident peak of a process of its own, which also keeps a side that needs too much memory from ending the study.

A side stops, and the reason is recorded, when it runs out of memory or when one call takes longer than the budget.
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

from ssamba.config import Config, settings_differences
from ssamba.devices import parse_device
from ssamba.errors import ConfigError
from ssamba.model import create_encoder
from ssamba.ops.dispatch import resolve
from ssamba.ops.matmul import library
from ssamba.studies.harness import (
    Progress,
    Run,
    environment,
    in_child,
    is_out_of_memory,
    measure_call,
    once_s,
    timings_s,
)

Size = Literal["tiny", "small", "base"]
Pass = Literal["inference", "training"]
Section = Literal["length", "batch"]

ROWS, FRAMES_PER_PATCH, BINS = 8, 16, 128  # the official grid
_LEAST_GAIN = 1.05  # the batch is doubled while throughput grows at least by this factor
_LARGEST_BATCH = 1024
_CHILD_BUDGETS = 4  # time limit of a child process, in budgets of a call, in addition to its start
_CHILD_START_S = 60.0
_COLD_BUDGETS = 2  # a second, warm call is timed unless the first one took longer than this


class Side(NamedTuple):
    """A model, the implementation of its attention, and its precision."""

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
    """Options of the study. The default compares every side at its best."""

    sizes: tuple[Size, ...] = ("tiny", "small", "base")
    """Sizes of both models."""
    patches: tuple[int, ...] = (512, 1024, 2048, 4096, 8192, 16_384, 32_768)
    """Numbers of patches, multiples of 8 (the rows of the patch grid); 512 patches are 10.24 s."""
    batches: tuple[int, ...] = (1, 4)
    """Batch sizes."""
    passes: tuple[Pass, ...] = ("inference", "training")
    """`training` is forward and backward, without the optimizer, whose cost does not depend on the input."""
    sides: tuple[str, ...] = ("ssamba-fp32", "ssamba-bf16", "ssast-fp32", "ssast-bf16", "ssast-unfused-fp32")
    """Names from `SIDES`; bf16 is autocast."""
    throughput: bool = True
    """Whether to double the batch at the smallest number of patches until clips per second stop growing."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; `auto` uses a GPU if there is one."""
    budget_s: float = Field(20.0, gt=0)
    """A side stops after a call that took longer."""
    each_s: float = Field(2.0, gt=0)
    """Approximate time for which one side is repeated at one shape."""
    repeats: int = Field(20, ge=3)
    """Most rounds."""
    depth: int | None = Field(None, gt=0)
    """Number of blocks of both models, to try the study out; None means each model's own."""

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
        if self.device != "auto" and parse_device(self.device).type not in ("cpu", "cuda"):
            raise ValueError(f"device must be auto, cpu or cuda, got {self.device!r}")
        return self

    @classmethod
    def paper(cls, **changes: Any) -> EfficiencyOptions:
        """Return the paper's setting: batches of 4 and 2, fp32, random input, inference, 512 to 40,704 patches.

        The authors' script goes to 40,700 patches; the paper quotes figures at 22,000.
        """
        setting: dict[str, Any] = {
            "patches": (512, 1024, 2048, 4096, 8192, 16_384, 22_000, 40_704),
            "batches": (4, 2),
            "passes": ("inference",),
            "sides": ("ssamba-fp32", "ssast-unfused-fp32", "ssast-fp32"),
            "throughput": False,
        }
        return cls.parse({**setting, **changes}, "efficiency study")

    def resolved_device(self) -> torch.device:
        """Return the device to measure on; raise ConfigError if it is not available."""
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.device(name).type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                f"device {name!r} was requested, but torch sees no GPU: use cpu, or a CUDA build of torch"
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
    """Cost of one side at one shape."""

    section: Section
    """Sweep that the point belongs to: over the number of patches, or over the batch size."""
    side: str
    size: Size
    mode: Pass
    batch: int
    patches: int
    median_s: float | None = None
    """Seconds of a call; None if it did not run."""
    low_s: float | None = None
    """First quartile."""
    high_s: float | None = None
    """Third quartile."""
    rounds: int = 0
    """Number of timed calls."""
    peak_bytes: int | None = None
    """Peak memory beyond model and input; None if not reported."""
    total_bytes: int | None = None
    """Peak memory in all: of the allocator on a GPU, of the whole process on a CPU."""
    stopped: str | None = None
    """Reason why the side stops here."""

    @property
    def is_single(self) -> bool:
        """Whether only one call was timed, in a child process, which gives no median."""
        return self.median_s is not None and self.rounds < 2

    @property
    def clips_per_s(self) -> float | None:
        """Throughput."""
        return None if self.median_s is None else self.batch / self.median_s


@dataclass
class Study:
    """All points, and the environment they were measured in."""

    options: EfficiencyOptions
    environment: dict[str, Any]
    points: list[Point] = field(default_factory=list)
    finished: bool = False

    def best_batches(self) -> list[Point]:
        """Return the point with the highest throughput of each batch sweep."""
        best: dict[tuple[str, str, str], Point] = {}
        for point in self.points:
            if point.section == "batch" and point.clips_per_s is not None:
                key = (point.mode, point.size, point.side)
                if key not in best or point.clips_per_s > (best[key].clips_per_s or 0):
                    best[key] = point
        return list(best.values())


def measure_efficiency(
    options: EfficiencyOptions,
    on_progress: Callable[[Progress, Study], None] | None = None,
    *,
    before: Study | None = None,
) -> Study:
    """Run the study.

    Args:
        options: what to measure.
        on_progress: called before each shape with the study so far, to show or save it. Progress counts shapes; a sweep
            over batch sizes may end early.
        before: an interrupted study; its shapes are not measured again.

    Raises:
        ConfigError: the device is not available, or `before` has other options or another environment.
    """
    device = options.resolved_device()
    study = Study(options, {**environment(device), **_kernels(device)})
    known: dict[tuple[Any, ...], list[Point]] = {}
    if before is not None:
        old, new = ({**s.options.model_dump(mode="json"), **s.environment, "date": None} for s in (before, study))
        changes = settings_differences(old, new)
        if changes:
            raise ConfigError(
                f"the study was made with other settings: {'; '.join(changes)}. Repeat its command on the same machine"
            )
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
                step = f"{size}, {mode}, batch {batch}, {patches:,} patches"
                on_progress(Progress(done + index, total, step), study)
            jobs = [Job(side, size, mode, batch, patches, options.depth) for side in running]
            for point in known.get((section, size, mode, batch, patches)) or _measure(section, jobs, options, device):
                study.points.append(point)
                rate, last = point.clips_per_s, clips_per_s.get(point.side, 0.0)
                if point.stopped or rate is None or (section == "batch" and rate < _LEAST_GAIN * last):
                    running.remove(point.side)
                clips_per_s[point.side] = rate or 0.0
        done += len(shapes)
    study.finished = True
    if on_progress is not None:
        on_progress(Progress(total, total, "done"), study)
    return study


def _kernels(device: torch.device) -> dict[str, str]:
    """Return the backend of the scan and, on a CPU, the library of both models' matrix products."""
    kernels = {"scan": resolve("auto", device, torch.float32).name}
    return {**kernels, "products": library()} if device.type == "cpu" else kernels


def _sweeps(options: EfficiencyOptions) -> Iterator[tuple[Section, Size, Pass, Sequence[tuple[int, int]]]]:
    """Yield section, size, pass, and the (batch, patches) of each sweep."""
    lengths = sorted(options.patches)
    doubling = [(2**power, lengths[0]) for power in range(int(math.log2(_LARGEST_BATCH)) + 1)]
    for size in options.sizes:
        for mode in options.passes:
            for batch in options.batches:
                yield "length", size, mode, [(batch, patches) for patches in lengths]
            if options.throughput:
                yield "batch", size, mode, doubling


def _measure(
    section: Section, jobs: Sequence[Job], options: EfficiencyOptions, device: torch.device
) -> Iterable[Point]:
    """Return a point for each side at one shape."""
    peaks: dict[str, tuple[int | None, int | None]] = {}
    stopped: dict[str, str] = {}
    num_errors = 0
    runs: dict[str, Run] = {}
    slow: dict[str, float] = {}
    for job in jobs:
        try:
            if device.type == "cpu":
                # In a child process first: a side that fails there is not tried here.
                peak, total, seconds = _cost_in_child(job, options)
                run = prepare(job, device)
            else:
                run = prepare(job, device)
                run()  # warm-up: compiles kernels, allocates workspaces
                _, peak, total = measure_call(run, device)
                seconds = once_s(run, device)
            peaks[job.side] = peak, total
        except (RuntimeError, MemoryError) as error:  # includes torch.OutOfMemoryError
            stopped[job.side] = "out of memory"
            if not is_out_of_memory(error):  # the other sides continue, unless all fail
                stopped[job.side] = f"failed: {error}"
                num_errors += 1
                if num_errors == len(jobs):
                    raise
            continue
        except TimeoutError as error:
            stopped[job.side] = str(error)
            continue
        if seconds > options.budget_s:
            slow[job.side] = seconds
        else:
            runs[job.side] = _Guarded(run, job.side, stopped)
    times = timings_s(runs, repeats=options.repeats, device=device, each_s=options.each_s) if runs else {}
    points = []
    for job in jobs:
        shape = (section, *job[:5])
        if job.side in stopped:
            points.append(Point(*shape, stopped=stopped[job.side]))
        elif job.side in slow:
            seconds = slow[job.side]
            reason = f"a call took {seconds:.0f} s, longer than the budget of {options.budget_s:g} s"
            points.append(Point(*shape, seconds, seconds, seconds, 1, *peaks[job.side], reason))
        else:
            low, median, high = statistics.quantiles(times[job.side], n=4, method="inclusive")
            points.append(Point(*shape, median, low, high, len(times[job.side]), *peaks[job.side]))
    return points


class _Guarded:
    """A call that records when it runs out of memory, and does nothing from then on."""

    def __init__(self, run: Run, side: str, stopped: dict[str, str]):
        self.run, self.side, self.stopped = run, side, stopped

    def __call__(self) -> None:
        if self.side in self.stopped:
            return
        try:
            self.run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.stopped[self.side] = "out of memory beside the other sides"


def prepare(job: Job, device: torch.device) -> Run:
    """Create the model and input of a job; return the call to measure."""
    side = SIDES[job.side]
    frames = job.patches // ROWS * FRAMES_PER_PATCH
    overrides: dict[str, Any] = {"num_frames": frames}  # a position table of this size needs no interpolation
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
    """Measure a job in a child process: peak memory beyond model and input, peak of the process, seconds of a call."""
    code = "import sys; from ssamba.studies.efficiency import child_main; child_main(*sys.argv[1:])"
    limit_s = _CHILD_START_S + _CHILD_BUDGETS * options.budget_s
    arguments = [json.dumps(job), str(torch.get_num_threads()), str(options.budget_s)]
    peak, total, seconds = in_child(code, arguments, limit_s)
    return peak, total, seconds


def child_main(job: str, threads: str, budget_s: str) -> None:
    """Run in the child: after a small warm-up call, print peaks and seconds of a job's call as JSON.

    The first call at full size touches new memory, so a second call is timed, unless the first takes more than twice
    the budget.
    """
    torch.set_num_threads(int(threads))
    device, full = torch.device("cpu"), Job(*json.loads(job))
    prepare(full._replace(batch=1, patches=ROWS), device)()
    run = prepare(full, device)
    seconds, peak, total = measure_call(run)
    if seconds <= _COLD_BUDGETS * float(budget_s):
        seconds = once_s(run)
    print(json.dumps([peak, total, seconds]))
