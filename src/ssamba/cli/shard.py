"""`ssamba shard`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssamba.cli.app import (
    EXIT_CODES,
    DamagedOption,
    EncodingOption,
    OverwriteOption,
    StrictOption,
    TakeOverOption,
    app,
    no_model_name,
    show_report,
)
from ssamba.cli.progress import ProgressDisplay


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba shard manifest.parquet -o shards/\n\n"
    "ssamba shard birds/ bats/ -o shards/ --codec flac --sample-rate 48000 --shard-mb 500\n\n" + EXIT_CODES
)
def shard(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            callback=no_model_name,
            help="Manifests (.parquet, .csv, .jsonl, .json), folders of audio or files.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the shards.", show_default=False)],
    codec: Annotated[str, typer.Option(help="'opus' (small), or 'flac' (exact to 16 bits).")] = "opus",
    bitrate: Annotated[float, typer.Option(help="Bit rate of Opus, in kbit/s.")] = 48.0,
    sample_rate: Annotated[int, typer.Option(help="Rate in Hz that recordings are resampled to.")] = 16_000,
    shard_mb: Annotated[float, typer.Option(help="Approximate size of a shard, in MB.")] = 200.0,
    max_clip_s: Annotated[
        float, typer.Option(help="Cut longer recordings into equal pieces of at most this length, in seconds.")
    ] = 30.0,
    shuffle: Annotated[
        bool, typer.Option("--shuffle/--no-shuffle", help="Distribute clips over the shards in a random order.")
    ] = True,
    damaged: DamagedOption = "skip",
    encoding: EncodingOption = None,
    overwrite: OverwriteOption = False,
    take_over: TakeOverOption = False,
    strict: StrictOption = False,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that write. Default: the cores minus one, at most 8.")
    ] = None,
) -> None:
    """Write recordings as tar shards of the WebDataset convention, for training from slow disks or on many machines.

    Every clip is decoded again and checked. After an interruption, repeat the command: it writes the shards that are
    missing. Recordings that cannot be read are skipped and listed with reasons in OUTPUT/skipped.csv; those
    that are used although their header is wrong or a part is missing are listed in OUTPUT/remarks.csv.
    """
    from ssamba.data.shards import write_shards

    with ProgressDisplay() as progress:
        report = write_shards(
            data,
            output,
            codec,  # type: ignore[arg-type]  # checked there
            bitrate=bitrate,
            sample_rate=sample_rate,
            shard_mb=shard_mb,
            max_clip_s=max_clip_s,
            shuffle=shuffle,
            damaged=damaged,
            encoding=encoding,
            overwrite=overwrite,
            take_over=take_over,
            strict=strict,
            workers=workers,
            progress=progress,
        )
    show_report(report)
