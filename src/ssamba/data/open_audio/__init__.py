"""The open suite of labelled tasks, rebuilt from Debian's packages."""

from ssamba.data.open_audio.build import BuiltSuite, build_suite
from ssamba.data.open_audio.tasks import OPEN_TASKS

__all__ = ["OPEN_TASKS", "BuiltSuite", "build_suite"]
