"""UrbanSound8K (Salamon, Jacoby & Bello, 2014): 8,732 clips of up to 4 s, 10 classes, 10 folds.

`urbansound8k-scenes` strings the clips of each fold together to minutes with a label for each second, the task of
dynamic scene labeling of the SSAMBA paper (`scenes.py`). Slices of one Freesound recording (`fsID`) are in one fold:
they are a group.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ssamba.data.manifest import Clip
from ssamba.datasets.recipe import Listing, Recipe, add_class, find_root, read_table, whole_number
from ssamba.datasets.scenes import render_scenes
from ssamba.errors import DataError


def _find(source: Path) -> Listing:
    root = find_root(source, "metadata/UrbanSound8K.csv", "audio")
    table = root / "metadata" / "UrbanSound8K.csv"
    clips: list[Clip] = []
    classes: dict[int, str] = {}
    for where, row in read_table(table, "slice_file_name", "fsID", "fold", "classID", "class"):
        fold = whole_number(table, where, "fold", row["fold"], 1, 10)
        number = whole_number(table, where, "classID", row["classID"], 0, 9)
        name = row["slice_file_name"]
        if name.split("-")[:2] != [row["fsID"], row["classID"]]:
            raise DataError(
                f"{table}, {where}: {name!r} contradicts fsID {row['fsID']} and classID {number}, with which it must begin"
            )
        add_class(classes, number, row["class"], f"{table}, {where}")
        clips.append(
            Clip(root / "audio" / f"fold{fold}" / name, labels=(row["class"],), split=f"fold{fold}", group=row["fsID"])
        )
    return Listing(clips, tuple(classes[number] for number in sorted(classes)))


URBANSOUND8K = Recipe(
    name="urbansound8k",
    title="UrbanSound8K",
    reference="https://urbansounddataset.weebly.com/urbansound8k.html",
    structure="UrbanSound8K/\n  audio/fold1/101415-3-0-2.wav ... fold10/\n  metadata/UrbanSound8K.csv",
    find=_find,
    # Sums of the table of clips by fold and class, as in its README.
    published=dict(
        zip([f"fold{n}" for n in range(1, 11)], (873, 888, 925, 990, 936, 823, 838, 806, 816, 837), strict=True)
    ),
    num_classes=10,
    class_counts={
        "air_conditioner": 1000,
        "car_horn": 429,
        "children_playing": 1000,
        "dog_bark": 1000,
        "drilling": 1000,
        "engine_idling": 1000,
        "gun_shot": 374,
        "jackhammer": 1000,
        "siren": 929,
        "street_music": 1000,
    },
    archives={"UrbanSound8K.tar.gz": "md5:9aa69802bbf37fb986f71ec1483a196e"},  # Zenodo, record 1203745
)

URBANSOUND8K_SCENES = replace(
    URBANSOUND8K, name="urbansound8k-scenes", title="UrbanSound8K, one-minute scenes", render=render_scenes
)
