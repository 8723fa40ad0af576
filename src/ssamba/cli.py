"""The command line: parsing, progress, exit codes. Each subcommand calls one library function.

Heavy imports happen inside the commands, so that `ssamba --help` answers at once.
"""

from __future__ import annotations

import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ssamba import __version__
from ssamba.errors import SsambaError

if TYPE_CHECKING:
    from ssamba.embedder import Embedder
    from ssamba.library.embed import Progress

EXIT_ERROR = 1
EXIT_SKIPPED = 3
EXIT_INTERRUPTED = 130

_EXIT_CODES = (
    "Exit codes: 0 done; 1 an error (the message says what to do); 2 wrong usage; "
    "3 with --strict, some files were skipped; 130 interrupted."
)

app = typer.Typer(
    name="ssamba",
    help="Self-supervised audio representations: any recording, any length, on a CPU or a GPU.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_out = Console()
_err = Console(stderr=True)


def main() -> None:
    """Run the command line; what users did wrong ends in one message and exit code 1."""
    try:
        app()
    except SsambaError as error:
        _fail(str(error))
    except OSError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _err.print("[yellow]interrupted[/]")
        sys.exit(EXIT_INTERRUPTED)


def _fail(message: str) -> NoReturn:
    _err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    sys.exit(EXIT_ERROR)


def _show_version(wanted: bool) -> None:
    if wanted:
        _out.print(f"ssamba {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


_Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        "-c",
        help="Checkpoint folder, official .pth file, or hf:OWNER/NAME. Default: the weights that ship with ssamba.",
    ),
]


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba embed recordings/ -o embeddings.npz\n\n"
    "ssamba embed 'field/**/*.flac' more.mp3 -o embeddings.parquet --checkpoint ssamba_tiny.pth\n\n"
    "ssamba embed night.wav -o night.csv --frames\n\n" + _EXIT_CODES
)
def embed(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATHS...", help="Audio files, folders (searched below) and patterns.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Table to write: .npz, .parquet or .csv.", show_default=False)
    ],
    checkpoint: _Checkpoint = None,
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

    from ssamba.embedder import EmbedOptions
    from ssamba.errors import ConfigError
    from ssamba.library.collection import find_audio
    from ssamba.library.embed import embed_collection

    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    try:
        options = EmbedOptions.parse({"context": context, "layer": layer, "padding": padding}, "options")
        files = find_audio(paths)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    except ValueError as error:
        _fail(str(error))
    signal.signal(signal.SIGTERM, _interrupt)
    model = _load(checkpoint, device)
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
            _err.print(
                f"[yellow]interrupted[/]: repeat the command with --resume to go on ({escape(str(output))}.partial)"
            )
            sys.exit(EXIT_INTERRUPTED)
        except ValueError as error:
            _fail(str(error))
        except OSError as error:
            _fail(f"{error}. What was embedded so far is kept: repeat the command with --resume when it is mended")
    _report(result, output)
    if result.rows == 0:
        _fail("no file could be embedded")
    if strict and result.skipped:
        sys.exit(EXIT_SKIPPED)


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _load(checkpoint: str | None, device: str | None) -> Embedder:
    from ssamba.embedder import load_model

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = load_model(checkpoint, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            _fail(f"cannot use device {device!r}: {str(error).splitlines()[0]}")
    for warning in caught:
        _err.print(f"[yellow]warning:[/] {escape(str(warning.message))}", soft_wrap=True)
    return model


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
            console=_err,
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
            audio=_hours(state.audio_s),
            rate=f"{state.real_time_factor:.0f}x real time",
        )


def _hours(seconds: float) -> str:
    return (
        f"{seconds / 3600:.2f} h"
        if seconds >= 360
        else f"{seconds:.1f} s"
        if seconds < 60
        else f"{seconds / 60:.1f} min"
    )


def _report(result: Progress, output: Path) -> None:
    from ssamba.library.embed import skipped_file

    resumed = f", {result.resumed} already done" if result.resumed else ""
    _out.print(
        f"{result.embedded} files embedded{resumed}, {len(result.skipped)} skipped: {_hours(result.audio_s)} of audio in "
        f"{result.seconds:.1f} s ({result.real_time_factor:.0f}x real time), {result.rows} rows in {escape(str(output))}",
        highlight=False,
        soft_wrap=True,
    )
    for entry in result.skipped[:10]:
        _err.print(f"[yellow]skipped[/] {escape(entry.reason)}", soft_wrap=True, highlight=False)
    if len(result.skipped) > 10:
        _err.print(f"[yellow]and {len(result.skipped) - 10} more[/]")
    if result.skipped:
        _err.print(f"all reasons: {escape(str(skipped_file(output)))}", soft_wrap=True, highlight=False)


