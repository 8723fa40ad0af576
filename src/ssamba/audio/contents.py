"""Records of what an audio file holds, as `containers.inspect` finds it: verdict, reason, and the parts to decode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from ssamba.audio.files import Piece

Verdict: TypeAlias = Literal["whole", "wrong header", "cut"]
"""What a file holds, against what its headers state.

- `whole`: what the headers state, or they do not state it;
- `wrong header`: the headers state something else, and the recording is complete: all of it is read;
- `cut`: part of the recording is missing or damaged.

A file that cannot be read at all has no verdict: it raises AudioDecodeError.
"""


@dataclass(frozen=True)
class Raw:
    """How samples without a header are coded, in the terms of libsndfile."""

    subtype: str
    """`PCM_16`, `FLOAT`, `ULAW`..."""
    sample_rate_hz: int
    channels: int
    endian: Literal["LITTLE", "BIG"]


@dataclass(frozen=True)
class Part:
    """One stream of samples in a file. Most files have one; files that were joined have several."""

    pieces: tuple[Piece, ...]
    """What a decoder reads in place of the file; empty stands for the file itself."""
    container: str = ""
    """Name of the format for reports; empty is what libsndfile calls it."""
    raw: Raw | None = None
    """Coding of the pieces if they are samples without a header."""
    num_samples: int | None = None
    """Samples per channel, if known without decoding."""


@dataclass(frozen=True)
class Contents:
    """What a file holds."""

    verdict: Verdict = "whole"
    reason: str | None = None
    """What is claimed and what is there; None if the verdict is `whole`."""
    parts: tuple[Part, ...] = ()
    """What to decode, in order; empty: the file as it is."""
    claimed_samples: int | None = None
    """Samples per channel that the headers state, if they state something else than what is there."""
    fraction: float | None = None
    """Share of the claimed samples that is there, if only this is known."""
    is_parsed: bool = False
    """Whether the container was followed to its end, so that an error of a decoder at the end means nothing."""
    md5: bytes = b""
    """Digest that decides whether a FLAC file that seems to be cut between two frames is whole."""

    def with_verdict(self, verdict: Verdict, reason: str) -> Contents:
        """Return a copy with another verdict."""
        return replace(self, verdict=verdict, reason=reason)
