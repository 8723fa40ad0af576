"""`ssamba embed`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ssamba.cli.app import (
    EXIT_CODES,
    EXIT_INTERRUPTED,
    EXIT_SKIPPED,
    CheckpointOption,
    app,
    err,
    fail,
    hours_of_audio,
    interrupt,
    load_embedder,
    out,
)

if TYPE_CHECKING:
    from ssamba.library.embed import Progress


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba embed recordings/ -o embeddings.npz\n\n"
    "ssamba embed 'field/**/*.flac' more.mp3 -o embeddings.parquet --checkpoint ssamba_tiny.pth\n\n"
    "ssamba embed night.wav -o night.csv --frames\n\n" + EXIT_CODES
)
def embed(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATHS...", help="Audio files, folders (searched below) and patterns.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Table to write: .npz, .parquet or .csv.", show_default=False)
    ],
    checkpoint: CheckpointOption = None,
    frames: Annotated[bool, typer.Option("--frames", help="One row for each time step instead of each file.")] = False,
    context: Annotated[
        str, typer.Option(help="'windows': 10.24 s, half overlapping; 'full': each recording at once.")
    ] = "windows",
    layer: Annotated[
        int | None,
        typer.Option(help="Use the hidden state of this layer (0 is the input, -1 the last, before the final norm)."),
    ] = None,
    padding: Annotated[
        str, typer.Option(help="'patch', or 'official': fill short recordings up to the pretraining length.")
    ] = "patch",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run, or add new files to a finished one.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 3 if any file was skipped.")] = False,
    workers: Annotated[int | None, typer.Option(min=0, help="Decoding processes. Default: up to four.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: a GPU if there is one.")] = None,
) -> None:
    """Embed recordings into one table: a row for each file, or for each time step.

    Files that cannot be read are skipped and listed, with the reason, in OUTPUT.skipped.csv. An interrupted run loses
    nothing: repeat the command with --resume.
    """
    import os

    from ssamba.audio.files import find_audio
    from ssamba.embedder import EmbedOptions
    from ssamba.errors import ConfigError
    from ssamba.library.embed import embed_collection

    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    try:
        options = EmbedOptions.parse({"context": context, "layer": layer, "padding": padding}, "options")
        files = find_audio(paths)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    except ValueError as error:
        fail(str(error))
    signal.signal(signal.SIGTERM, interrupt)
    model = load_embedder(checkpoint, device)
    if workers is None:
        workers = min(4, max(1, (os.cpu_count() or 2) - 1))
    # A worker process takes longer to start than a few files take to decode.
    workers = workers if len(files) > 8 else 0
    with _ProgressBar() as bar:
        try:
            result = embed_collection(
                files,
                output,
                model,
                options,
                frames=frames,
                workers=workers,
                resume=resume,
                overwrite=overwrite,
                on_progress=bar.update,
            )
        except KeyboardInterrupt:
            err.print(
                f"[yellow]interrupted[/]: repeat the command with --resume to go on ({escape(str(output))}.partial)"
            )
            sys.exit(EXIT_INTERRUPTED)
        except ValueError as error:
            fail(str(error))
        except OSError as error:
            fail(f"{error}. What was embedded so far is kept: repeat the command with --resume when it is mended")
    _report(result, output)
    if result.rows == 0:
        fail("no file could be embedded")
    if strict and result.skipped:
        sys.exit(EXIT_SKIPPED)


class _ProgressBar:
    """Files, hours of audio, real-time factor and time left, on standard error when it is a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("embedding"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("files  {task.fields[audio]}  [cyan]{task.fields[rate]}[/]  left:"),
            TimeRemainingColumn(),
            console=err,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, audio="", rate="")

    def __enter__(self) -> _ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, state: Progress) -> None:
        """Show how far the job is."""
        self._progress.update(
            self._task,
            total=state.total - state.resumed,
            completed=state.embedded + len(state.skipped),
            audio=hours_of_audio(state.audio_s),
            rate=f"{state.real_time_factor:.0f}x real time",
        )


def _report(result: Progress, output: Path) -> None:
    from ssamba.library.embed import skipped_file

    resumed = f", {result.resumed} already done" if result.resumed else ""
    out.print(
        f"{result.embedded} files embedded{resumed}, {len(result.skipped)} skipped: {hours_of_audio(result.audio_s)} of audio in "
        f"{result.seconds:.1f} s ({result.real_time_factor:.0f}x real time), {result.rows} rows in {escape(str(output))}",
        highlight=False,
        soft_wrap=True,
    )
    for entry in result.skipped[:10]:
        err.print(f"[yellow]skipped[/] {escape(entry.reason)}", soft_wrap=True, highlight=False)
    if len(result.skipped) > 10:
        err.print(f"[yellow]and {len(result.skipped) - 10} more[/]")
    if result.skipped:
        err.print(f"all reasons: {escape(str(skipped_file(output)))}", soft_wrap=True, highlight=False)
