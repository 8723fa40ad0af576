"""The open suite's miniature packages, and a suite whose clips are left out."""

from tests.benchmarks.proxy_suite.conftest import debs, excluded, wav

__all__ = ["debs", "excluded", "wav"]
