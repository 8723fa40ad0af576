"""The six tasks of the open suite: the packages and programs each needs, its labels, and the choice of its clips.

Recorded tasks label the files of packages by their paths:

| task | label | group | split |
|---|---|---|---|
| `sfx14` | the class of a game's sound effect, if one class alone has a word in the path | the game | folds of games |
| `speaker` | the voice | the prompt | three prompts in ten are for the test, whoever speaks them |
| `zh_final` | the final of a Mandarin syllable, in Bopomofo | the voice | one voice trains, the other tests |
| `drum8` | the drum, by the file's name | the kit | folds of kits |

About a tenth of `sfx14`'s labels are doubtful. Folds and tests follow from a hash of the group, so that adding or
removing a package does not move the others. `kws35` and `instr_family` are synthesized (`synthesis.py`).

Where there are more candidates than a balanced task of this size needs, `chosen.txt.gz` lists the clips, so that the
suite is the same everywhere. A line `TASK<tab>NAME` names one clip: `PACKAGE/PATH`, `VOICE/WORD_TAKE` or
`FONT/PROGRAM_PITCH`. A line `TASK<tab>PACKAGE<tab>LABEL<tab>COUNT` takes COUNT recordings of that package and class,
the first by a hash of their names.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TypeAlias

from benchmarks.open_suite.packages import is_sound

_CHOSEN = Path(__file__).with_name("chosen.txt.gz")

PROGRAMS = {"espeak-ng": "espeak-ng", "flite": "flite", "text2wave": "festival", "fluidsynth": "fluidsynth"}
"""Each program, and the package of Debian that provides it."""
_ORDER = "piano chromatic_perc organ guitar bass strings ensemble brass reed pipe synth_lead synth_pad synth_fx ethnic"
FAMILIES = tuple(_ORDER.split())
"""General MIDI's families of eight programs each, in order."""
FONTS = {
    "fluid": ("fluid-soundfont-gm", "train"),
    "timgm": ("timgm6mb-soundfont", "test"),
    "opl3": ("opl3-soundfont", "train"),
    "csound": ("csound-soundfont", "test"),
}
"""Soundfont -> package, split; in the order in which velocities are drawn."""
FONT_SUFFIXES = (".sf2", ".sf3")
NOTE_S = 2.0
"""Duration of a clip of `instr_family`."""


@dataclass(frozen=True)
class Label:
    """Label of a clip."""

    label: str
    group: str
    split: str


Rule: TypeAlias = "Callable[[str, str], Label | None]"
"""(package, path inside it) -> label; None if the recording belongs to no class."""

