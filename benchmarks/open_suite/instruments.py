"""`instr_family`: General MIDI's 112 programs of instruments at many pitches, from four soundfonts, through fluidsynth.

Each font plays one MIDI file: a note every 2.5 s, held for 1.5 s, at the velocity that was drawn for it; the clips are
cut from what fluidsynth writes (44.1 kHz, no reverb, no chorus). Which notes a font lacks is heard: silence is left out.
Programs 112 to 127 are percussive and sound effects, and not used.

MIDI files: the Standard MIDI File of the MIDI Association, format 0.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from benchmarks.open_suite.labels import Label
from benchmarks.open_suite.programs import run_to_file
from benchmarks.open_suite.sounds import RATE_HZ
from ssamba.audio.readers import Samples
from ssamba.errors import DataError
from ssamba.files import write_atomically

_ORDER = "piano chromatic_perc organ guitar bass strings ensemble brass reed pipe synth_lead synth_pad synth_fx ethnic"
FAMILIES = tuple(_ORDER.split())
FONTS = {
    "fluid": ("fluid-soundfont-gm", "train"),
    "timgm": ("timgm6mb-soundfont", "test"),
    "opl3": ("opl3-soundfont", "train"),
    "csound": ("csound-soundfont", "test"),
}
"""Font -> package, split; in the order in which velocities are drawn."""
FONT_SUFFIXES = (".sf2", ".sf3")
NOTE_S = 2.0
_HELD_S, _EACH_S = 1.5, 2.5
_RENDERED_HZ = 44_100
_LATE = 64
"""Frames, of one of fluidsynth's blocks, by which a note sounds later than a MIDI file says."""
_TICKS_PER_S = 960


@dataclass(frozen=True)
class Note:
    """One note of a font."""

    font: str
    program: int
    pitch: int
    velocity: int
    start_s: float
    """In what the font plays."""

    @property
    def name(self) -> str:
        """`FONT/PROGRAM_PITCH`."""
        return f"{self.font}/{self.program:03d}_{self.pitch:03d}"

    @property
    def label(self) -> Label:
        """The family of the instrument."""
        return Label(FAMILIES[self.program // 8], self.font, FONTS[self.font][1])


def notes() -> Iterator[Note]:
    """Every note of every font."""
    draws = random.Random(0)
    for font in FONTS:
        number = 0
        for program in range(8 * len(FAMILIES)):
            for pitch in range(36, 85, 4):
                yield Note(font, program, pitch, draws.choice((60, 90, 120)), number * _EACH_S)
                number += 1


def play_font(font: str, package: Path, folder: Path) -> Path:
    """What a font plays, as `folder/FONT.wav`, written unless it is there.

    Raises:
        DataError: the package holds no soundfont, or fluidsynth fails.
    """
    files = sorted(path for path in package.rglob("*") if path.suffix.lower() in FONT_SUFFIXES)
    if not files:
        raise DataError(f"{package.name}: holds no soundfont ({', '.join(FONT_SUFFIXES)}). Fetch it again")
    folder.mkdir(parents=True, exist_ok=True)
    score, played = folder / f"{font}.mid", folder / f"{font}.wav"
    music = midi_file([note for note in notes() if note.font == font])
    write_atomically(score, lambda target: target.write_bytes(music))
    options = ["-ni", "-q", "-r", f"{_RENDERED_HZ}", "-g", "0.6", "-R", "0", "-C", "0", "-F", "{}"]
    run_to_file(["fluidsynth", *options, str(files[0]), str(score)], played)
    return played


def cut_note(played: Path, note: Note) -> Samples:
    """The note in what its font plays: (2 s * 16 kHz,).

    Raises:
        DataError: the file is damaged.
    """
    try:
        with soundfile.SoundFile(str(played)) as file:
            file.seek(min(file.frames, round(note.start_s * file.samplerate) + _LATE))
            stereo = file.read(round(NOTE_S * file.samplerate), dtype="float32", always_2d=True)
            rate_hz = file.samplerate
    except soundfile.SoundFileError as error:
        raise DataError(f"{played}: is damaged ({error}). Remove it and start again") from None
    samples: Samples = soxr.resample(stereo.mean(1), rate_hz, RATE_HZ, quality="HQ").astype(np.float32)
    return samples


def midi_file(score: list[Note]) -> bytes:
    """The notes, in their order, as a MIDI file of one track and channel."""
    track, now = bytearray(), 0

    def event(at_s: float, *data: int) -> None:
        nonlocal now
        ticks = round(at_s * _TICKS_PER_S)
        track.extend(_variable(ticks - now))
        track.extend(data)
        now = ticks

    for note in score:
        event(note.start_s, 0xC0, note.program)
        event(note.start_s, 0x90, note.pitch, note.velocity)
        event(note.start_s + _HELD_S, 0x80, note.pitch, 0)
    event((score[-1].start_s if score else 0.0) + _EACH_S, 0xFF, 0x2F, 0)
    # 480 ticks a quarter, and half a second to the quarter where nothing else is said.
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, _TICKS_PER_S // 2) + b"MTrk" + struct.pack(">I", len(track)) + track


def _variable(number: int) -> bytes:
    """A MIDI number of variable length: seven bits a byte, the highest first."""
    data = [number & 0x7F]
    while number := number >> 7:
        data.insert(0, number & 0x7F | 0x80)
    return bytes(data)
