"""`ssamba bench`: efficiency of the models, long recordings, needle test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ssamba.cli.app import (
    EXIT_CODES,
    CheckpointOption,
    DeviceOption,
    RecordingsArgument,
    app,
    fail,
    no_model_name,
    out,
    parse_numbers,
    report_skipped,
)
from ssamba.cli.progress import ProgressDisplay
from ssamba.errors import Interrupted, OtherSettingsError
from ssamba.files import output_folder
from ssamba.progress import ProgressReporter

if TYPE_CHECKING:
    from ssamba.studies.harness import Progress

bench = typer.Typer(
    name="bench",
    help="Measure time and memory of the models, and how they handle long recordings.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog=EXIT_CODES,
)
app.add_typer(bench)

ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads on the CPU. Default: torch's own choice.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing study.")]


@bench.callback()
def _bench() -> None:
    """Measure time and memory of the models, and how they handle long recordings."""


@bench.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba bench efficiency -o cost/\n\n"
    "ssamba bench efficiency --sizes tiny --patches 512:8192 --batch 1 --passes inference\n\n"
    "ssamba bench efficiency --paper --device cuda\n\n" + EXIT_CODES
)
def efficiency(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for efficiency.json, efficiency.md and figures.")
    ] = Path("efficiency"),
    sizes: Annotated[str | None, typer.Option(help="Sizes of both models. [dim]Default: tiny,small,base[/]")] = None,
    patches: Annotated[
        str | None,
        typer.Option(
            help="Numbers of patches: 512,2048, or 512:32768 for every doubling (512 patches are 10 s). "
            "[dim]Default: 512:32768[/]"
        ),
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Batch sizes. [dim]Default: 1,4[/]")] = None,
    passes: Annotated[
        str | None,
        typer.Option(help="inference, training (forward and backward). [dim]Default: inference,training[/]"),
    ] = None,
    sides: Annotated[
        str | None,
        typer.Option(
            help="ssamba-fp32, ssamba-bf16, ssast-fp32, ssast-bf16 (fused attention), ssast-unfused-fp32, "
            "ssast-unfused-bf16. [dim]Default: all but the last[/]"
        ),
    ] = None,
    throughput: Annotated[
        bool | None,
        typer.Option("--throughput/--no-throughput", help="Search the batch size with the most clips per second."),
    ] = None,
    paper: Annotated[
        bool,
        typer.Option("--paper", help="The paper's setting: batches of 4 and 2, fp32, inference, up to 40,704 patches."),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    threads: ThreadsOption = None,
    budget_s: Annotated[float, typer.Option("--budget-s", help="A side stops after a call that took longer.")] = 20.0,
    each_s: Annotated[
        float, typer.Option("--each-s", help="Approximate time for which a side is repeated at one shape.")
    ] = 2.0,
    depth: Annotated[int | None, typer.Option(help="Number of blocks, to try the command out.", hidden=True)] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Time and memory of SSAMBA and SSAST over input length, for inference and training, and where they cross.

    A side that runs out of memory or exceeds its budget stops, and the others continue. Repeat the command to resume an
    interrupted study, or to print a finished one.
    """
    import torch

    from ssamba.errors import ConfigError
    from ssamba.studies.efficiency import EfficiencyOptions, measure_efficiency
    from ssamba.studies.efficiency_report import crossovers, growths, read_study, save_study

    given = {
        "sizes": words(sizes),
        "patches": None if patches is None else parse_patches(patches),
        "batches": None if batch is None else parse_numbers(batch, "--batch", int),
        "passes": words(passes),
        "sides": words(sides),
        "throughput": throughput,
        "depth": depth,
    }
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    values |= {"device": device, "budget_s": budget_s, "each_s": each_s}
    output = output_folder(output)
    options = EfficiencyOptions.paper(**values) if paper else EfficiencyOptions.parse(values, "bench efficiency")
    before = read_study(output) if (output / "efficiency.json").exists() and not overwrite else None
    if threads is not None:
        torch.set_num_threads(threads)

    def save(study: Any, done: bool) -> list[Path]:
        return save_study(study, output, pictures=done)

    with _progress("measuring", "shapes", save, output, figures=True) as on_progress:
        try:
            study = measure_efficiency(options, on_progress, before=before)
        except ConfigError as error:
            fail(f"{output}: {error}, choose another folder, or --overwrite")
    lines = [f"{c.size}, {c.mode}, batch {c.batch}: {c}" for c in crossovers(study)]
    lines += [
        f"{g.size}, {g.mode}, batch {g.batch}: the time of {g.side} grows with patches^{g.exponent:.2f} "
        f"from {g.first:,} to {g.last:,}"
        for g in growths(study)
        if g.quantity == "time"
    ]
    _print(lines)
    _print(save(study, done=True))


