"""AudioSet (Gemmeke et al., 2017): 10 s clips of videos, 527 classes, several labels per clip.

The tables are published, the audio is not, so every copy lacks many clips. Files are found by the identifier of the
video in their names (ID, YID, ID_START or ID_START_END, as downloaders write them), in any folder and format. The class
list in this package (`audioset_classes.csv`) is `class_labels_indices.csv` of the AudioSet site, by Google, CC BY 4.0;
a list in the folder takes precedence. A video gives one clip and is its group.
"""

from __future__ import annotations

import csv
import io
import re
from functools import partial
from pathlib import Path

from ssamba.audio.files import Skipped
from ssamba.data.manifest import Clip
from ssamba.datasets.dataset import Listing, PublicDataset, audio_below, find_root, read_table
from ssamba.errors import DataError, DatasetStructureError
from ssamba.text_files import read_text

_SHIPPED = Path(__file__).with_name("audioset_classes.csv")
_BALANCED, _UNBALANCED, _EVAL = (
    "balanced_train_segments.csv",
    "unbalanced_train_segments.csv",
    "eval_segments.csv",
)
_NAME = re.compile(r"(Y?)([\w-]{11})(?:_[\d.]+(?:[_-][\d.]+)?)?")
_SEGMENTS = re.compile(r"num_segs=(\d+)")


def audioset_classes(path: Path = _SHIPPED) -> dict[str, str]:
    """Return names of classes by identifier (`/m/09x0r`: Speech), in the order of the class numbers.

    Raises:
        DataError: the file is damaged, or its numbers do not count from 0.
    """
    classes: dict[str, str] = {}
    for where, row in read_table(path, "index", "mid", "display_name"):
        if row["index"] != str(len(classes)) or row["mid"] in classes:
            raise DataError(f"{path}, {where}: expected index {len(classes)} and a new mid, got {row}")
        classes[row["mid"]] = row["display_name"]
    return classes


def _list(source: Path, train: tuple[str, ...]) -> Listing:
    tables = (*train, _EVAL)
    root = find_root(source, *tables)
    own = root / "class_labels_indices.csv"
    names = audioset_classes(own if own.is_file() else _SHIPPED)
    files = _files(source)  # the tables may be in a folder of their own
    if not files:
        raise DatasetStructureError("the tables exist, but no audio file is named like a clip (ID, YID, ID_START)")
    clips: list[Clip] = []
    missing: list[Skipped] = []
    for name in tables:
        split = "test" if name == _EVAL else "train"
        for video, labels in _segments(root / name, names):
            if video in files:
                clips.append(Clip(files[video], labels=labels, split=split, group=video))
            else:
                missing.append(Skipped(video, f"{video} ({name}): no file of this name"))
    return Listing(clips, tuple(names.values()), tuple(names), missing)


def _files(folder: Path) -> dict[str, Path]:
    """Return files by the identifier in their names, the first if there are several."""
    files: dict[str, Path] = {}
    for path in audio_below(folder):
        found = _NAME.fullmatch(path.stem)  # an identifier may begin with Y, too
        if found is not None:
            files.setdefault(found[2], path)
    return files


def _segments(path: Path, names: dict[str, str]) -> list[tuple[str, tuple[str, ...]]]:
    """Return identifier and classes of each line, such as `--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"`."""
    segments: list[tuple[str, tuple[str, ...]]] = []
    stated = None
    try:
        rows = list(csv.reader(io.StringIO(read_text(path), newline=""), skipinitialspace=True, strict=True))
    except (OSError, DataError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}). Download it again") from None
    for row in rows:
        if not row or row[0].startswith("#"):
            found = _SEGMENTS.search(",".join(row))
            stated = int(found[1]) if found else stated
            continue
        where = f"{path}, entry {len(segments) + 1}"
        if len(row) != 4 or len(row[0]) != 11:
            raise DataError(f"{where}: expected 'ID, 0.000, 10.000, \"MID,MID\"', got {', '.join(row)!r}")
        mids = row[3].split(",")
        unknown = [mid for mid in mids if mid not in names]
        if unknown:
            raise DataError(f"{where}: the class {unknown[0]!r} is not one of the {len(names)} known classes")
        segments.append((row[0], tuple(names[mid] for mid in mids)))
    if stated is not None and stated != len(segments):
        raise DataError(
            f"{path}: its header states {stated} segments, and it has {len(segments)}: it is cut off, or was changed. "
            "Download it again"
        )
    return segments


_REFERENCE = "https://research.google.com/audioset/download.html"
_TREE = (
    "audioset/\n  {}\n  eval_segments.csv\n  class_labels_indices.csv   (may be absent)\n"
    "  ANY_FOLDER/--4gqARaEJE.flac ...   (or Y--4gqARaEJE.wav, --4gqARaEJE_0.000.wav, --4gqARaEJE_0_10.wav)"
)

AUDIOSET_20K = PublicDataset(
    name="audioset-20k",
    title="AudioSet, the balanced training set",
    reference=_REFERENCE,
    structure=_TREE.format(_BALANCED),
    list_clips=partial(_list, train=(_BALANCED,)),
    published={"train": 22_160, "test": 20_371},
    num_classes=527,
    balanced=True,
)

AUDIOSET_2M = PublicDataset(
    name="audioset-2m",
    title="AudioSet, both training sets",
    reference=_REFERENCE,
    structure=_TREE.format(f"{_BALANCED}\n  {_UNBALANCED}"),
    list_clips=partial(_list, train=(_BALANCED, _UNBALANCED)),
    published={"train": 22_160 + 2_041_789, "test": 20_371},
    num_classes=527,
    balanced=True,
)
