"""`ssamba prepare`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ssamba.cli.app import EXIT_CODES, EXIT_SKIPPED, app, err, fail, hours_of_audio, out
from ssamba.cli.progress import Bar, default_workers, report_skipped

_NAMES = (
    "audioset-20k, audioset-2m, esc50, fsd50k, iemocap, librispeech, speech-commands-v1, speech-commands-v1-superb, "
    "speech-commands-v2, urbansound8k, urbansound8k-scenes, voxceleb1"
)
_OPEN = "open-audio"


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba prepare esc50 ESC-50-master/ -o esc50.parquet\n\n"
    "ssamba prepare audioset-20k audioset/ -o audioset-20k.parquet --workers 16\n\n"
    "ssamba prepare urbansound8k-scenes UrbanSound8K/ -o scenes.parquet --audio scenes/\n\n"
    "ssamba prepare open-audio --debs debs/ -o suite/   (the suite of `ssamba evaluate`, from Debian packages)\n\n"
    "ssamba prepare open-audio --debs debs/ -o suite/ --fetch --task zh_final --task drum8\n\n" + EXIT_CODES
)
def prepare(
    name: Annotated[str, typer.Argument(help=f"Data set: {_NAMES}; or {_OPEN}.")],
    source: Annotated[
        Path | None, typer.Argument(help=f"The folder that it was unpacked to; {_OPEN} has --debs.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help=f"Manifest to write: .parquet, .csv or .jsonl; for {_OPEN} the suite's folder.",
            show_default=False,
        ),
    ] = None,
    debs: Annotated[Path | None, typer.Option(help=f"{_OPEN}: the folder with Debian's .deb files.")] = None,
    fetch: Annotated[
        bool,
        typer.Option("--fetch", help=f"{_OPEN}: download missing packages to --debs with apt-get; no root needed."),
    ] = False,
    task: Annotated[list[str] | None, typer.Option(help=f"{_OPEN}: only this task; may be repeated.")] = None,
    audio: Annotated[
        Path | None,
        typer.Option(help="Where urbansound8k-scenes writes its recordings. Default: the manifest's name and _audio."),
    ] = None,
    headers: Annotated[
        bool,
        typer.Option(
            "--headers/--no-headers", help="Read the header of each file: its duration, and whether it is whole."
        ),
    ] = True,
    checksums: Annotated[
        bool, typer.Option("--checksums", help="Compare the archives in SOURCE with the published checksums.")
    ] = False,
    allow_leaks: Annotated[
        bool, typer.Option("--allow-leaks", help="Go on where a speaker or recording is in several splits.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help=f"Replace a manifest, or tasks of {_OPEN}, that are there.")
    ] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit with code 3 if any file is missing or damaged, or a task is left out."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that read headers, or make clips. Default: the cores but one, at most 8."),
    ] = None,
) -> None:
    """Make a manifest of a public data set: its labels, its official splits or folds, and groups that must stay together.

    Only --fetch downloads anything. Files that are missing or damaged are listed in OUTPUT.skipped.csv, the classes in their
    official order in OUTPUT.classes.csv, weights for balanced sampling (AudioSet) in OUTPUT.weights.csv.

    open-audio builds the six tasks of the open suite from packages of Debian 12 (8 GB for sfx14, 1 GB for the others):
    TASK.csv and TASK.tar in OUTPUT, for `ssamba evaluate --suite OUTPUT`. A task is left out, with the reason, where a package
    or program is missing; tasks that are there are not built again.
    """
    if output is None:
        raise typer.BadParameter("--output is needed: what to write")
    processes = default_workers() if workers is None else workers
    if name == _OPEN:
        if debs is None or source is not None:
            raise typer.BadParameter(f"{_OPEN} takes its packages from a folder: --debs DIR, and no other SOURCE")
        _prepare_open_audio(debs, output, task, fetch, overwrite, strict, processes)
        return
    if source is None:
        raise typer.BadParameter(f"SOURCE is needed: the folder that {name} was unpacked to")
    if debs is not None or fetch or task:
        raise typer.BadParameter(f"--debs, --fetch and --task are for {_OPEN}, not for {name}")
    from ssamba.data.formats import FORMATS
    from ssamba.datasets import prepare as prepare_dataset
    from ssamba.datasets import write_prepared

    if output.suffix not in FORMATS:
        raise typer.BadParameter(f"--output must end in {', '.join(FORMATS)}, got {output}")
    if output.exists() and not overwrite:
        fail(f"{output} exists: --overwrite replaces it")
    started_s = time.monotonic()
    try:
        with Bar("looking") as bar:
            prepared = prepare_dataset(
                name,
                source,
                workers=processes,
                headers=headers,
                checksums=checksums,
                allow_leaks=allow_leaks,
                audio_folder=audio or output.with_name(f"{output.stem}_audio"),
                on_progress=lambda p: bar.update(p.done, p.total, hours_of_audio(p.audio_s)),
            )
        written = write_prepared(prepared, output)
    except (ValueError, ImportError) as error:
        fail(str(error))
    report_skipped(prepared.skipped, written[-1] if prepared.skipped else None)
    for note in prepared.notes:
        err.print(f"[cyan]note[/] {escape(note)}", soft_wrap=True, highlight=False)
    splits = ", ".join(f"{split} {count}" for split, count in sorted(prepared.counts.items(), key=_by_number))
    length = "" if prepared.hours is None else f", {hours_of_audio(prepared.hours * 3600)}"
    classes = f", {len(prepared.classes)} classes" if prepared.classes else ""
    out.print(
        f"{escape(prepared.dataset.title)}: {len(prepared.clips)} clips{length}{classes} ({splits}), "
        f"{len(prepared.missing)} missing, {len(prepared.damaged)} damaged, in "
        f"{time.monotonic() - started_s:.1f} s: {escape(str(output))}",
        highlight=False,
        soft_wrap=True,
    )
    if strict and prepared.skipped:
        sys.exit(EXIT_SKIPPED)


def _prepare_open_audio(
    debs: Path, output: Path, tasks: list[str] | None, fetch: bool, overwrite: bool, strict: bool, workers: int
) -> None:
    from benchmarks.open_suite import build_suite

    started_s = time.monotonic()
    with Bar("building", "") as bar:
        built = build_suite(
            output,
            debs,
            tasks=tasks,
            fetch=fetch,
            overwrite=overwrite,
            workers=workers,
            on_progress=lambda step, done, total: bar.update(done, total, step),
        )
    missed = [*built.left_out, *built.skipped]
    report_skipped(missed, Path(f"{built.folder}.skipped.csv") if missed else None)
    for note in built.notes:
        err.print(f"[cyan]note[/] {escape(note)}", soft_wrap=True, highlight=False)
    for name, written in built.written.items():
        out.print(f"{name}: {written.clips} clips, {written.classes} classes", highlight=False)
    if built.kept:
        out.print(f"there already: {', '.join(built.kept)}", highlight=False)
    out.print(
        f"open suite: {len(built.written) + len(built.kept)} tasks, {len(built.left_out)} left out, in "
        f"{time.monotonic() - started_s:.1f} s: {escape(str(built.folder))}",
        highlight=False,
        soft_wrap=True,
    )
    if not built.written and not built.kept:
        fail("no task could be built")
    if strict and missed:
        sys.exit(EXIT_SKIPPED)


def _by_number(item: tuple[str, int]) -> tuple[int, str]:
    """fold2 before fold10."""
    return len(item[0]), item[0]
