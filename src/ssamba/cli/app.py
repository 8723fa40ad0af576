"""Shared by all commands: the application, consoles, exit codes, options, and loading a model."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from ssamba import __version__

if TYPE_CHECKING:
    from ssamba.embedder import Embedder

EXIT_ERROR = 1
EXIT_SKIPPED = 3
EXIT_INTERRUPTED = 130

EXIT_CODES = (
    "Exit codes: 0 done; 1 an error (the message says what to do); 2 wrong usage; "
    "3 with --strict, some files were skipped; 130 interrupted."
)

app = typer.Typer(
    name="ssamba",
    help="Self-supervised audio representations: any recording, any length, on a CPU or a GPU.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console()
err = Console(stderr=True)


def fail(message: str) -> NoReturn:
    """Print the message and exit with code 1."""
    err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    sys.exit(EXIT_ERROR)


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"ssamba {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


CheckpointOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        "-c",
        help="Checkpoint folder, official .pth file, or hf:OWNER/NAME. Default: the weights that ship with ssamba.",
    ),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: a GPU if available.")]
ChangesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe, e.g. run.seed=1; repeatable."),
]
NoResumeOption = Annotated[
    bool, typer.Option("--no-resume", help="Fail if the folder holds a run instead of resuming it.")
]


def raise_interrupt(signum: int, frame: object) -> NoReturn:
    """Signal handler that ends a job as Ctrl-C does."""
    raise KeyboardInterrupt


def load_embedder(checkpoint: str | None, device: str | None, *, untrained: bool = False) -> Embedder:
    """Load a checkpoint, or create an untrained model; print warnings, and exit if the device cannot be used."""
    from ssamba.embedder import load_model, random_model

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = random_model(device=device) if untrained else load_model(checkpoint, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            fail(f"cannot use device {device!r}: {str(error).splitlines()[0]}")
    for warning in caught:
        err.print(f"[yellow]warning:[/] {escape(str(warning.message))}", soft_wrap=True)
    return model


def format_duration(seconds: float) -> str:
    """Format a duration for humans: 2.5 s, 3.0 min, 1.25 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 360 else f"{seconds / 3600:.2f} h"
