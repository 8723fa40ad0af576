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
    parse_seconds,
    printable,
    show_report,
)
from ssamba.cli.progress import ProgressDisplay
from ssamba.errors import Interrupted, SkippedFilesError

if TYPE_CHECKING:
    from ssamba.annotations import Style
    from ssamba.library.predict import PredictReport


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba predict dawn.flac -c runs/birds\n\n"
    "ssamba predict recordings/ -c runs/birds -o labels.csv --top 1\n\n"
    "ssamba predict night.wav -c runs/birds --per second --format json\n\n"
    "ssamba predict s3://bucket/nights/ -c runs/birds -o labels.csv   (recordings in storage that fsspec reads)\n\n"
    "ssamba predict nights/ -c runs/birds --events -o events.csv --min-length 0.5s --gap 1s\n\n"
    "ssamba predict nights/ -c runs/birds --events -o labels/ --format raven\n\n" + EXIT_CODES
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
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write .csv, .json or .parquet; or a folder: see --format."),
    ] = None,
    style: Annotated[
        Literal["table", "csv", "json", "raven", "audacity"],
        typer.Option(
            "--format",
            help="Of what is printed without --output; or, of events, raven or audacity: --output is a folder that "
            "gets a selection table or label track for each recording.",
        ),
    ] = "table",
    top: Annotated[int, typer.Option(min=0, help="Number of most probable labels to list; 0 is all.")] = 3,
    per: Annotated[
        Literal["clip", "second", "window"] | None,
        typer.Option("--per", help="Labels for the whole clip, each second or each window. Default: as trained."),
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(
            parser=parse_seconds,
            metavar="TIME",
            help="Length of the windows that are answered alone, such as 2s. Default: of the training clips.",
        ),
    ] = None,
    hop: Annotated[
        float | None,
        typer.Option(
            parser=parse_seconds,
            metavar="TIME",
            help="Distance of their starts. Default: half a window; of events a quarter.",
        ),
    ] = None,
    merge: Annotated[
        Literal["mean", "max"], typer.Option("--merge", help="How windows answer for a second or a clip.")
    ] = "mean",
    events: Annotated[
        bool, typer.Option("--events", help="Merge windows to events: file, start, end, label, probability.")
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(help="Probability from which on an event is heard. Default: as stored with the model, or 0.5."),
    ] = None,
    min_length: Annotated[
        float | None, typer.Option(parser=parse_seconds, metavar="TIME", help="Leave out shorter events.")
    ] = None,
    gap: Annotated[
        float | None,
        typer.Option(parser=parse_seconds, metavar="TIME", help="Join events of a label with at most this between."),
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

    Long recordings are cut into windows as long as the clips that the model was trained on. With --events
    windows become events, for Excel, Raven or Audacity.

    With --output repeat the command to resume: an interrupted run continues, and new and changed files
    are added. OUTPUT.run.jsonl says how the output was made.
    """
    from ssamba.library.predict import predict_files

    labels: Style | None = style if style in ("raven", "audacity") else None
    if labels is not None and (output is None or not events):
        raise typer.BadParameter(f"{labels} is for events: add --events and --output FOLDER", param_hint="--format")
    try:
        with ProgressDisplay() as progress:
            report = predict_files(
                recordings,
                checkpoint,
                output,
                top=top,
                per=per,
                window_s=window,
                hop_s=hop,
                merge=merge,
                events=events,
                threshold=threshold,
                min_length_s=min_length or 0.0,
                gap_s=gap or 0.0,
                style=labels,
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
        if output is None and error.report.done:  # what is done is printed all the same
            _print(error.report, style, events)
        raise
    if output is None:
        _print(report, style, events)
    show_report(report)


def _print(report: PredictReport, style: str, events: bool) -> None:
    from rich.table import Table

    from ssamba import annotations
    from ssamba.library.predict import Segment, as_json, label_rows

    if style != "table":
        if style == "csv":
            text = annotations.as_csv(report.events if events else label_rows(report.segments))
        else:
            text = annotations.as_json(report.events) if events else as_json(report.segments)
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    header = ("recording", "seconds", "event" if events else "labels")
    found = [Segment(one.path, one.start_s, one.end_s, {one.label: one.probability or 0.0}) for one in report.events]
    rows = []
    for segment in found if events else report.segments:
        best = ", ".join(f"{label} {probability:.3f}" for label, probability in segment.labels.items())
        seconds = f"{round(segment.start_s, 2):g} to {round(segment.end_s, 2):g}"
        rows.append((printable(segment.path), seconds, printable(best)))
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
