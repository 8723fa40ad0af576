"""`ssamba shard`."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Literal, cast

import typer
from rich.markup import escape

from ssamba.cli.app import (
    EXIT_CODES,
    EXIT_INTERRUPTED,
    EXIT_SKIPPED,
    app,
    err,
    fail,
    format_duration,
    out,
    raise_interrupt,
)
from ssamba.cli.progress import Bar, default_workers, report_skipped


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba shard manifest.parquet shards/\n\n"
    "ssamba shard manifest.csv shards/ --codec flac --sample-rate 48000 --shard-mb 500\n\n" + EXIT_CODES
)
def shard(
    source: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="Manifest (.parquet, .csv, .jsonl, .json), or a folder of audio.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the shards.")],
    codec: Annotated[str, typer.Option(help="'opus' (small), or 'flac' (exact to 16 bits).")] = "opus",
    bitrate: Annotated[float, typer.Option(help="Bit rate of Opus, in kbit/s.")] = 48.0,
    sample_rate: Annotated[int, typer.Option(help="Rate in Hz that recordings are resampled to.")] = 16_000,
    shard_mb: Annotated[float, typer.Option(help="Approximate size of a shard, in MB.")] = 200.0,
    max_clip_s: Annotated[
        float, typer.Option(help="Cut longer recordings into equal pieces of at most this length.")
    ] = 30.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing shards.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 3 if any recording was skipped.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that write. Default: the cores minus one, at most 8.")
    ] = None,
) -> None:
    """Write recordings as tar shards of the WebDataset convention, for training from slow disks or on many machines.

    Every clip is decoded again and checked. After an interruption, repeat the command: it continues with the shards
    that are missing. Recordings that cannot be read are skipped and listed with reasons in OUT/skipped.csv.
    """
    from ssamba.data.manifest import Manifest, read_manifest, scan_folder
    from ssamba.data.shards import ShardProgress, write_shards
    from ssamba.errors import ConfigError

    signal.signal(signal.SIGTERM, raise_interrupt)
    processes = default_workers() if workers is None else workers
    started_s = time.monotonic()

    def show(state: ShardProgress) -> None:
        bar.update(state.shards, state.total, f"{format_duration(state.audio_s)}  {state.size / 1e6:.0f} MB")

    try:
        if source.is_dir():
            with Bar("reading headers") as bar:
                clips, unread = scan_folder(source, processes, lambda p: bar.update(p.done, p.total))
            listed = Manifest(clips, source)
        else:
            listed, unread = read_manifest(source), []
        with Bar("writing", "shards") as bar:
            result = write_shards(
                listed,
                output,
                cast(Literal["opus", "flac"], codec),
                shard_mb=shard_mb,
                workers=processes,
                on_progress=show,
                overwrite=overwrite,
                bitrate_kbps=bitrate,
                sample_rate_hz=sample_rate,
                max_clip_s=max_clip_s,
            )
    except KeyboardInterrupt:
        err.print("[yellow]interrupted[/]: repeat the command to continue with the shards that are missing")
        sys.exit(EXIT_INTERRUPTED)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    except ValueError as error:
        fail(str(error))
    skipped = [*unread, *result.skipped]
    resumed = f" ({result.resumed} already written)" if result.resumed else ""
    out.print(
        f"{result.total} shards{resumed}: {result.clips} clips, {format_duration(result.audio_s)}, "
        f"{result.size / 1e6:.1f} MB, {len(skipped)} skipped, in {time.monotonic() - started_s:.1f} s: "
        f"{escape(str(output))}",
        highlight=False,
        soft_wrap=True,
    )
    report_skipped(skipped, output / "skipped.csv")
    if strict and skipped:
        sys.exit(EXIT_SKIPPED)
