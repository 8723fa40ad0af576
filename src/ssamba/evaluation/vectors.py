"""Embeddings of clips and of time steps, for every layer and pooling; the models that evaluation can score.

A model is any object with `name`, `sample_rate_hz`, `digest()` and `vectors(waves)`, which returns views of the clips,
(N, dims) each, by name. An encoder has a view for each layer, pooling and readout (`12.mean`, `final.cls`,
`final.mean.parts`), other models have `final.mean` and, in `WaveformParts`, `final.mean.parts`. Tasks of seconds and
events also need `timestamp_embeddings(waves)`.

Poolings: `mean` is the mean over patch tokens; `cls` is the prefix token (of long recordings the mean over windows,
weighted by their length); `rows` is the mean over time of each row of patches, one after the other, which keeps the
frequency axis (R * D numbers, as in Niizumi et al., arXiv:2210.14648).

Readouts: `clip` is the mean over time; `parts` is that and the means of thirds of the sounding region, four times as
many numbers (`ssamba.model.readouts`). The view `final.mean` is `Embedding.clip`, `final.mean.parts` is
`Embedding.parts`.

Shapes: N clips, S samples, K time steps, R rows, D channels, V layers, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor

from ssamba.audio.fbank import log_mel, mel_matrix
from ssamba.config import Config, EncoderConfig, FrontEndConfig, ModelIdentity
from ssamba.embedder import Embedder, EmbedOptions
from ssamba.embedding import Readout
from ssamba.errors import SuiteError
from ssamba.evaluation.clips import Waves, cached_arrays
from ssamba.evaluation.layer_vectors import LayerVectors, LayerVectorsAccumulator, Pooling, view_suffix
from ssamba.evaluation.task import Task
from ssamba.hashing import digest_of_json
from ssamba.inference import InferenceEngine
from ssamba.metrics.classification import Array
from ssamba.model.patches import fill_last_patch
from ssamba.model.readouts import PARTS_DEFINITION, sounding_region, step_levels

FINAL = "final"
OnProgress = Callable[[int], None]
"""Called with the number of clips that are done."""

_NO_PARTS = (
    "the readout 'parts' is one vector of a recording, and tasks of seconds and events need embeddings of time steps: "
    "ask for the readout 'clip', or leave these tasks out"
)
_COUNTS, _TIMES = "counts", "times_s"
_GPU_TOKENS_PER_BATCH = 65_536

# Log-mel statistics
_FFT_SAMPLES, _HOP_SAMPLES = 512, 160
_LOG_FLOOR = 1e-10
_STEP_FRAMES, _CONTEXT_FRAMES = 5, 20
# Frames of 32 ms, as long as the Fourier transform.
_BANDS = FrontEndConfig(num_mel_bins=64, low_hz=0.0, frame_ms=32.0)

_CLIPS_AT_ONCE = 256
_STEPS_OF_40_MS = EncoderConfig(patch_size=(128, 4), patch_stride=(128, 4))


def view_name(layer: int | str, suffix: str) -> str:
    """Return the name of a layer's view; `suffix` is a pooling, or from `view_suffix`."""
    return f"{layer}.{suffix}"


def suffix_of(view: str) -> str:
    """Return what follows the layer in a view's name."""
    return view.partition(".")[2]


def readout_of(view: str) -> Readout:
    """Return the readout in a view's name."""
    return "parts" if view.endswith(".parts") else "clip"


