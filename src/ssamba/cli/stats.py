"""`ssamba stats`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ssamba.cli.app import EXIT_CODES, EXIT_SKIPPED, app, fail, format_duration, out
from ssamba.cli.progress import Bar, default_workers, report_skipped


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba stats shards/\n\n"
    "ssamba stats manifest.parquet --split train --hours 100\n\n"
    "ssamba stats bats/ --sample-rate 250000 --low-hz 10000\n\n" + EXIT_CODES
)
def stats(
    source: Annotated[
        str,
        typer.Argument(help="Folder of audio or of shards, manifest, or hf:OWNER/NAME (a data set on Hugging Face)."),
    ],
    split: Annotated[str | None, typer.Option(help="Only clips in this split.")] = None,
    hours: Annotated[
        float, typer.Option(min=0, help="Stop after this much audio, of clips in random order; 0: all.")
    ] = 20,
    sample_rate: Annotated[int, typer.Option(help="Sample rate of the front end, in Hz.")] = 16_000,
    mel_bins: Annotated[int, typer.Option(help="Mel bins of the front end.")] = 128,
    low_hz: Annotated[float, typer.Option(help="Lower edge of the first mel bin, in Hz.")] = 20.0,
    high_hz: Annotated[
        float | None, typer.Option(help="Upper edge of the last mel bin, in Hz. Default: half the sample rate.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of the clips.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 3 if any clip was skipped.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode. Default: the cores minus one, at most 8.")
    ] = None,
) -> None:
    """Measure the mean and standard deviation of a corpus' log-mel values, and print them for a recipe's front end.

    They are measured before normalization, over what a model sees: at most 10.24 s of each clip.
    """
    from ssamba.config import FrontEndConfig
    from ssamba.data.corpus import open_corpus
    from ssamba.data.statistics import CorpusStatistics, corpus_statistics
    from ssamba.errors import ConfigError

    values = {"sample_rate_hz": sample_rate, "num_mel_bins": mel_bins, "low_hz": low_hz, "high_hz": high_hz}
    try:
        front_end = FrontEndConfig.parse(values, "front end")
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    processes = default_workers() if workers is None else workers

    def show(state: CorpusStatistics) -> None:
        note = f"{format_duration(state.hours * 3600)}  mean {state.mean:.3f}  std {state.std:.3f}"
        bar.update(min(1.0, state.hours / state.total_hours) * 100, 100, note)

    try:
        corpus = open_corpus(source, sample_rate, split, workers=processes)
        # A process takes longer to start than a few clips take to decode.
        processes = processes if min(corpus.hours, hours or corpus.hours) > 0.5 else 0
        with Bar("measuring", "%") as bar:
            result = corpus_statistics(corpus, front_end, hours or None, seed, workers=processes, on_progress=show)
    except ValueError as error:
        fail(str(error))
    report_skipped(result.skipped)
    out.print(
        f"# {result.clips} clips, {format_duration(result.hours * 3600)} of {corpus.hours:.2f} h, "
        f"{len(result.skipped)} skipped",
        highlight=False,
        soft_wrap=True,
    )
    out.print(f"[front_end]\nmean = {result.mean:.4f}\nstd = {result.std:.4f}", highlight=False, markup=False)
    if strict and result.skipped:
        sys.exit(EXIT_SKIPPED)
