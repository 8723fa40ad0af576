"""Build the six tasks of the open suite from packages of Debian 12 (8 GB for sfx14, 1 GB for the others).

    python -m benchmarks.open_suite debs/ -o suite/ --fetch
    python -m benchmarks.open_suite debs/ -o suite/ --fetch --task zh_final --task drum8

Writes TASK.csv and TASK.tar to the output folder, for `ssamba evaluate`. A task is left out, with the reason,
if a package or program is missing; a task that exists is not built again. Only --fetch downloads anything. Exit codes:
0 done; 1 an error; 2 wrong usage; 3 with --strict, some tasks or clips were left out; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.markup import escape

from benchmarks.open_suite.build import Refuse, Suite, build_suite
from ssamba.cli.app import EXIT_INTERRUPTED, EXIT_SKIPPED, err, fail, log_to_stderr, out, report_skipped
from ssamba.cli.progress import ProgressDisplay
from ssamba.errors import SsambaError
from ssamba.progress import Progress
from ssamba.worker_pool import default_workers


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the open suite as the command line says."""
    log_to_stderr()
    args = parse(argument_parser("python -m benchmarks.open_suite", __doc__), arguments)
    build_and_report(args, "open suite")


def argument_parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a command that builds a suite."""
    parser = argparse.ArgumentParser(
        prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("debs", type=Path, help="folder with Debian's .deb files")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the suite")
    parser.add_argument("--fetch", action="store_true", help="download missing packages with apt-get; no root needed")
    parser.add_argument("--task", action="append", help="build only this task; may be repeated")
    parser.add_argument("--overwrite", action="store_true", help="build tasks again that exist")
    parser.add_argument("--strict", action="store_true", help="exit with code 3 if a task or clip is left out")
    parser.add_argument(
        "--workers", type=int, help="processes that make clips (default: the cores minus one, at most 8)"
    )
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line; a wrong one exits with code 2."""
    args = parser.parse_args(arguments)
    if args.workers is not None and args.workers < 0:
        parser.error(f"--workers must not be negative, got {args.workers}")
    return args


def build_and_report(
    args: argparse.Namespace,
    title: str,
    suite: Suite | None = None,
    refuse: Refuse = lambda task, source, digest, opus: None,
) -> None:
    """Build a suite, and report what was built and what was left out."""
    started_s = time.monotonic()
    with ProgressDisplay() as show:
        built = build_suite(
            args.output,
            args.debs,
            suite=suite,
            tasks=args.task,
            fetch=args.fetch,
            overwrite=args.overwrite,
            workers=default_workers() if args.workers is None else args.workers,
            on_progress=lambda step, done, total: show(Progress(step, done, total, "steps")),
            refuse=refuse,
        )
    skipped = [*built.left_out, *built.skipped]
    report_skipped(skipped, Path(f"{built.folder}.skipped.csv") if skipped else None)
    for note in built.notes:
        err.print(f"[cyan]note[/] {escape(note)}", soft_wrap=True, highlight=False)
    for name, written in built.written.items():
        out.print(f"{name}: {written.clips} clips, {written.classes} classes", highlight=False)
    if built.existing:
        out.print(f"exists already: {', '.join(built.existing)}", highlight=False)
    out.print(
        f"{title}: {len(built.written) + len(built.existing)} tasks, {len(built.left_out)} left out, in "
        f"{time.monotonic() - started_s:.1f} s: {escape(str(built.folder))}",
        highlight=False,
        soft_wrap=True,
    )
    if not built.written and not built.existing:
        fail("no task could be built")
    if args.strict and skipped:
        sys.exit(EXIT_SKIPPED)


def exit_with_code(command: Callable[[], None]) -> None:
    """Run a command; errors and interruptions become one line and an exit code."""
    try:
        command()
    except (SsambaError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        err.print("[yellow]interrupted[/]")
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    exit_with_code(main)
