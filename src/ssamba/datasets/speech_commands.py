"""Speech Commands (Warden, 2018): one-second recordings of single words.

`speech-commands-v1` has the 30 words of version 0.01, as in the SSAMBA paper, `speech-commands-v2` the 35 words of
version 0.02, both with the official lists: files in neither validation_list.txt nor testing_list.txt are for training.

`speech-commands-v1-superb` is SUPERB's keyword spotting: ten words, `_unknown_` for the other twenty, `_silence_`, and
the separate official test set. SUPERB draws random seconds of all six background noises for both training and
validation; here the noises are cut into seconds, running_tap.wav for validation and the others for training.

The lists keep a speaker (the name before `_nohash_`) in one split, so a speaker is a group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from ssamba.audio.decode import duration_or_error
from ssamba.audio.files import Skipped
from ssamba.data.manifest import Clip
from ssamba.datasets.dataset import Listing, PublicDataset, files_in, find_root, read_lines, subfolders
from ssamba.errors import DataError, DatasetStructureError
from ssamba.files import path_text

_COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
_OTHERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("bed", "bird", "cat", "dog", "happy", "house", "marvin", "sheila", "tree", "wow"),
)
_ADDED = ("backward", "follow", "forward", "learn", "visual")
_UNKNOWN, _SILENCE, _NOISE = "_unknown_", "_silence_", "_background_noise_"
_HELD_OUT_NOISE = "running_tap"
_SPEAKER = re.compile(r"(?:[a-z]+_)?([0-9a-f]+)_nohash_\d+(?:\.wav)?")  # bed_3ff840aa_nohash_0.wav.wav in the test set


def _list_words(source: Path, words: tuple[str, ...]) -> Listing:
    root = find_root(source, "validation_list.txt", "testing_list.txt")
    valid, test = (_listed(root / f"{name}_list.txt") for name in ("validation", "testing"))
    if both := set(valid) & set(test):
        raise DataError(f"{root}: {len(both)} names are in both lists, such as {min(both)}: restore them")
    lists = {**dict.fromkeys(valid, "valid"), **dict.fromkeys(test, "test")}
    folders = [folder.name for folder in subfolders(root) if not folder.name.startswith("_")]
    if not set(folders) & set(words):
        raise DatasetStructureError("no folder is named like one of its words")
    if set(folders) & set(_ADDED) and not set(words) & set(_ADDED):
        raise DatasetStructureError("it has words of version 0.02: use speech-commands-v2")
    here = {f"{word}/{path.name}" for word in folders if word in words for path in files_in(root / word, ".wav")}
    strays = [name for name in folders if name not in words]
    listed = {name for name in lists if name.partition("/")[0] in words}
    notes = [f"folders that are no word of the data set, left out: {', '.join(strays)}"] if strays else []
    if len(listed) < len(lists):
        notes.append(f"{len(lists) - len(listed)} names in the lists are no words of the data set, and are left out")
    clips = [
        Clip(root / name, labels=(name.partition("/")[0],), split=lists.get(name, "train"), group=_speaker(name))
        for name in sorted(here | listed)
    ]
    return Listing(clips, words, notes=notes)


def _listed(path: Path) -> list[str]:
    names = read_lines(path)
    for number, name in enumerate(names, 1):
        if not re.fullmatch(r"[^/]+/[^/]+\.wav", name):
            raise DataError(f"{path}, line {number}: expected 'word/SPEAKER_nohash_0.wav', got {name!r}")
    return names


def _speaker(name: str) -> str:
    found = _SPEAKER.fullmatch(Path(name).stem)
    return found[1] if found else name


def _list_superb(source: Path) -> Listing:
    words = _list_words(source, (*_COMMANDS, *_OTHERS))
    root = find_root(source, "validation_list.txt", "testing_list.txt")
    test = _test_set(source, root)
    clips = [
        Clip(clip.path, labels=(_keyword(clip.labels[0]),), split=clip.split, group=clip.group)
        for clip in words.clips
        if clip.split != "test"
    ]
    seconds, missing = _background_seconds(root / _NOISE)
    notes = [
        *words.notes,
        *([] if seconds else [f"{root / _NOISE} contains no recording, so {_SILENCE} has no training clips"]),
    ]
    for folder in subfolders(test):
        label = folder.name if folder.name in (*_COMMANDS, _UNKNOWN, _SILENCE) else None
        if label is None:
            notes.append(f"{folder} is no class of the test set and is left out")
            continue
        clips_here = files_in(folder, ".wav")
        clips += [Clip(p, labels=(label,), split="test", group=_test_group(p)) for p in clips_here]
    return Listing([*clips, *seconds], (*_COMMANDS, _UNKNOWN, _SILENCE), missing=missing, notes=notes)


def _keyword(word: str) -> str:
    return word if word in _COMMANDS else _UNKNOWN


def _test_set(source: Path, root: Path) -> Path:
    near: Iterable[Path] = (
        source,
        *subfolders(source),
        *(subfolders(source.absolute().parent) if root == source else ()),
    )
    for folder in near:
        if folder != root and (folder / _UNKNOWN).is_dir() and (folder / _SILENCE).is_dir():
            return folder
    raise DatasetStructureError(f"there is no test set (a folder with {_UNKNOWN} and {_SILENCE}) beside {root.name}")


def _test_group(path: Path) -> str:
    found = _SPEAKER.fullmatch(path.stem)
    return found[1] if found else f"test set, {path.parent.name}/{path.stem}"


def _background_seconds(folder: Path) -> tuple[list[Clip], list[Skipped]]:
    """Return every whole second of the background noises as a clip, and the noises that cannot be read."""
    clips: list[Clip] = []
    skipped: list[Skipped] = []
    for path in files_in(folder, ".wav"):
        length_s = duration_or_error(path)
        if isinstance(length_s, Exception):
            skipped.append(Skipped(path_text(path), str(length_s)))
            continue
        split = "valid" if path.stem == _HELD_OUT_NOISE else "train"
        clips += [
            Clip(path, float(start), 1.0, (_SILENCE,), split, f"noise {path.stem}") for start in range(int(length_s))
        ]
    return clips, skipped


_REFERENCE = "https://arxiv.org/abs/1804.03209, and README.md in the archive"
_TREE = (
    "{}/\n  validation_list.txt\n  testing_list.txt\n  _background_noise_/running_tap.wav ...\n"
    "  bed/00176480_nohash_0.wav ... (a folder for each word)"
)
_ARCHIVES_V1 = {"speech_commands_v0.01.tar.gz": "md5:3cd23799cb2bbdec517f1cc028f8d43c"}

SPEECH_COMMANDS_V1 = PublicDataset(
    name="speech-commands-v1",
    title="Speech Commands 0.01, 30 words",
    reference=_REFERENCE,
    structure=_TREE.format("speech_commands_v0.01"),
    list_clips=partial(_list_words, words=(*_COMMANDS, *_OTHERS)),
    published={"train": 51_088, "valid": 6_798, "test": 6_835},
    num_classes=30,
    archives=_ARCHIVES_V1,
)

SPEECH_COMMANDS_V1_SUPERB = PublicDataset(
    name="speech-commands-v1-superb",
    title="Speech Commands 0.01, SUPERB's 12 classes",
    reference="https://arxiv.org/abs/2105.01051",
    structure=(
        _TREE.format("speech_commands_v0.01") + "\nspeech_commands_test_set_v0.01/   (beside it)\n"
        "  _silence_/  _unknown_/  down/ ... yes/"
    ),
    list_clips=_list_superb,
    published={"test": 3_081},
    num_classes=12,
    archives=_ARCHIVES_V1,
)

SPEECH_COMMANDS_V2 = PublicDataset(
    name="speech-commands-v2",
    title="Speech Commands 0.02, 35 words",
    reference=_REFERENCE,
    structure=_TREE.format("speech_commands_v0.02"),
    list_clips=partial(_list_words, words=(*_COMMANDS, *_OTHERS, *_ADDED)),
    published={"train": 84_843, "valid": 9_981, "test": 11_005},
    num_classes=35,
    archives={"speech_commands_v0.02.tar.gz": "md5:6b74f3901214cb2c2934e98196829835"},
)
