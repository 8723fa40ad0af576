"""The Embedder: from recordings to embeddings, or to the labels of a classifier.

    model = ssamba.load_model("ssamba2-tiny")
    e = model.embed("dog.wav")          # e.clip (D,), e.frames (K, D), e.times_s (K,)

Recordings of any length run in constant memory; windows of many recordings are encoded together (`inference/`).

Shapes: B recordings, S samples, T frames, M mel bins, K time steps, D channels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, TypeVar, overload

import torch
from torch import Tensor

from ssamba.audio.decode import Damaged
from ssamba.audio.readers import Samples
from ssamba.audio.sources import OneChannel, Recordings, Source, checked_channels, read, warn_once_above_band
from ssamba.checkpoint import (
    Checkpoint,
    LoadReport,
    check_front_end,
    load_checkpoint,
    weights_digest,
)
from ssamba.config import FrontEndConfig, ModelConfig, ModelIdentity
from ssamba.devices import move_to
from ssamba.embedding import (
    Context,
    Embedding,
    EmbedOptions,
    Merge,
    Padding,
    Per,
    Precision,
    Prediction,
    PredictOptions,
    Readout,
)
from ssamba.errors import ConfigError
from ssamba.files import utf8_text
from ssamba.hashing import digest_of
from ssamba.hints import EMBEDDER, no_attribute
from ssamba.inference import EmbeddingAccumulator, InferenceEngine
from ssamba.inference.clip_windows import Predictor, WindowLengths, Windows, window_vectors
from ssamba.model.encoder import PatchEncoder
from ssamba.model.heads import Classifier
from ssamba.progress import OnProgress, Progress

__all__ = ["EmbedOptions", "Embedder", "Embedding", "Prediction", "Progress", "Source", "load_model"]

Key = TypeVar("Key")
Result = TypeVar("Result")


class Embedder:
    """A model with its front end, ready to embed recordings.

    It can be pickled and copied, and threads may share it. A converted encoder (`model.encoder.bfloat16()`, `.half()`,
    `.double()`) embeds in its own dtype, and results stay float32: clip vectors differ from float64's by up to 0.5 % of
    their length in bfloat16 and 0.05 % in float16 (`python -m benchmarks.vectors`). On CPUs float16 and float64 have no
    fast kernels and take many times as long.

    Attributes:
        encoder: the encoder (a `torch.nn.Module` from normalized features to tokens).
        classifier: the classifier, for checkpoints that have one, else None.
        front_end: how waveforms become features.
        report: what was loaded and what was left out; None if the model was not loaded from a checkpoint.
        name: versioned name of the model (`ssamba2-tiny-1`), or the path of its checkpoint as given.
        config: the model's configuration.
    """

    def __init__(
        self,
        model: PatchEncoder | Checkpoint,
        front_end: FrontEndConfig | str | None = None,
        *,
        device: str | torch.device | None = None,
        name: str | None = None,
    ):
        """Wrap an encoder or a loaded checkpoint.

        Args:
            model: an encoder (from `create_encoder`) or what `load_checkpoint` returned.
            front_end: how waveforms become features, or the name of a band (`FrontEndConfig.named`); None means the
                checkpoint's, or the official one.
            device: where to run; None means CUDA if available, else the CPU.
            name: name in reports; None means the checkpoint's.

        Raises:
            ConfigError: an argument is of a wrong kind, or the front end does not fit the encoder.
            ValueError: the device does not exist.
        """
        self.follows_load = True  # as of `InferenceEngine`
        self.classifier: Classifier | None = None
        self.report: LoadReport | None = None
        own = FrontEndConfig()
        if isinstance(model, Checkpoint):
            self.encoder = model.model.encoder
            self.config = model.config
            self.report = model.report
            own = model.front_end
            name = name or model.report.name
            if isinstance(model.model, Classifier):
                self.classifier = model.model
        elif isinstance(model, PatchEncoder):
            self.encoder = model
            self.config = ModelConfig(encoder=model.config)
        else:
            raise ConfigError(
                f"expected an encoder (of create_encoder) or a checkpoint, got {type(model).__name__}: "
                "ssamba.load_model takes names and paths of models"
            )
        if front_end is None or isinstance(front_end, str):
            front_end = own.named(front_end) if front_end else own
        self.front_end = front_end
        self.name = utf8_text(name or "in memory")
        check_front_end(self.front_end, self.encoder.config)
        self.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        (self.classifier or self.encoder).eval()

    def __repr__(self) -> str:
        millions = sum(one.numel() for one in (self.classifier or self.encoder).parameters()) / 1e6
        classes = f", {self.classifier.config.num_classes} classes" if self.classifier else ""
        return f"Embedder({self.name!r}, {millions:.2g} M parameters, dim {self.dim}{classes}, {self.device})"

    if not TYPE_CHECKING:  # type checkers must know which names there are

        def __getattr__(self, name: str) -> NoReturn:
            raise no_attribute("'Embedder'", name, EMBEDDER, [*dir(type(self)), *vars(self)])

        def __call__(self, *_: object, **__: object) -> NoReturn:
            """Raise a TypeError that says what to call."""
            raise TypeError("an Embedder is not called: model.embed(source), or model.encoder(features) for tokens")

    @property
    def dim(self) -> int:
        """Length D of an embedding."""
        return self.encoder.config.embed_dim

    @property
    def window_s(self) -> float:
        """Length of the windows that long recordings are cut into: the pretraining length."""
        return self.encoder.config.num_frames * self.front_end.shift_samples / self.front_end.sample_rate_hz

    @property
    def identity(self) -> ModelIdentity:
        """Versioned name, digest of the weights, checksum of a downloaded file: what is made with it records them."""
        file_sha256 = None if self.report is None else self.report.file_sha256
        return ModelIdentity(name=self.name, weights_digest=weights_digest(self.encoder), file_sha256=file_sha256)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.engine.device

    @property
    def engine(self) -> InferenceEngine:
        """Runs the encoder on batches of windows."""
        return InferenceEngine(self.encoder, self.front_end, follows_load=self.follows_load)

    def to(self, device: str | torch.device) -> Embedder:
        """Move the model to a device, in place, and return it.

        Raises:
            ConfigError: it does not name a device.
            ValueError: there is no such device here.
        """
        move_to(self.classifier or self.encoder, device)
        return self

    def check(self, options: EmbedOptions) -> None:
        """Raise a ValueError if this model does not have the layer that the options ask for."""
        if options.layer is not None:
            self.encoder.layer_index(options.layer)

    def span_frames(self, seconds: float) -> int:
        """Return the frames of a stretch of time; a ConfigError unless they are whole and at least one time step."""
        shift_s = self.front_end.shift_samples / self.front_end.sample_rate_hz
        step_s = self.encoder.config.patch_stride[1] * shift_s
        frames = round(seconds / shift_s) if math.isfinite(seconds) else 0
        if not math.isclose(frames * shift_s, seconds, rel_tol=1e-6) or seconds < step_s:
            raise ConfigError(
                f"every {seconds:g} s: expected at least a time step of this model, {step_s:g} s, and whole frames of "
                f"{shift_s:g} s; for example 1 (--every 1s)"
            )
        return frames

    def digest(self, options: EmbedOptions | None = None) -> str:
        """Return 16 hexadecimal digits of everything an embedding depends on: weights, configuration, options."""
        options = (options or EmbedOptions()).resolved(self.device)
        configurations = options, self.front_end, self.encoder.config
        return digest_of(*(config.digest() for config in configurations), self.encoder.state_dict())

    # A path and bytes are iterables, too, and belong to the overloads of one recording.
    @overload
    def embed(  # type: ignore[overload-overlap]
        self,
        source: Source,
        sample_rate: int | None = None,
        *,
        frames: bool = True,
        context: Context = "windows",
        layer: int | None = None,
        padding: Padding = "patch",
        overlap: float = 0.5,
        channels: OneChannel = None,
        batch: Literal[False] = False,
        batch_tokens: int | None = None,
        precision: Precision = "fp32",
        damaged: Damaged = "skip",
        progress: OnProgress | None = None,
    ) -> Embedding: ...

    @overload
    def embed(  # type: ignore[overload-overlap]
        self,
        source: Source,
        sample_rate: int | None = None,
        *,
        frames: bool = True,
        context: Context = "windows",
        layer: int | None = None,
        padding: Padding = "patch",
        overlap: float = 0.5,
        channels: Literal["separate"],
        batch: Literal[False] = False,
        batch_tokens: int | None = None,
        precision: Precision = "fp32",
        damaged: Damaged = "skip",
        progress: OnProgress | None = None,
    ) -> list[Embedding]: ...

    @overload
    def embed(
        self,
        source: Iterable[Source],
        sample_rate: int | None = None,
        *,
        frames: bool = True,
        context: Context = "windows",
        layer: int | None = None,
        padding: Padding = "patch",
        overlap: float = 0.5,
        channels: OneChannel = None,
        batch: bool = False,
        batch_tokens: int | None = None,
        precision: Precision = "fp32",
        damaged: Damaged = "skip",
        progress: OnProgress | None = None,
    ) -> list[Embedding]: ...

    @overload
    def embed(
        self,
        source: Iterable[Source],
        sample_rate: int | None = None,
        *,
        frames: bool = True,
        context: Context = "windows",
        layer: int | None = None,
        padding: Padding = "patch",
        overlap: float = 0.5,
        channels: Literal["separate"],
        batch: bool = False,
        batch_tokens: int | None = None,
        precision: Precision = "fp32",
        damaged: Damaged = "skip",
        progress: OnProgress | None = None,
    ) -> list[list[Embedding]]: ...

    def embed(
        self,
        source: Source | Iterable[Source],
        sample_rate: int | None = None,
        *,
        frames: bool = True,
        context: Context = "windows",
        layer: int | None = None,
        padding: Padding = "patch",
        overlap: float = 0.5,
        channels: OneChannel | Literal["separate"] = None,
        batch: bool = False,
        batch_tokens: int | None = None,
        precision: Precision = "fp32",
        damaged: Damaged = "skip",
        progress: OnProgress | None = None,
    ) -> Embedding | list[Embedding] | list[list[Embedding]]:
        """Embed one recording, or a list of recordings in batches.

        Args:
            source: a path; the contents of an audio file (bytes); a file object opened in binary mode; or a waveform
                (S,) or (1, S), a NumPy array or tensor: float in [-1, 1], or integer PCM (int16, int32, int8, uint8).
                An array of several channels needs `channels`, a batch (B, S) needs `batch`. Or an iterable of any of
                these, mixed.
            sample_rate: rate of the waveforms, in Hz; None means the model's rate, `front_end.sample_rate_hz`. Files
                carry their own.
            frames: keep `frames` and `times_s`; without them, memory does not grow with the recording.
            context: `windows` of `window_s`, overlapping, or the `full` recording at once. For recordings longer than a
                window the two give different vectors, of cosine .988 for 28 s and .934 for ten minutes
                (`EmbedOptions.context`): use one of them throughout.
            layer: hidden state to use instead of the final output (`EmbedOptions.layer`).
            padding: `patch`, or `official` to pad short recordings to the pretraining length with silence.
            overlap: fraction of each window shared with the next, from 0 to below 1; time and smoothness grow with
                it.
            channels: `mean` averages the channels (files: the default), a number takes one of them (from 0), and
                `separate` returns a list with an embedding of each. Arrays are (channels, samples), as from torchaudio,
                or (samples, channels), as from soundfile: the shorter axis holds the channels.
            batch: each entry along the first axis of the array is a recording.
            batch_tokens: patch tokens that are encoded together; memory grows with it, results do not change. None
                means 4096 on CPUs and 32768 on GPUs.
            precision: `fp32`: in the dtype of the encoder's weights; `bf16`: with autocast to bfloat16, which changes a
                vector by about 0.4 % of its length; `auto`: `bf16` on CUDA alone.
            damaged: what to do with a file of which a part is missing: `skip` raises an error, `keep` warns and uses
                what comes before it.
            progress: called with a `Progress` after each recording. If it returns False, no further recording is read.

        Returns:
            An `Embedding`; for a list or a batch a list of them, in order, shorter if `progress` stopped it; with
            `channels="separate"` a list of channels in place of each.

        Raises:
            AudioDecodeError: a file cannot be read; the message says why.
            ValueError: a waveform has a wrong shape or type, holds NaN, or is shorter than one frame (25 ms); or an
                argument is wrong. One bad recording aborts a list; use `embed_stream` to continue past errors.

        Warns:
            UserWarning: a float waveform has a peak above 16: integer samples that were converted without scaling.
            AudioWarning: a file's header is wrong, and all of it is read; or a part is missing (see `damaged`).

        Examples:
            >>> model.embed("dog.wav").clip.shape
            torch.Size([192])
            >>> left, right = model.embed(stereo, 48_000, channels="separate")
        """
        options = EmbedOptions.parse(
            {"context": context, "layer": layer, "padding": padding, "overlap": overlap, "precision": precision},
            "embed",
        )
        recordings = Recordings(source, sample_rate, self.front_end, channels=channels, batch=batch, damaged=damaged)

        def run(items: Iterable[tuple[Key, Iterator[Samples]]]) -> Iterator[tuple[Key, Embedding | Exception]]:
            return self._embedded(items, options, batch_tokens, frames)

        found = recordings.collect(run, lambda embedding: embedding.duration_s, progress, "embedding")
        if channels == "separate":
            return found[0] if recordings.is_single else found
        return found[0][0] if recordings.is_single else [channel for (channel,) in found]

    def embed_stream(
        self,
        items: Iterable[tuple[Key, Source]],
        sample_rate: int | None = None,
        options: EmbedOptions | None = None,
        *,
        frames: bool = True,
        every_s: float | None = None,
        channels: OneChannel = None,
        batch_tokens: int | None = None,
        damaged: Damaged = "skip",
    ) -> Iterator[tuple[Key, Embedding | Exception]]:
        """Embed recordings as they come, many at a time, and yield each result when it is ready.

        Args:
            items: keys and recordings.
            sample_rate: of waveforms, as in `embed`.
            options: how to embed.
            frames: as in `embed`.
            every_s: make `frames` the means over stretches of so many seconds, with their centers in `times_s`.
            channels: as in `embed`.
            batch_tokens: as in `embed`.
            damaged: `skip` makes a file of which a part is missing an error, `keep` uses what comes before it.

        Returns:
            The keys, in the order of `items` except that errors come at once, each with its embedding, or with the
            error (`ValueError` or `OSError`) of a recording that cannot be read; the other recordings are not affected.

        Raises:
            ValueError: an option does not fit the model.
        """
        span_frames = None if every_s is None else self.span_frames(every_s)
        decoded = self.decoded(items, sample_rate, channels, damaged)
        return self._embedded(decoded, options or EmbedOptions(), batch_tokens, frames, span_frames)

    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        source: Source,
        sample_rate: int | None = None,
        *,
        per: Per | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        merge: Merge = "mean",
        channels: OneChannel = None,
        batch: Literal[False] = False,
        batch_tokens: int | None = None,
        precision: Precision = "fp32",
        damaged: Damaged = "skip",
        progress: OnProgress | None = None,
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self,
        source: Iterable[Source],
        sample_rate: int | None = None,
        *,
        per: Per | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        merge: Merge = "mean",
        channels: OneChannel = None,
        batch: bool = False,
        batch_tokens: int | None = None,
        precision: Precision = "fp32",
        damaged: Damaged = "skip",
        progress: OnProgress | None = None,
    ) -> list[list[Prediction]]: ...

    def predict(
        self,
        source: Source | Iterable[Source],
        sample_rate: int | None = None,
        *,
        per: Per | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        merge: Merge = "mean",
        channels: OneChannel = None,
        batch: bool = False,
        batch_tokens: int | None = None,
        precision: Precision = "fp32",
        damaged: Damaged = "skip",
        progress: OnProgress | None = None,
    ) -> list[Prediction] | list[list[Prediction]]:
        """Predict the labels of one recording, or of a list of recordings, with a fine-tuned classifier.

        Args:
            source: as in `embed`.
            sample_rate: as in `embed`.
            per: `clip` answers for the whole recording, `second` for each second, `window` for each window; None means
                as the model was trained (a model with other segments, `label_frames`, predicts those).
            window_s: length of the windows; None means the training clips' median (`PredictOptions.window_s`).
            hop_s: distance of their starts; None means half a window.
            merge: `mean` or `max`, of the windows of a second or of the recording.
            channels: as in `embed`, but not `separate`.
            batch, batch_tokens, precision, damaged, progress: as in `embed`.

        Returns:
            A list of one `Prediction` for the recording, or one for each second or window; for a list or a batch a list
            of such lists, in order.

        Raises:
            ValueError: the checkpoint has no classifier, or one that cannot answer so; or as `embed`.

        Warns:
            UserWarning: recordings or windows have lengths that the model was not trained on; or as `embed`.

        Examples:
            >>> model.predict("dog.wav")[0].best(3)
            [('dog', 0.93), ('wolf', 0.04), ('cat', 0.01)]
        """
        checked_channels(channels, separate=False)
        options = PredictOptions.parse(
            {"per": per, "window_s": window_s, "hop_s": hop_s, "merge": merge, "precision": precision}, "predict"
        )
        recordings = Recordings(source, sample_rate, self.front_end, channels=channels, batch=batch, damaged=damaged)
        run = partial(self.predictor.predictions, options=options, batch_tokens=batch_tokens)
        found = recordings.collect(run, lambda predictions: predictions[-1].end_s, progress, "predicting")
        if note := self.predictor.note(options, [channel[-1].end_s for (channel,) in found]):
            warnings.warn(note, stacklevel=2)
        return found[0][0] if recordings.is_single else [channel for (channel,) in found]

    def predict_stream(
        self,
        items: Iterable[tuple[Key, Source]],
        sample_rate: int | None = None,
        options: PredictOptions | None = None,
        *,
        channels: OneChannel = None,
        batch_tokens: int | None = None,
        damaged: Damaged = "skip",
    ) -> Iterator[tuple[Key, list[Prediction] | Exception]]:
        """Predict labels of recordings as they come; yields predictions as `embed_stream` yields embeddings."""
        decoded = self.decoded(items, sample_rate, channels, damaged)
        return self.predictor.predictions(decoded, options or PredictOptions(), batch_tokens)

    @property
    def predictor(self) -> Predictor:
        """The classifier with what it knows of windows; a ValueError if the checkpoint has none."""
        if self.classifier is None:
            raise ValueError(
                f"{self.name} has no classifier: expected a fine-tuned checkpoint, got kind {self.config.kind!r} "
                "(`ssamba finetune` makes one)"
            )
        return Predictor(self.engine, self.classifier, self.name, self.window_s)

    def logits_stream(
        self, items: Iterable[tuple[Key, Source]], sample_rate: int | None = None, *, per_label: bool | None = None
    ) -> Iterator[tuple[Key, Tensor | Exception]]:
        """Yield the logits of recordings (classes,), with `per_label` (segments, classes): see `Predictor.logits`."""
        return self.predictor.logits(self.decoded(items, sample_rate), per_label)

    def features(self, source: Source, sample_rate: int | None = None) -> Tensor:
        """Return the normalized log-mel features (T, M) of a recording, on the CPU and in the encoder's dtype.

        Arguments and errors as `embed`.
        """
        return torch.cat([block.cpu() for block in self.engine.features(read(source, sample_rate, self.front_end))])

    def embed_windows(
        self,
        source: Source,
        sample_rate: int | None = None,
        *,
        window_s: float,
        hop_s: float | None = None,
        shortest_s: float | None = None,
        readout: Readout = "clip",
        channels: OneChannel = None,
    ) -> Windows:
        """Embed windows of a recording, each alone as a clip is, for a probe that was fitted to clips of that length.

        Args:
            source, sample_rate, channels: as in `embed`.
            window_s, hop_s: length of the windows, that of the training clips, and distance of their starts.
            shortest_s: length of the shortest clips: digital silence at a window's edges is left out down to it.
            readout: `clip` or `parts`, the vector that the probe was fitted to.

        Examples:
            >>> model.embed_windows("night.wav", window_s=2).probe_events(probe, threshold=0.8)
        """
        ((_, blocks),) = self.decoded([(None, source)], sample_rate, channels)
        return window_vectors(self.engine, blocks, WindowLengths.parse(window_s, hop_s, 0.0, shortest_s), readout)

    def _embedded(
        self,
        items: Iterable[tuple[Key, Iterator[Samples]]],
        options: EmbedOptions,
        batch_tokens: int | None,
        frames: bool,
        span_frames: int | None = None,
    ) -> Iterator[tuple[Key, Embedding | Exception]]:
        self.check(options)
        config, front_end = self.encoder.config, self.front_end
        new = partial(EmbeddingAccumulator, config, front_end, frames=frames, span_frames=span_frames)
        return self.engine.run(items, options, new, batch_tokens=batch_tokens)

    def decoded(
        self,
        items: Iterable[tuple[Key, Source]],
        sample_rate: int | None,
        channels: OneChannel = None,
        damaged: Damaged = "skip",
    ) -> Iterator[tuple[Key, Iterator[Samples]]]:
        """Return recordings as blocks of mono samples at the model's rate; arguments as `embed_stream`."""
        checked_channels(channels, separate=False)
        warn = warn_once_above_band()
        return ((key, read(source, sample_rate, self.front_end, channels, damaged, warn)) for key, source in items)


