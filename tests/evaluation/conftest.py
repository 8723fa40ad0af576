"""A miniature suite cut from the demo's recordings."""

from __future__ import annotations

import csv
import tarfile
from pathlib import Path

import pytest
import soundfile

from ssamba.audio.decode import decode

RATE_HZ = 16_000


def write_table(path: Path, rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "label", "split", "group"])
        writer.writerows(rows)


@pytest.fixture(scope="session")
def suite(clips, tmp_path_factory) -> Path:
    """Two tasks on pieces of 0.3 to 0.5 s; the label is the kind of recording.

    `drum8`, a name of the open suite's, lies in an archive and is scored by three folds; `kinds` is unpacked, with a
    training and a test part.
    """
    folder: Path = tmp_path_factory.mktemp("suite")
    (folder / "kinds").mkdir()
    folds, parts = [], []
    for path in clips:
        kind = path.stem.split("_")[0]
        if kind in ("drum", "misc", "perc"):
            continue
        samples = decode(path, sample_rate_hz=RATE_HZ)
        for number, start_s in enumerate((0.0, 0.25, 0.5)):
            start = round(start_s * RATE_HZ)
            piece = samples[start : start + round((0.3 + 0.1 * number) * RATE_HZ)]
            if len(piece) < 1000:
                piece = samples[:4000]
            name = f"kinds/{path.stem}_{number}.flac"
            soundfile.write(folder / name, piece, RATE_HZ)
            folds.append((name, kind, f"fold{number}", f"{path.stem}{number}"))
            parts.append((name, kind, "test" if number == 2 else "train", f"{path.stem}{number}"))
    write_table(folder / "drum8.csv", folds)
    with tarfile.open(folder / "drum8.tar", "w") as archive:
        archive.add(folder / "kinds", "kinds")
    write_table(folder / "kinds.csv", parts)
    return folder
