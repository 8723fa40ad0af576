"""The six tasks of the open suite: which packages and programs each takes, and how its clips come about.

Recorded tasks label the files of packages by their paths (`labels.py`); `kws35` and `instr_family` are synthesized
(`words.py`, `instruments.py`). Where there are more candidates than a balanced task of this size needs, `chosen.txt.gz`
says which are its clips, so that the suite is the same everywhere; it holds one line `TASK<tab>NAME` for each, where
NAME is `PACKAGE/PATH`, `VOICE/WORD_TAKE` or `FONT/PROGRAM_PITCH`. A line `TASK<tab>PACKAGE<tab>LABEL<tab>COUNT` instead says
how many of a package's recordings of a class are clips: the first by a hash of their names.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from benchmarks.open_suite import labels
from benchmarks.open_suite.instruments import FONT_SUFFIXES, FONTS, NOTE_S

_CHOSEN = Path(__file__).with_name("chosen.txt.gz")


@dataclass(frozen=True)
class OpenTask:
    """One task."""

    name: str
    packages: tuple[str, ...]
    """Of Debian 12, whose recordings or soundfonts it takes."""
    programs: tuple[str, ...] = ()
    """That make its sounds."""
    voices: tuple[str, ...] = ()
    """Packages to install besides those of the programs."""
    longest_s: float = 4.0
    """Longer recordings are cut."""
    rule: labels.Rule | None = None
    """What its recordings are of; None: it is synthesized."""
    clips: int = 0
    """That it has with Debian 12's packages."""


_GAMES = """
0ad-data berusky2-data boswars-data brainparty-data btanks-data bzflag-data cube2-data davegnukem-data endless-sky-data
enigma-data extremetuxracer-data fillets-ng-data flightgear-data-base freedink-data freedroidrpg-data freeorion-data
frozen-bubble-data gcompris-qt-data gigalomania-data hedgewars-data hex-a-hop-data hyperrogue-music lincity-ng-data
lugaru-data marsshooter-data megaglest-data minetest-data naev-data neverball-common nexuiz-data openarena-081-misc
openarena-081-players openarena-085-data openarena-088-data openarena-data openttd-opensfx pingus-data
plee-the-bear-data powermanga-data redeclipse-data scorched3d-data searchandrescue-data starfighter-data supertux-data
supertuxkart-data torcs-data trackballs-data tuxmath-data tuxtype-data ufoai-sound warmux-data warzone2100-data
wesnoth-1.16-data widelands-data wizznic-data wordwarvi-sound zaz-data
"""
_SPOKEN = """
asterisk-core-sounds-en-g722 asterisk-core-sounds-es-g722 asterisk-core-sounds-fr-g722 asterisk-core-sounds-it-g722
asterisk-core-sounds-ru-g722 asterisk-prompt-es-co asterisk-prompt-fr-armelle asterisk-prompt-it-menardi-wav festvox-ru
fillets-ng-data-cs fillets-ng-data-nl gcin-voice klettres-data ktuberling-data tuxpaint-stamps-default
"""
_DRUMS = ("chuck-data", "hydrogen-data", "hydrogen-drumkits", "lmms-common", "sonic-pi-samples")

OPEN_TASKS: Mapping[str, OpenTask] = MappingProxyType(
    {
        task.name: task
        for task in (
            OpenTask("sfx14", tuple(_GAMES.split()), rule=labels.sfx14, clips=1773),
            OpenTask(
                "kws35",
                (),
                ("espeak-ng", "flite", "text2wave"),
                ("festvox-kallpc16k", "festvox-kdlpc16k", "festvox-us-slt-hts"),
                clips=1960,
            ),
            OpenTask(
                "instr_family",
                tuple(package for package, _ in FONTS.values()),
                ("fluidsynth",),
                longest_s=NOTE_S,
                clips=1960,
            ),
            OpenTask("speaker", tuple(_SPOKEN.split()), rule=labels.speaker, clips=1357),
            OpenTask("zh_final", ("gcin-voice",), rule=labels.zh_final, clips=2358),
            OpenTask("drum8", _DRUMS, rule=labels.drum8, longest_s=2.0, clips=558),
        )
    }
)
"""In the order of the suite's tables."""


@cache
def chosen(task: str) -> Mapping[str, int]:
    """The names of a task's clips and their places; empty where every candidate is one."""
    names: dict[str, int] = {}
    for of, *rest in _lines():
        if of == task and len(rest) == 1:
            names[rest[0]] = len(names)
    return MappingProxyType(names)


@cache
def counted(task: str) -> Mapping[tuple[str, str], int]:
    """(package, label) -> how many of its recordings are clips of a task, where they are not chosen by name."""
    return MappingProxyType(
        {(rest[0], rest[1]): int(rest[2]) for of, *rest in _lines() if of == task and len(rest) == 3}
    )


def _lines() -> list[list[str]]:
    return [line.split("\t") for line in gzip.decompress(_CHOSEN.read_bytes()).decode("utf-8").splitlines()]


def label_of(task: OpenTask, package: str, path: str) -> labels.Label | None:
    """What a recording is of in a task; None where it is none of its clips."""
    if task.rule is None or package not in task.packages:
        return None
    names = chosen(task.name)
    label = task.rule(package, path)
    if label is None or not names or f"{package}/{path}" in names:
        return label
    return label if (package, label.label) in counted(task.name) else None


def is_taken(package: str, path: str) -> bool:
    """Whether any task takes a file of a package."""
    if PurePosixPath(path).suffix.lower() in FONT_SUFFIXES:
        return any(package == of for of, _ in FONTS.values())
    return any(label_of(task, package, path) is not None for task in OPEN_TASKS.values())
