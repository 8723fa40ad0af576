"""The Embedder: from recordings to embeddings or class logits.

    model = ssamba.load_model("ssamba2-tiny")
    e = model.embed("dog.wav")          # e.clip (D,), e.frames (K, D), e.times_s (K,)

Recordings of any length run in constant memory; windows of many recordings are encoded together (`inference.py`).

Shapes: B recordings, S samples, T frames, M mel bins, K time steps, D channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import numpy as np
import soxr
import torch
from torch import Tensor

from ssamba.audio import decode
from ssamba.checkpoint import Checkpoint, LoadReport, has_default_weights, load_checkpoint, weights_digest
from ssamba.config import FrontEndConfig, ModelConfig, ModelIdentity
from ssamba.embedding import Embedding, EmbedOptions
from ssamba.hashing import digest_of
from ssamba.inference import (
    Accumulator,
    EmbeddingAccumulator,
    InferenceEngine,
    LogitsAccumulator,
    SegmentLogitsAccumulator,
)
from ssamba.model.create import build_encoder, encoder_config
from ssamba.model.encoder import PatchEncoder
from ssamba.model.heads import Classifier

__all__ = ["EmbedOptions", "Embedder", "Embedding", "load_model"]

Array = np.ndarray[Any, Any]
Source = str | Path | Array | Tensor
"""A file's path, or a mono waveform (S,)."""
Key = TypeVar("Key")

_RANDOM_SEED = 0


