"""ESC-50 (Piczak, 2015): 2,000 clips of 5 s, 50 classes of environmental sounds, 5 folds.

File names are FOLD-CLIP_ID-TAKE-TARGET.wav and must agree with the table. The parts of one Freesound recording
(`src_file`) are in one fold and form a group; as published, four recordings that gave clips of two classes are in two
folds, and are no groups.
"""

from __future__ import annotations

from pathlib import Path

from ssamba.data.manifest import Clip
from ssamba.datasets.dataset import Listing, PublicDataset, add_class, find_root, read_table, whole_number
from ssamba.errors import DataError


def _list(source: Path) -> Listing:
    root = find_root(source, "meta/esc50.csv", "audio")
    table = root / "meta" / "esc50.csv"
    clips: list[Clip] = []
    classes: dict[int, str] = {}
    for where, row in read_table(table, "filename", "fold", "target", "category", "src_file", "take"):
        fold = whole_number(table, where, "fold", row["fold"], 1, 5)
        target = whole_number(table, where, "target", row["target"], 0, 49)
        name = f"{fold}-{row['src_file']}-{row['take']}-{target}.wav"
        if row["filename"] != name:
            raise DataError(f"{table}, {where}: {row['filename']!r} contradicts its columns, which make {name!r}")
        add_class(classes, target, row["category"], f"{table}, {where}")
        clips.append(Clip(root / "audio" / name, labels=(row["category"],), split=f"fold{fold}", group=row["src_file"]))
    return Listing(clips, tuple(classes[number] for number in sorted(classes)))


ESC50 = PublicDataset(
    name="esc50",
    title="ESC-50",
    reference="https://github.com/karolpiczak/ESC-50",
    structure="ESC-50-master/\n  audio/1-100032-A-0.wav ...\n  meta/esc50.csv",
    list_clips=_list,
    published={f"fold{fold}": 400 for fold in range(1, 6)},
    num_classes=50,
    shared_groups=frozenset({"131943", "134049", "209698", "234879"}),
)
