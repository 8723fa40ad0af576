"""What recordings of packages are of, by their paths: the labels of four tasks.

| task | label | group | split |
|---|---|---|---|
| `sfx14` | what a game's sound effect is, where one class alone has a word in its path | the game | folds of games |
| `speaker` | the voice | the prompt | three prompts in ten are tests, whoever says them |
| `zh_final` | the final of a Mandarin syllable, in Bopomofo | the voice | one voice trains, the other tests |
| `drum8` | the drum, by the file's name | the kit | folds of kits |

About a tenth of `sfx14`'s labels are doubtful. Folds and tests follow from a hash of the group, so that packages may come
and go without moving others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeAlias

from benchmarks.open_suite.archives import is_sound


@dataclass(frozen=True)
class Label:
    """What is said of a clip."""

    label: str
    group: str
    split: str


Rule: TypeAlias = "Callable[[str, str], Label | None]"
"""(package, path in it) -> what it is of; None where it is of no class."""

_EFFECTS = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
        "explosion": r"explo|blast|boom|detonat|nuke|bigbang",
        "gun_laser": r"shot|gun|rifle|pistol|laser|plasma|cannon|rocket|missile|grenade_?launch|machineg|minigun|railgun|"
        r"shoot|sniper|blaster|zapper|bolter",
        "blade_bow": r"sword|blade|dagger|\baxe|arrow|\bbow[_\-\.0-9]|spear|knife|slash|parry|swing|swish|club|mace|staff",
        "footstep": r"foot_?step|footfall|\bsteps?\b|/fs_|walk|/step|footsteps|singlesteps",
        "vocal_pain_death": r"pain|death|/die|_die|died|gurp|scream|hurt|falling|gasp|drown|groan|/ow\d|ooff",
        "ui_click": r"click|button|menu|/ui/|/ui_|interface/ui|select\b|beep|confirm|cursor|toggle|typewriter",
        "pickup_coin": r"pickup|pick_up|item|coin|gold|collect|bonus|powerup|power_?up|armor_|health|gem",
        "engine_vehicle": r"engine|motor|idle|skid|tyre|tire|brake|gear|vehicle|tank|turbine|prop|car_|train|crash_metal|"
        r"ufo_|truck",
        "water_splash": r"splash|water|swim|ocean|wave|river|rain|underwater|bubble|drip|fountain",
        "wind_ambience": r"wind|ambien|forest|jungle|desert|night|storm|thunder|weather|cave|swamp",
        "animal": r"dog|cat[_\.\d]|wolf|bird|horse|sheep|goat|chicken|cow[_\.\d]|bear|lion|elephant|frog|cricket|owl|pig|"
        r"duck|rooster|crow|seagull|fauna|bat[_\.\d-]|raptor|dragon",
        "door_mechanical": r"door|gate|lift|elevator|hatch|lever|switch|plat|hydraul|chain|lock",
        "jump_land": r"jump|land[_\.\d]|landing|bounce",
        "impact_hit": r"hit[_\.\-\d]|hit\.|impact|ric|collision|crush|smash|punch|bump|thud|debris|break",
        "speech": r"/voices?/|announcer|/coms/|taunt|speech|/audio/(tutorial|extra|countdown|vtoltalk|memressp)|select_unit|"
        r"acknowledge|ack\d|yes|hello",
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
    """A game's sound effect: the last three names of its path, below the folder of sounds, have words of one class alone."""
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
    """A spoken prompt: who says it."""
    # Silences are left out of the core sounds alone: one of another package is a clip of the suite as it was published.
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
    """A syllable in Bopomofo with a digit for its tone: its final, `syllabic` where the initial stands alone."""
    name = PurePosixPath(path)
    match = re.fullmatch(r"([^\d]+)\d?", name.parent.name)
    if not is_sound(path) or match is None:
        return None
    syllable, voice = match[1], name.name[0]
    final = syllable[1:] if syllable[0] in _INITIALS else syllable
    return Label(final or "syllabic", voice, "train" if voice == "3" else "test")


def drum8(package: str, path: str) -> Label | None:
    """One hit of a drum; loops and rolls are none."""
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
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(), 16) % count
