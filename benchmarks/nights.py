"""A biologist's nights: `python -m benchmarks.nights SUITE [--work FOLDER] [--kinds words drums]`.

SUITE is the folder that `python -m benchmarks.open_suite` writes. Six words of `kws35` (other voices in the nights) and
six drums of `drum8` (other kits, where there are enough) stand for species: 30 labeled clips of each, and as many
minutes of background as a night has, from which the classifier learns with the defaults for a CPU. Each night has 48
calls in 20 minutes at one level, and as many other sounds (`sfx14`, games that the background does not hold), at 48 kHz
in stereo. Ambience is `wind_ambience` of `sfx14`, every recording prolonged to 30 s: its first half in the background,
its second half in the nights. The classifier is asked as `ssamba predict --events` does.

A found event is right if it shares half of the shorter one's length with a call that was not found yet; what else is
found is counted by what is heard there. Writes benchmarks/results/nights.json and .md. Finished trainings and nights in
the work folder are used again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch

import ssamba
from benchmarks.events import AMBIENCE, RATE_HZ, WORDS, found_in_windows, read_rows, scores
from benchmarks.timing import save
from ssamba.audio.decode import decode
from ssamba.data.mixing import rms
from ssamba.events import Event, count_overlaps
from ssamba.files import write_csv
from ssamba.studies.harness import environment, table

Array = np.ndarray[Any, Any]
Row = dict[str, str]
KINDS = {"words": ("kws35", WORDS), "drums": ("drum8", ("crash", "hihat", "kick", "ride", "snare", "tom"))}
OTHERS = ("animal", "blade_bow", "footstep", "door_mechanical", "water_splash", "vocal_pain_death", "impact_hit")
NIGHT_RATE_HZ, MINUTES, CLIPS, CALLS, LEVELS_DB = 48_000, 20, 30, 8, (0, -6, -12)
_QUIETEST = 0.002


def divide(rows: Sequence[Row], labels: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """Return labeled clips, and clips for the nights: of other groups if these have enough."""
    groups = np.random.default_rng(1).permutation(sorted({row["group"] for row in rows})).tolist()
    labeled, calls = [], []
    for label in labels:
        own = sorted((r for r in rows if r["label"] == label), key=lambda r: (groups.index(r["group"]), r["clip"]))
        used = {row["group"] for row in own[:CLIPS]}
        rest = [row for row in own[CLIPS:] if row["group"] not in used]
        labeled += own[:CLIPS]
        calls += rest if len(rest) >= CALLS else own[CLIPS:]
    return labeled, calls


def ambiences(waves: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    """Return first and second halves of ambiences of at least 2 s, at one level."""
    halves = [np.array_split(np.float32(0.02 / rms(w)) * w, 2) for w in waves if len(w) >= 2 * RATE_HZ]
    kept = [pair for pair in halves if min(map(rms, pair)) > _QUIETEST]
    return [a for a, _ in kept], [b for _, b in kept]


def prolonged(wave: Array, samples: int, rng: np.random.Generator) -> Array:
    """Return a recording again and again, faded over, from a random place on."""
    fade = RATE_HZ // 4
    ramp = np.sqrt(np.linspace(0, 1, fade, dtype=np.float32))
    wave = np.concatenate((wave[:fade] * ramp, wave[fade:-fade], wave[-fade:] * ramp[::-1]))
    skipped = int(rng.integers(len(wave) // 2))
    result, place = np.zeros(samples + skipped + len(wave), np.float32), 0
    while place < samples + skipped:
        result[place : place + len(wave)] += wave
        place += len(wave) - fade
    return result[skipped : skipped + samples]


def bed(parts: Sequence[Array], minutes: float, rng: np.random.Generator) -> Array:
    """Return minutes of ambience, each for 30 s."""
    count = round(minutes * 2)
    order = np.concatenate([rng.permutation(len(parts)) for _ in range(-(-count // len(parts)))])[:count]
    return np.concatenate([prolonged(parts[i], 30 * RATE_HZ, rng) for i in order])


def lay(samples: Array, sounds: Sequence[Array], levels_db: Sequence[float], rng: np.random.Generator) -> list[int]:
    """Lay sounds into samples, each at a random place of its own equal share of them; return the first samples."""
    share, starts = len(samples) // len(sounds), []
    for number, (wave, level_db) in enumerate(zip(sounds, levels_db, strict=True)):
        start = number * share + int(rng.integers(max(1, share - len(wave) - RATE_HZ)))
        under = samples[start : start + len(wave)]
        gain = 10 ** (level_db / 20) * max(rms(under), _QUIETEST) / max(rms(wave), 1e-6)
        under += np.float32(gain) * wave[: len(under)]
        starts.append(start)
    return starts


def write_night(path: Path, samples: Array) -> None:
    """Write samples at 48 kHz in stereo."""
    wave = soxr.resample(samples, RATE_HZ, NIGHT_RATE_HZ)
    both = np.stack((wave, 0.8 * np.roll(wave, 7)), 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, both / max(1.0, np.abs(both).max() / 0.95), NIGHT_RATE_HZ)


def make_nights(suite: Path, work: Path, kind: str) -> Path:
    """Write labeled clips, background and nights of a kind."""
    folder = work / kind
    if (folder / "truth.json").is_file():
        return folder
    task, labels = KINDS[kind]
    rows = [row for row in read_rows(suite, task, work) if row["label"] in labels]
    labeled, calls = divide([row for row in rows if task != "kws35" or row["split"] == "train"], labels)
    effects = read_rows(suite, "sfx14", work)

    def read(row: Row) -> Array:
        return decode(work / row["clip"], sample_rate_hz=RATE_HZ)

    beds = ambiences([read(row) for row in effects if row["label"] == AMBIENCE])
    others = [row for row in effects if row["label"] in OTHERS]
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True, exist_ok=True)
    rows_of = ((f"../{row['clip']}", row["label"], row["group"]) for row in labeled)
    write_csv(folder / "labeled.csv", ("path", "labels", "group"), rows_of)
    samples = bed(beds[0], MINUTES, rng)
    sounds = [read(row) for row in others if row["split"] != "fold0"]
    sounds = [sounds[i] for i in rng.permutation(len(sounds))[: 3 * MINUTES]]
    lay(samples, sounds, rng.choice([6.0, 0.0, -6.0, -12.0], len(sounds)).tolist(), rng)
    for number, half in enumerate(np.array_split(samples, 2)):
        write_night(folder / "background" / f"{number}.wav", half)
    truth: dict[str, list[Event]] = {}
    for level_db in LEVELS_DB:
        chosen = []
        for label in labels:
            own = [row for row in calls if row["label"] == label]
            chosen += [own[i] for i in rng.permutation(len(own))[:CALLS]]
        unknown = [row for row in others if row["split"] == "fold0"]
        mixed = [*chosen, *(unknown[i] for i in rng.permutation(len(unknown))[: len(chosen)])]
        mixed = [mixed[i] for i in rng.permutation(len(mixed))]
        samples, waves = bed(beds[1], MINUTES, rng), [read(row) for row in mixed]
        starts = lay(samples, waves, [level_db] * len(waves), rng)
        spans = [(start / RATE_HZ, (start + len(wave)) / RATE_HZ) for start, wave in zip(starts, waves, strict=True)]
        truth[str(level_db)] = [
            Event(row["label"] if row["label"] in labels else "", *span) for row, span in zip(mixed, spans, strict=True)
        ]
        write_night(folder / f"{level_db}.wav", samples)
    (folder / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    return folder


def false_alarms(truth: Sequence[Event], found: Sequence[Event]) -> dict[str, int]:
    """Return how many found events are at a call of another label, at another sound, and in ambience alone."""
    counts = {"other call": 0, "other sound": 0, "ambience": 0}
    for one in found:
        under = {true.label for true in truth if min(true.end_s, one.end_s) > max(true.start_s, one.start_s)}
        if one.label not in under:
            counts["other call" if under - {""} else "other sound" if under else "ambience"] += 1
    return counts


def measure(suite: Path, work: Path, kind: str, epochs: int | None) -> dict[str, Any]:
    """Train, find and score."""
    folder = make_nights(suite, work, kind)
    run = folder / "run"
    report = ssamba.finetune(
        folder / "labeled.csv", run, recipe="cpu", device="cpu", background=folder / "background", epochs=epochs
    )
    model = ssamba.load_model(run, device="cpu")
    found: dict[str, Any] = {}
    for level_db, rows in json.loads((folder / "truth.json").read_text(encoding="utf-8")).items():
        truth = [Event(*row) for row in rows]
        samples = decode(folder / f"{level_db}.wav", sample_rate_hz=RATE_HZ)
        events = found_in_windows(model.predictor, samples, own_thresholds=True)
        calls = [one for one in truth if one.label]
        counts = scores(count_overlaps(calls, events), len(events), len(calls))
        found[level_db] = {**counts, "calls": len(calls), "false_alarms": false_alarms(truth, events)}
    config = model.predictor.config
    return {
        "found": found,
        "balanced_accuracy": report.folds[0].scores.get("balanced_accuracy"),
        "thresholds": config.thresholds,
        "clip_lengths_s": config.clip_lengths_s,
    }


def report(data: Mapping[str, Any]) -> str:
    """Return the table."""
    rows = [
        [kind, f"{level_db} dB", *(f"{one[name]:.2f}" for name in ("precision", "recall")),
         *map(str, (one["calls"], *one["false_alarms"].values()))]
        for kind, found in data["kinds"].items()
        for level_db, one in found["found"].items()
    ]  # fmt: skip
    columns = ("calls are", "level", "precision", "recall", "calls", "wrong: other call", "other sound", "ambience")
    return f"# A biologist's nights\n\n`python -m benchmarks.nights SUITE`\n\n{table(columns, rows)}\n"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/nights"), help="folder for nights and classifiers")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--epochs", type=int, help="of each training; as the recipe says unless given")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kinds = {kind: measure(arguments.suite, arguments.work, kind, arguments.epochs) for kind in arguments.kinds}
    data = {"environment": environment(torch.device("cpu")), "minutes": MINUTES, "kinds": kinds}
    save("nights", data, report(data))


if __name__ == "__main__":
    main()