@dataclass(frozen=True)
class TimestampEmbeddings:
    """Embeddings of time steps of N recordings, K time steps in all, one recording after the other."""

    views: Mapping[str, Array]
    """By layer and pooling, (K, D) float32."""
    counts: Array
    """Time steps of each recording, (N,)."""
    times_s: Array
    """Center of each time step, in seconds from the start of its recording, (K,), ascending in each."""

    @cached_property
    def recordings(self) -> Array:
        """The index of each time step's recording, (K,)."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def to_arrays(self) -> dict[str, Array]:
        """Return all fields as arrays by name, ready to be saved."""
        return {**self.views, _COUNTS: self.counts, _TIMES: self.times_s}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> TimestampEmbeddings:
        """Rebuild from what `to_arrays` returned."""
        views = {name: array for name, array in arrays.items() if name not in (_COUNTS, _TIMES)}
        return cls(views, arrays[_COUNTS], arrays[_TIMES])

    def rows_of(self, recording: int) -> slice:
        """Return the rows of one recording."""
        end = int(self.counts[: recording + 1].sum())
        return slice(end - int(self.counts[recording]), end)

    def mean_by_second(self) -> TimestampEmbeddings:
        """Average the embeddings of each second that has any; its time is the start of the second."""
        counts: list[int] = []
        times, rows = [], []
        for recording in range(len(self.counts)):
            seconds, members = np.unique(np.floor(self.times_s[self.rows_of(recording)]), return_inverse=True)
            rows.append(members + sum(counts))
            counts.append(len(seconds))
            times.append(seconds)
        row, total = np.concatenate(rows), sum(counts)
        size = np.bincount(row, minlength=total)[:, None]
        views = {}
        for name, vectors in self.views.items():
            sums = np.zeros((total, vectors.shape[1]))
            np.add.at(sums, row, vectors)
            views[name] = (sums / size).astype(np.float32)
        return TimestampEmbeddings(views, np.array(counts), np.concatenate(times))


class ClipModel(Protocol):
    """A model that can be scored."""

    @property
    def name(self) -> str:
        """Name in tables."""

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the waveforms that it takes."""

    def digest(self) -> str:
        """Return a digest that changes when any vector could."""

    def vectors(self, waves: Sequence[Array], on_progress: OnProgress | None = None) -> dict[str, Array]:
        """Return views of the clips by name, each (N, dims) float32."""


class VectorOptions(Config):
    """Which vectors of an encoder to compute."""

    layers: Literal["final", "all"] = "final"
    """The final output alone, or every hidden state as well (from the same pass)."""
    poolings: tuple[Pooling, ...] = ("mean",)
    """How tokens become one vector."""
    padding: Literal["patch", "official"] = "patch"
    """As in `EmbedOptions`."""
    readouts: tuple[Readout, ...] = Field(("clip",), min_length=1, json_schema_extra={"since": 2})
    """How time steps become one vector."""

    @model_validator(mode="after")
    def _check(self) -> VectorOptions:
        if "parts" in self.readouts and "cls" in self.poolings:
            raise ValueError(
                "the pooling 'cls' stands for whole recordings and has no thirds, which the readout 'parts' needs: ask "
                "for the poolings 'mean' or 'rows', or for the readout 'clip'"
            )
        return self


class EncoderModel:
    """An embedder as a model that can be scored."""

    def __init__(self, embedder: Embedder, options: VectorOptions | None = None, name: str | None = None):
        """Args: the embedder, which vectors to compute, and the name in tables (None: the embedder's)."""
        self.embedder, self.options = embedder, options or VectorOptions()
        self.name = name or embedder.name
        # The features of a clip are computed at once, so that its vectors do not depend on the embedder's blocks.
        # And its last bits must not depend on how busy the machine is: near ties of probes would change.
        self._engine = InferenceEngine(
            embedder.encoder, embedder.front_end, math.inf, _GPU_TOKENS_PER_BATCH, follows_load=False
        )

    @property
    def sample_rate_hz(self) -> int:
        """The front end's rate."""
        return self.embedder.front_end.sample_rate_hz

    @property
    def identity(self) -> ModelIdentity:
        """Versioned name, and digest of the encoder's weights."""
        return self.embedder.identity

    def digest(self) -> str:
        """Return a digest of weights, configuration and options."""
        options = EmbedOptions(padding=self.options.padding)
        key = [self.embedder.digest(options), self.options.digest()]
        return digest_of_json([*key, PARTS_DEFINITION] if "parts" in self.options.readouts else key)

    def vectors(self, waves: Sequence[Array], on_progress: OnProgress | None = None) -> dict[str, Array]:
        """Return a view for each layer, pooling and readout; clips below one frame (25 ms) are padded to one."""
        clips = [clip.by_suffix for clip in self._encoded(waves, on_progress, time_steps=False)]
        return self._by_layer({suffix: torch.stack([clip[suffix] for clip in clips]) for suffix in clips[0]})

    def timestamp_embeddings(
        self, waves: Sequence[Array], on_progress: OnProgress | None = None
    ) -> TimestampEmbeddings:
        """Return views of the time steps, as `Embedding.frames` and `times_s`; the prefix token has none.

        Raises:
            SuiteError: the options ask for the pooling `cls` or the readout `parts`.
        """
        if "parts" in self.options.readouts:
            raise SuiteError(_NO_PARTS)
        if "cls" in self.options.poolings:
            raise SuiteError(
                "the pooling 'cls' stands for whole recordings, and tasks of seconds and events need embeddings of "
                "time steps: ask for the poolings 'mean' or 'rows', or leave these tasks out"
            )
        clips = self._encoded(waves, on_progress, time_steps=True)
        suffixes = [view_suffix(pooling) for pooling in self.options.poolings]
        views = {name: torch.cat([clip.by_suffix[name] for clip in clips])[:, None] for name in suffixes}
        counts = np.array([len(clip.times_s) for clip in clips])
        return TimestampEmbeddings(self._by_layer(views), counts, torch.cat([clip.times_s for clip in clips]).numpy())

    def _by_layer(self, pooled: Mapping[str, Tensor]) -> dict[str, Array]:
        """Split (n, parts, V * dims) of each pooling and readout into the views of its layers, (n, parts * dims)."""
        count = self.embedder.encoder.config.num_layers
        layers = [*range(count + 1), FINAL] if self.options.layers == "all" else [FINAL]
        return {
            view_name(layer, suffix): rearrange(vectors, "n p (v d) -> v n (p d)", v=len(layers))[index].numpy()
            for suffix, vectors in pooled.items()
            for index, layer in enumerate(layers)
        }

    def _encoded(
        self, waves: Sequence[Array], on_progress: OnProgress | None, *, time_steps: bool
    ) -> list[LayerVectors]:
        lengths = waves.lengths if isinstance(waves, Waves) else np.array([len(wave) for wave in waves])
        min_samples = self.embedder.front_end.frame_samples

        def clips() -> Iterator[tuple[int, list[Array]]]:
            # Longest first: clips of similar length share a batch, and what does not fit in memory fails at once.
            for index in map(int, np.argsort(-lengths, kind="stable")):
                wave = waves[index]
                yield index, [np.pad(wave, (0, max(0, min_samples - len(wave))))]

        def new_accumulator() -> LayerVectorsAccumulator:
            config, front_end = self.embedder.encoder.config, self.embedder.front_end
            poolings, readouts = self.options.poolings, self.options.readouts
            return LayerVectorsAccumulator(config, front_end, poolings, readouts, time_steps=time_steps)

        found: dict[int, LayerVectors] = {}
        options, all_layers = EmbedOptions(padding=self.options.padding), self.options.layers == "all"
        for index, result in self._engine.run(clips(), options, new_accumulator, all_layers=all_layers):
            if isinstance(result, Exception):
                raise result
            found[index] = result
            if on_progress is not None:
                on_progress(len(found))
        return [found[index] for index in range(len(waves))]


