"""Synthesize the recordings of two tasks with free programs of Debian: `kws35` (words) and `instr_family` (notes).

`kws35`: the 35 words of Speech Commands. Variants of espeak-ng are for training, each with one accent and with a speed
and pitch drawn for each clip; the voices of flite and festival are for the test, at two speeds each. The draws depend
on a seed and on the list of variants of espeak-ng 1.51, so they are the same on every machine.

`instr_family`: General MIDI's 112 instrument programs at 13 pitches, from four soundfonts, through fluidsynth. Each
soundfont plays one MIDI file: a note every 2.5 s, held for 1.5 s, at a velocity drawn for it; clips are cut from the
output of fluidsynth (44.1 kHz, no reverb, no chorus). A note that a soundfont lacks is silent and is left out. Programs
112 to 127 are percussion and sound effects and are not used.

MIDI files: the Standard MIDI File of the MIDI Association, format 0.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from benchmarks.open_suite.tasks import FAMILIES, FONT_SUFFIXES, FONTS, NOTE_S, Label
from ssamba.audio.readers import Samples
from ssamba.errors import DataError
from ssamba.files import write_atomically

RATE_HZ = 16_000
"""Sample rate of the suite."""
SPACING_S = 2.5
"""Time from one note of a soundfont's recording to the next."""
_HELD_S = 1.5
_RENDERED_HZ = 44_100
_LATENCY_FRAMES = 64  # one block of fluidsynth: a note sounds this much later than its MIDI event
_TICKS_PER_S = 960

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
VARIANTS = _NAMES.split()
"""Voice variants of espeak-ng."""
_DRAWN = 40
_FLITE = ["kal", "kal16", "awb", "rms", "slt"]
_FESTIVAL = ["kal_diphone", "ked_diphone", "cmu_us_slt_arctic_hts"]
_STRETCHES = (0.9, 1.1)


def missing_programs(names: Sequence[str]) -> list[str]:
    """Return the programs that are not installed."""
    return [name for name in names if shutil.which(name) is None]


