"""Events in long recordings: `python -m benchmarks.events SUITE [--work FOLDER] [--epochs 24] [--seeds 3]`.

SUITE is the folder that `python -m benchmarks.open_suite` writes. Six words of `kws35` stand for species, their voices
for individuals: 30 clips of each are labeled, and the clips of other voices are events, placed in nights at 0, -6 and
-12 dB. A night is made of ambiences (`wind_ambience` of `sfx14`) of games whose other ambiences are in no training; an
event's level is that of the word over that of the ambience under it. Two classifiers are fine-tuned on one thread, with
`--background` (the ambiences that no night holds) and without, `--seeds` times; each time has nights of its own, and
events are counted over all.

    before       seconds of the classifier without background, read in windows of 10.24 s, from a probability of 0.5 on
    windows      the same classifier, asked by windows as long as its clips, from 0.5 on
    background   the classifier with background and its own thresholds: what `ssamba predict --events` does

A found event is right if it shares half of the shorter one's length with a word that was not found yet. The second
table joins the held-out clips at random, with 0 to 3 s of digital silence between: how often the answer at the middle
of a clip is that of the clip alone, and the share of silence for which a word has a probability above .5.

Writes benchmarks/results/events.json and .md. Finished trainings in the work folder are used again.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ssamba
from benchmarks.timing import save
from ssamba.annotations import Annotation, write_annotations
from ssamba.audio.decode import decode
from ssamba.data.mixing import rms
from ssamba.embedder import Embedder
from ssamba.embedding import Per, PredictOptions
from ssamba.events import Event, count_overlaps, merge_windows
from ssamba.files import write_csv
from ssamba.inference.clip_windows import Predictor
from ssamba.studies.harness import environment, table

Array = np.ndarray[Any, Any]
RATE_HZ = 16_000
WORDS = ("yes", "stop", "seven", "happy", "bird", "wow")
CLIPS, EVENTS_OF_A_WORD, LEVELS_DB = 30, 6, (0, -6, -12)
AMBIENCE = "wind_ambience"
WAYS = {"before": "before", "windows": "windows", "background": "windows and background"}
_AMBIENCE_LEVEL = 0.02
"""Root mean square of every ambience."""


def read_rows(suite: Path, task: str, work: Path) -> list[dict[str, str]]:
    """Return the rows of a task; unpack its clips to `work` unless they are there."""
    if not (work / task).is_dir():
        with tarfile.open(suite / f"{task}.tar") as archive:
            archive.extractall(work, filter="data")
    with (suite / f"{task}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def split_by_group(rows: Sequence[dict[str, str]], count: int, seed: int = 0) -> tuple[list[dict[str, str]], ...]:
    """Divide rows by groups, in random order: those with `count` rows of each label (at most that many), the others."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    order = np.random.default_rng(seed).permutation(len(groups))
    labels = {row["label"] for row in rows}
    first: list[dict[str, str]] = []
    taken = 0
    while any(sum(row["label"] == label for row in first) < count for label in labels):
        first += [row for row in rows if row["group"] == groups[order[taken]]]
        taken += 1
    rest = [row for row in rows if row["group"] in {groups[i] for i in order[taken:]}]
    return [row for label in sorted(labels) for row in [r for r in first if r["label"] == label][:count]], rest


