"""The packages that the pretraining corpus is built from, and how the recordings of each are read.

All are in Debian 12's `main`. Any other package stays out: most of them are kept for judging.

| package | recordings | license |
|---|---|---|
| `flight-of-the-amazon-queen` | acted English speech of many voices, some effects | the game's own |
| `beneath-a-steel-sky` | as above | the game's own |
| `festvox-ru` | read Russian sentences of one voice | MIT-like |

Both games may be given away and changed, with their notices and a note of the change, but not be sold on their own.
Of the 620 sentences of `festvox-ru` 235 are taken: 362 are in the ten hours of the first corpus, which was drawn before
this command was written, and 23 more are clips of the open suite.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import TypeAlias

from benchmarks.corpus.archives import SKY_RATE_HZ, queen_sounds, sky_sounds
from benchmarks.open_suite.packages import Deb, is_sound, read_deb
from benchmarks.proxy_suite.tasks import is_known
from ssamba.errors import DataError

Recordings: TypeAlias = Iterator[tuple[str, bytes]]
"""Name with a suffix, and the bytes of an audio file."""

_NUMBERS = """
0001 0009 0010 0012 0013 0016 0018 0024 0025 0031 0032 0033 0035 0039 0040 0041 0042 0043 0045 0050 0052 0056 0060 0062
0065 0069 0075 0079 0082 0084 0085 0088 0103 0106 0109 0115 0118 0123 0129 0130 0145 0147 0148 0155 0157 0163 0164 0165
0168 0169 0173 0179 0180 0182 0184 0195 0196 0197 0199 0202 0204 0206 0209 0218 0222 0223 0226 0227 0229 0236 0247 0249
0263 0265 0266 0268 0271 0275 0286 0289 0291 0292 0298 0299 0307 0311 0314 0315 0317 0321 0330 0331 0332 0336 0343 0350
0362 0364 0369 0370 0373 0374 0376 0377 0383 0386 0389 0392 0396 0402 0407 0408 0409 0412 0414 0415 0417 0418 0425 0427
0428 0430 0443 0446 0447 0449 0451 0452 0454 0455 0457 0458 0461 0462 0463 0466 0467 0469 0472 0476 0478 0479 0482 0483
0488 0495 0496 0497 0499 0509 0510 0511 0513 0514 0520 0523 0525 0531 0545 0558 0559 0571 0577 0580 0582 0585 0586 0589
0590 0592 0593 0594 0599 0607 0608 0609 0611 0619 0622 0627 0635 0636 0644 0648 0649 0650 0651 0654 0663 0670 0674 0675
0683 0693 0696 0697 0702 0705 0713 0719 0721 0727 0729 0731 0732 0736 0737 0742 0750 0751 0757 0765 0766 0768 0769 0772
0773 0774 0784 0789 0794 0802 0807 0808 0813 0819 0822 0828 0830 0835 0836 0837 0840 0841 0842
"""
RUSSIAN_SENTENCES = frozenset(f"ru_{number}" for number in _NUMBERS.split())
"""Those that neither the first ten hours nor the open suite hold."""


@dataclass(frozen=True)
class SpeechPackage:
    """A package of the corpus."""

    name: str
    kind: str
    license: str
    """In short; the whole text is copied beside the corpus."""
    recordings: Callable[[Deb], Recordings]
    """Reads the recordings. Raises DataError if the package is damaged or lacks a file."""


def _files(deb: Deb, *names: str) -> list[bytes]:
    found = {
        PurePosixPath(path).name: content.read()
        for path, content in read_deb(deb.file, lambda path: PurePosixPath(path).name in names)
    }
    if missing := [name for name in names if name not in found]:
        raise DataError(f"{deb.file}: holds no {missing[0]}. Fetch {deb.name} again, of Debian 12")
    return [found[name] for name in names]


def _queen(deb: Deb) -> Recordings:
    (archive,) = _files(deb, "queen.1c")
    for name, mp3 in queen_sounds(archive):
        yield f"{PurePosixPath(name).stem}.mp3", mp3


def _sky(deb: Deb) -> Recordings:
    index, data = _files(deb, "sky.dnr", "sky.dsk")
    for number, samples in sky_sounds(index, data):
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setparams((1, 1, SKY_RATE_HZ, 0, "NONE", ""))
            writer.writeframes(samples)
        yield f"{number}.wav", file.getvalue()


def _russian(deb: Deb) -> Recordings:
    def wanted(path: str) -> bool:
        sentence = PurePosixPath(path)
        return is_sound(path) and sentence.stem in RUSSIAN_SENTENCES and not is_known(deb.name, path)

    for path, content in read_deb(deb.file, wanted):
        yield PurePosixPath(path).name, content.read()


_GAME = "game's own: free to copy and change with its notices and a note of the change; not to be sold on its own"
SOURCES: Mapping[str, SpeechPackage] = MappingProxyType(
    {
        package.name: package
        for package in (
            SpeechPackage("flight-of-the-amazon-queen", "acted English speech, effects", _GAME, _queen),
            SpeechPackage("beneath-a-steel-sky", "acted English speech, effects", _GAME, _sky),
            SpeechPackage("festvox-ru", "read Russian speech, one voice", "MIT-like (BSD-like by its name)", _russian),
        )
    }
)
"""The only packages that are read."""