@bench.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba bench needle recordings/ -o needle/\n\n"
    "ssamba bench needle 'night/*.flac' --needles calls/ --minutes 1,10,60 --levels 0,-6,-12\n\n"
    "ssamba bench needle recordings/ -c runs/mine/model --minutes 150 --sides full --seed 1\n\n" + EXIT_CODES
)
def needle(
    recordings: Annotated[
        list[str],
        typer.Argument(
            metavar="RECORDINGS...",
            callback=no_model_name,
            help="Files, folders or patterns: recordings that are joined to haystacks.",
        ),
    ],
    needles: Annotated[
        list[str] | None,
        typer.Option(
            help="Sounds to search for (file, folder or pattern; may be repeated). "
            "[dim]Default: some of the recordings, left out of the haystacks.[/]"
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for needle.json, needle.md and needle.png.")
    ] = Path("needle"),
    minutes: Annotated[
        str | None, typer.Option(help="Durations of the haystacks. [dim]Default: 1,10,60,150[/]")
    ] = None,
    levels: Annotated[
        str | None,
        typer.Option(help="Levels of needles in dB, relative to the haystack. [dim]Default: 0,-6,-12[/]"),
    ] = None,
    sides: Annotated[
        str | None,
        typer.Option(help="windows, full (the model's contexts), log-mel (its input without it). [dim]Default: all[/]"),
    ] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Most needles. [dim]Default: 12[/]")] = None,
    needle_s: Annotated[
        float | None, typer.Option("--needle-s", help="Longer needles are cut to this. [dim]Default: 2[/]")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of all random draws. [dim]Default: 0[/]")] = None,
    checkpoint: CheckpointOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Test whether a known short sound is found again in hours of other recordings.

    Each needle is placed once at each level into recordings joined to each duration, and searched for by the similarity
    of its embedding to that of every time step, in windows and in full context. Repeat the command to resume an
    interrupted study. Full context takes about 2 GB for an hour with the weights that ship.
    """
    import torch

    from ssamba.audio.files import find_audio
    from ssamba.embedder import load_model
    from ssamba.studies.needle import NeedleOptions, measure_needles
    from ssamba.studies.needle_report import headlines, read_needles, save_needles

    given: dict[str, Any] = {
        "minutes": None if minutes is None else parse_numbers(minutes, "--minutes"),
        "levels_db": None if levels is None else parse_numbers(levels, "--levels"),
        "sides": words(sides),
        "needles": count,
        "needle_s": needle_s,
        "seed": seed,
    }
    output = output_folder(output)
    options = NeedleOptions.parse({name: v for name, v in given.items() if v is not None}, "bench needle")
    haystack, sounds = find_audio(recordings), find_audio(needles or [])
    if threads is not None:
        torch.set_num_threads(threads)
    before = read_needles(output) if (output / "needle.json").exists() and not overwrite else None
    model = load_model(checkpoint, device=device)

    def save(study: Any, done: bool) -> list[Path]:
        return save_needles(study, output, picture=done)

    with _progress("searching", "minutes of audio", save, output) as on_progress:
        try:
            study = measure_needles(model, haystack, sounds, options, before=before, on_progress=on_progress)
        except OtherSettingsError as error:
            fail(f"{output}: {error}. Repeat its command, choose another folder, or --overwrite")
    report_skipped(study.skipped)
    _print(headlines(study))
    _print(save(study, done=True))


@bench.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba bench long night.flac dawn.flac -o long/\n\n"
    "ssamba bench long recordings/ --minutes 1,10,60,150 --threads 2\n\n"
    "ssamba bench long recordings/ --minutes 60 -c ssamba_tiny.pth\n\n" + EXIT_CODES
)
def long(
    recordings: RecordingsArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for long.json, long.md and long.png.")] = Path(
        "long"
    ),
    minutes: Annotated[
        str | None, typer.Option(help="Join all recordings to these durations. [dim]Default: each as it is[/]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order in which recordings are joined.")] = 0,
    budget_s: Annotated[float, typer.Option("--budget-s", help="Time limit of a pass.")] = 3600.0,
    checkpoint: CheckpointOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Long recordings in windows against full context: time, peak memory, and agreement of their time steps.

    Every pass runs in a process of its own; one that runs out of memory is reported, and the others continue. Repeat
    the command to resume an interrupted study, or to print a finished one.
    """
    import torch

    from ssamba.audio.files import find_audio
    from ssamba.embedder import load_model
    from ssamba.studies.long_audio import LongOptions, headlines, measure_long, read_long, save_long

    values = {"minutes": () if minutes is None else parse_numbers(minutes, "--minutes"), "seed": seed}
    output = output_folder(output)
    options = LongOptions.parse({**values, "budget_s": budget_s, "device": device}, "bench long")
    before = read_long(output) if (output / "long.json").exists() and not overwrite else None
    files = find_audio(recordings)
    if threads is not None:
        torch.set_num_threads(threads)
    load_model(checkpoint, device=device)  # a checkpoint or device that does not work is reported before any work

    def save(study: Any, done: bool) -> list[Path]:
        return save_long(study, output, picture=done)

    with _progress("measuring", "passes", save, output) as on_progress:
        try:
            study = measure_long(files, options, checkpoint=checkpoint, before=before, on_progress=on_progress)
        except OtherSettingsError as error:
            fail(f"{output}: {error}. Repeat its command, choose another folder, or --overwrite")
    report_skipped(study.skipped)
    if all(p.stopped for p in study.passes):
        fail("; ".join(dict.fromkeys(str(p.stopped) for p in study.passes)))
    _print(headlines(study))
    _print(save(study, done=True))


@contextmanager
def _progress(
    label: str,
    unit: str,
    save: Callable[[Any, bool], object],
    output: Path,
    *,
    figures: bool = False,
) -> Iterator[Callable[[Progress, Any], None]]:
    """Show a progress bar and save the study before each step; on Ctrl-C save it and exit with code 130.

    Args:
        label: label of the bar.
        unit: unit of its counts.
        save: called with the study and whether to write figures.
        output: folder of the study.
        figures: whether to write figures of an interrupted study.

    Yields:
        The callback for the study.
    """
    latest: list[Any] = []
    with ProgressDisplay() as display:
        step = ProgressReporter(display, label, unit=unit)

        def on_progress(progress: Progress, study: Any) -> None:
            step.total = round(progress.total)
            step.update(round(progress.done), detail=progress.step)
            latest[:] = [study]
            save(study, False)

        try:
            yield on_progress
        except KeyboardInterrupt:
            if not latest:
                raise
            save(latest[0], figures)
            raise Interrupted(f"the results so far are in {output}; repeat the command to resume") from None


def _print(lines: Iterable[object]) -> None:
    for line in lines:
        out.print(escape(str(line)), highlight=False, soft_wrap=True)


def parse_patches(text: str) -> tuple[int, ...]:
    """Parse `512,2048` (as it is) or `512:32768` (every doubling from the first to the second, which is included)."""
    if ":" not in text:
        return parse_numbers(text, "--patches", int)
    ends = parse_numbers(text.replace(":", ","), "--patches", int)
    if len(ends) != 2 or not 0 < ends[0] <= ends[1]:
        raise typer.BadParameter(f"--patches: expected FIRST:LAST with FIRST up to LAST, got {text!r}")
    counts = [ends[0]]
    while counts[-1] * 2 < ends[1]:
        counts.append(counts[-1] * 2)
    return (*counts, ends[1]) if ends[1] > counts[-1] else tuple(counts)


def words(text: str | None) -> tuple[str, ...] | None:
    """Parse `a,b`; None stays None."""
    return None if text is None else tuple(part.strip() for part in text.split(","))
