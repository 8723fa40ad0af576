"""The open suite's miniature packages and synthesizers."""

from tests.benchmarks.open_suite.conftest import debs, program, wav

__all__ = ["debs", "program", "wav"]