class Embedder:
    """A model with its front end, ready to embed recordings.

    Attributes:
        encoder: the encoder (a `torch.nn.Module` from normalized features to tokens).
        classifier: the classifier, for checkpoints that have one, else None.
        front_end: how waveforms become features.
        report: what was loaded and what was left out; None if the model was not loaded from a checkpoint.
        name: versioned name of the model (`ssamba2-tiny-1`), or the path of its checkpoint as given.
        config: the model's configuration.
        device: where the model runs.
        engine: runs the encoder on batches of windows.
    """

    def __init__(
        self,
        model: PatchEncoder | Checkpoint,
        front_end: FrontEndConfig | None = None,
        *,
        device: str | torch.device | None = None,
        name: str | None = None,
    ):
        """Wrap an encoder or a loaded checkpoint.

        Args:
            model: an encoder (from `create_encoder`) or what `load_checkpoint` returned.
            front_end: how waveforms become features; None is the checkpoint's, or the official one.
            device: where to run; None is CUDA if available, else the CPU.
            name: name in reports; None is the checkpoint's.
        """
        self.classifier: Classifier | None = None
        self.report: LoadReport | None = None
        if isinstance(model, Checkpoint):
            self.encoder = model.model.encoder
            self.config = model.config
            self.report = model.report
            front_end = front_end or model.front_end
            name = name or model.report.name
            if isinstance(model.model, Classifier):
                self.classifier = model.model
        else:
            self.encoder = model
            self.config = ModelConfig(encoder=model.config)
        self.front_end = front_end or FrontEndConfig()
        self.name = name or "in memory"
        if self.front_end.num_mel_bins != self.encoder.config.num_mel_bins:
            raise ValueError(
                f"the front end makes {self.front_end.num_mel_bins} mel bins, but the encoder takes "
                f"{self.encoder.config.num_mel_bins}"
            )
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        (self.classifier or self.encoder).to(self.device).eval()
        self.engine = InferenceEngine(self.encoder, self.front_end, self.device)

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
        """Versioned name, and digest of the encoder's weights: what is made with this model records both."""
        return ModelIdentity(name=self.name, weights_digest=weights_digest(self.encoder))

    def check(self, options: EmbedOptions) -> None:
        """Raise a ValueError if this model does not have the layer that the options ask for."""
        if options.layer is not None:
            self.encoder.layer_index(options.layer)

    def digest(self, options: EmbedOptions | None = None) -> str:
        """Return 16 hexadecimal digits of everything an embedding depends on: weights, configuration, options."""
        configurations = options or EmbedOptions(), self.front_end, self.encoder.config
        return digest_of(*(config.digest() for config in configurations), self.encoder.state_dict())

    @overload
    def embed(self, source: Source, sample_rate: int | None = None, **options: Any) -> Embedding: ...

    @overload
    def embed(self, source: Sequence[Source], sample_rate: int | None = None, **options: Any) -> list[Embedding]: ...

    def embed(
        self, source: Source | Sequence[Source], sample_rate: int | None = None, **options: Any
    ) -> Embedding | list[Embedding]:
        """Embed one recording, or a list of recordings in batches.

        Args:
            source: a file's path; or a mono waveform (S,), NumPy array or tensor, float in [-1, 1] or integer PCM; or
                a batch of waveforms (B, S); or a list of any of these, mixed.
            sample_rate: of the waveforms, in Hz; None is the model's rate. Files carry their own.
            options: fields of `EmbedOptions`: `context="windows"|"full"`, `layer=`, `padding="patch"|"official"`.

        Returns:
            An `Embedding`; a list of them, in order, for a list or a batch.

        Raises:
            AudioDecodeError: a file cannot be read; the message says why.
            ValueError: a waveform has a wrong shape, holds NaN, or is shorter than one frame (25 ms).
            ConfigError: an unknown option.
        """
        settings = EmbedOptions.parse(options, "embed")
        sources, single = _as_list(source)
        results: list[Embedding | None] = [None] * len(sources)
        for index, result in self.embed_stream(enumerate(sources), sample_rate, settings):
            if isinstance(result, Exception):
                raise result
            results[index] = result
        done = cast("list[Embedding]", results)
        return done[0] if single else done

    def embed_stream(
        self,
        items: Iterable[tuple[Key, Source]],
        sample_rate: int | None = None,
        options: EmbedOptions | None = None,
    ) -> Iterator[tuple[Key, Embedding | Exception]]:
        """Embed recordings as they come, many at a time, and yield each result when it is ready.

        Args:
            items: keys and recordings.
            sample_rate: of waveforms, as in `embed`.
            options: how to embed.

        Returns:
            The keys, not always in the order of `items`, each with its embedding, or with the error (`ValueError` or
            `OSError`) of a recording that cannot be read; the other recordings are not affected.
        """
        options = options or EmbedOptions()
        self.check(options)
        return self.engine.run(
            self._decoded(items, sample_rate),
            options,
            lambda: EmbeddingAccumulator(self.encoder.config, self.front_end),
        )

    def logits(self, source: Source, sample_rate: int | None = None) -> Tensor:
        """Return the classifier's logits for one recording, (classes,), averaged over windows by their length.

        Raises:
            ValueError: the checkpoint has no classifier; or as `embed`.
        """
        ((_, result),) = self.logits_stream([(None, source)], sample_rate, per_label=False)
        if isinstance(result, Exception):
            raise result
        return result

    def logits_stream(
        self, items: Iterable[tuple[Key, Source]], sample_rate: int | None = None, *, per_label: bool | None = None
    ) -> Iterator[tuple[Key, Tensor | Exception]]:
        """Classify recordings as they come, many at a time; yields logits as `embed_stream` yields embeddings.

        Args:
            items: keys and recordings.
            sample_rate: of waveforms, as in `embed`.
            per_label: return (segments, classes), logits of each segment of the recording (`label_frames` of the
                classifier, a second if it has none), instead of (classes,) of the whole; None is as it was trained.

        Raises:
            ValueError: the checkpoint has no classifier, or one that cannot classify segments.
        """
        classifier = self.classifier
        if classifier is None:
            raise ValueError(
                f"{self.name} has no classifier: expected a fine-tuned checkpoint, got kind {self.config.kind!r}"
            )
        per_label = classifier.config.label_frames is not None if per_label is None else per_label
        if per_label and classifier.config.pooling != "mean":
            raise ValueError(
                f"{self.name} reads its prefix token, which stands for the whole clip: ask for whole clips"
            )

        def new_accumulator() -> Accumulator[Tensor]:
            if per_label:
                return SegmentLogitsAccumulator(classifier, self.front_end)
            return LogitsAccumulator(classifier)

        options = EmbedOptions(padding=classifier.config.padding)
        return self.engine.run(self._decoded(items, sample_rate), options, new_accumulator)

    def features(self, source: Source, sample_rate: int | None = None) -> Tensor:
        """Return the normalized log-mel features (T, M) of a recording on the CPU; arguments and errors as `embed`."""
        return torch.cat([block.cpu() for block in self.engine.features(self._samples(source, sample_rate))])

    def _decoded(
        self, items: Iterable[tuple[Key, Source]], sample_rate: int | None
    ) -> Iterator[tuple[Key, Iterator[Array]]]:
        return ((key, self._samples(source, sample_rate)) for key, source in items)

    def _samples(self, source: Source, sample_rate: int | None) -> Iterator[Array]:
        """Yield blocks of a recording's samples (S,) at the front end's rate; files are streamed.

        Raises:
            AudioDecodeError: a file cannot be read.
            ValueError: a waveform has another shape or type, or NaN or infinity; or the recording is below one frame.
        """
        num_samples, config, name = 0, self.front_end, ""
        if isinstance(source, str | Path):
            name = f"{source}: "
            for block in decode.stream(Path(source).expanduser(), sample_rate_hz=config.sample_rate_hz):
                num_samples += len(block)
                yield block
        else:
            samples = _mono_float(source)
            if sample_rate is not None and decode.checked_rate(sample_rate) != config.sample_rate_hz:
                samples = soxr.resample(samples, sample_rate, config.sample_rate_hz)
            num_samples = len(samples)
            yield samples
        if num_samples < config.frame_samples:
            raise ValueError(
                f"{name}the recording is {1000 * num_samples / config.sample_rate_hz:.1f} ms long, shorter "
                f"than one frame of {config.frame_ms:g} ms: leave it out, or pad it"
            )


