"""`ssamba info`, `ssamba convert` and `ssamba average`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ssamba import __version__
from ssamba.cli.app import EXIT_CODES, EXIT_ERROR, app, err, out
from ssamba.errors import SsambaError


@app.command(
    epilog="[bold]Examples[/]\n\nssamba info\n\nssamba info ssamba2-tiny ssamba_tiny.pth\n\n"
    "ssamba info night.wav dawn.flac\n\n" + EXIT_CODES
)
def info(
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TARGETS]...", help="Models (name, folder, .pth file, hf:OWNER/NAME) or audio files."),
    ] = None,
) -> None:
    """Describe checkpoints, check audio files, or (without argument) show what ssamba can use on this machine."""
    if not targets:
        _print_environment()
        return
    from ssamba.checkpoint.names import is_model_name

    problems: list[str] = []
    for target in targets:
        path = Path(target).expanduser()
        is_checkpoint = (
            is_model_name(target)
            or path.is_dir()
            or path.suffix in (".pth", ".pt", ".bin", ".safetensors", ".json")
            or not (path.suffix or path.exists())
        )
        try:
            _print_rows(target, _checkpoint_rows(target) if is_checkpoint else _audio_rows(path))
        except SsambaError as error:
            problems.append(str(error))
            err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
    if problems:
        sys.exit(EXIT_ERROR)


def _print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(title=escape(title), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows:
        table.add_row(f"[dim]{name}[/]", escape(value))
    out.print(table)


def _print_environment() -> None:
    import platform
    from importlib.util import find_spec

    import torch

    from ssamba.ops import available_backends
    from ssamba.ops.matmul import library

    extras = {"codecs": "av", "store": "pyarrow", "hf": "huggingface_hub", "figures": "matplotlib"}
    rows = [
        ("ssamba", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"),
    ]
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        for status in available_backends(device):
            mark = "used" if status.chosen else "available" if status.available else "not available"
            rows.append((f"scan on {device}", f"{status.name}: {mark} ({status.reason})"))
    rows.append(("float32 matmul on cpu", {"mkl": "PyTorch's own", "onednn": "oneDNN"}[library()]))
    for extra, module in extras.items():
        state = "installed" if find_spec(module) else f'not installed: pip install "ssamba[{extra}]"'
        rows.append((f"extra {extra}", state))
    _print_rows("environment", rows)


def _checkpoint_rows(target: str) -> list[tuple[str, str]]:
    from ssamba.checkpoint import load_checkpoint

    loaded = load_checkpoint(target)
    encoder, front_end = loaded.config.encoder, loaded.front_end
    high_hz = front_end.high_hz or front_end.sample_rate_hz / 2
    rows = [
        ("model", loaded.report.name),
        ("weights", f"digest {loaded.identity.weights_digest}"),
        ("kind", loaded.config.kind),
        ("parameters", f"{loaded.report.num_parameters / 1e6:.2f} M"),
        ("encoder", encoder.summary),
        ("patches", f"{encoder.patch_size} with stride {encoder.patch_stride}, {encoder.patch_order}"),
        ("pretraining input", f"{encoder.num_mel_bins} mel bins x {encoder.num_frames} frames"),
        (
            "front end",
            f"{front_end.sample_rate_hz} Hz, {front_end.num_mel_bins} mel bins from {front_end.low_hz:g} to "
            f"{high_hz:g} Hz, mean {front_end.mean:g}, standard deviation {front_end.std:g}",
        ),
    ]
    if loaded.config.classifier is not None:
        classifier = loaded.config.classifier
        rows.append(("classifier", f"{classifier.num_classes} classes, {classifier.pooling} pooling"))
    if loaded.config.base is not None:
        rows.append(("trained from", str(loaded.config.base)))
    if loaded.config.origin is not None:
        rows.append(("origin", loaded.config.origin))
    rows += [("ignored", line) for line in loaded.report.ignored_by_reason()]
    rows += [("note", note) for note in loaded.report.notes]
    return rows


def _audio_rows(path: Path) -> list[tuple[str, str]]:
    import numpy as np

    from ssamba.audio.decode import collect_remarks, probe, stream

    header = probe(path)
    stated_s = header.duration_s if header.claimed_s is None else header.claimed_s
    rows = [
        ("format", f"{header.container} {header.codec}, read by {header.reader}"),
        ("rate", f"{header.sample_rate_hz} Hz, {header.channels} channel{'s' if header.channels != 1 else ''}"),
        ("stated length", "unknown" if stated_s is None else f"{stated_s:.3f} s"),
    ]
    peak, energy, count = 0.0, 0.0, 0
    with collect_remarks() as remarks:
        for block in stream(path, sample_rate_hz=header.sample_rate_hz, damaged="keep"):
            peak = max(peak, float(np.abs(block).max(initial=0)))
            energy += float(np.square(block, dtype=np.float64).sum())
            count += len(block)
    rows.append(("decoded length", f"{count / header.sample_rate_hz:.3f} s, mono"))
    if peak == 0:
        rows.append(("level", "silent"))
    else:
        rms = (energy / count) ** 0.5
        rows.append(("level", f"peak {20 * np.log10(peak):.1f} dBFS, RMS {20 * np.log10(rms):.1f} dBFS"))
    rows.append(("verdict", remarks[0].verdict if remarks else header.verdict))
    rows += [("problem", entry.reason) for entry in remarks]
    return rows


@app.command(epilog="[bold]Example[/]\n\nssamba convert ssamba_tiny.pth -o ssamba-tiny/\n\n" + EXIT_CODES)
def convert(
    source: Annotated[str, typer.Argument(help="Name, folder, official .pth file, or hf:OWNER/NAME.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Write float16, which halves the size.")] = False,
    origin: Annotated[str | None, typer.Option(help="Provenance of the weights, one line.")] = None,
) -> None:
    """Convert a checkpoint to ssamba's format: config.json, model.safetensors, preprocessor_config.json."""
    from ssamba.checkpoint import convert_checkpoint

    report = convert_checkpoint(source, output, overwrite=overwrite, half=half, origin=origin)
    out.print(escape(str(report)), highlight=False, soft_wrap=True)
    out.print(f"written to {escape(str(output))}", highlight=False, soft_wrap=True)


@app.command(
    epilog="[bold]Examples[/]\n\nssamba average runs/first/model runs/second/model -o runs/mean\n\n"
    "ssamba average runs/a/model runs/b/model -o mean/ --weights 1,3 --half\n\n" + EXIT_CODES
)
def average(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCES...", help="Checkpoints of the same structure, as for convert.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.", show_default=False)],
    weights: Annotated[
        str | None, typer.Option(help="Comma-separated weights of the checkpoints. Default: equal.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Write float16, which halves the size.")] = False,
    origin: Annotated[str | None, typer.Option(help="Provenance of the weights, one line.")] = None,
) -> None:
    """Average the weights of models that were fine-tuned or continued from one another.

    The average often generalizes better than each model, above all to recordings from other sources. Models that were
    trained independently cannot be averaged. Evaluate the result with `ssamba evaluate`.
    """
    from ssamba.checkpoint import average_checkpoints
    from ssamba.cli.bench import numbers

    shares = None if weights is None else numbers(weights, "--weights")
    average_checkpoints(sources, output, weights=shares, overwrite=overwrite, half=half, origin=origin)
    out.print(f"written to {escape(str(output))}", highlight=False, soft_wrap=True)
