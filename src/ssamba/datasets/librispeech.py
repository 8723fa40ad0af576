"""LibriSpeech (Panayotov et al., 2015): 1,000 hours of audiobooks, for pretraining; no labels.

The transcripts (READER-CHAPTER.trans.txt) list the utterances, so missing ones are detected. Each reader is in one
subset and is a group.
"""

from __future__ import annotations

from pathlib import Path

from ssamba.data.manifest import Clip
from ssamba.datasets.dataset import Listing, PublicDataset, files_in, read_lines, subfolders
from ssamba.errors import DataError, DatasetStructureError

_SUBSETS = {
    "train-clean-100": 28_539,
    "train-clean-360": 104_014,
    "train-other-500": 148_688,
    "dev-clean": 2_703,
    "dev-other": 2_864,
    "test-clean": 2_620,
    "test-other": 2_939,
}
_SPLITS = {"train": "train", "dev": "valid", "test": "test"}


def _list(source: Path) -> Listing:
    found = [folder for folder in (source, *subfolders(source)) if any((folder / name).is_dir() for name in _SUBSETS)]
    if not found:
        raise DatasetStructureError(f"none of its subsets is in it ({', '.join(_SUBSETS)})")
    clips: list[Clip] = []
    notes: list[str] = []
    for subset, count in _SUBSETS.items():
        if not (found[0] / subset).is_dir():
            notes.append(f"{subset} is not there")
            continue
        before = len(clips)
        for reader in subfolders(found[0] / subset):
            for chapter in subfolders(reader):
                clips += _chapter(chapter, _SPLITS[subset.partition("-")[0]])
        if len(clips) - before != count:
            notes.append(f"{subset}: its transcripts have {len(clips) - before} utterances, published are {count}")
    return Listing(clips, notes=notes)


def _chapter(folder: Path, split: str) -> list[Clip]:
    names = {path.stem for path in files_in(folder, ".flac")}
    name = f"{folder.parent.name}-{folder.name}"
    foreign = sorted(stem for stem in names if not stem.startswith(f"{name}-"))
    if foreign:
        raise DataError(
            f"{folder}: contains {foreign[0]}.flac, which belongs to another reader or chapter: move it back"
        )
    transcript = folder / f"{name}.trans.txt"
    if transcript.is_file():
        for line in read_lines(transcript):
            utterance = line.partition(" ")[0]
            if not utterance.startswith(f"{name}-"):
                raise DataError(f"{transcript}: expected '{name}-0000 TEXT', got {line[:60]!r}")
            names.add(utterance)
    return [Clip(folder / f"{n}.flac", split=split, group=folder.parent.name) for n in sorted(names)]


LIBRISPEECH = PublicDataset(
    name="librispeech",
    title="LibriSpeech",
    reference="https://www.openslr.org/12",
    structure=(
        "LibriSpeech/\n  train-clean-100/ ... dev-clean/ ... test-other/   (any of the seven)\n"
        "    84/121123/84-121123-0000.flac ... 84-121123.trans.txt"
    ),
    list_clips=_list,
    published={"train": 281_241, "valid": 5_567, "test": 5_559},
    archives={
        "dev-clean.tar.gz": "sha256:76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
        "dev-other.tar.gz": "sha256:12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
        "test-clean.tar.gz": "sha256:39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
        "test-other.tar.gz": "sha256:d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
        "train-clean-100.tar.gz": "sha256:d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
        "train-clean-360.tar.gz": "sha256:146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
        "train-other-500.tar.gz": "sha256:ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
    },
)
