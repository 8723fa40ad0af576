"""`ssamba stats`."""

from __future__ import annotations

from typing import Annotated

import typer

from ssamba.cli.app import EXIT_CODES, EncodingOption, StrictOption, app, no_model_name, out, report_skipped
from ssamba.cli.progress import ProgressDisplay


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba stats shards/\n\n"
    "ssamba stats manifest.parquet --split train --hours 100\n\n"
    "ssamba stats bats/ --sample-rate 250000 --low-hz 10000\n\n" + EXIT_CODES
)
def stats(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            callback=no_model_name,
            help="Folders of audio or of shards, manifests, or hf:OWNER/NAME (on Hugging Face).",
        ),
    ],
    split: Annotated[str | None, typer.Option(help="Only clips in this split.")] = None,
    hours: Annotated[float, typer.Option(help="Stop after this much audio, of clips in random order; 0: all.")] = 20,
    sample_rate: Annotated[int, typer.Option(help="Sample rate of the front end, in Hz.")] = 16_000,
    mel_bins: Annotated[int, typer.Option(help="Mel bins of the front end.")] = 128,
    low_hz: Annotated[float, typer.Option(help="Lower edge of the first mel bin, in Hz.")] = 20.0,
    high_hz: Annotated[
        float | None, typer.Option(help="Upper edge of the last mel bin, in Hz. Default: half the sample rate.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of the clips.")] = 0,
    encoding: EncodingOption = None,
    strict: StrictOption = False,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode. Default: the cores minus one, at most 8.")
    ] = None,
) -> None:
    """Measure the mean and standard deviation of a corpus' log-mel values, and print them for a recipe's front end.

    They are measured before normalization, over what a model sees: at most 10.24 s of each clip.
    """
    from ssamba.data.statistics import measure_statistics

    with ProgressDisplay() as progress:
        result = measure_statistics(
            data,
            split=split,
            hours=hours,
            sample_rate=sample_rate,
            mel_bins=mel_bins,
            low_hz=low_hz,
            high_hz=high_hz,
            seed=seed,
            encoding=encoding,
            strict=strict,
            workers=workers,
            progress=progress,
        )
    report_skipped(result.skipped)
    out.print(str(result), highlight=False, soft_wrap=True, markup=False)
