"""The open suite of labeled tasks, rebuilt from Debian's packages."""

from benchmarks.open_suite.build import BuiltSuite, build_suite
from benchmarks.open_suite.tasks import OPEN_TASKS

__all__ = ["OPEN_TASKS", "BuiltSuite", "build_suite"]
