"""Compare training runs: settings that differ, final figures, and curves side by side; also while the runs train.

comparison = compare_runs(["runs/first", "runs/second"], "comparison/")
print(comparison)

OUTPUT/compare.csv      settings that differ and final figures, a column for each run
OUTPUT/compare.json     the same and the curves
OUTPUT/compare.png      the curves, by step and by minutes
"""

from __future__ import annotations

import logging
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ssamba.checkpoint.files import read_json, write_json
from ssamba.checkpoint.names import ROUNDS_FOLDER, STATES_FOLDER
from ssamba.config import flat_settings
from ssamba.errors import ConfigError, DataError, MissingExtraError
from ssamba.files import finite, folder_name, output_folder, user_path, write_csv
from ssamba.locks import is_locked
from ssamba.plotting import blank_figure, save_figure
from ssamba.progress import format_duration
from ssamba.text import format_table
from ssamba.training.finetuning.report import RESULTS_FILE
from ssamba.training.run_io import LOG_FILE, REPORT_FILE, metrics_of_line, read_log
from ssamba.training.state import StateFolder

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MAX_PANELS = 6
_log = logging.getLogger(__name__)


@dataclass
class Curve:
    """One metric over a run, or over one round of a cross-validation."""

    steps: list[int] = field(default_factory=list)
    minutes: list[float] = field(default_factory=list)
    """Time spent training, over all sessions."""
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class ComparedRun:
    """What a run's folder says about it."""

    name: str
    folder: Path
    status: str
    """`running`; `finished`, or the signal that ended it; `interrupted` if it was killed."""
    settings: Mapping[str, Any]
    """By dotted name."""
    figures: Mapping[str, float | str]
    """Final ones, or those so far."""
    intervals: Mapping[str, tuple[float, float]]
    """95 % intervals of some figures."""
    curves: Mapping[str, Sequence[Curve]]
    """By name, such as `validation loss`; one for each round."""


@dataclass(frozen=True)
class Comparison:
    """Runs side by side. As text, a table with a column for each run."""

    runs: tuple[ComparedRun, ...]
    settings: Mapping[str, tuple[Any, ...]]
    """Settings that differ, with the value of each run; None for one that does not have it."""

    def rows(self) -> list[list[str]]:
        """Return a row for each setting that differs and each figure: its name, and a cell for each run."""
        rows = [[name, *map(_setting, values)] for name, values in self.settings.items()]
        names = dict.fromkeys(name for run in self.runs for name in run.figures)
        rows += [["status", *(run.status for run in self.runs)]]
        return rows + [[name, *(_cell(run, name) for run in self.runs)] for name in names]

    def __str__(self) -> str:
        return format_table(["", *(run.name for run in self.runs)], self.rows(), wrap=False)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        runs = [{**asdict(run), "folder": str(run.folder)} for run in self.runs]
        return {"settings_that_differ": dict(self.settings), "runs": runs}


def compare_runs(runs: Sequence[str | Path], output: str | Path | None = None) -> Comparison:
    """Compare training runs: settings that differ, final figures, curves.

    Args:
        runs: folders of runs, of pretraining or fine-tuning, finished or not; or a folder that has them in it.
        output: folder for the table, the JSON file and the picture (see the docstring of this module); None writes
            nothing. What an earlier comparison wrote there is replaced.

    Raises:
        ConfigError: no run is named, or `output` is a file.
        DataError: a folder holds no run.
    """
    if isinstance(runs, str | os.PathLike):
        runs = [runs]
    if not runs:
        raise ConfigError("expected the folders of the runs to compare, got none")
    folder = None if output is None else output_folder(output)
    paths = [run for path in runs for run in _runs_in(user_path(path))]
    names = [folder_name(path) for path in paths]
    found = [
        _read_run(path, name if names.count(name) == 1 else str(path)) for path, name in zip(paths, names, strict=True)
    ]
    keys = dict.fromkeys(key for run in found for key in run.settings)
    values = {key: tuple(run.settings.get(key) for run in found) for key in keys}
    comparison = Comparison(tuple(found), {key: each for key, each in values.items() if len(set(map(str, each))) > 1})
    if folder is not None:
        write_csv(folder / "compare.csv", ["", *(run.name for run in found)], comparison.rows())
        write_json(folder / "compare.json", finite(comparison.as_json()))
        try:
            plot_curves(comparison, folder / "compare.png")
        except MissingExtraError as error:
            _log.warning("compare.png was not plotted: %s", error)
    return comparison


