"""Training: one loop for every task, its settings, and its saved states."""

from ssamba.training.loop import train
from ssamba.training.run_io import TrainingProgress, TrainingReport
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
