"""`ssamba bench needle` and `ssamba bench long`: long recordings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ssamba.cli.app import EXIT_CODES, EXIT_INTERRUPTED, CheckpointOption, err, fail, load_embedder, out
from ssamba.cli.bench import bench, numbers, words
from ssamba.cli.progress import Bar, report_skipped

if TYPE_CHECKING:
    from ssamba.studies.long_audio import LongStudy
    from ssamba.studies.long_audio import Progress as LongProgress
    from ssamba.studies.needle import NeedleStudy, Progress


@bench.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba bench needle recordings/ -o needle/\n\n"
    "ssamba bench needle 'night/*.flac' --needles calls/ --minutes 1,10,60 --levels 0,-6,-12\n\n"
    "ssamba bench needle recordings/ -c runs/mine/model --minutes 150 --sides full --seed 1\n\n" + EXIT_CODES
)
def needle(
    recordings: Annotated[
        list[str], typer.Argument(help="Files, folders or patterns: what haystacks are joined from.")
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
    minutes: Annotated[str | None, typer.Option(help="Lengths of the haystacks. [dim]Default: 1,10,60,150[/]")] = None,
    levels: Annotated[
        str | None,
        typer.Option(help="Levels of needles in dB, relative to the haystack. [dim]Default: 0,-6,-12[/]"),
    ] = None,
    sides: Annotated[
        str | None,
        typer.Option(help="windows, full (the model's contexts), log-mel (its input without it). [dim]Default: all[/]"),
    ] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Needles at most. [dim]Default: 12[/]")] = None,
    needle_s: Annotated[
        float | None, typer.Option("--needle-s", help="Longer needles are cut to this. [dim]Default: 2[/]")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything that is drawn. [dim]Default: 0[/]")] = None,
    checkpoint: CheckpointOption = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: a GPU if there is one.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads on the CPU. Default: torch's own choice.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a study that is there.")] = False,
) -> None:
    """Is a known short sound found again in hours of other recordings?

    Each needle is placed once at each level into recordings joined to each length, and searched for by the similarity
    of its embedding to that of every time step, in windows and in full context. Repeat the command to go on where it
    was interrupted. Full context takes about 2 GB for an hour with the weights that ship.
    """
    import torch

    from ssamba.audio.files import find_audio
    from ssamba.errors import ConfigError
    from ssamba.studies.needle import measure_needles
    from ssamba.studies.needle_plan import NeedleOptions
    from ssamba.studies.needle_report import JSON, headlines, read_needles, save_needles

    asked: dict[str, Any] = {
        "minutes": None if minutes is None else numbers(minutes, "--minutes"),
        "levels_db": None if levels is None else numbers(levels, "--levels"),
        "sides": words(sides),
        "needles": count,
        "needle_s": needle_s,
        "seed": seed,
    }
    try:
        options = NeedleOptions.parse({name: v for name, v in asked.items() if v is not None}, "bench needle")
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    try:
        haystack, sounds = find_audio(recordings), find_audio(needles or [])
    except ValueError as error:
        fail(str(error))
    if threads is not None:
        torch.set_num_threads(threads)
    before = read_needles(output) if (output / JSON).exists() and not overwrite else None
    model = load_embedder(checkpoint, device)
    latest: list[NeedleStudy] = []
    with Bar("searching", "minutes of audio") as bar:

        def show(progress: Progress, study: NeedleStudy) -> None:
            bar.update(round(progress.done), round(progress.total), escape(progress.what))
            latest[:] = [study]
            save_needles(study, output, picture=False)

        try:
            study = measure_needles(model, haystack, sounds, options, before=before, on_progress=show)
        except ValueError as error:
            if before is None or latest:
                raise
            fail(f"{output}: {error}; choose another folder, or --overwrite")
        except KeyboardInterrupt:
            bar.__exit__()
            if latest:
                save_needles(latest[0], output, picture=False)
            kept = f": what was found is in {output}; the same command goes on" if latest else ""
            err.print(f"[yellow]interrupted[/]{escape(kept)}", soft_wrap=True)
            sys.exit(EXIT_INTERRUPTED)
    report_skipped(study.skipped)
    for line in headlines(study):
        out.print(escape(line), highlight=False, soft_wrap=True)
    for path in save_needles(study, output):
        out.print(escape(str(path)), highlight=False, soft_wrap=True)


@bench.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba bench long night.flac dawn.flac -o long/\n\n"
    "ssamba bench long recordings/ --minutes 1,10,60,150 --threads 2\n\n"
    "ssamba bench long recordings/ --minutes 60 -c ssamba_tiny.pth\n\n" + EXIT_CODES
)
def long(
    recordings: Annotated[list[str], typer.Argument(help="Files, folders or patterns.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for long.json, long.md and long.png.")] = Path(
        "long"
    ),
    minutes: Annotated[
        str | None, typer.Option(help="Join all recordings to these lengths. [dim]Default: each as it is[/]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order in which recordings are joined.")] = 0,
    budget_s: Annotated[float, typer.Option("--budget-s", help="A pass that takes longer is ended.")] = 3600.0,
    checkpoint: CheckpointOption = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: a GPU if there is one.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads on the CPU. Default: torch's own choice.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a study that is there.")] = False,
) -> None:
    """Long recordings in windows against full context: time, peak memory, and how far their time steps agree.

    Every pass runs in a process of its own; one that needs too much memory is named, and the others go on. An interrupted
    study keeps what it measured.
    """
    import torch

    from ssamba.audio.files import find_audio
    from ssamba.errors import ConfigError
    from ssamba.studies.long_audio import LongOptions, measure_long
    from ssamba.studies.long_audio_report import headlines, save_long

    values = {"minutes": () if minutes is None else numbers(minutes, "--minutes"), "seed": seed}
    try:
        options = LongOptions.parse({**values, "budget_s": budget_s, "device": device}, "bench long")
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    if (output / "long.json").exists() and not overwrite:
        fail(f"{output} holds a study already: choose another folder, or --overwrite")
    try:
        files = find_audio(recordings)
    except ValueError as error:
        fail(str(error))
    if threads is not None:
        torch.set_num_threads(threads)
    load_embedder(checkpoint, device)  # a checkpoint or device that does not work is named before anything is joined
    latest: list[LongStudy] = []
    with Bar("measuring", "passes") as bar:

        def show(progress: LongProgress, study: LongStudy) -> None:
            bar.update(progress.done, progress.total, escape(progress.what))
            latest[:] = [study]
            save_long(study, output, picture=False)

        try:
            study = measure_long(files, options, checkpoint=checkpoint, on_progress=show)
        except KeyboardInterrupt:
            bar.__exit__()
            kept = f": what was measured is in {output}" if latest else ""
            if latest:
                save_long(latest[0], output, picture=False)
            err.print(f"[yellow]interrupted[/]{escape(kept)}", soft_wrap=True)
            sys.exit(EXIT_INTERRUPTED)
    report_skipped(study.skipped)
    if all(p.stopped for p in study.passes):
        fail("; ".join(dict.fromkeys(str(p.stopped) for p in study.passes)))
    for line in headlines(study):
        out.print(escape(line), highlight=False, soft_wrap=True)
    for path in save_long(study, output):
        out.print(escape(str(path)), highlight=False, soft_wrap=True)
