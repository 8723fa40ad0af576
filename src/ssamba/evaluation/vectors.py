"""From clips to one vector a clip, for every layer and pooling at once; the models that evaluation can score.

A model here is anything with a name, a digest, a sample rate and `vectors(waves)`: named views of the clips, each
(N, dims). An encoder has a view for each layer and pooling (`12.mean`, `final.cls`), others have `final.mean` alone.
Tasks of seconds and events need `timestamp_embeddings(waves)`, too.

Poolings: `mean` is `Embedding.clip`, the mean over patch tokens; `cls` the prefix token (of long recordings the mean
over windows by their length); `rows` the mean over time of each row of patches, side by side, which keeps what the
frequency axis says (rows x D numbers, as in Niizumi et al., arXiv:2210.14648).

Shapes: N clips, S samples, T frames, K columns, R rows, D channels, V layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ssamba.audio.fbank import log_mel
from ssamba.config import Config
from ssamba.embedder import Embedder, EmbedOptions
from ssamba.errors import SuiteError
from ssamba.evaluation.caching import Array, cached_arrays
from ssamba.evaluation.suite import Waves
from ssamba.evaluation.task import Task
from ssamba.events import Event
from ssamba.hashing import digest_of_json
from ssamba.model.patches import tokens_to_grid
from ssamba.model.windows import FrameMerger, Window, WindowCutter
from ssamba.recording import centres_s

FINAL = "final"
Pooling = Literal["mean", "cls", "rows"]
OnClips = Callable[[int], None]

_COUNTS, _TIMES = "counts", "times_s"

_TOKENS_PER_BATCH = 4096
_TOKENS_PER_BATCH_ELSEWHERE = 65_536


def view_name(layer: int | str, pooling: str) -> str:
    """What a view is called."""
    return f"{layer}.{pooling}"


def pooling_of(view: str) -> str:
    """The pooling in a view's name."""
    return view.rpartition(".")[2]


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
    """What can be scored."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def sample_rate_hz(self) -> int:
        """The rate it wants."""

    def digest(self) -> str:
        """Changes when any vector could."""

    def vectors(self, waves: Sequence[Array], on_progress: OnClips | None = None) -> dict[str, Array]:
        """Views of the clips, each (N, dims) float32; `on_progress` hears how many clips are done."""


class VectorOptions(Config):
    """Which vectors of an encoder are wanted."""

    layers: Literal["final", "all"] = "final"
    """The final output alone, or also every hidden state (from the same pass)."""
    poolings: tuple[Pooling, ...] = ("mean",)
    """How tokens become one vector."""
    padding: Literal["patch", "official"] = "patch"
    """As in `EmbedOptions`."""


class EncoderModel:
    """An embedder as something that can be scored."""

    def __init__(self, embedder: Embedder, options: VectorOptions | None = None, name: str | None = None):
        """Args: the model, which vectors are wanted, and what to call it (None: the embedder's name)."""
        self.embedder, self.options = embedder, options or VectorOptions()
        self.name = name or embedder.name

    @property
    def sample_rate_hz(self) -> int:
        """The front end's rate."""
        return self.embedder.front_end.sample_rate_hz

    def digest(self) -> str:
        """Of weights, configuration and options."""
        return digest_of_json([self.embedder.digest(EmbedOptions(padding=self.options.padding)), self.options.digest()])

    def vectors(self, waves: Sequence[Array], on_progress: OnClips | None = None) -> dict[str, Array]:
        """Views by layer and pooling; clips below one frame (25 ms) are filled up with silence to one."""
        clips = self._encoded(waves, on_progress)
        pooled = {pooling: torch.stack([clip.pooled(pooling) for clip in clips]) for pooling in self.options.poolings}
        return self._by_layer(pooled)

    def timestamp_embeddings(self, waves: Sequence[Array], on_progress: OnClips | None = None) -> TimestampEmbeddings:
        """Views of the time steps, as `Embedding.frames` and `times_s`; the prefix token has none.

        Raises:
            SuiteError: the pooling `cls` is wanted.
        """
        poolings = self.options.poolings
        if "cls" in poolings:
            raise SuiteError(
                "the pooling 'cls' stands for whole recordings, and tasks of seconds and events need their moments: ask for "
                "the poolings 'mean' or 'rows', or leave these tasks out"
            )
        clips = self._encoded(waves, on_progress)
        config, front_end = self.embedder.encoder.config, self.embedder.front_end
        views = {pooling: torch.cat([clip.moments(pooling) for clip in clips]) for pooling in poolings}
        lengths = [max(len(wave), front_end.frame_samples) / front_end.sample_rate_hz for wave in waves]
        times = [centres_s(clip.kept, length, config, front_end) for clip, length in zip(clips, lengths, strict=True)]
        return TimestampEmbeddings(
            self._by_layer(views), np.array([clip.kept for clip in clips]), torch.cat(times).numpy()
        )

    def _by_layer(self, pooled: dict[Pooling, Tensor]) -> dict[str, Array]:
        """Views by layer and pooling, (n, dims), from (n, V * dims) by pooling."""
        count = self.embedder.encoder.config.num_layers
        layers = [*range(count + 1), FINAL] if self.options.layers == "all" else [FINAL]
        return {
            view_name(layer, pooling): rearrange(vectors, "n (v d) -> v n d", v=len(layers))[place].numpy()
            for pooling, vectors in pooled.items()
            for place, layer in enumerate(layers)
        }

    @torch.no_grad()
    def _encoded(self, waves: Sequence[Array], on_progress: OnClips | None) -> list[_Clip]:
        encoder = self.embedder.encoder
        on_cpu = self.embedder.device.type == "cpu"
        budget = _TOKENS_PER_BATCH if on_cpu else _TOKENS_PER_BATCH_ELSEWHERE
        clips = [_Clip(self.options.poolings) for _ in waves]
        batch: list[tuple[_Clip, Window]] = []
        tokens = 0
        lengths = waves.lengths if isinstance(waves, Waves) else np.array([len(wave) for wave in waves])
        # Longest first: clips of like length share a batch, and what does not fit in memory fails at once.
        for done, index in enumerate(np.argsort(-lengths, kind="stable"), 1):
            windows, clips[index].kept = self._windows(waves[int(index)])
            for window in windows:
                batch.append((clips[index], window))
                tokens += window.columns * encoder.config.rows
                if tokens >= budget:
                    self._encode(batch)
                    batch, tokens = [], 0
                    if on_progress is not None:
                        on_progress(done)
        if batch:
            self._encode(batch)
        if on_progress is not None:
            on_progress(len(clips))
        return clips

    def _windows(self, wave: Array) -> tuple[list[Window], int]:
        """A clip's windows, and how many columns are its own."""
        front_end, config = self.embedder.front_end, self.embedder.encoder.config
        missing = front_end.frame_samples - len(wave)
        samples = torch.from_numpy(np.pad(wave, (0, missing)) if missing > 0 else wave).to(self.embedder.device)
        cutter = WindowCutter(config, front_end.silent_feature, fill_window=self.options.padding == "official")
        return [*cutter.push(log_mel(samples, config=front_end)), *cutter.finish()], cutter.num_columns

    def _encode(self, batch: list[tuple[_Clip, Window]]) -> None:
        encoder, config = self.embedder.encoder, self.embedder.encoder.config
        frames = torch.tensor([window.features.shape[0] for _, window in batch])
        features = torch.zeros(len(batch), int(frames.max()), config.num_mel_bins, device=self.embedder.device)
        for row, (_, window) in zip(features, batch, strict=True):
            row[: window.features.shape[0]] = window.features
        lengths = frames if int(frames.min()) < features.shape[1] else None
        if self.options.layers == "all":
            states = torch.stack(encoder.hidden_states(encoder.embed_patches(features, lengths)), dim=1)
        else:
            states = encoder(features, lengths)[:, None]
        prefix = encoder.num_prefix_tokens
        for own, (clip, window) in zip(states, batch, strict=True):
            patches = own[:, prefix : prefix + config.rows * window.columns]
            clip.add(window, own[:, :prefix].mean(1), tokens_to_grid(patches, config.rows, window.columns, config))


class _Clip:
    """One clip on its way: the poolings of its windows, merged as `Embedder` merges them."""

    def __init__(self, poolings: Sequence[str]):
        self.mergers = {pooling: FrameMerger() for pooling in poolings if pooling != "cls"}
        self.prefix: Tensor | None = None
        self.columns = 0  # of all windows
        self.kept = 0  # of the recording, without what fills a window up

    def add(self, window: Window, prefix: Tensor, grid: Tensor) -> None:
        """A window, the mean of its prefix tokens (V, D) and its patches (V, R, K, D)."""
        for pooling, merger in self.mergers.items():
            if pooling == "mean":
                merger.add(window.first_column, rearrange(grid.mean(1), "v k d -> k (v d)"))
            else:
                merger.add(window.first_column, rearrange(grid, "v r k d -> k (v r d)"))
        weighted = window.columns * prefix.flatten().cpu().float()
        self.prefix = weighted if self.prefix is None else self.prefix + weighted
        self.columns += window.columns

    def pooled(self, pooling: str) -> Tensor:
        """The vector of all layers, (V * dims,)."""
        assert self.prefix is not None
        return self.prefix / self.columns if pooling == "cls" else self.mergers[pooling].merged().mean(0)

    def moments(self, pooling: str) -> Tensor:
        """The vectors of all layers at each time step, (K, V * dims)."""
        return self.mergers[pooling].merged(self.kept)


class FunctionModel:
    """Any function from clips to vectors as something that can be scored."""

    def __init__(
        self,
        name: str,
        embed: Callable[[Sequence[Array]], Any],
        sample_rate_hz: int = 16_000,
        version: str = "",
        embed_timestamps: Callable[[Sequence[Array]], Sequence[tuple[Any, Any]]] | None = None,
    ):
        """Args: its name, `embed(waves) -> (N, dims)`, the rate it wants, what changes when its vectors do, and for tasks
        of seconds and events `embed_timestamps(waves)`, for each clip (vectors (K, dims), times in seconds (K,))."""
        self.name, self.embed, self.sample_rate_hz, self.version = name, embed, sample_rate_hz, version
        self.embed_timestamps = embed_timestamps

    def digest(self) -> str:
        """Of name and version."""
        return digest_of_json([self.name, self.version])

    def vectors(self, waves: Sequence[Array], on_progress: OnClips | None = None) -> dict[str, Array]:
        """The one view that there is."""
        vectors = np.asarray(self.embed(waves), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(waves):
            raise ValueError(f"{self.name} must give ({len(waves)} clips, dims), got shape {vectors.shape}")
        if on_progress is not None:
            on_progress(len(waves))
        return {view_name(FINAL, "mean"): vectors}

    def timestamp_embeddings(self, waves: Sequence[Array], on_progress: OnClips | None = None) -> TimestampEmbeddings:
        """The one view of the moments.

        Raises:
            SuiteError: it was made without `embed_timestamps`.
        """
        if self.embed_timestamps is None:
            raise SuiteError(f"{self.name} has no timestamp embeddings: give FunctionModel `embed_timestamps`")
        found = [(np.asarray(x, np.float32), np.asarray(t, np.float32)) for x, t in self.embed_timestamps(waves)]
        if len(found) != len(waves) or any(x.ndim != 2 or t.shape != x.shape[:1] or not len(t) for x, t in found):
            raise ValueError(f"{self.name} must give (moments, dims) and (moments,) for each of {len(waves)} clips")
        if on_progress is not None:
            on_progress(len(waves))
        vectors = np.concatenate([x for x, _ in found])
        counts = np.array([len(x) for x, _ in found])
        return TimestampEmbeddings({view_name(FINAL, "mean"): vectors}, counts, np.concatenate([t for _, t in found]))


def task_vectors(
    model: ClipModel,
    task: Task,
    indices: Array,
    level: float | None,
    waves: Callable[[], Waves],
    cache: Path | None = None,
    on_progress: OnClips | None = None,
) -> dict[str, Array]:
    """The views of some clips of a task, from `cache` (a folder) where they are there.

    Args:
        model: what is scored.
        task: the task.
        indices: its clips that are wanted.
        level: peak that each clip is scaled to; None leaves it.
        waves: gives the decoded clips of the whole task, when they are needed.
        cache: folder; None keeps nothing.
        on_progress: hears how many clips are done.
    """
    path = _kept(cache, task, [model.digest(), task.digest, level, indices.tolist()])
    return cached_arrays(path, lambda: model.vectors(waves().chosen(indices, level), on_progress))


def task_timestamps(
    model: ClipModel,
    task: Task,
    indices: Array,
    level: float | None,
    waves: Callable[[], Waves],
    cache: Path | None = None,
    on_progress: OnClips | None = None,
) -> TimestampEmbeddings:
    """The views of the moments of some clips of a task; arguments as `task_vectors`.

    Raises:
        SuiteError: the model has no timestamp embeddings.
    """
    embed = getattr(model, "timestamp_embeddings", None)
    if embed is None:
        raise SuiteError(
            f"{model.name} has no timestamp embeddings, which {task.name} needs (it is scored by {task.metric}): leave the "
            "task out, or give the model a method `timestamp_embeddings`"
        )
    path = _kept(cache, task, [model.digest(), task.digest, level, indices.tolist(), "moments", 1])
    arrays = cached_arrays(path, lambda: embed(waves().chosen(indices, level), on_progress).to_arrays())
    return TimestampEmbeddings.from_arrays(arrays)


def second_targets(events: Sequence[Event], seconds: Array, labels: Sequence[str]) -> Array:
    """Return the labels of seconds that start at `seconds` (S,): (S, C) with 0, 1, or NaN for unknown.

    As in fine-tuning, a label holds for a second if its event covers more than half of it; an event without a label
    marks silence, and a second that no event covers is unknown.
    """
    targets = np.full((len(seconds), len(labels)), np.nan)
    place = {label: k for k, label in enumerate(labels)}
    for event in events:
        covered = np.minimum(event.end_s, seconds + 1) - np.maximum(event.start_s, seconds) > 0.5
        known = targets[covered]
        targets[covered] = np.where(np.isnan(known), 0.0, known)
        if event.label:
            targets[covered, place[event.label]] = 1.0
    return targets


def _kept(cache: Path | None, task: Task, parts: list[Any]) -> Path | None:
    """Where a task's embeddings are kept that `parts` tell from others; None where nothing is kept."""
    return cache / "embeddings" / f"{task.name}-{digest_of_json(parts)}.safetensors" if cache else None