def load_model(
    source: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    patch_stride: int | tuple[int, int] | None = None,
    front_end: FrontEndConfig | str | None = None,
) -> Embedder:
    """Load a model that embeds recordings.

    Args:
        source: the name of a model (`ssamba.available_models`: "ssamba2-tiny" ships with ssamba, official weights such
            as "ssamba-tiny-400" are downloaded when first named), a hub name (`hf:OWNER/NAME@REVISION`,
            `hf:OWNER/NAME/FILE`), a checkpoint folder, the folder of a run of `pretrain` or `finetune`, or an
            official SSAMBA or SSAST `.pth` file (pretrained or fine-tuned). None means the default model, which ships
            with ssamba. A name comes before a path: `./ssamba2-tiny` is the folder of that name.
        device: where to run; None means CUDA if available, else the CPU.
        patch_stride: cut patches with this stride instead of the checkpoint's, e.g. 10.
        front_end: how waveforms become features, instead of the checkpoint's own: a `FrontEndConfig`, or the name of a
            band, such as `x10` (`FrontEndConfig.named`). Weights were trained with their own.

    Raises:
        CheckpointError: the name is unknown (the known ones are listed), or the checkpoint is missing, damaged, or does
            not fit; the message says why. Where the hub cannot be reached, it says how to fetch the file by hand.
        MissingExtraError: huggingface_hub is not installed, and official weights or a hub name were given.

    Examples:
        >>> model = load_model("ssamba2-tiny")
        >>> model.embed("dog.wav").clip.shape
        torch.Size([192])
    """
    return Embedder(load_checkpoint(source, patch_stride), front_end, device=device)
