"""Options and results of embedding and classifying recordings.

Shapes: D channels, K time steps, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn, TypeAlias, get_args

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ssamba.config import Config
from ssamba.errors import ConfigError
from ssamba.hints import EMBEDDING, PREDICTION, no_attribute

Context: TypeAlias = Literal["windows", "full"]
Padding: TypeAlias = Literal["patch", "official"]
Precision: TypeAlias = Literal["fp32", "bf16", "auto"]
Readout: TypeAlias = Literal["clip", "parts"]
"""The vector that stands for a recording: `Embedding.clip` or `Embedding.parts`."""
Per: TypeAlias = Literal["clip", "second", "window"]
Merge: TypeAlias = Literal["mean", "max"]
_DEFAULT_OVERLAP = 0.5


def checked_readout(readout: Readout) -> Readout:
    """Return a readout.

    Raises:
        ConfigError: there is no such readout.
    """
    if readout not in get_args(Readout):
        raise ConfigError(f"readout: expected {' or '.join(map(repr, get_args(Readout)))}, got {readout!r}")
    return readout


def readout_dim(dim: int, readout: Readout) -> int:
    """Return the length of a readout, of embeddings of length `dim`.

    Raises:
        ConfigError: there is no such readout.
    """
    return dim if checked_readout(readout) == "clip" else 4 * dim


class EmbedOptions(Config):
    """What an embedding depends on besides the recording and the model; the defaults suit most uses."""

    context: Context = "windows"
    """`windows`: windows of the pretraining length (10.24 s), overlapping, in constant memory; `full`: the whole
    recording at once, with interpolated positions, in memory linear in its length. Recordings up to one window are
    embedded alike. Longer ones get other vectors, so do not mix the two: the cosine between the clip vectors of windows
    and of full context is .996 for 15 s of the demo's recordings, .988 for 28 s, .971 for a minute, .934 for ten
    minutes (`python -m benchmarks.vectors`)."""
    layer: int | None = None
    """Hidden state to use instead of the final output: 0 enters the first block, k leaves block pair k; negative
    numbers count from the last (-1 is the last hidden state, still without the final norm)."""
    padding: Padding = "patch"
    """`patch`: only the last partial patch is filled; `official`: recordings shorter than the pretraining length are
    padded to it with silence and `clip` averages everything, as the released weights saw it."""
    overlap: float = Field(_DEFAULT_OVERLAP, ge=0, lt=1, json_schema_extra={"since": 2})
    """Share of a window that the next one covers again, from 0 (each second is encoded once) to below 1."""
    precision: Precision = Field("fp32", json_schema_extra={"since": 2})
    """`fp32`: the encoder computes in the dtype of its weights; `bf16`: in bfloat16 where that is safe (autocast);
    `auto`: `bf16` on CUDA, `fp32` elsewhere. Results are float32 in every case. The clip vectors of the demo's
    recordings differ from float64's by up to 1e-5 of their length in fp32 and 0.4 % in bf16."""

    @model_validator(mode="after")
    def _check(self) -> EmbedOptions:
        if self.context == "full" and self.overlap != _DEFAULT_OVERLAP:
            raise ValueError("overlap is for windows, but context='full' has none: omit one of the two")
        return self

    def resolved(self, device: torch.device) -> EmbedOptions:
        """Return the options with the precision that `auto` means on `device`."""
        if self.precision != "auto":
            return self
        return self.with_changes(precision="bf16" if device.type == "cuda" else "fp32")


class PredictOptions(Config):
    """What the answers of a classifier depend on besides the recording and the model."""

    per: Per | None = None
    """What an answer is for: the whole recording, each second of it, or each window; None: as the model was trained."""
    window_s: float | None = Field(None, gt=0)
    """Length of the windows, each answered alone; None: the median length of the clips that the model was trained on
    (recordings within their lengths are answered whole). Models trained on the seconds of recordings have none, and
    models that do not know the lengths read their longest windows."""
    hop_s: float | None = Field(None, gt=0)
    """Distance of the windows' starts; None: half a window, for events a quarter."""
    merge: Merge = "mean"
    """How the answers of windows become that of a second or of the recording."""
    precision: Precision = "fp32"
    """As for `EmbedOptions`."""

    def resolved(self, device: torch.device) -> PredictOptions:
        """Return the options with the precision that `auto` means on `device`."""
        return self.with_changes(precision=EmbedOptions(precision=self.precision).resolved(device).precision)


@dataclass(frozen=True, eq=False, repr=False)
class Embedding:
    """A recording's embedding, K time steps of D channels. All tensors are float32 on the CPU."""

    clip: Tensor
    """The mean over the recording, (D,): similarity of sounds and voices, whatever their order."""
    parts: Tensor
    """`clip`, then the means of three equal thirds of the sounding region, (4 * D,): words and other sounds that are
    made of a sequence, or short in long silence (`ssamba.model.readouts`). Of recordings longer than a window the
    thirds are those of each window, averaged."""
    frames: Tensor
    """One vector for each time step, (K, D); not there after `embed(..., frames=False)`, like `times_s`."""
    times_s: Tensor
    """Center of each time step, in seconds from the start of the recording, (K,)."""
    duration_s: float
    """Length of the recording."""

    if not TYPE_CHECKING:  # type checkers must know which names there are

        def __getattr__(self, name: str) -> NoReturn:
            if name in ("frames", "times_s"):
                raise AttributeError(f"this Embedding was made with frames=False, so it has no {name}: omit that")
            raise no_attribute("'Embedding'", name, EMBEDDING, type(self).__dataclass_fields__)

        def __array__(self, *_: object, **__: object) -> NoReturn:
            raise TypeError("an Embedding is several arrays: embedding.clip (D,), or embedding.frames (K, D)")

    @classmethod
    def without_frames(cls, clip: Tensor, parts: Tensor, duration_s: float) -> Embedding:
        """Return an embedding whose `frames` and `times_s` were not kept: they raise an AttributeError."""
        embedding = cls.__new__(cls)
        for name, value in (("clip", clip), ("parts", parts), ("duration_s", duration_s)):
            object.__setattr__(embedding, name, value)
        return embedding

    def __repr__(self) -> str:
        frames = f", frames {tuple(self.frames.shape)}" if "frames" in self.__dict__ else ""
        return f"Embedding({self.duration_s:.2f} s, clip {tuple(self.clip.shape)}{frames})"


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """Class probabilities of a recording, or of a segment of it."""

    start_s: float
    """Start of the segment, in seconds from the start of the recording; 0 for a whole recording."""
    end_s: float
    """End of the segment; for a whole recording, its length."""
    labels: tuple[str, ...]
    """Names of the classes, C of them; numbers if the checkpoint has no names."""
    probabilities: Tensor
    """Probability of each class, (C,), float32 on the CPU: their sum is 1 if the classes exclude each other."""

    def best(self, count: int = 1) -> list[tuple[str, float]]:
        """Return the `count` most probable labels with their probabilities; 0 returns all."""
        order = self.probabilities.argsort(descending=True, stable=True)[: count or None]
        return [(self.labels[i], float(self.probabilities[i])) for i in order.tolist()]

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            raise no_attribute("'Prediction'", name, PREDICTION, ["best", *type(self).__dataclass_fields__])

    def __repr__(self) -> str:
        best = ", ".join(f"{label} {probability:.3f}" for label, probability in self.best(3))
        more = ", ..." if len(self.labels) > 3 else ""
        return f"Prediction({self.start_s:g} to {self.end_s:.2f} s: {best}{more})"
