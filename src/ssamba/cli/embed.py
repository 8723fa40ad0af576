"""`ssamba embed`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ssamba.cli.app import (
    EXIT_CODES,
    BatchTokensOption,
    ChannelsOption,
    CheckpointOption,
    DamagedOption,
    DeviceOption,
    FrontEndOption,
    OverwriteOption,
    PrecisionOption,
    PruneOption,
    RecordingsArgument,
    StrictOption,
    TakeOverOption,
    app,
    parse_channels,
    parse_seconds,
    show_report,
)
from ssamba.cli.progress import ProgressDisplay


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba embed recordings/ -o embeddings.npz\n\n"
    "ssamba embed 'field/**/*.flac' more.mp3 -o embeddings.parquet -c ssamba_tiny.pth\n\n"
    "ssamba embed words/ -o words.npz --readout parts\n\n"
    "ssamba embed night.wav -o night.csv --every 1s\n\n"
    "ssamba embed bats/ -o bats.parquet --front-end x10   (to 80 kHz, slowed down ten times)\n\n"
    "ssamba embed archive/ -o archive.parquet --engine ray --address auto   (on a cluster)\n\n" + EXIT_CODES
)
def embed(
    recordings: RecordingsArgument,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="Table to write: .npz, .parquet or .csv; or a folder of Parquet files, as 'NAME/' or a URL (s3://...).",
            show_default=False,
        ),
    ],
    checkpoint: CheckpointOption = None,
    frames: Annotated[
        bool, typer.Option("--frames", help="One row for each time step (0.04 s; it depends on the model).")
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(
            parser=parse_seconds,
            metavar="TIME",
            help="One row for each stretch of so much time, the mean over it: 1s, 500ms, 1min.",
        ),
    ] = None,
    readout: Annotated[
        Literal["clip", "parts"],
        typer.Option(
            help="Vector of a file: 'clip', the mean over time (similarity, voices), or 'parts', that and the means of "
            "thirds of the sounding region, four times as long (words, sequences, short sounds)."
        ),
    ] = "clip",
    context: Annotated[
        Literal["windows", "full"],
        typer.Option(
            help="'windows' of 10.24 s, or the 'full' recording at once. Beyond 10.24 s that gives other vectors "
            "(cosine .988 for 28 s, .934 for 10 min); a table takes one of the two."
        ),
    ] = "windows",
    layer: Annotated[
        int | None,
        typer.Option(help="Use the hidden state of this layer (0: input, -1: last, before the final norm)."),
    ] = None,
    padding: Annotated[
        Literal["patch", "official"],
        typer.Option(help="'patch', or 'official': pad short recordings to the pretraining length."),
    ] = "patch",
    overlap: Annotated[
        float, typer.Option(help="Fraction of each window shared with the next, from 0 to below 1.")
    ] = 0.5,
    channels: ChannelsOption = "mean",
    precision: PrecisionOption = "fp32",
    batch_tokens: BatchTokensOption = None,
    damaged: DamagedOption = "skip",
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Decoding processes. Default: up to four. With Ray: cores or GPUs. Default: all."),
    ] = None,
    device: DeviceOption = None,
    front_end: FrontEndOption = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="'local': this process, or 'ray': all cores or GPUs of a Ray cluster, for the same table."),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster: HOST:PORT, or 'auto' for the one of this machine. Default: RAY_ADDRESS, else Ray is "
            "started on this machine.",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    prune: PruneOption = False,
    take_over: TakeOverOption = False,
    strict: StrictOption = False,
) -> None:
    """Embed recordings into one table with a row for each file, time step, or stretch of time.

    Repeat the command to resume: an interrupted run continues, and a finished table gets the files that
    are new or have changed. Files that cannot be read are skipped and listed with the reason in OUTPUT.skipped.csv.
    """
    from ssamba.library.embed import embed_files

    with ProgressDisplay() as progress:
        report = embed_files(
            recordings,
            output,
            checkpoint,
            frames=frames,
            every_s=every,
            readout=readout,
            context=context,
            layer=layer,
            padding=padding,
            overlap=overlap,
            channels=parse_channels(channels),
            damaged=damaged,
            precision=precision,
            batch_tokens=batch_tokens,
            workers=workers,
            device=device,
            front_end=front_end,
            engine=engine,
            address=address,
            overwrite=overwrite,
            prune=prune,
            take_over=take_over,
            strict=strict,
            progress=progress,
        )
    show_report(report)
