"""The command line: parsing, progress bars, exit codes. Each subcommand calls one library function.

Commands import heavy modules when they run, so that `ssamba --help` is fast.
"""

from __future__ import annotations

import sys

# Importing a module registers its commands.
from ssamba.cli import (  # noqa: F401
    bench,
    embed,
    evaluate,
    finetune,
    info,
    manifest,
    predict,
    prepare,
    pretrain,
    shard,
    stats,
)
from ssamba.cli.app import EXIT_INTERRUPTED, app, err, fail
from ssamba.errors import SsambaError

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; user errors end in one message and exit code 1."""
    try:
        app()
    except (SsambaError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        err.print("[yellow]interrupted[/]")
        sys.exit(EXIT_INTERRUPTED)
