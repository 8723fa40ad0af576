"""`ssamba models`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ssamba.cli.app import EXIT_CODES, app, out

if TYPE_CHECKING:
    from ssamba.checkpoint import ModelInfo


@app.command(epilog="[bold]Examples[/]\n\nssamba models\n\nssamba models --json\n\n" + EXIT_CODES)
def models(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False) -> None:
    """List the models that have names: shipped with ssamba, the authors' official ones, cached by huggingface_hub.

    Every command takes these names with -c, and recipes take them, too. A name without a version is the newest one.
    Official weights are downloaded when they are first named (extra `hf`); this list needs no network.
    """
    from ssamba.checkpoint import available_models

    found = available_models()
    if as_json:
        listed = [{**asdict(model), "path": None if model.path is None else str(model.path)} for model in found]
        sys.stdout.write(json.dumps(listed, indent=2) + "\n")
        return
    for model in found:
        _print(model)


def _print(model: ModelInfo) -> None:
    also = f"  ({', '.join(model.aliases)})" if model.aliases else ""
    out.print(f"[bold]{escape(model.name)}[/]{escape(also)}", highlight=False, soft_wrap=True)
    facts = (
        f"{model.family} {model.size}",
        f"{model.parameters / 1e6:.2f} M parameters",
        f"dimension {model.dim}",
        *([] if model.file_bytes is None else [f"{model.file_bytes / 1e6:.1f} MB"]),
        f"license: {model.license}",
        f"{model.where}{', downloaded when first named' if model.path is None else ''}",
    )
    out.print(escape(f"  {', '.join(facts)}"), highlight=False, soft_wrap=True)
    out.print(escape(f"  data: {model.data}"), highlight=False, soft_wrap=True)