def run_to_file(command: Sequence[str], target: Path, text: str | None = None) -> None:
    """Run a program that writes a file, unless the file exists. `{}` in the command stands for the file's path.

    Raises:
        DataError: the program fails, or writes nothing.
    """
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        written = temporary.with_suffix(target.suffix)  # programs choose the format by the suffix
        try:
            done = subprocess.run(
                [part.replace("{}", str(written)) for part in command],
                input=text or "",
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
            if done.returncode or not written.is_file() or not written.stat().st_size:
                message = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise DataError(
                    f"{command[0]} failed (exit code {done.returncode}): {message}. "
                    "Is all of it installed, voices included?"
                )
            written.replace(temporary)
        finally:
            if written != temporary:
                written.unlink(missing_ok=True)

    write_atomically(target, write)


@dataclass(frozen=True)
class Utterance:
    """A word spoken by one voice."""

    name: str
    """`VOICE/WORD_TAKE`."""
    word: str
    command: tuple[str, ...]
    """Command that speaks it; `{}` stands for the file to write."""
    text: str = ""
    """Standard input of the program."""

    @property
    def label(self) -> Label:
        """The word as the class, the voice as the group."""
        voice = self.name.partition("/")[0]
        return Label(self.word, voice, "train" if voice.startswith("espeak_") else "test")

    def speak(self, folder: Path) -> Path:
        """Return the recording `folder/NAME.wav`; it is synthesized if it does not exist.

        Raises:
            DataError: the program fails.
        """
        path = folder / f"{self.name}.wav"
        run_to_file(self.command, path, self.text)
        return path


def utterances() -> Iterator[Utterance]:
    """Yield every candidate of `kws35`: 40 and 8 voices, each word twice."""
    rng = random.Random(0)
    for variant in rng.sample(VARIANTS, _DRAWN):
        accent = rng.choice(_ACCENTS)
        for word in WORDS:
            for take in range(2):
                speed, pitch = rng.randint(130, 210), rng.randint(30, 70)
                options = ("-v", f"{accent}+{variant}", "-s", f"{speed}", "-p", f"{pitch}", "-w", "{}", word)
                yield Utterance(f"espeak_{variant}/{word}_{take}", word, ("espeak-ng", *options))
    for voice in _FLITE:
        for word in WORDS:
            for take, stretch in enumerate(_STRETCHES):
                flite = ("flite", "-voice", voice, "--setf", f"duration_stretch={stretch}", "-t", word, "-o", "{}")
                yield Utterance(f"flite_{voice}/{word}_{take}", word, flite)
    for voice in _FESTIVAL:
        for word in WORDS:
            for take, stretch in enumerate(_STRETCHES):
                setting = f"(Parameter.set 'Duration_Stretch {stretch})"
                festival = ("text2wave", "-eval", f"(voice_{voice})", "-eval", setting, "-o", "{}")
                yield Utterance(f"festival_{voice}/{word}_{take}", word, festival, word)


@dataclass(frozen=True)
class Note:
    """One note of a soundfont."""

    font: str
    program: int
    pitch: int
    velocity: int
    start_s: float
    """Start in the recording of the whole soundfont."""
    channel: int = 0
    """MIDI channel; 9 is General MIDI's channel of drums, where the pitch chooses the drum."""

    @property
    def name(self) -> str:
        """`FONT/PROGRAM_PITCH`."""
        return f"{self.font}/{self.program:03d}_{self.pitch:03d}"

    @property
    def label(self) -> Label:
        """The instrument's family as the class, the soundfont as the group."""
        return Label(FAMILIES[self.program // 8], self.font, FONTS[self.font][1])


def notes() -> Iterator[Note]:
    """Yield every note of every soundfont."""
    rng = random.Random(0)
    for font in FONTS:
        number = 0
        for program in range(8 * len(FAMILIES)):
            for pitch in range(36, 85, 4):
                yield Note(font, program, pitch, rng.choice((60, 90, 120)), number * SPACING_S)
                number += 1


def play_font(font: str, package: Path, folder: Path, played_notes: Sequence[Note]) -> Path:
    """Return `folder/FONT.wav`, the notes played by a soundfont; it is synthesized if it does not exist.

    Raises:
        DataError: the package holds no soundfont, or fluidsynth fails.
    """
    files = sorted(path for path in package.rglob("*") if path.suffix.lower() in FONT_SUFFIXES)
    if not files:
        raise DataError(f"{package.name}: holds no soundfont ({', '.join(FONT_SUFFIXES)}). Fetch it again")
    folder.mkdir(parents=True, exist_ok=True)
    score, played = folder / f"{font}.mid", folder / f"{font}.wav"
    music = midi_file(played_notes)
    write_atomically(score, lambda target: target.write_bytes(music))
    options = ["-ni", "-q", "-r", f"{_RENDERED_HZ}", "-g", "0.6", "-R", "0", "-C", "0", "-F", "{}"]
    run_to_file(["fluidsynth", *options, str(files[0]), str(score)], played)
    return played


def cut_note(played: Path, note: Note) -> Samples:
    """Return one note cut from the recording of its soundfont: (2 s * 16 kHz,).

    Raises:
        DataError: the file is damaged.
    """
    try:
        with soundfile.SoundFile(str(played)) as file:
            file.seek(min(file.frames, round(note.start_s * file.samplerate) + _LATENCY_FRAMES))
            stereo = file.read(round(NOTE_S * file.samplerate), dtype="float32", always_2d=True)
            rate_hz = file.samplerate
    except soundfile.SoundFileError as error:
        raise DataError(f"{played}: is damaged ({error}). Remove it and start again") from None
    samples: Samples = soxr.resample(stereo.mean(1), rate_hz, RATE_HZ, quality="HQ").astype(np.float32)
    return samples


def midi_file(score: Sequence[Note]) -> bytes:
    """Return the notes, in the order given, as a MIDI file of one track."""
    track, now = bytearray(), 0

    def event(at_s: float, *data: int) -> None:
        nonlocal now
        ticks = round(at_s * _TICKS_PER_S)
        track.extend(_variable_length(ticks - now))
        track.extend(data)
        now = ticks

    for note in score:
        event(note.start_s, 0xC0 | note.channel, note.program)
        event(note.start_s, 0x90 | note.channel, note.pitch, note.velocity)
        event(note.start_s + _HELD_S, 0x80 | note.channel, note.pitch, 0)
    event((score[-1].start_s if score else 0.0) + SPACING_S, 0xFF, 0x2F, 0)
    # 480 ticks for each quarter note, which lasts 0.5 s by default.
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, _TICKS_PER_S // 2) + b"MTrk" + struct.pack(">I", len(track)) + track


def _variable_length(number: int) -> bytes:
    """Return a MIDI number of variable length: seven bits a byte, the highest first."""
    data = [number & 0x7F]
    while number := number >> 7:
        data.insert(0, number & 0x7F | 0x80)
    return bytes(data)
