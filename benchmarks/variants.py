"""Measure what each change of structure and objectives gains: `python -m benchmarks.variants --corpus CORPUS --suite
SUITE`.

Every row is one run of `--minutes` wall time from random weights on the same corpus, with the same optimizer, schedule,
crops and share of masked patches; only what the row's name says differs. Held-out figures are those of the run's last
validation at 300 of 512 masked patches; scores are those of `ssamba evaluate --inner`, inside the suite's training
parts, so that no test clip is read. Losses compare only between rows with the same targets (patches of one shape,
normalized or not). Writes benchmarks/results/variants.json and variants.md after every row, and skips existing rows.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import RESULTS, inline, save
from ssamba.embedder import Embedder, load_model
from ssamba.evaluation import EncoderModel, EvaluateOptions, LogMelStatistics, evaluate_model, read_suite
from ssamba.model import create_encoder
from ssamba.studies.harness import environment, table
from ssamba.training import TrainingReport, train
from ssamba.training.pretraining.data import Corpora, open_corpora
from ssamba.training.pretraining.recipe import PretrainRecipe
from ssamba.training.pretraining.task import PretrainingTask

Values = dict[str, Any]

BASE: Values = {
    "model": {"size": "tiny", "variant": "official", "encoder": {}},
    "data": {"crop_s": 3.2, "short_clips": "bucket", "batch_s": 112.0},
    "masking": {"ratio": 300 / 512},
    "objectives": {"encode": "all", "decoder_depth": 0, "normalize_targets": False},
    "optimizer": {"learning_rate": 1e-3},
    "schedule": {"kind": "cosine", "warmup_steps": 20},
    "validation_counts": (300,),
    "run": {"precision": "auto", "ema_decay": 0.99, "log_every": 10},
}
"""Structure and objectives of the original, with one encoder pass."""

AVERAGED: Values = {"model": {"encoder": {"pair_residual": "mean"}}}
ONE_NORM: Values = {"model": {"encoder": {"final_norms": 1}}}
SEQUENTIAL: Values = {"model": {"encoder": {"block_layout": "sequential"}}}
VISIBLE: Values = {"objectives": {"encode": "visible", "decoder_depth": 1}}
TIME_MAJOR: Values = {"model": {"encoder": {"patch_order": "time_major"}}}
MOMENTS: Values = {
    "model": {"encoder": {"patch_order": "time_major", "patch_size": (128, 4), "patch_stride": (128, 4)}}
}
NORMALIZED: Values = {"objectives": {"normalize_targets": True}}
TEACHER: Values = {"objectives": {"teacher": 1.0}}
TWO_VIEWS: Values = {
    "views": {"count": 2, "longest_s": 2.56, "shortest_share": 0.85, "whole_s": 1.0},
    "augmentation": {"gain_db": 10.0, "tilt_db": 4.0, "equalizer_db": 2.0, "band_share": 0.2, "shift_bins": 4},
    "objectives": {"discriminative": 0.5, "generative": 4.0, "clip": 0.5, "statistics": 3.0, "profile": 3.0},
}

ROWS: dict[str, tuple[Values, ...]] = {
    "the original, one pass": (),
    "(a) averaged residuals": (AVERAGED,),
    "(b) one final norm": (ONE_NORM,),
    "(c) sequential blocks": (SEQUENTIAL,),
    "(d) visible patches only": (VISIBLE,),
    "(e) time-major": (TIME_MAJOR,),
    "(e2) time-major, tokens of 128 bins x 4 frames": (MOMENTS,),
    "(f) normalized targets": (NORMALIZED,),
    "(g) teacher": (TEACHER,),
    "a + b + d + e + f": (AVERAGED, ONE_NORM, VISIBLE, TIME_MAJOR, NORMALIZED),
    "a + b + d + e2 + f (ssamba2)": (AVERAGED, ONE_NORM, VISIBLE, MOMENTS, NORMALIZED),
    "ssamba2 + c": (AVERAGED, ONE_NORM, VISIBLE, MOMENTS, NORMALIZED, SEQUENTIAL),
    "ssamba2 + g": (AVERAGED, ONE_NORM, VISIBLE, MOMENTS, NORMALIZED, TEACHER),
    "ssamba2, two views, targets of the clip": (AVERAGED, ONE_NORM, VISIBLE, MOMENTS, NORMALIZED, TWO_VIEWS),
}


def main() -> None:
    """Train, score, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="corpus, as `ssamba pretrain` takes it")
    parser.add_argument("--suite", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=3.0, help="training time of each row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", choices=list(ROWS), help="only these rows")
    parser.add_argument("--cache", type=Path, required=True, help="folder to cache decoded clips of the suite")
    parser.add_argument("--again", action="store_true", help="discard existing rows")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = RESULTS / "variants.json"
    found = json.loads(path.read_text())["rows"] if path.exists() and not arguments.again else {}
    where = {**environment(), "minutes": arguments.minutes}
    same = ("processor", "threads", "torch", "minutes")
    other = [name for name, row in found.items() if [row["where"].get(k) for k in same] != [where[k] for k in same]]
    if other:
        raise SystemExit(
            f"{path} holds {other[0]!r} from another machine or with another --minutes: give --again, or move the file"
        )
    tasks = read_suite(arguments.suite)

    def score(model: Any) -> Values:
        scored = evaluate_model(
            model, tasks, EvaluateOptions(inner=True), cache=arguments.cache, workers=torch.get_num_threads()
        )
        return {**scored.best().scores, "mean": scored.best().mean}

    def finish(name: str, row: Values) -> None:
        found[name] = {**row, "where": where}
        print(name, json.dumps(row), flush=True)
        _save(found)

    if "log-mel statistics" not in found:
        finish("log-mel statistics", {"scores": score(LogMelStatistics())})
    for name, changes in (("random weights, original", ()), ("random weights, ssamba2", (AVERAGED, ONE_NORM, MOMENTS))):
        if name not in found:
            settings = recipe_of(changes, arguments.minutes).model
            torch.manual_seed(0)
            encoder = create_encoder("tiny", settings.variant, **settings.encoder)  # type: ignore[arg-type]
            finish(name, {"scores": score(EncoderModel(Embedder(encoder)))})
    corpora: Corpora | None = None
    for name in arguments.only or ROWS:
        if name in found:
            continue
        recipe = recipe_of(ROWS[name], arguments.minutes)
        if corpora is None:
            corpora = open_corpora([arguments.corpus], recipe)
        # Decoded recordings are shared; each recipe makes its own batches.
        own = Corpora(corpora.training, corpora.held_out, recipe)
        with tempfile.TemporaryDirectory() as out:
            started_s = time.perf_counter()
            report = train(PretrainingTask(recipe, own), recipe.optimizer, recipe.schedule, recipe.run, out)
            row = _row(report, time.perf_counter() - started_s)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row["scores"] = score(EncoderModel(load_model(Path(out) / "model", device="cpu")))
        finish(name, row)