def _mono_float(waveform: Array | Tensor) -> Array:
    """Convert a waveform (S,) to float32; integers are PCM of full scale."""
    if isinstance(waveform, Tensor):
        array = waveform.detach().cpu()
        samples = (array.float() if array.is_floating_point() else array).numpy()
    else:
        samples = np.asarray(waveform)
    if samples.ndim != 1:
        raise ValueError(f"a waveform must be mono, of shape (samples,), got shape {samples.shape}")
    if np.issubdtype(samples.dtype, np.signedinteger):
        samples = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    elif np.issubdtype(samples.dtype, np.floating):
        samples = samples.astype(np.float32)
    else:
        raise ValueError(f"a waveform must be floating point or signed integer PCM, got {samples.dtype}")
    finite = np.isfinite(samples)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ValueError(f"the waveform holds NaN or infinity, first at sample {first}: repair or leave it out")
    return samples


def _as_list(source: Source | Sequence[Source]) -> tuple[list[Source], bool]:
    """Return the recordings in `source`, and whether it is a single one."""
    if isinstance(source, str | Path):
        return [source], True
    if isinstance(source, np.ndarray | Tensor):
        if source.ndim == 2:
            if source.shape[1] <= 32 < source.shape[0]:
                raise ValueError(
                    f"a waveform of shape {tuple(source.shape)} looks like (samples, channels): expected (samples,) or "
                    "(batch, samples). Average the channels first: waveform.mean(axis=1)"
                )
            return list(source), False
        return [source], True
    expected = "expected a path, a waveform (NumPy array or tensor) or a list of these"
    if not isinstance(source, Iterable) or isinstance(source, Mapping | bytes):
        raise ValueError(f"{expected}, got {type(source).__name__}")
    items = list(source)
    for item in items:
        if not isinstance(item, str | Path | np.ndarray | Tensor):
            raise ValueError(f"{expected}, got a list with {type(item).__name__} in it")
    return items, False


def load_model(
    source: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    patch_stride: int | tuple[int, int] | None = None,
    front_end: FrontEndConfig | None = None,
) -> Embedder:
    """Load a model that embeds recordings.

    Args:
        source: the name of a model (`ssamba.available_models`, such as "ssamba2-tiny"), a hub name (`hf:OWNER/NAME`,
            `hf:OWNER/NAME@REVISION`), a checkpoint folder, the folder of a run of `pretrain` or `finetune`, or an
            official SSAMBA or SSAST `.pth` file (pretrained or fine-tuned). None is the default model, which ships with
            ssamba. A name comes before a path: `./ssamba2-tiny` is the folder of that name.
        device: where to run; None is CUDA if available, else the CPU.
        patch_stride: cut patches with this stride instead of the checkpoint's, e.g. 10.
        front_end: how waveforms become features, instead of the checkpoint's own.

    Raises:
        CheckpointError: the name is unknown (the known ones are listed), or the checkpoint is missing, damaged, or does
            not fit; the message says why.

    Example:
        >>> model = load_model("ssamba2-tiny")
        >>> model.embed("dog.wav").clip.shape
        torch.Size([192])
    """
    return Embedder(load_checkpoint(source, patch_stride), front_end, device=device)


def random_model(
    *,
    device: str | torch.device | None = None,
    patch_stride: int | tuple[int, int] | None = None,
    front_end: FrontEndConfig | None = None,
) -> Embedder:
    """Return the default model's structure (else the tiny one) with random weights from a fixed seed, as a baseline.

    Arguments as `load_model`.
    """
    if has_default_weights():
        like = load_checkpoint(None, patch_stride)
        config, front_end = like.config.encoder, front_end or like.front_end
    else:
        config = encoder_config("tiny")
        if patch_stride is not None:
            config = config.with_patch_stride(patch_stride)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_RANDOM_SEED)
        encoder = build_encoder(config)
    return Embedder(encoder, front_end, device=device, name="random tiny")
