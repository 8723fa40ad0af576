"""VoxCeleb1 identification (Nagrani, Chung & Zisserman, 2017): 153,516 utterances of 1,251 speakers.

The official list `iden_split.txt` has a line `1 id10001/VIDEO/00001.wav` for each utterance: 1 for training, 2 for
validation, 3 for testing. The task needs every speaker in all three; a video must stay in one, and is the group.
"""

from __future__ import annotations

from pathlib import Path

from ssamba.data.manifest import Clip
from ssamba.datasets.dataset import Listing, PublicDataset, find_root, read_lines
from ssamba.errors import DataError, DatasetStructureError

_SPLITS = {"1": "train", "2": "valid", "3": "test"}
_FOLDERS = ("wav", "dev/wav", "test/wav", "dev", "test", ".")


def _list(source: Path) -> Listing:
    root = find_root(source, "iden_split.txt")
    folders = [root / folder for folder in _FOLDERS if any((root / folder).glob("id1*"))]
    if not folders:
        raise DatasetStructureError("no folder of a speaker (id10001 ...) is where the archives unpack to")
    speakers = {
        path.name: folder for folder in reversed(folders) for path in folder.iterdir() if path.name.startswith("id1")
    }
    clips: list[Clip] = []
    for number, line in enumerate(read_lines(root / "iden_split.txt"), 1):
        split, _, name = line.partition(" ")
        parts = name.strip().split("/")
        if split not in _SPLITS or len(parts) != 3 or not parts[0].startswith("id1"):
            raise DataError(
                f"{root / 'iden_split.txt'}, line {number}: expected '1 id10001/VIDEO/00001.wav' with 1, 2 or 3, "
                f"got {line!r}"
            )
        speaker, video, file = parts
        # A speaker without any file is reported missing in the folder that the first archive unpacks to.
        path = speakers.get(speaker, folders[0]) / speaker / video / file
        clips.append(Clip(path, labels=(speaker,), split=_SPLITS[split], group=f"{speaker}/{video}"))
    return Listing(clips, tuple(sorted({clip.labels[0] for clip in clips})))


VOXCELEB1 = PublicDataset(
    name="voxceleb1",
    title="VoxCeleb1, identification",
    reference="https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html",
    structure=(
        "VoxCeleb1/\n  iden_split.txt   (https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/iden_split.txt)\n"
        "  dev/wav/id10001/VIDEO/00001.wav ...   (or wav/id10001/...)\n  test/wav/id10270/VIDEO/00001.wav ..."
    ),
    list_clips=_list,
    published={"train": 138_361, "valid": 6_904, "test": 8_251},
    num_classes=1251,
    archives={
        "vox1_dev_wav_partaa": "md5:e395d020928bc15670b570a21695ed96",
        "vox1_dev_wav_partab": "md5:bbfaaccefab65d82b21903e81a8a8020",
        "vox1_dev_wav_partac": "md5:017d579a2a96a077f40042ec33e51512",
        "vox1_dev_wav_partad": "md5:7bb1e9f70fddc7a678fa998ea8b3ba19",
        "vox1_dev_wav.zip": "md5:ae63e55b951748cc486645f532ba230b",
        "vox1_test_wav.zip": "md5:185fdc63c3c739954633d50379a3d102",
    },
    splits_sharing_groups=frozenset({"train", "valid"}),
)
