"""What a finished run hands over: the trained model, the best one, and the report."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from ssamba.checkpoint.files import write_json
from ssamba.training.progress import TrainingReport
from ssamba.training.state import flush_to_disk

MODEL_FOLDER = "model"
BEST_FOLDER = "best"
REPORT_FILE = "report.json"


def release(
    out: Path, report: TrainingReport, write_model: Callable[[Path], object], best_model: Path | None = None
) -> None:
    """Write a run's results beside its states.

    Args:
        out: the run's folder.
        report: goes to `report.json`; if it names a model, that is written there.
        write_model: writes the model into an empty folder.
        best_model: folder of the best model, to be copied to `best`.

    Raises:
        OSError: something cannot be written; what stood there before still does.
    """
    if report.model is not None:
        replace_folder(report.model, write_model)
        if best_model is not None and best_model.is_dir():
            replace_folder(out / BEST_FOLDER, lambda folder: shutil.copytree(best_model, folder, dirs_exist_ok=True))
    write_json(out / REPORT_FILE, report.as_json())


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Write a folder under another name, flush it to the disk, and put it in the place of `folder`.

    Raises:
        OSError: it cannot be written; what stood there before still does.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        write(unfinished)
        flush_to_disk(unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    except SafetensorError as error:
        raise OSError(f"{folder}: {error}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
