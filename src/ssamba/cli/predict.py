"""`ssamba predict`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from ssamba.cli.app import (
    EXIT_CODES,
    BatchTokensOption,
    ChannelsOption,
    DamagedOption,
    DeviceOption,
    OverwriteOption,
    PrecisionOption,
    PruneOption,
    RecordingsArgument,
    StrictOption,
    TakeOverOption,
    app,
    out,
    parse_channels,
    printable,
    show_report,
)
from ssamba.cli.progress import ProgressDisplay
from ssamba.errors import Interrupted, SkippedFilesError

if TYPE_CHECKING:
    from ssamba.library.predict import Segment


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba predict dawn.flac -c runs/birds\n\n"
    "ssamba predict recordings/ -c runs/birds -o labels.csv --top 1\n\n"
    "ssamba predict night.wav -c runs/birds --per-second --format json\n\n" + EXIT_CODES
)
def predict(
    recordings: RecordingsArgument,
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint",
            "-c",
            metavar="MODEL",
            help="Folder of a fine-tuning run or of a classifier, an official fine-tuned .pth file, or hf:OWNER/NAME.",
            show_default=False,
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write a .csv or .json file.")] = None,
    style: Annotated[
        Literal["table", "csv", "json"], typer.Option("--format", help="Format of what is printed without --output.")
    ] = "table",
    top: Annotated[int, typer.Option(min=0, help="Number of most probable labels to list; 0 is all.")] = 3,
    per_second: Annotated[
        bool | None,
        typer.Option(
            "--per-second/--per-clip", help="Labels for each second or for the whole clip. Default: as trained."
        ),
    ] = None,
    channels: ChannelsOption = "mean",
    precision: PrecisionOption = "fp32",
    batch_tokens: BatchTokensOption = None,
    damaged: DamagedOption = "skip",
    workers: Annotated[int | None, typer.Option(min=0, help="Decoding processes. Default: up to four.")] = None,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
    prune: PruneOption = False,
    take_over: TakeOverOption = False,
    strict: StrictOption = False,
) -> None:
    """Predict labels for recordings with a fine-tuned model, with probabilities.

    With --output repeat the command to resume: an interrupted run continues, and new and changed files
    are added. OUTPUT.run.jsonl says how the output was made.
    """
    from ssamba.library.predict import predict_files

    try:
        with ProgressDisplay() as progress:
            report = predict_files(
                recordings,
                checkpoint,
                output,
                top=top,
                per_second=per_second,
                channels=parse_channels(channels),
                precision=precision,
                batch_tokens=batch_tokens,
                damaged=damaged,
                workers=workers,
                device=device,
                overwrite=overwrite,
                prune=prune,
                take_over=take_over,
                strict=strict,
                progress=progress,
            )
    except (Interrupted, SkippedFilesError) as error:
        if output is None and error.report.segments:  # what is done is printed all the same
            _print(error.report.segments, style)
        raise
    if output is None:
        _print(report.segments, style)
    show_report(report)


def _print(segments: list[Segment], style: str) -> None:
    from rich.table import Table

    from ssamba.library.predict import as_csv, as_json

    if style != "table":
        sys.stdout.write(as_csv(segments) if style == "csv" else as_json(segments))
        sys.stdout.flush()
        return
    header = ("recording", "seconds", "labels")
    rows = []
    for one in segments:
        best = ", ".join(f"{label} {probability:.3f}" for label, probability in one.labels.items())
        rows.append((printable(one.path), f"{round(one.start_s, 2):g} to {round(one.end_s, 2):g}", printable(best)))
    if not out.is_terminal:  # a whole line for each row, for grep and other programs
        widths = [max(map(len, column)) for column in zip(*(row[:2] for row in (header, *rows)), strict=True)]
        for path, seconds, labels in (header, *rows):
            line = f"{path:{widths[0]}}  {seconds:{widths[1]}}  {labels}"
            out.print(line, soft_wrap=True, highlight=False, markup=False, emoji=False)
        return
    table = Table(*header)
    last = ""
    for path, *rest in rows:
        table.add_row("" if path == last else escape(path), *map(escape, rest))
        last = path
    out.print(table)
