"""`ssamba export`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from ssamba.cli.app import EXIT_CODES, FrontEndOption, UsageError, app, parse_numbers, say
from ssamba.errors import MissingExtraError


@app.command(
    epilog="[bold]Examples[/]\n\nssamba export ssamba2-tiny -o onnx/\n\n"
    "ssamba export runs/birds -o birds/ --input waveform --dtype int8\n\n"
    "ssamba export runs/birds -o page/ --web --sounds reference/\n\n"
    "ssamba export ssamba2-tiny -o onnx/ --layers 6,-1 --check recordings/\n\n" + EXIT_CODES
)
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name, folder, official .pth file, or hf:OWNER/NAME.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", show_default=False)],
    input: Annotated[
        Literal["both", "waveform", "features"],
        typer.Option(help="'waveform': samples in, the front end is part of the graph; 'features': log-mel in."),
    ] = "both",
    dtype: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option(help="How weights are stored: float16 halves the files, int8 quarters them. Equally fast."),
    ] = "float32",
    layers: Annotated[
        str | None, typer.Option(help="Comma-separated hidden states to return too, such as 6,-1.")
    ] = None,
    padding: Annotated[
        Literal["patch", "official"] | None,
        typer.Option(help="'official': fill shorter clips to the pretraining length. Default: as trained, or patch."),
    ] = None,
    front_end: FrontEndOption = None,
    check: Annotated[
        list[str] | None,
        typer.Option(metavar="RECORDINGS", help="Recordings to compare with PyTorch on, too; may be repeated."),
    ] = None,
    web: Annotated[
        bool, typer.Option("--web", help="Write a static web page that runs the model in the browser instead.")
    ] = False,
    sounds: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RECORDINGS",
            help="With --web: recordings that the page compares with and plays; may be repeated. Default: the demo's.",
        ),
    ] = None,
    runtime: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --web: the unpacked npm package onnxruntime-web. Default: fetched by npm, once.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another export in the folder.")] = False,
) -> None:
    """Write a model as ONNX files, which run in onnxruntime without PyTorch (needs ssamba[onnx]).

    The files are compared with PyTorch first, on three recordings that come with ssamba, and on those of --check. If
    they differ by more than rounding explains, nothing is written.

    With --web, the files are a page that needs no server: drop or record a sound, see its spectrogram, and hear which
    of --sounds are most like it.
    """
    if find_spec("onnx") is None or find_spec("onnxruntime") is None:
        raise MissingExtraError('ssamba export needs onnx and onnxruntime: pip install "ssamba[onnx]"')
    if web:
        if input != "both" or layers is not None:
            raise UsageError("--input and --layers are for files: omit them with --web")
        from ssamba.integrations.web import export_web

        page = export_web(
            model,
            output,
            sounds=sounds or (),
            runtime=runtime,
            dtype=dtype,
            padding=padding,
            front_end=front_end,
            check=check or (),
            overwrite=overwrite,
        )
        return say(str(page))
    if sounds or runtime:
        raise UsageError("--sounds and --runtime are for a page: add --web, or omit them")
    from ssamba.integrations.onnx import export_onnx

    report = export_onnx(
        model,
        output,
        inputs=input,
        dtype=dtype,
        layers=[] if layers is None else parse_numbers(layers, "--layers", int),
        padding=padding,
        front_end=front_end,
        check=check or (),
        overwrite=overwrite,
    )
    say(str(report))
