"""The command line: parsing, progress, exit codes. Each command calls one library function.

Commands import heavy modules when they run, so that `ssamba --help` is fast.
"""

# Importing a module registers its commands.
from ssamba.cli import (  # noqa: F401
    bench,
    compare,
    convert,
    embed,
    evaluate,
    export,
    finetune,
    info,
    manifest,
    models,
    predict,
    prepare,
    pretrain,
    reconstruct,
    shard,
    stats,
)
from ssamba.cli.app import app, ignore_signals

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; a signal that comes when a command is done does not disturb the end of the process."""
    try:
        app()
    finally:
        ignore_signals()
