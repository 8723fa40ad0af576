"""Build the open suite of labeled tasks from Debian's packages: `python -m benchmarks.open_suite`."""

from benchmarks.open_suite.build import BuiltSuite, build_suite
from benchmarks.open_suite.tasks import OPEN_TASKS

__all__ = ["OPEN_TASKS", "BuiltSuite", "build_suite"]