def plot_curves(comparison: Comparison, output: str | Path) -> Path:
    """Plot the curves of all runs by step and by minutes: the training loss, validations, then other metrics.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    names = _panels(comparison)
    figure = blank_figure(10, 0.6 + 2.2 * len(names))
    for axes, name in zip(
        figure.subplots(len(names), 2, sharex="col", sharey="row", squeeze=False), names, strict=True
    ):
        for panel, unit in zip(axes, ("steps", "minutes"), strict=True):
            for number, run in enumerate(comparison.runs):
                for part, curve in enumerate(run.curves.get(name, ())):
                    panel.plot(
                        getattr(curve, unit),
                        curve.values,
                        color=_COLORS[number % len(_COLORS)],
                        linestyle="-" if number < len(_COLORS) else "--",
                        linewidth=1.2,
                        marker="o" if len(curve.values) < 30 else None,
                        markersize=3,
                        label=run.name if part == 0 else None,
                    )
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
        axes[0].set_ylabel(name.replace(" ", "\n", 1))
    axes[0].set_xlabel("steps")
    axes[1].set_xlabel("minutes of training")
    handles = {
        label: handle for panel in figure.axes for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False)
    return save_figure(figure, output)


def _panels(comparison: Comparison) -> list[str]:
    """Return the curves to plot: losses, validations, then metrics of training.

    Of a metric that pretraining validates at several counts of masked patches (`accuracy@400`) the last is plotted.
    """
    names = dict.fromkeys(name for run in comparison.runs for name in run.curves)
    last = {name.partition("@")[0]: name for name in names if "@" in name and not name.startswith("validation loss@")}
    chosen = [name for name in names if "@" not in name or name in last.values()]
    chosen.sort(key=lambda name: (not name.endswith(" loss"), not name.startswith("validation")))
    return chosen[:_MAX_PANELS] or ["train loss"]


def _runs_in(folder: Path) -> list[Path]:
    """Return the folder or, where runs are in it, those by name."""
    inner = [] if _logs(folder) else sorted(path for path in folder.glob("*") if _logs(path))
    return inner or [folder]


def _logs(run: Path) -> list[Path]:
    """Return the log of a run, or the logs of its rounds."""
    rounds = sorted(run.glob(f"{ROUNDS_FOLDER}/*/{LOG_FILE}"))
    return [run / LOG_FILE] if (run / LOG_FILE).is_file() else rounds


def _read_run(folder: Path, name: str) -> ComparedRun:
    """Read what a run's folder says.

    Raises:
        DataError: it holds no run.
    """
    logs = _logs(folder)
    parts = [lines for lines in map(read_log, logs) if any(line.get("event") == "start" for line in lines)]
    if not parts:
        raise DataError(f"{folder} holds no run: expected a folder that `ssamba pretrain` or `ssamba finetune` wrote")
    curves: dict[str, list[Curve]] = {}
    for lines in parts:
        for label, curve in _curves(lines).items():
            curves.setdefault(label, []).append(curve)
    start = next(line for line in reversed(parts[-1]) if line["event"] == "start")
    settings = {label.removeprefix("task."): value for label, value in flat_settings(start.get("settings", {})).items()}
    settings |= {label: start.get(label) for label in ("data", "device", "processes", "precision")}
    results = _read_json(folder / RESULTS_FILE)
    tests = {f"test {label}": score for label, score in results.get("scores", {}).items()}
    figures = {
        **_totals(parts),
        **{label: _mean(curve.values[-1] for curve in each) for label, each in curves.items() if _is_shown(label)},
        **_best(logs),
        **{label: score["mean"] for label, score in tests.items()},
    }
    ends = [lines[-1].get("stopped") for lines in parts]  # the last line of a session that ended by itself
    is_finished = all(end == "finished" for end in ends) and (logs == [folder / LOG_FILE] or bool(results.get("run")))
    status = "finished" if is_finished else next((end for end in ends if end not in (None, "finished")), "interrupted")
    return ComparedRun(
        name,
        folder,
        "running" if is_locked(folder, folder=True) else status,
        settings,
        {label: value for label, value in figures.items() if value is not None},
        {label: tuple(score["interval"]) for label, score in tests.items() if score.get("interval")},
        curves,
    )


def _curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Return the curves of a log by name, such as `train loss`."""
    curves: dict[str, Curve] = {}
    minutes = 0.0
    for line in lines:
        if line["event"] not in ("train", "validation"):
            continue
        minutes = line.get("elapsed_s", 60 * minutes) / 60
        for name, value in metrics_of_line(line).items():
            curve = curves.setdefault(f"{line['event']} {name}", Curve())
            curve.steps.append(line["step"])
            curve.minutes.append(minutes)
            curve.values.append(value)
    return curves


def _totals(parts: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, float | str | None]:
    """Return steps, time, speed and memory over all rounds."""
    trained = [lines for part in parts if (lines := [line for line in part if line["event"] == "train"])]
    last = [lines[-1] for lines in trained]
    rates = [line["clips_per_s"] for lines in trained for line in lines]
    memory = max((line["peak_memory_bytes"] or 0 for line in last), default=0)
    return {
        "rounds": len(parts) if len(parts) > 1 else None,
        "steps": sum(line["step"] for line in last),
        "epochs": sum(line["epoch"] for line in last),
        "time": format_duration(sum(line["elapsed_s"] for line in last)),
        "clips/s": statistics.median(rates) if rates else None,
        "peak memory, GB": memory / 1e9 or None,
    }


def _best(logs: Sequence[Path]) -> dict[str, float | None]:
    """Return the best validation so far and its step, as the last states or reports say."""
    found = []
    for log in logs:
        states = StateFolder(log.parent / STATES_FOLDER, 1).complete()
        best = _read_json(log.parent / REPORT_FILE).get("best") or (states[-1].meta.get("best") if states else None)
        found += [best] if best else []
    return {"best validation": _mean(best[1] for best in found), "at step": _mean(best[0] for best in found)}


def _is_shown(curve: str) -> bool:
    return curve == "train loss" or curve.startswith("validation ")


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return statistics.fmean(values) if values else None


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value))
    return "-" if value is None else str(value)


def _cell(run: ComparedRun, name: str) -> str:
    value = run.figures.get(name)
    if value is None or isinstance(value, str):
        return value or "-"
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    low, high = run.intervals.get(name, (None, None))
    return text if low is None or high is None else f"{text} [{low:.3g}, {high:.3g}]"
