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
    DeviceOption,
    app,
    err,
    fail,
    format_duration,
    load_embedder,
    out,
    raise_interrupt,
)
from ssamba.cli.progress import Bar, default_workers, report_skipped

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
        list[str], typer.Argument(metavar="PATHS...", help="Audio files, folders (searched recursively) and patterns.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Table to write: .npz, .parquet or .csv.", show_default=False)
    ],
    checkpoint: CheckpointOption = None,
    frames: Annotated[bool, typer.Option("--frames", help="One row for each time step instead of each file.")] = False,
    context: Annotated[
        str, typer.Option(help="'windows': 10.24 s, overlapping by half; 'full': each recording at once.")
    ] = "windows",
    layer: Annotated[
        int | None,
        typer.Option(help="Use the hidden state of this layer (0: input, -1: last, before the final norm)."),
    ] = None,
    padding: Annotated[
        str, typer.Option(help="'patch', or 'official': pad short recordings to the pretraining length.")
    ] = "patch",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run, or add new files to a finished one.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing table.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 3 if any file was skipped.")] = False,
    workers: Annotated[int | None, typer.Option(min=0, help="Decoding processes. Default: up to four.")] = None,
    device: DeviceOption = None,
) -> None:
    """Embed recordings into one table with a row for each file, or for each time step.

    Files that cannot be read are skipped and listed with the reason in OUTPUT.skipped.csv. To continue an interrupted
    run, repeat the command with --resume.
    """
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
    signal.signal(signal.SIGTERM, raise_interrupt)
    model = load_embedder(checkpoint, device)
    workers = default_workers(4) if workers is None else workers
    # A worker process takes longer to start than a few files take to decode.
    workers = workers if len(files) > 8 else 0

    def show(state: Progress) -> None:
        note = f"{format_duration(state.audio_s)}  {state.real_time_factor:.0f}x real time"
        bar.update(state.embedded + len(state.skipped), state.total - state.resumed, note)

    with Bar("embedding") as bar:
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
                on_progress=show,
            )
        except KeyboardInterrupt:
            err.print(
                f"[yellow]interrupted[/]: repeat the command with --resume to go on ({escape(str(output))}.partial)"
            )
            sys.exit(EXIT_INTERRUPTED)
        except ValueError as error:
            fail(str(error))
        except OSError as error:
            fail(f"{error}. Finished embeddings are kept: repair the cause, then repeat the command with --resume")
    _report(result, output)
    if result.rows == 0:
        fail("no file could be embedded")
    if strict and result.skipped:
        sys.exit(EXIT_SKIPPED)


def _report(result: Progress, output: Path) -> None:
    from ssamba.library.embed import skipped_file

    resumed = f", {result.resumed} already done" if result.resumed else ""
    out.print(
        f"{result.embedded} files embedded{resumed}, {len(result.skipped)} skipped: "
        f"{format_duration(result.audio_s)} of audio in {result.seconds:.1f} s "
        f"({result.real_time_factor:.0f}x real time), {result.rows} rows in {escape(str(output))}",
        highlight=False,
        soft_wrap=True,
    )
    report_skipped(result.skipped, skipped_file(output))