_EFFECTS = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
        "explosion": r"explo|blast|boom|detonat|nuke|bigbang",
        "gun_laser": r"shot|gun|rifle|pistol|laser|plasma|cannon|rocket|missile|grenade_?launch|machineg|minigun|"
        r"railgun|shoot|sniper|blaster|zapper|bolter",
        "blade_bow": r"sword|blade|dagger|\baxe|arrow|\bbow[_\-\.0-9]|spear|knife|slash|parry|swing|swish|club|"
        r"mace|staff",
        "footstep": r"foot_?step|footfall|\bsteps?\b|/fs_|walk|/step|footsteps|singlesteps",
        "vocal_pain_death": r"pain|death|/die|_die|died|gurp|scream|hurt|falling|gasp|drown|groan|/ow\d|ooff",
        "ui_click": r"click|button|menu|/ui/|/ui_|interface/ui|select\b|beep|confirm|cursor|toggle|typewriter",
        "pickup_coin": r"pickup|pick_up|item|coin|gold|collect|bonus|powerup|power_?up|armor_|health|gem",
        "engine_vehicle": r"engine|motor|idle|skid|tyre|tire|brake|gear|vehicle|tank|turbine|prop|car_|train|"
        r"crash_metal|ufo_|truck",
        "water_splash": r"splash|water|swim|ocean|wave|river|rain|underwater|bubble|drip|fountain",
        "wind_ambience": r"wind|ambien|forest|jungle|desert|night|storm|thunder|weather|cave|swamp",
        "animal": r"dog|cat[_\.\d]|wolf|bird|horse|sheep|goat|chicken|cow[_\.\d]|bear|lion|elephant|frog|cricket|owl|"
        r"pig|duck|rooster|crow|seagull|fauna|bat[_\.\d-]|raptor|dragon",
        "door_mechanical": r"door|gate|lift|elevator|hatch|lever|switch|plat|hydraul|chain|lock",
        "jump_land": r"jump|land[_\.\d]|landing|bounce",
        "impact_hit": r"hit[_\.\-\d]|hit\.|impact|ric|collision|crush|smash|punch|bump|thud|debris|break",
        "speech": r"/voices?/|announcer|/coms/|taunt|speech|/audio/(tutorial|extra|countdown|vtoltalk|memressp)|"
        r"select_unit|acknowledge|ack\d|yes|hello",
        "music": r"/music/|soundtrack|theme|song",
    }.items()
}
_LEFT_OUT = frozenset({"speech", "music"})
_DRUMS = {
    "kick": r"kick|bass ?drum|_bd|^bd|bassdrum",
    "snare": r"snare|_sn|^sn|^sd",
    "hihat": r"hat|_hh|^hh",
    "crash": r"crash",
    "ride": r"ride",
    "tom": r"tom",
    "clap": r"clap",
    "cowbell": r"cow",
}
_INITIALS = frozenset("ㄅㄆㄇㄈㄉㄊㄋㄌㄍㄎㄏㄐㄑㄒㄓㄔㄕㄖㄗㄘㄙ")
_VOICES: Mapping[str, str] = {
    "asterisk-core-sounds-en-g722": "allison",
    "asterisk-core-sounds-es-g722": "allison",  # the same speaker in both languages
    "asterisk-core-sounds-fr-g722": "june",
    "asterisk-core-sounds-it-g722": "carlo",
    "asterisk-core-sounds-ru-g722": "ivr_ru",
    "asterisk-prompt-es-co": "ast_co",
    "asterisk-prompt-fr-armelle": "armelle",
    "asterisk-prompt-it-menardi-wav": "menardi",
    "festvox-ru": "msu_ru",
}
_VOICES_BY_NAME: Mapping[str, tuple[str, str]] = {
    "fillets-ng-data-cs": (r"-(m|v)-[^/]*$", "fillets_cs_"),
    "fillets-ng-data-nl": (r"-(m|v)-[^/]*$", "fillets_nl_"),
    "tuxpaint-stamps-default": (r"_desc_(?!ml\.)([A-Za-z_@]+)\.", "tux_"),
    "klettres-data": (r"klettres/([a-zA-Z_]+)/", "kl_"),
    "ktuberling-data": (r"/sounds/([a-zA-Z_@]+)/", "kt_"),
    "gcin-voice": (r"/(\d)[^/]*$", "gcin_"),
}


def sfx14(package: str, path: str) -> Label | None:
    """Label a game's sound effect, if words of exactly one class are in the last three parts of its path.

    The path starts below the folder of sounds.
    """
    if not is_sound(path):
        return None
    below = re.sub(r"^.*?(sounds?|sfx|audio|Sounds)/", "/", path, count=1)
    tail = "/" + "/".join(below.split("/")[-3:])
    found = [name for name, words in _EFFECTS.items() if words.search(tail)]
    if len(found) != 1 or found[0] in _LEFT_OUT:
        return None
    game = re.sub(r"openarena.*", "openarena", package)
    return Label(found[0], game, f"fold{_hashed(game + 'x', 3)}")


def speaker(package: str, path: str) -> Label | None:
    """Label a spoken prompt by its voice."""
    # Only the silences of the core sounds are left out: one of another package is a clip of the published suite.
    if not is_sound(path) or ("/silence/" in path and "-core-" in package):
        return None
    name = PurePosixPath(path)
    prompt = re.sub(r"_desc_[A-Za-z@_]+", "", name.stem)
    if package == "gcin-voice":
        prompt = name.parent.name
    voice = _VOICES.get(package)
    if package in _VOICES_BY_NAME:
        pattern, prefix = _VOICES_BY_NAME[package]
        match = re.search(pattern, path)
        voice = prefix + match[1] if match else None
    return Label(voice, prompt, "test" if _hashed(prompt, 10) < 3 else "train") if voice else None


