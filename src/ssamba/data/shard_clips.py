"""From a recording to what a shard holds of it: pieces, encoded, and decoded again to see that nothing is lost.

No torch here.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

import soundfile
from pydantic import Field, model_validator

from ssamba.audio.decode import AudioBytes, decode, stream
from ssamba.audio.readers import Samples
from ssamba.config import Config
from ssamba.data.manifest import Clip
from ssamba.errors import AudioDecodeError

_OPUS_RATES_HZ = (8_000, 12_000, 16_000, 24_000, 48_000)
_FLAC_SHARE = 0.55  # of 16 bits a sample
_ENCODE_SAMPLES = 8_192  # at once: libsndfile's Vorbis encoder overflows its stack on a minute


class ShardSettings(Config):
    """What shards depend on, besides the recordings; saved in `shards.json`."""

    codec: Literal["opus", "flac"] = "opus"
    """Opus is a tenth of FLAC, which is exact to 16 bits."""
    sample_rate_hz: int = Field(16_000, gt=0)
    """Rate that recordings are resampled to; they become mono."""
    bitrate_kbps: float = Field(48.0, ge=8, le=256)
    """Of Opus."""
    shard_mb: float = Field(200.0, gt=0)
    """Size of a shard, about, in 10^6 bytes."""
    max_clip_s: float = Field(30.0, gt=0)
    """Longer recordings are cut: Opus is decoded from the start of a clip, so that a crop of a long one takes long."""
    shuffle: bool = True
    """Deal clips to shards in a random order, instead of the manifest's."""

    @model_validator(mode="after")
    def _check(self) -> ShardSettings:
        if self.codec == "opus" and self.sample_rate_hz not in _OPUS_RATES_HZ:
            rates = ", ".join(map(str, _OPUS_RATES_HZ))
            raise ValueError(f"Opus knows the rates {rates} Hz, not {self.sample_rate_hz}: use one of these, or flac")
        return self

    @property
    def bytes_per_s(self) -> float:
        """About how many bytes a second of audio takes."""
        if self.codec == "opus":
            return 1000 / 8 * (self.bitrate_kbps + 3)
        return 2 * self.sample_rate_hz * _FLAC_SHARE


def encoded_pieces(clip: Clip, settings: ShardSettings) -> Iterator[tuple[bytes, float]]:
    """The pieces of a clip as whole files of the codec, and their durations in seconds.

    Raises:
        AudioDecodeError: the recording cannot be read, or does not come back in its length.
    """
    rate_hz = settings.sample_rate_hz
    for samples in pieces(clip, rate_hz, settings.max_clip_s):
        data = encode(samples, settings)
        back = decode(AudioBytes(f"{clip.path} as {settings.codec}", data), sample_rate_hz=rate_hz)
        if len(back) != len(samples):
            raise AudioDecodeError(
                f"{clip.path}: {len(samples)} samples came back as {len(back)} from {settings.codec}. Leave it out, or "
                "write flac"
            )
        yield data, len(samples) / rate_hz


def pieces(clip: Clip, rate_hz: int, max_clip_s: float) -> Iterator[Samples]:
    """The clip's samples in equal pieces of at most `max_clip_s` seconds."""
    total = max(1, round((clip.duration_s or 0.0) * rate_hz))
    count = math.ceil(total / (max_clip_s * rate_hz))
    if count == 1:
        yield decode(clip.path, sample_rate_hz=rate_hz, start_s=clip.start_s, duration_s=total / rate_hz)
        return
    size = math.ceil(total / count)
    if clip.start_s == 0:
        yield from islice(stream(clip.path, sample_rate_hz=rate_hz, block_s=size / rate_hz), count)
        return
    first = round(clip.start_s * rate_hz)
    for at in range(0, total, size):
        length = min(size, total - at)
        yield decode(clip.path, sample_rate_hz=rate_hz, start_s=(first + at) / rate_hz, duration_s=length / rate_hz)


def encode(samples: Samples, settings: ShardSettings) -> bytes:
    """Samples at the rate of the settings, as a whole file of their codec."""
    options: dict[str, Any] = {"format": "FLAC", "subtype": "PCM_16"}
    if settings.codec == "opus":
        # libsndfile's level runs from 256 kbit/s at 0 to 6 at 1.
        options = {"format": "OGG", "subtype": "OPUS", "compression_level": 1 - (settings.bitrate_kbps - 6) / 250}
    target = io.BytesIO()
    with soundfile.SoundFile(target, "w", settings.sample_rate_hz, 1, **options) as file:
        for first in range(0, len(samples), _ENCODE_SAMPLES):
            file.write(samples[first : first + _ENCODE_SAMPLES])
    return target.getvalue()
