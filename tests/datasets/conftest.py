"""Miniatures of public data sets: their true names and columns, with parts of the demo's recordings as audio."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile as sf


@pytest.fixture(scope="session")
def sound(medley) -> Callable[..., Path]:
    """Writes a recording (each another part of the demo's), with the folders above it."""
    number = 0

    def write(path: Path, seconds: float = 0.5, rate_hz: int = 16_000) -> Path:
        nonlocal number
        number += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        start = number * 1_357 % (len(medley) - round(seconds * rate_hz))
        sf.write(path, medley[start : start + round(seconds * rate_hz)], rate_hz, subtype="PCM_16")
        return path

    return write


@pytest.fixture(scope="session")
def text() -> Callable[[Path, str], Path]:
    """Writes a text file, with the folders above it."""

    def write(path: Path, content: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        return path

    return write


# github.com/karolpiczak/ESC-50, meta/esc50.csv: columns and first rows of each kind.
ESC50_ROWS = [
    ("1-100032-A-0.wav", 1, 0, "dog", True, 100032, "A"),
    ("1-137-A-32.wav", 1, 32, "keyboard_typing", False, 137, "A"),
    ("1-137-B-32.wav", 1, 32, "keyboard_typing", False, 137, "B"),
    ("2-100648-A-43.wav", 2, 43, "car_horn", False, 100648, "A"),
    ("3-100018-A-18.wav", 3, 18, "toilet_flush", False, 100018, "A"),
    ("4-102844-A-49.wav", 4, 49, "hand_saw", False, 102844, "A"),
    ("5-103415-A-2.wav", 5, 2, "pig", False, 103415, "A"),
]


@pytest.fixture
def esc50(tmp_path, sound, text) -> Path:
    root: Path = tmp_path / "ESC-50-master"
    header = "filename,fold,target,category,esc10,src_file,take\n"
    text(root / "meta" / "esc50.csv", header + "".join(",".join(map(str, row)) + "\n" for row in ESC50_ROWS))
    for row in ESC50_ROWS:
        sound(root / "audio" / str(row[0]))
    return root


# metadata/UrbanSound8K.csv, as its README describes it.
URBANSOUND8K_ROWS = [
    ("100032-3-0-0.wav", 100032, 0.0, 0.317551, 1, 5, 3, "dog_bark"),
    ("100263-2-0-117.wav", 100263, 58.5, 62.5, 1, 5, 2, "children_playing"),
    ("100263-2-0-121.wav", 100263, 60.5, 64.5, 1, 5, 2, "children_playing"),
    ("100648-1-0-0.wav", 100648, 4.823402, 5.471927, 2, 10, 1, "car_horn"),
    ("101415-3-0-2.wav", 101415, 1.0, 5.0, 1, 1, 3, "dog_bark"),
    ("102305-6-0-0.wav", 102305, 0.0, 2.611610, 1, 1, 6, "gun_shot"),
]


@pytest.fixture
def urbansound8k(tmp_path, sound, text) -> Path:
    root: Path = tmp_path / "UrbanSound8K"
    header = "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
    text(
        root / "metadata" / "UrbanSound8K.csv",
        header + "".join(",".join(map(str, row)) + "\n" for row in URBANSOUND8K_ROWS),
    )
    for name, _, start, end, _, fold, *_ in URBANSOUND8K_ROWS:
        sound(root / "audio" / f"fold{fold}" / name, end - start, 22_050)
    text(root / "audio" / "fold1" / ".DS_Store", "as the true archive has it")
    return root


@pytest.fixture
def iemocap(tmp_path, sound, text) -> Path:
    """Lines of dialog/EmoEvaluation as released: the turn's lines, then those of each rater; `._` files of macOS."""
    root: Path = tmp_path / "IEMOCAP_full_release"
    emotions = ("neu", "exc", "hap", "ang", "sad", "fru", "xxx")
    for session in range(1, 6):
        folder = root / f"Session{session}"
        dialogue = f"Ses{session:02d}F_impro01"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for i, emotion in enumerate(emotions):
            turn = f"{dialogue}_{'FM'[i % 2]}{i:03d}"
            lines += [
                f"[{6.2 + i:.4f} - {8.2 + i:.4f}]\t{turn}\t{emotion}\t[2.5000, 2.5000, 2.5000]",
                "C-E2:\tNeutral;\t()",
                "A-E3:\tval 3; act 2; dom  2;\t()",
                "",
            ]
            sound(folder / "sentences" / "wav" / dialogue / f"{turn}.wav")
        text(folder / "dialog" / "EmoEvaluation" / f"{dialogue}.txt", "\n".join(lines))
        (folder / "dialog" / "EmoEvaluation" / f"._{dialogue}.txt").write_bytes(b"\x00\x05\x16\x07\xff")
        text(folder / "dialog" / "EmoEvaluation" / "Categorical" / f"{dialogue}_e1_cat.txt", "rubbish")
        text(folder / "sentences" / "wav" / dialogue / f"._{dialogue}_F000.wav", "no audio")
    return root


# Heads and lines of the published tables (research.google.com/audioset/download.html).
BALANCED = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=4, num_segs=4, num_unique_labels=527, num_positive_labels=8
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_,/m/0bt9lr,/m/0jbk"
--BfvyPmVMo, 20.000, 30.000, "/m/03l9g"
--U7joUcTCo, 0.000, 10.000, "/m/01b_21"
Y0123456789, 30.000, 40.000, "/m/04rlf,/m/09x0r"
"""
EVAL = """# Segments csv created Sun Mar  5 10:54:25 2017
# num_ytids=2, num_segs=2, num_unique_labels=527, num_positive_labels=3
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJF, 0.000, 10.000, "/m/068hy,/m/07q6cd_"
-0RWZT-miFs, 220.000, 230.000, "/m/07st88b"
"""
UNBALANCED = """# Segments csv created Sun Mar  5 10:56:58 2017
# num_ytids=1, num_segs=1, num_unique_labels=527, num_positive_labels=1
# YTID, start_seconds, end_seconds, positive_labels
---1_cCGK4M, 0.000, 10.000, "/m/01g50p,/m/0284vy3,/m/06d_3,/m/07jdr,/m/07rwm0c"
"""


@pytest.fixture
def audioset(tmp_path, sound, text) -> Path:
    """Clips as several downloaders name them; --U7joUcTCo is missing."""
    root: Path = tmp_path / "audioset"
    text(root / "balanced_train_segments.csv", BALANCED)
    text(root / "unbalanced_train_segments.csv", UNBALANCED)
    text(root / "eval_segments.csv", EVAL)
    for name in (
        "balanced/--4gqARaEJE.flac",
        "balanced/Y--BfvyPmVMo.wav",
        "balanced/Y0123456789_30.000.wav",
        "unbalanced/---1_cCGK4M_0_10.wav",
        "eval/--4gqARaEJF_0.000.wav",
        "eval/-0RWZT-miFs_220-230.wav",
        "eval/notes_on_this.wav",
    ):
        sound(root / name)
    return root
