"""FSD50K (Fonseca et al., 2020): 51,197 Freesound clips of 0.3 to 30 s, 200 classes, several labels per clip.

Labels are propagated as published: a class is accompanied by its ancestors in the ontology. The group is the uploader
if the metadata (`FSD50K.metadata`) is in the folder, else the clip itself, which is one Freesound recording.
"""

from __future__ import annotations

import json
from pathlib import Path

from ssamba.data.manifest import Clip
from ssamba.datasets.dataset import Listing, PublicDataset, find_root, read_lines, read_table
from ssamba.errors import DataError

_SPLITS = {"train": "train", "val": "valid"}


def _list(source: Path) -> Listing:
    root = find_root(source, *(f"FSD50K.ground_truth/{name}.csv" for name in ("dev", "eval", "vocabulary")))
    truth = root / "FSD50K.ground_truth"
    classes, codes = _vocabulary(truth / "vocabulary.csv")
    clips: list[Clip] = []
    notes: list[str] = []
    for part in ("dev", "eval"):
        table = truth / f"{part}.csv"
        uploaders = _uploaders(root / "FSD50K.metadata" / f"{part}_clips_info_FSD50K.json")
        if not uploaders:
            notes.append(f"{part}: no FSD50K.metadata, so each clip is its own group instead of its uploader's")
        for where, row in read_table(table, "fname", "labels", "mids", *(("split",) if part == "dev" else ())):
            labels = tuple(row["labels"].split(","))
            unknown = [label for label in labels if label not in classes]
            if unknown:
                raise DataError(f"{table}, {where}: the class {unknown[0]!r} is not in vocabulary.csv")
            if part == "dev" and row["split"] not in _SPLITS:
                raise DataError(f"{table}, {where}: split must be train or val, got {row['split']!r}")
            split = _SPLITS[row["split"]] if part == "dev" else "test"
            name = row["fname"]
            path = root / f"FSD50K.{part}_audio" / f"{name}.wav"
            clips.append(Clip(path, labels=labels, split=split, group=uploaders.get(name, f"clip {name}")))
    return Listing(clips, classes, codes, notes=notes)


def _vocabulary(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return names and AudioSet identifiers of the classes, from lines such as `0,Accordion,/m/0mkg`."""
    rows = [line.split(",") for line in read_lines(path)]
    for number, row in enumerate(rows):
        if len(row) != 3 or row[0] != str(number):
            raise DataError(f"{path}, line {number + 1}: expected '{number},CLASS,MID', got {','.join(row)!r}")
    return tuple(row[1] for row in rows), tuple(row[2] for row in rows)


def _uploaders(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {name: f"uploader {entry['uploader']}" for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path}: expected {{"64760": {{"uploader": ...}}}} ({type(error).__name__}: {error}). Unpack it again'
        ) from None


FSD50K = PublicDataset(
    name="fsd50k",
    title="FSD50K",
    reference="https://zenodo.org/records/4060432",
    structure=(
        "FSD50K/\n  FSD50K.dev_audio/64760.wav ...\n  FSD50K.eval_audio/1028.wav ...\n"
        "  FSD50K.ground_truth/dev.csv, eval.csv, vocabulary.csv\n"
        "  FSD50K.metadata/dev_clips_info_FSD50K.json, eval_clips_info_FSD50K.json   (for groups; may be absent)"
    ),
    list_clips=_list,
    published={"train": 36_796, "valid": 4_170, "test": 10_231},
    num_classes=200,
    archives={
        "FSD50K.dev_audio.zip": "md5:c480d119b8f7a7e32fdb58f3ea4d6c5a",
        "FSD50K.dev_audio.z01": "md5:faa7cf4cc076fc34a44a479a5ed862a3",
        "FSD50K.dev_audio.z02": "md5:8f9b66153e68571164fb1315d00bc7bc",
        "FSD50K.dev_audio.z03": "md5:1196ef47d267a993d30fa98af54b7159",
        "FSD50K.dev_audio.z04": "md5:d088ac4e11ba53daf9f7574c11cccac9",
        "FSD50K.dev_audio.z05": "md5:81356521aa159accd3c35de22da28c7f",
        "FSD50K.eval_audio.zip": "md5:6fa47636c3a3ad5c7dfeba99f2637982",
        "FSD50K.eval_audio.z01": "md5:3090670eaeecc013ca1ff84fe4442aeb",
        "FSD50K.ground_truth.zip": "md5:ca27382c195e37d2269c4c866dd73485",
        "FSD50K.metadata.zip": "md5:b9ea0c829a411c1d42adb9da539ed237",
    },
    splits_sharing_groups=frozenset({"train", "valid", "test"}),
)