@app.command(
    epilog="[bold]Examples[/]\n\nssamba info\n\nssamba info ssamba_tiny.pth\n\nssamba info night.wav dawn.flac\n\n"
    + _EXIT_CODES
)
def info(
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TARGETS]...", help="Checkpoints (folder, .pth, hf:OWNER/NAME) or audio files."),
    ] = None,
) -> None:
    """Tell what a checkpoint holds, whether an audio file is sound, or (without argument) what ssamba can use here."""
    if not targets:
        _print_environment()
        return
    problems: list[str] = []
    for target in targets:
        path = Path(target).expanduser()
        is_checkpoint = (
            target.startswith("hf:") or path.is_dir() or path.suffix in (".pth", ".pt", ".bin", ".safetensors", ".json")
        )
        try:
            _print_rows(target, _checkpoint_rows(target) if is_checkpoint else _audio_rows(path))
        except SsambaError as error:
            problems.append(str(error))
            _err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
    if problems:
        sys.exit(EXIT_ERROR)


def _print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(title=escape(title), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows:
        table.add_row(f"[dim]{name}[/]", escape(value))
    _out.print(table)


def _print_environment() -> None:
    import platform
    from importlib.util import find_spec

    import torch

    from ssamba.ops import available_backends

    extras = {"codecs": "av", "store": "pyarrow", "hf": "huggingface_hub", "figures": "matplotlib"}
    rows = [
        ("ssamba", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"),
    ]
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        for status in available_backends(device):
            mark = "used" if status.chosen else "available" if status.available else "not available"
            rows.append((f"scan on {device}", f"{status.name}: {mark} ({status.reason})"))
    for extra, module in extras.items():
        state = "installed" if find_spec(module) else f'not installed: pip install "ssamba[{extra}]"'
        rows.append((f"extra {extra}", state))
    _print_rows("environment", rows)


def _checkpoint_rows(target: str) -> list[tuple[str, str]]:
    from ssamba.checkpoint import load_checkpoint

    loaded = load_checkpoint(target)
    encoder, front_end = loaded.config.encoder, loaded.front_end
    high_hz = front_end.high_hz or front_end.sample_rate_hz / 2
    rows = [
        ("kind", loaded.config.kind),
        ("parameters", f"{loaded.report.num_parameters / 1e6:.2f} M"),
        (
            "encoder",
            f"{encoder.variant}, {encoder.depth} blocks, width {encoder.embed_dim}, {encoder.state_size} states",
        ),
        ("patches", f"{encoder.patch_size} with stride {encoder.patch_stride}, {encoder.patch_order}"),
        ("pretraining input", f"{encoder.num_mel_bins} mel bins x {encoder.num_frames} frames"),
        (
            "front end",
            f"{front_end.sample_rate_hz} Hz, {front_end.num_mel_bins} bins from {front_end.low_hz:g} to {high_hz:g} Hz, "
            f"mean {front_end.mean:g}, deviation {front_end.std:g}",
        ),
    ]
    if loaded.config.classifier is not None:
        classifier = loaded.config.classifier
        rows.append(("classifier", f"{classifier.num_classes} classes, {classifier.pooling} pooling"))
    rows += [("ignored", line) for line in loaded.report.ignored_by_reason()]
    rows += [("note", note) for note in loaded.report.notes]
    return rows


def _audio_rows(path: Path) -> list[tuple[str, str]]:
    import numpy as np

    from ssamba.audio.decode import probe, stream
    from ssamba.errors import AudioTruncatedWarning

    header = probe(path)
    rows = [
        ("format", f"{header.container} {header.codec}, read by {header.reader}"),
        ("rate", f"{header.sample_rate_hz} Hz, {header.channels} channel{'s' if header.channels != 1 else ''}"),
        ("header says", "unknown length" if header.duration_s is None else f"{header.duration_s:.3f} s"),
    ]
    peak, energy, count = 0.0, 0.0, 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AudioTruncatedWarning)
        for block in stream(path, sample_rate_hz=header.sample_rate_hz, strict=False):
            peak = max(peak, float(np.abs(block).max(initial=0)))
            energy += float(np.square(block, dtype=np.float64).sum())
            count += len(block)
    rows.append(("decodes to", f"{count / header.sample_rate_hz:.3f} s, mono"))
    if peak == 0:
        rows.append(("level", "silent"))
    else:
        rms = (energy / count) ** 0.5
        rows.append(("level", f"peak {20 * np.log10(peak):.1f} dBFS, RMS {20 * np.log10(rms):.1f} dBFS"))
    rows += [("problem", str(warning.message)) for warning in caught]
    return rows


@app.command(epilog="[bold]Example[/]\n\nssamba convert ssamba_tiny.pth ssamba-tiny/\n\n" + _EXIT_CODES)
def convert(
    source: Annotated[str, typer.Argument(help="Official .pth file, checkpoint folder, or hf:OWNER/NAME.")],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is there.")] = False,
) -> None:
    """Write a checkpoint in our format: config.json, model.safetensors, preprocessor_config.json."""
    from ssamba.checkpoint import convert_checkpoint

    report = convert_checkpoint(source, output, overwrite=overwrite)
    _out.print(escape(str(report)), highlight=False, soft_wrap=True)
    _out.print(f"written to {escape(str(output))}", highlight=False, soft_wrap=True)