def night(words: Sequence[tuple[str, Array]], ambiences: Sequence[Array], level_db: float, seed: int) -> Any:
    """Return samples of a night and its events, some for each label, 1.5 to 4.5 s apart."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(words))
    chosen = [[i for i in order if words[i][0] == label][:EVENTS_OF_A_WORD] for label in WORDS]
    order = rng.permutation(np.concatenate(chosen))
    parts: list[Array] = []
    length = sum(len(words[i][1]) for i in order) + round(4.5 * RATE_HZ) * (len(order) + 1)
    while sum(map(len, parts)) < length:
        parts += [ambiences[i] for i in rng.permutation(len(ambiences))]
    samples = np.concatenate(parts)
    events, start = [], 0
    for i in order:
        label, wave = words[i]
        start += round(rng.uniform(1.5, 4.5) * RATE_HZ)
        under = samples[start : start + len(wave)]
        gain = 10 ** (level_db / 20) * rms(under) / rms(wave)
        under += np.float32(gain) * wave
        events.append(Event(label, start / RATE_HZ, (start + len(wave)) / RATE_HZ))
        start += len(wave)
    return samples[: start + 2 * RATE_HZ], events


def found_before(model: Embedder, samples: Array) -> list[Event]:
    """Return the events in seconds that are read in the windows of pretraining."""
    predictor = model.predictor
    head = predictor.classifier
    lengths_known, head.config = head.config, head.config.with_changes(clip_lengths_s=None, temperature=None)
    try:
        seconds = model.predict(samples, per="second")
    finally:
        head.config = lengths_known
    rows = np.stack([one.probabilities.numpy() for one in seconds])
    starts_s, ends_s = np.array([one.start_s for one in seconds]), np.array([one.end_s for one in seconds])
    return merge_windows(rows, starts_s, ends_s, predictor.labels, 0.5)


def found_in_windows(predictor: Predictor, samples: Array, own_thresholds: bool) -> list[Event]:
    """Return the events in windows as long as the training clips."""
    options = PredictOptions()
    lengths = predictor.lengths(options, events=True)
    assert lengths is not None
    ((_, windows),) = predictor.windows([(0, [samples])], lengths, options)
    if isinstance(windows, Exception):
        raise windows
    thresholds = predictor.config.thresholds if own_thresholds else None
    rows = predictor.probabilities(windows)
    times = windows.starts_s, windows.ends_s
    return merge_windows(rows, *times, predictor.labels, thresholds or 0.5, background=predictor.config.background)


def joined(model: Embedder, words: Sequence[tuple[str, Array]], seed: int = 0) -> dict[str, float]:
    """Return how answers for clips that are joined with silence compare with those for the clips alone."""
    rng = np.random.default_rng(seed)
    parts: list[Array] = []
    middles_s, place = [], 0
    for i in rng.permutation(len(words)):
        wave = words[i][1]
        parts += [np.zeros(round(rng.uniform(0, 3) * RATE_HZ), np.float32), wave]
        place += len(parts[-2])
        middles_s.append((place + len(wave) / 2) / RATE_HZ)
        place += len(wave)
    samples = np.concatenate(parts)
    alone = [model.predict(wave)[0].best()[0][0] for wave in parts[1::2]]
    labels = model.predictor.labels
    heard = [label != model.predictor.config.background for label in labels]
    result: dict[str, float] = {}
    kinds: tuple[Per, ...] = ("window", "second")
    for per in kinds:
        answers = model.predict(samples, per=per)
        rows = np.stack([one.probabilities.numpy() for one in answers])
        centers_s = np.array([(one.start_s + one.end_s) / 2 for one in answers])
        nearest = np.abs(centers_s - np.array(middles_s)[:, None]).argmin(1)
        if per == "second":
            nearest = np.array(middles_s).astype(int)
        same = [labels[rows[k].argmax()] == label for k, label in zip(nearest, alone, strict=True)]
        spans = [(one.start_s, one.end_s) for one in answers]
        if per == "window":  # the hop around its center
            half_s = (centers_s[1] - centers_s[0]) / 2
            spans = [(center - half_s, center + half_s) for center in centers_s]
        quiet = np.array([not samples[max(0, round(a * RATE_HZ)) : round(b * RATE_HZ)].any() for a, b in spans])
        result[f"{per}: as alone"] = float(np.mean(same))
        result[f"{per}: silence above .5"] = float((rows[quiet][:, heard].max(1) > 0.5).mean())
    return result


def scores(right: int, found: int, events: int) -> dict[str, float]:
    """Return precision and recall of events."""
    return {"precision": right / max(1, found), "recall": right / events, "found": found, "right": right}


def measure(suite: Path, work: Path, epochs: int, seeds: int) -> dict[str, Any]:
    """Train, find and score."""
    work.mkdir(parents=True, exist_ok=True)
    rows = [row for row in read_rows(suite, "kws35", work) if row["label"] in WORDS and row["split"] == "train"]
    labeled, held_out = split_by_group(rows, CLIPS)
    ambiences = [row for row in read_rows(suite, "sfx14", work) if row["label"] == AMBIENCE]
    of_nights, of_training = split_by_group(ambiences, len(ambiences) // 2)
    manifest, background = work / "labeled.csv", work / "background.csv"
    write_csv(manifest, ("path", "labels", "group"), ((r["clip"], r["label"], r["group"]) for r in labeled))
    write_csv(background, ("path", "group"), ((r["clip"], r["group"]) for r in of_training))
    models = {}
    for seed in range(seeds):
        for name, nights in (("plain", None), ("background", background)):
            run = work / f"{name}-{seed}"
            ssamba.finetune(
                manifest, run, recipe="cpu-speech", epochs=epochs, device="cpu", background=nights, seed=seed
            )
            models[name, seed] = ssamba.load_model(run, device="cpu")
    words = [(row["label"], decode(work / row["clip"], sample_rate_hz=RATE_HZ)) for row in held_out]
    waves = [decode(work / row["clip"], sample_rate_hz=RATE_HZ) for row in of_nights]
    waves = [np.float32(_AMBIENCE_LEVEL / rms(wave)) * wave for wave in waves if rms(wave) > 1e-5]
    counts = {str(level_db): {way: np.zeros(3, int) for way in WAYS} for level_db in LEVELS_DB}
    for level_db, seed in itertools.product(LEVELS_DB, range(seeds)):
        samples, truth = night(words, waves, level_db, seed=100 * seed - level_db)
        plain, model = models["plain", seed], models["background", seed]
        ways = {
            "before": found_before(plain, samples),
            "windows": found_in_windows(plain.predictor, samples, own_thresholds=False),
            "background": found_in_windows(model.predictor, samples, own_thresholds=True),
        }
        for name, events in ways.items():
            counts[str(level_db)][name] += (count_overlaps(truth, events), len(events), len(truth))
        for name, events in {"truth": truth, **ways}.items():
            file = str(work / "night.wav")
            rows_of = [Annotation(file, one.start_s, one.end_s, one.label, one.probability) for one in events]
            write_annotations(work / f"{level_db}_{seed}_{name}.csv", rows_of)
    joins = {name: [joined(models[name, seed], words) for seed in range(seeds)] for name in ("plain", "background")}
    return {
        "environment": environment(torch.device("cpu")),
        "clips": len(labeled),
        "voices": {"labeled": len({r["group"] for r in labeled}), "nights": len({r["group"] for r in held_out})},
        "events": len(truth),
        "trainings": seeds,
        "clip_lengths_s": models["background", 0].predictor.config.clip_lengths_s,
        "thresholds": [models["background", seed].predictor.config.thresholds for seed in range(seeds)],
        "found": {
            level: {way: scores(*map(int, count)) for way, count in of_level.items()}
            for level, of_level in counts.items()
        },
        "joined_clips": len(words),
        "joined": {
            name: {column: float(np.mean([one[column] for one in each])) for column in each[0]}
            for name, each in joins.items()
        },
    }


def report(data: Mapping[str, Any]) -> str:
    """Return the tables."""
    levels = [
        [f"{level} dB", *(f"{one[way]['precision']:.2f} / {one[way]['recall']:.2f}" for way in WAYS)]
        for level, one in data["found"].items()
    ]
    columns = list(next(iter(data["joined"].values())))
    silence = [[name, *(f"{one[column]:.3f}" for column in columns)] for name, one in data["joined"].items()]
    return "\n".join(
        (
            "# Events in long recordings\n",
            f"`python -m benchmarks.events SUITE`; {data['clips']} labeled clips of {len(WORDS)} words, "
            f"{data['events']} events of other voices in each night, {data['trainings']} trainings of each classifier "
            "with nights of their own. Precision / recall:\n",
            table(["level", *WAYS.values()], levels),
            "\nHeld-out clips joined with 0 to 3 s of silence between:\n",
            table(["classifier", *columns], silence),
        )
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/events"), help="folder for clips and classifiers")
    parser.add_argument("--epochs", type=int, default=24, help="of each training")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each classifier, and nights of each level")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = measure(arguments.suite, arguments.work, arguments.epochs, arguments.seeds)
    save("events", data, report(data))


if __name__ == "__main__":
    main()
