"""IEMOCAP (Busso et al., 2008): emotions of ten actors in five sessions, as SUPERB and the SSAMBA paper use it.

Four classes ('excited' counts as happy), 5,531 utterances; each session is a fold. Labels are the lines
`[start - end]<tab>turn<tab>emotion<tab>[v, a, d]` of dialog/EmoEvaluation. The two actors of a session, its dialogues
and its room occur in no other session, so a session is a group.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ssamba.data.manifest import Clip
from ssamba.datasets.dataset import Listing, PublicDataset, audio_below, files_in, read_lines, subfolders
from ssamba.errors import DataError, DatasetStructureError

_CLASSES = {"neu": "neutral", "hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad"}


def _list(source: Path) -> Listing:
    root = _root(source)
    clips: list[Clip] = []
    others: Counter[str] = Counter()
    notes: list[str] = []
    known: set[Path] = set()
    for session in range(1, 6):
        name = f"Session{session}"
        tables = files_in(root / name / "dialog" / "EmoEvaluation", ".txt")
        if not tables:
            notes.append(f"{name}: dialog/EmoEvaluation contains no table, so the session is left out")
        for table in tables:
            for turn, emotion in _turns(table):
                if not turn.startswith(f"Ses{session:02d}"):
                    raise DataError(
                        f"{table}: lists {turn}, which belongs to another session: the table or the line was moved"
                    )
                path = root / name / "sentences" / "wav" / turn.rpartition("_")[0] / f"{turn}.wav"
                known.add(path)
                if emotion in _CLASSES:
                    clips.append(Clip(path, labels=(_CLASSES[emotion],), split=f"fold{session}", group=name))
                else:
                    others[emotion] += 1
        extra = sum(path not in known for path in audio_below(root / name / "sentences" / "wav"))
        if extra:
            notes.append(f"{name}: {extra} recordings are in no table")
    if others:
        listed = ", ".join(f"{emotion} {count}" for emotion, count in others.most_common())
        notes.append(f"turns of other emotions, left out: {listed}")
    return Listing(clips, tuple(dict.fromkeys(_CLASSES.values())), notes=notes)


def _root(source: Path) -> Path:
    """Return the folder of the sessions, some of which may be absent."""
    for folder in (source, *subfolders(source)):
        if any((folder / f"Session{n}" / "dialog" / "EmoEvaluation").is_dir() for n in range(1, 6)):
            return folder
    raise DatasetStructureError("there is no Session1/dialog/EmoEvaluation, nor one of another session")


def _turns(table: Path) -> list[tuple[str, str]]:
    """Return turn and emotion of each line that has them."""
    turns = []
    for line in read_lines(table):
        if line.startswith("["):
            parts = line.split("\t")
            if len(parts) != 4 or "_" not in parts[1]:
                raise DataError(f"{table}: expected '[start - end]<tab>turn<tab>emotion<tab>[v, a, d]', got {line!r}")
            turns.append((parts[1], parts[2]))
    return turns


IEMOCAP = PublicDataset(
    name="iemocap",
    title="IEMOCAP, four emotions",
    reference="https://sail.usc.edu/iemocap/ (labels: SUPERB, https://arxiv.org/abs/2105.01051)",
    structure=(
        "IEMOCAP_full_release/\n  Session1/ ... Session5/\n"
        "    dialog/EmoEvaluation/Ses01F_impro01.txt ...\n"
        "    sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav ..."
    ),
    list_clips=_list,
    published={"fold1": 1085, "fold2": 1023, "fold3": 1151, "fold4": 1031, "fold5": 1241},
    num_classes=4,
    class_counts={"neutral": 1708, "happy": 1636, "angry": 1103, "sad": 1084},
)
