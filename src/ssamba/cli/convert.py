"""`ssamba convert` and `ssamba average`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from ssamba.cli.app import EXIT_CODES, app, parse_numbers, say
from ssamba.errors import MissingExtraError

FolderOption = Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", show_default=False)]
ReplaceOption = Annotated[bool, typer.Option("--overwrite", help="Replace another checkpoint in the folder.")]
HalfOption = Annotated[bool, typer.Option("--half", help="Write float16, which halves the size.")]
OriginOption = Annotated[str | None, typer.Option(help="Provenance of the weights, one line.")]
_MODEL = "name, folder, official .pth file, or hf:OWNER/NAME."


@app.command(
    epilog="[bold]Examples[/]\n\nssamba convert ssamba_tiny.pth -o ssamba-tiny/\n\n"
    "ssamba convert ssamba-tiny-400 -o official-tiny/\n\n"
    "ssamba convert runs/birds -o birds/ --to hf\n\n" + EXIT_CODES
)
def convert(
    checkpoint: Annotated[str, typer.Argument(metavar="MODEL", help=f"Model: {_MODEL}")],
    output: FolderOption,
    overwrite: ReplaceOption = False,
    half: HalfOption = False,
    origin: OriginOption = None,
    to: Annotated[
        Literal["ssamba", "hf"],
        typer.Option(help='"hf": also what the Hugging Face hub needs, a model card and code (ssamba[hf]).'),
    ] = "ssamba",
) -> None:
    """Convert a checkpoint to ssamba's format: config.json, model.safetensors, preprocessor_config.json."""
    if to == "hf":
        if find_spec("transformers") is None:
            raise MissingExtraError('--to hf needs transformers: pip install "ssamba[hf]"')
        from ssamba.integrations.huggingface import convert_to_hf as write
    else:
        from ssamba.checkpoint import convert_checkpoint as write
    report = write(checkpoint, output, overwrite=overwrite, half=half, origin=origin)
    say(f"{report}\nmodel in {output}")


@app.command(
    epilog="[bold]Examples[/]\n\nssamba average runs/first runs/second -o runs/mean\n\n"
    "ssamba average runs/a runs/b -o mean/ --weights 1,3 --half\n\n" + EXIT_CODES
)
def average(
    checkpoints: Annotated[list[str], typer.Argument(metavar="MODEL...", help=f"Models of one structure: {_MODEL}")],
    output: FolderOption,
    weights: Annotated[str | None, typer.Option(help="Comma-separated weights of the models. Default: equal.")] = None,
    overwrite: ReplaceOption = False,
    half: HalfOption = False,
    origin: OriginOption = None,
) -> None:
    """Average the weights of models that were fine-tuned or continued from one another.

    The average often generalizes better than each model, above all to recordings from other sources. Models that were
    trained independently cannot be averaged. Evaluate the result with `ssamba evaluate`.
    """
    from ssamba.checkpoint import average_checkpoints

    shares = None if weights is None else parse_numbers(weights, "--weights")
    average_checkpoints(checkpoints, output, weights=shares, overwrite=overwrite, half=half, origin=origin)
    say(f"model in {output}")