def zh_final(package: str, path: str) -> Label | None:
    """Label a syllable, in Bopomofo with a digit for its tone, by its final; `syllabic` if it is an initial alone."""
    name = PurePosixPath(path)
    match = re.fullmatch(r"([^\d]+)\d?", name.parent.name)
    if not is_sound(path) or match is None:
        return None
    syllable, voice = match[1], name.name[0]
    final = syllable[1:] if syllable[0] in _INITIALS else syllable
    return Label(final or "syllabic", voice, "train" if voice == "3" else "test")


def drum8(package: str, path: str) -> Label | None:
    """Label a single drum hit; loops and rolls have no label."""
    name = PurePosixPath(path)
    lower = name.name.lower()
    drum = next((drum for drum, pattern in _DRUMS.items() if re.search(pattern, lower)), None)
    if (
        drum is None
        or name.suffix.lower() not in (".wav", ".ogg", ".flac")
        or any(word in lower for word in ("loop", "roll", "beats"))
    ):
        return None
    kit = "sonicpi" if "sonic" in package else name.parent.name
    return Label(drum, kit, f"fold{_hashed(kit + 'a', 3)}")


def _hashed(text: str, count: int) -> int:
    """Return a number below `count` that follows from the text."""
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(), 16) % count


@dataclass(frozen=True)
class OpenTask:
    """One task."""

    name: str
    packages: tuple[str, ...]
    """Packages of Debian 12 whose recordings or soundfonts it uses."""
    wheels: tuple[str, ...] = field(default=(), kw_only=True)
    """Wheels of PyPI with synthesizers, as `NAME==VERSION`."""
    programs: tuple[str, ...] = ()
    """Programs that synthesize its recordings."""
    voices: tuple[str, ...] = ()
    """Packages to install besides those of the programs."""
    longest_s: float = 4.0
    """Longer recordings are cut to this."""
    rule: Rule | None = None
    """Rule that labels its recordings; None for a synthesized task."""
    clips: int = 0
    """Number of clips with the packages of Debian 12."""


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
_DRUM_PACKAGES = ("chuck-data", "hydrogen-data", "hydrogen-drumkits", "lmms-common", "sonic-pi-samples")

OPEN_TASKS: Mapping[str, OpenTask] = MappingProxyType(
    {
        task.name: task
        for task in (
            OpenTask("sfx14", tuple(_GAMES.split()), rule=sfx14, clips=1773),
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
            OpenTask("speaker", tuple(_SPOKEN.split()), rule=speaker, clips=1357),
            OpenTask("zh_final", ("gcin-voice",), rule=zh_final, clips=2358),
            OpenTask("drum8", _DRUM_PACKAGES, rule=drum8, longest_s=2.0, clips=558),
        )
    }
)
"""In the order of the suite's tables."""


@cache
def chosen(task: str) -> Mapping[str, int]:
    """Return the names of a task's clips with their positions; empty if every candidate is a clip."""
    names: dict[str, int] = {}
    for of, *rest in _chosen_lines():
        if of == task and len(rest) == 1:
            names[rest[0]] = len(names)
    return MappingProxyType(names)


@cache
def counted(task: str) -> Mapping[tuple[str, str], int]:
    """Return (package, label) -> number of clips, for clips that are chosen by a hash instead of by name."""
    return MappingProxyType(
        {(rest[0], rest[1]): int(rest[2]) for of, *rest in _chosen_lines() if of == task and len(rest) == 3}
    )


def _chosen_lines() -> list[list[str]]:
    return [line.split("\t") for line in gzip.decompress(_CHOSEN.read_bytes()).decode("utf-8").splitlines()]


def label_of(task: OpenTask, package: str, path: str) -> Label | None:
    """Return the label of a recording in a task; None if it is not one of the task's clips."""
    if task.rule is None or package not in task.packages:
        return None
    names = chosen(task.name)
    label = task.rule(package, path)
    if label is None or not names or f"{package}/{path}" in names:
        return label
    return label if (package, label.label) in counted(task.name) else None


def is_used(package: str, path: str) -> bool:
    """Return whether any task uses a file of a package."""
    if PurePosixPath(path).suffix.lower() in FONT_SUFFIXES:
        return any(package == of for of, _ in FONTS.values())
    return any(label_of(task, package, path) is not None for task in OPEN_TASKS.values())
