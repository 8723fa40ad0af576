"""Build a corpus for pretraining from packages of Debian 12: acted and read speech, about 7 hours.

    python -m benchmarks.corpus debs/ -o runs/corpus/ --fetch --exclude suite/
    ssamba pretrain runs/corpus/ more/ -o runs/mine

Writes shards for `ssamba pretrain`, and PACKAGES.txt, licenses/ and corpus.json. Reads only the packages listed in
`benchmarks/corpus/sources.py`. A recording that a suite given by --exclude holds, in whatever codec, ends the build
with an error. Only --fetch downloads anything. Exit codes: 0 done; 1 an error, or an excluded recording was found;
2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from benchmarks.corpus.build import build_corpus
from benchmarks.open_suite.__main__ import exit_with_code, parse
from ssamba.cli.app import log_to_stderr, out
from ssamba.cli.progress import ProgressDisplay
from ssamba.progress import Progress, counted
from ssamba.worker_pool import default_workers


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the corpus as the command line says."""
    log_to_stderr()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.corpus", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("debs", type=Path, help="folder with Debian's .deb files")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--fetch", action="store_true", help="download missing packages with apt-get; no root needed")
    parser.add_argument(
        "--exclude",
        type=Path,
        action="append",
        required=True,
        help="folder of a suite of which no clip may be in the corpus; may be repeated",
    )
    parser.add_argument("--package", action="append", help="read only this package; may be repeated")
    parser.add_argument("--overwrite", action="store_true", help="build a corpus again that exists")
    parser.add_argument("--workers", type=int, help="processes that decode (default: the cores minus one, at most 8)")
    args = parse(parser, arguments)
    started_s = time.monotonic()
    with ProgressDisplay() as show:
        built = build_corpus(
            args.output,
            args.debs,
            args.exclude,
            packages=args.package,
            fetch=args.fetch,
            overwrite=args.overwrite,
            workers=default_workers() if args.workers is None else args.workers,
            on_progress=lambda step, done, total: show(Progress(step, done, total, "steps")),
        )
    for name, report in built.packages.items():
        left_out = ", ".join(f"{count} {reason}" for reason, count in report.left_out.items()) or "none"
        level = f", {report.level_db[1]:.0f} dB" if report.level_db else ""
        heard = f"{counted(report.recordings, 'recording')}, {report.hours:.2f} h{level}"
        out.print(
            f"{name} {report.version}: {heard}; left out: {left_out}",
            highlight=False,
            soft_wrap=True,
        )
    out.print(
        f"corpus: {counted(built.clips, 'clip')}, {built.hours:.2f} h, none of "
        f"{counted(built.compared, 'excluded clip')}, in "
        f"{time.monotonic() - started_s:.0f} s: {escape(str(built.folder))}",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    exit_with_code(main)
