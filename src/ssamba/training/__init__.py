"""Training: one loop for every task, its settings, and what it saves."""

from ssamba.training.loop import train
from ssamba.training.progress import TrainingProgress, TrainingReport
from ssamba.training.settings import (
    OFFICIAL_OPTIMIZER,
    OFFICIAL_SCHEDULE,
    OptimizerSettings,
    RunSettings,
    ScheduleSettings,
)
from ssamba.training.task import StepContext, StepOutcome, Task

__all__ = [
    "OFFICIAL_OPTIMIZER",
    "OFFICIAL_SCHEDULE",
    "OptimizerSettings",
    "RunSettings",
    "ScheduleSettings",
    "StepContext",
    "StepOutcome",
    "Task",
    "TrainingProgress",
    "TrainingReport",
    "train",
]
