"""`ssamba predict`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ssamba.cli.app import EXIT_CODES, EXIT_SKIPPED, DeviceOption, app, fail, load_embedder, out
from ssamba.cli.progress import Bar, report_skipped

if TYPE_CHECKING:
    from ssamba.library.predict import Prediction


@app.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba predict dawn.flac --checkpoint runs/birds\n\n"
    "ssamba predict recordings/ -c runs/birds -o labels.csv --top 3\n\n"
    "ssamba predict night.wav -c runs/birds --per-second --format json\n\n" + EXIT_CODES
)
def predict(
    paths: Annotated[
        list[str], typer.Argument(metavar="AUDIO...", help="Audio files, folders (searched recursively) and patterns.")
    ],
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint",
            "-c",
            help="Folder of a fine-tuning run or of a classifier, an official fine-tuned .pth file, or hf:OWNER/NAME.",
            show_default=False,
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write a .csv or .json file.")] = None,
    style: Annotated[str, typer.Option("--format", help="Format of the printed output: table, csv or json.")] = "table",
    top: Annotated[
        int | None, typer.Option(min=0, help="Number of most probable labels to list; 0 is all. Default: 3.")
    ] = None,
    per_second: Annotated[
        bool | None,
        typer.Option(
            "--per-second/--per-clip", help="Labels for each second or for the whole clip. Default: as trained."
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 3 if any file was skipped.")] = False,
    device: DeviceOption = None,
) -> None:
    """Predict labels for recordings with a fine-tuned model, with probabilities."""
    from ssamba.audio.files import Skipped, find_audio
    from ssamba.library.predict import FORMATS, as_csv, as_json, predict_stream, write_predictions

    if style not in ("table", "csv", "json"):
        raise typer.BadParameter(f"--format must be table, csv or json, got {style!r}")
    if output is not None and output.suffix not in FORMATS:
        raise typer.BadParameter(f"--output must end in {' or '.join(FORMATS)}, got {str(output)!r}")
    try:
        files = find_audio(paths)
    except ValueError as error:
        fail(str(error))
    model = load_embedder(checkpoint, device)
    found: dict[Path, list[Prediction]] = {}
    skipped: list[Skipped] = []
    try:
        with Bar("predicting") as bar:
            for path, result in predict_stream(model, files, per_second=per_second):
                if isinstance(result, Exception):
                    skipped.append(Skipped(str(path), str(result)))
                else:
                    found[path] = result
                bar.update(len(found) + len(skipped), len(files))
    except ValueError as error:
        fail(str(error))
    predictions = [entry for path in files for entry in found.get(path, [])]
    count = 3 if top is None else top
    if output is not None:
        write_predictions(predictions, output, count)
        out.print(f"{len(found)} files, {len(predictions)} predictions in {escape(str(output))}", highlight=False)
    elif style == "table":
        _show(predictions, count)
    else:
        sys.stdout.write(as_csv(predictions, count) if style == "csv" else as_json(predictions, count))
    report_skipped(skipped)
    if not found:
        fail("no file could be classified")
    if strict and skipped:
        sys.exit(EXIT_SKIPPED)


def _show(predictions: list[Prediction], count: int) -> None:
    from rich.table import Table

    table = Table("recording")
    by_second = any(found.end_s is not None for found in predictions)
    if by_second:
        table.add_column("seconds", justify="right")
    table.add_column("labels")
    last = ""
    for found in predictions:
        name = "" if found.path == last else escape(found.path)
        last = found.path
        when = [f"{found.start_s:g} to {found.end_s:g}" if found.end_s is not None else ""] if by_second else []
        best = ", ".join(f"{label} {probability:.3f}" for label, probability in found.best(count))
        table.add_row(name, *when, escape(best))
    out.print(table)