class FunctionModel:
    """A function from clips to vectors as a model that can be scored."""

    def __init__(
        self,
        name: str,
        embed: Callable[[Sequence[Array]], Any],
        sample_rate_hz: int = 16_000,
        version: str = "",
        embed_timestamps: Callable[[Sequence[Array]], Sequence[tuple[Any, Any]]] | None = None,
    ):
        """Wrap a function.

        Args:
            name: name in tables.
            embed: `embed(waves)` returns (N, dims).
            sample_rate_hz: rate of the waveforms that it takes.
            version: to be changed whenever its vectors do.
            embed_timestamps: for tasks of seconds and events: `embed_timestamps(waves)` returns for each clip vectors
                (K, dims) and their times in seconds (K,).
        """
        self.name, self.embed, self.sample_rate_hz, self.version = name, embed, sample_rate_hz, version
        self.embed_timestamps = embed_timestamps

    def digest(self) -> str:
        """Return a digest of name and version."""
        return digest_of_json([self.name, self.version])

    def vectors(self, waves: Sequence[Array], on_progress: OnProgress | None = None) -> dict[str, Array]:
        """Return the only view."""
        vectors = np.asarray(self.embed(waves), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(waves):
            raise ValueError(f"{self.name} must give ({len(waves)} clips, dims), got shape {vectors.shape}")
        if on_progress is not None:
            on_progress(len(waves))
        return {view_name(FINAL, "mean"): vectors}

    def timestamp_embeddings(
        self, waves: Sequence[Array], on_progress: OnProgress | None = None
    ) -> TimestampEmbeddings:
        """Return the only view of the time steps.

        Raises:
            SuiteError: there is no `embed_timestamps`.
        """
        if self.embed_timestamps is None:
            raise SuiteError(f"{self.name} has no timestamp embeddings: give FunctionModel `embed_timestamps`")
        found = [(np.asarray(x, np.float32), np.asarray(t, np.float32)) for x, t in self.embed_timestamps(waves)]
        if len(found) != len(waves) or any(x.ndim != 2 or t.shape != x.shape[:1] or not len(t) for x, t in found):
            raise ValueError(
                f"{self.name} must give (time steps, dims) and (time steps,) for each of {len(waves)} clips"
            )
        if on_progress is not None:
            on_progress(len(waves))
        vectors = np.concatenate([x for x, _ in found])
        counts = np.array([len(x) for x, _ in found])
        return TimestampEmbeddings({view_name(FINAL, "mean"): vectors}, counts, np.concatenate([t for _, t in found]))


class LogMelStatistics:
    """Baseline without a model: statistics over time of 64 log-mel bands (FFT of 512 samples, hop 10 ms, 16 kHz).

    A vector holds the mean of each band, its standard deviation, and that of its change between frames: 192 numbers.
    """

    name = "log-mel statistics"
    sample_rate_hz = 16_000

    def digest(self) -> str:
        """Return a digest of the definition."""
        return digest_of_json([self.name, _FFT_SAMPLES, _HOP_SAMPLES, _LOG_FLOOR, _BANDS.digest(), 1])

    def vectors(self, waves: Sequence[Array], on_progress: OnProgress | None = None) -> dict[str, Array]:
        """Return the only view, of (N, 192)."""
        rows = []
        for done, wave in enumerate(waves, 1):
            rows.append(_statistics(_log_bands(wave), dim=0))
            if on_progress is not None:
                on_progress(done)
        return {view_name(FINAL, "mean"): torch.stack(rows).numpy()}

    def timestamp_embeddings(
        self, waves: Sequence[Array], on_progress: OnProgress | None = None
    ) -> TimestampEmbeddings:
        """Return the statistics of 0.2 s around a time step every 0.05 s."""
        rows, times = [], []
        for done, wave in enumerate(waves, 1):
            bands = _log_bands(wave)
            count = -(-len(bands) // _STEP_FRAMES)
            before = (_CONTEXT_FRAMES - _STEP_FRAMES) // 2
            after = (count - 1) * _STEP_FRAMES + _CONTEXT_FRAMES - before - len(bands)
            padded = torch.cat((bands[:1].expand(before, -1), bands, bands[-1:].expand(max(0, after), -1)))
            rows.append(_statistics(padded.unfold(0, _CONTEXT_FRAMES, _STEP_FRAMES)[:count], dim=2))
            centers_s = (np.arange(count) * _STEP_FRAMES + (_STEP_FRAMES - 1) / 2) * _HOP_SAMPLES / self.sample_rate_hz
            times.append(np.minimum(centers_s, len(wave) / self.sample_rate_hz))
            if on_progress is not None:
                on_progress(done)
        views = {view_name(FINAL, "mean"): torch.cat(rows).numpy()}
        return TimestampEmbeddings(views, np.array([len(r) for r in rows]), np.concatenate(times).astype(np.float32))


class WaveformParts:
    """Gives a model of one vector a clip the readout `parts`: the vectors of a clip and of its sounding thirds.

    The thirds are stretches of the waveform, cut where `ssamba.model.readouts` puts them for time steps of 40 ms; they
    are those of the whole clip, however long it is. In place of the thirds of a region below three steps the vector of
    the clip stands three times.
    """

    def __init__(self, model: ClipModel, readouts: Sequence[Readout] = ("parts",)):
        """Args: the model, and which readouts to return."""
        self.model, self.readouts = model, tuple(readouts)
        self.name, self.sample_rate_hz = model.name, model.sample_rate_hz

    def digest(self) -> str:
        """Return a digest of the model's digest and the readouts."""
        return digest_of_json([self.model.digest(), self.readouts, PARTS_DEFINITION])

    def vectors(self, waves: Sequence[Array], on_progress: OnProgress | None = None) -> dict[str, Array]:
        """Return `final.mean` and `final.mean.parts`, or one of them: of each view of the model."""
        found: list[dict[str, Array]] = []
        for start in range(0, len(waves), _CLIPS_AT_ONCE):
            found.append(self._vectors(waves[start : start + _CLIPS_AT_ONCE]))
            if on_progress is not None:
                on_progress(min(start + _CLIPS_AT_ONCE, len(waves)))
        return {view: np.concatenate([part[view] for part in found]) for view in found[0]}

    def _vectors(self, clips: Sequence[Array]) -> dict[str, Array]:
        cuts = {index: cut for index, wave in enumerate(clips) if (cut := sounding_thirds(wave, self.sample_rate_hz))}
        stretches = [clips[index][stretch] for index, cut in cuts.items() for stretch in cut]
        thirds = self.model.vectors(stretches) if stretches else {}
        views: dict[str, Array] = {}
        for view, whole in self.model.vectors(clips).items():
            four = np.repeat(whole[:, None], 4, axis=1)
            if stretches:
                four[list(cuts), 1:] = rearrange(thirds[view], "(n p) d -> n p d", p=3)
            of_readout = {"clip": (view, whole), "parts": (f"{view}.parts", rearrange(four, "n p d -> n (p d)"))}
            views |= dict(of_readout[readout] for readout in self.readouts)
        return views

    def timestamp_embeddings(
        self, waves: Sequence[Array], on_progress: OnProgress | None = None
    ) -> TimestampEmbeddings:
        """Raise a SuiteError: time steps have no readout."""
        raise SuiteError(_NO_PARTS)


def sounding_thirds(wave: Array, sample_rate_hz: int) -> tuple[slice, slice, slice] | None:
    """Return the thirds of the sounding region of a waveform (S,), as slices of its samples.

    Levels are those of time steps of 40 ms of the official front end at this rate. None if the region has fewer than
    three of them.
    """
    front_end = FrontEndConfig(sample_rate_hz=sample_rate_hz)
    samples = torch.from_numpy(np.asarray(wave, dtype=np.float32))
    features = log_mel(F.pad(samples, (0, max(0, front_end.frame_samples - len(samples)))), config=front_end)
    filled = fill_last_patch(features, _STEPS_OF_40_MS, front_end.silent_feature)
    levels = step_levels(filled[None], _STEPS_OF_40_MS, front_end, torch.tensor([len(features)]))
    first, count = (int(value) for value in sounding_region(levels))
    if count < 3:
        return None
    step = _STEPS_OF_40_MS.patch_stride[1] * front_end.shift_samples
    start, end = first * step, min((first + count) * step, len(wave))
    edges = [start + round((end - start) * k / 3) for k in range(4)]
    return slice(edges[0], edges[1]), slice(edges[1], edges[2]), slice(edges[2], edges[3])


def _log_bands(wave: Array) -> Tensor:
    """Return the log-mel bands of a waveform (S,), (T, 64), frames centered every 10 ms."""
    samples = torch.from_numpy(np.asarray(wave, dtype=np.float32))
    samples = F.pad(samples, (0, max(0, _FFT_SAMPLES - len(samples))))
    window = torch.hann_window(_FFT_SAMPLES)
    magnitude = torch.stft(samples, _FFT_SAMPLES, _HOP_SAMPLES, window=window, return_complex=True).abs()
    return (magnitude.T @ mel_matrix(_BANDS)).clamp(min=_LOG_FLOOR).log()


def _statistics(bands: Tensor, dim: int) -> Tensor:
    """Return mean, deviation and deviation of the change of bands along the time axis `dim`, (..., 192)."""
    change = bands.diff(dim=dim) if bands.shape[dim] > 1 else torch.zeros_like(bands)
    statistics = bands.mean(dim), bands.std(dim, unbiased=False), change.std(dim, unbiased=False)
    return torch.cat(statistics, dim=-1)


def task_vectors(
    model: ClipModel,
    task: Task,
    indices: Array,
    level: float | None,
    waves: Callable[[], Waves],
    cache: Path | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Array]:
    """Return the views of some clips of a task, or `TimestampEmbeddings.to_arrays()` if seconds or events are scored.

    Args:
        model: the model.
        task: the task.
        indices: the clips, (n,).
        level: peak that each clip is scaled to; None leaves it.
        waves: returns the decoded clips of the whole task; called only if the vectors are not cached.
        cache: folder; None caches nothing.
        on_progress: called with the number of clips that are done.

    Raises:
        SuiteError: the task needs timestamp embeddings, and the model has none.
    """
    key: list[Any] = [model.digest(), task.digest, level, indices.tolist()]
    embed: Callable[..., Mapping[str, Array]] = model.vectors
    if task.kind in ("second", "event"):
        timestamp_embeddings = getattr(model, "timestamp_embeddings", None)
        if timestamp_embeddings is None:
            raise SuiteError(
                f"{model.name} has no timestamp embeddings, which {task.name} needs (it is scored by {task.metric}): "
                "leave the task out, or give the model a method `timestamp_embeddings`"
            )
        # "moments" is the first name of timestamp embeddings: it stays in the key, so that caches remain valid.
        key += ["moments", 1]
        embed = lambda *arguments: timestamp_embeddings(*arguments).to_arrays()  # noqa: E731
    path = cache / "embeddings" / f"{task.name}-{digest_of_json(key)}.safetensors" if cache else None
    return cached_arrays(path, lambda: embed(waves().select(indices, level), on_progress))
