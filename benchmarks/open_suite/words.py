"""`kws35`: the 35 words of Speech Commands, spoken by every free synthesizer of Debian.

espeak-ng's variants are for training, each with one accent, and speed and pitch drawn for each clip; the voices of flite
and festival are for the test, at two speeds. The draws follow from a seed and a list of espeak-ng 1.51's variants, so
that they are the same on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.open_suite.labels import Label
from benchmarks.open_suite.programs import run_to_file

_SPOKEN = (
    "backward bed bird cat dog down eight five follow forward four go happy house learn left marvin nine no off on one "
    "right seven sheila six stop three tree two up visual wow yes zero"
)
WORDS = tuple(_SPOKEN.split())
_ACCENTS = ["en-us", "en-gb", "en-gb-scotland", "en-029", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd"]
_NAMES = """
Alex Alicia Andrea Andy Annie AnxiousAndy Demonic Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Marco Mario
Michael Mike Mr Nguyen RicishayMax RicishayMax2 RicishayMax3 Storm Tweaky UniRobot adam anika anikaRobot announcer
antonio aunty belinda benjamin boris caleb croak david ed edward edward2 f1 f2 f3 f4 f5 fast grandma grandpa
gustave iven iven2 iven3 iven4 john kaukovalta klatt klatt2 klatt3 klatt4 klatt5 klatt6 linda m1 m2 m3 m4 m5 m6 m7
m8 marcelo max michel miguel norbert pablo paul pedro quincy rob robert robosoft robosoft2 robosoft3 robosoft4
robosoft5 robosoft6 robosoft7 robosoft8 sandro shelby steph steph2 steph3 travis victor whisper whisperf zac
"""  # of espeak-ng 1.51, sorted
_VARIANTS = _NAMES.split()
_DRAWN = 40
_FLITE = ["kal", "kal16", "awb", "rms", "slt"]
_FESTIVAL = ["kal_diphone", "ked_diphone", "cmu_us_slt_arctic_hts"]
_STRETCHES = (0.9, 1.1)


@dataclass(frozen=True)
class Utterance:
    """A word to be spoken."""

    name: str
    """`VOICE/WORD_TAKE`."""
    word: str
    command: tuple[str, ...]
    """`{}` stands for the file to write."""
    text: str = ""
    """For the program's standard input."""

    @property
    def label(self) -> Label:
        """The word; who says it."""
        voice = self.name.partition("/")[0]
        return Label(self.word, voice, "train" if voice.startswith("espeak_") else "test")

    def speak(self, folder: Path) -> Path:
        """The file, written unless it is there.

        Raises:
            DataError: the program fails.
        """
        path = folder / f"{self.name}.wav"
        run_to_file(self.command, path, self.text)
        return path


def utterances() -> Iterator[Utterance]:
    """Everything that may be spoken: 40 and 8 voices, each word twice."""
    draws = random.Random(0)
    for variant in draws.sample(_VARIANTS, _DRAWN):
        accent = draws.choice(_ACCENTS)
        for word in WORDS:
            for take in range(2):
                speed, pitch = draws.randint(130, 210), draws.randint(30, 70)
                command = (
                    "espeak-ng",
                    "-v",
                    f"{accent}+{variant}",
                    "-s",
                    f"{speed}",
                    "-p",
                    f"{pitch}",
                    "-w",
                    "{}",
                    word,
                )
                yield Utterance(f"espeak_{variant}/{word}_{take}", word, command)
    for voice in _FLITE:
        for word in WORDS:
            for take, stretch in enumerate(_STRETCHES):
                said = ("flite", "-voice", voice, "--setf", f"duration_stretch={stretch}", "-t", word, "-o", "{}")
                yield Utterance(f"flite_{voice}/{word}_{take}", word, said)
    for voice in _FESTIVAL:
        for word in WORDS:
            for take, stretch in enumerate(_STRETCHES):
                setting = f"(Parameter.set 'Duration_Stretch {stretch})"
                made = ("text2wave", "-eval", f"(voice_{voice})", "-eval", setting, "-o", "{}")
                yield Utterance(f"festival_{voice}/{word}_{take}", word, made, word)
