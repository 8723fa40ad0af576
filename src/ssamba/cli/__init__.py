"""The command line: parsing, progress, exit codes. Each subcommand calls one library function.

Heavy imports happen inside the commands, so that `ssamba --help` answers at once.
"""

from __future__ import annotations

import sys

# Importing a module adds its commands.
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
    """Run the command line; what users did wrong ends in one message and exit code 1."""
    try:
        app()
    except SsambaError as error:
        fail(str(error))
    except OSError as error:
        fail(str(error))
    except KeyboardInterrupt:
        err.print("[yellow]interrupted[/]")
        sys.exit(EXIT_INTERRUPTED)
