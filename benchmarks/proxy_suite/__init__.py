"""Build a suite for choosing settings without the open suite: `python -m benchmarks.proxy_suite`."""

from benchmarks.proxy_suite.build import PROXY_SUITE
from benchmarks.proxy_suite.tasks import PROXY_TASKS

__all__ = ["PROXY_SUITE", "PROXY_TASKS"]