def recipe_of(changes: tuple[Values, ...], minutes: float) -> PretrainRecipe:
    """Return the base recipe with changes."""
    values = copy.deepcopy(BASE)
    for change in changes:
        _merge(values, change)
    values["run"]["max_minutes"] = minutes
    return PretrainRecipe.parse(values, "benchmarks.variants")


def _merge(values: Values, change: Values) -> None:
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = copy.deepcopy(value)


def _row(report: TrainingReport, seconds: float) -> Values:
    held_out = {name: round(value, 4) for name, value in report.validation.items()}
    return {"steps": report.step, "clips": report.clips, "wall_s": round(seconds, 1), "held_out": held_out}


def _save(found: dict[str, Values]) -> None:
    tasks = [name for name in next(iter(found.values()))["scores"] if name != "mean"]

    def held_out(row: Values, name: str) -> str:
        value = row.get("held_out", {}).get(f"{name}@300")
        return "" if value is None else f"{value:.3f}"

    rows = [
        [
            name,
            f"{row['clips']:,}" if "clips" in row else "",
            *(held_out(row, figure) for figure in ("discriminative", "accuracy", "generative")),
            *(f"{row['scores'][task]:.3f}" for task in [*tasks, "mean"]),
        ]
        for name, row in found.items()
    ]
    heading = inline(next(iter(found.values()))["where"])
    head = ["run", "clips", "InfoNCE", "accuracy", "MSE", *tasks, "mean"]
    save("variants", {"rows": found}, f"{heading}\n\n{table(head, rows)}")


if __name__ == "__main__":
    main()
