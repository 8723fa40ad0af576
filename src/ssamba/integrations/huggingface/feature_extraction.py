"""Recordings to normalized log-mel features, as a feature extractor of transformers.

Shapes: B clips, S samples, T frames, M mel bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BatchFeature, SequenceFeatureExtractor

from ssamba.audio.fbank import log_mel
from ssamba.audio.sources import OneChannel, read
from ssamba.config import FrontEndConfig
from ssamba.events import window_edges
from ssamba.inference.clip_windows import LENGTH_TOLERANCE, WindowLengths, pieces_of
from ssamba.integrations.huggingface.configuration import CODE_FILE, SsambaConfig

HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
"""Arguments of `from_pretrained` that say where in a repository a file is."""
_BLOCK_S = 30.0
"""Length of audio whose features are computed at once."""


class SsambaFeatureExtractor(SequenceFeatureExtractor):
    """Recordings to normalized log-mel features, as `Embedder` computes them.

    The last partial patch of a clip is filled with silence (`padding="official"` of a classifier: short clips up to a
    whole window), which `attention_mask` counts as the clip's; `valid_frames` are those of the recording alone. What
    batches are padded with behind that is masked.

    For a classifier that knows the lengths of its training clips, longer recordings are cut as `Embedder.predict` cuts
    them: `input_values` are then the pieces' features, one behind the other, `piece_frames` the frames of each, and
    `piece_weights` the seconds that it answers for, 0 in digital silence.
    """

    model_input_names: ClassVar[list[str]] = [
        "input_values",
        "attention_mask",
        "valid_frames",
        "piece_frames",
        "piece_weights",
    ]
    pad_token_id = 0  # pipelines that pad batches ask for one

    def __init__(
        self,
        *,
        patch_frames: int = 16,
        patch_stride_frames: int = 16,
        window_frames: int = 1024,
        fill_window: bool = False,
        clip_lengths_s: Sequence[float] | None = None,
        **kwargs: Any,
    ):
        """Set up the front end.

        Args:
            patch_frames: frames of a patch.
            patch_stride_frames: frames from patch to patch.
            window_frames: frames of a window, the model's pretraining length.
            fill_window: fill short clips up to a whole window.
            clip_lengths_s: lengths of training clips (`ClassifierConfig.clip_lengths_s`); None: do not cut.
            kwargs: fields of `FrontEndConfig`, and those of transformers' `SequenceFeatureExtractor`.

        Raises:
            ConfigError: a field of the front end is invalid.
        """
        rate, bins = kwargs.pop("sampling_rate", None), kwargs.pop("feature_size", None)
        fields = {name: kwargs.pop(name) for name in FrontEndConfig.model_fields if name in kwargs}
        defaults = {"sample_rate_hz": rate, "num_mel_bins": bins}
        fields = {name: value for name, value in defaults.items() if value is not None} | fields
        config = FrontEndConfig.parse(fields, "SsambaFeatureExtractor")
        kwargs.pop("feature_extractor_type", None)
        kwargs.setdefault("padding_value", 0.0)
        super().__init__(feature_size=config.num_mel_bins, sampling_rate=config.sample_rate_hz, **kwargs)
        for name, value in config.model_dump(mode="json").items():
            setattr(self, name, value)
        self.patch_frames, self.patch_stride_frames = patch_frames, patch_stride_frames
        self.window_frames, self.fill_window = window_frames, fill_window
        self.clip_lengths_s = None if clip_lengths_s is None else list(clip_lengths_s)

    @property
    def front_end(self) -> FrontEndConfig:
        """How waveforms become features."""
        return FrontEndConfig(**{name: getattr(self, name) for name in FrontEndConfig.model_fields})

    @classmethod
    def from_config(cls, config: SsambaConfig) -> SsambaFeatureExtractor:
        """Return the feature extractor of a model's configuration."""
        return cls(**_preprocessor(config))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Read the feature extractor of a folder or hub repository, written by transformers or by ssamba."""
        hub = {name: kwargs[name] for name in HUB_KEYS if name in kwargs}
        values, rest = cls.get_feature_extractor_dict(pretrained_model_name_or_path, **kwargs)
        if "patch_frames" not in values:
            config = SsambaConfig.from_pretrained(pretrained_model_name_or_path, **hub)
            values = {**_preprocessor(config), **values}
        return cls.from_dict(values, **rest)

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        return_tensors: str | None = None,
        channels: OneChannel = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Compute features of one recording, or of a list of them.

        Args:
            raw_speech: a waveform (S,), a path, or the contents of an audio file, as `Embedder.embed` takes them; or a
                list of these. A list of numbers is one waveform, an array (B, S) is B of them.
            sampling_rate: of waveforms, in Hz: others than the model's are resampled. None means the model's.
            padding: `True` pads to the longest clip of the list, `"max_length"` to `max_length`, `False` not at all.
            max_length: samples at the model's rate.
            truncation: cut recordings after `max_length`.
            return_tensors: `"pt"` or `"np"`; None returns arrays, in a list for each unless they are padded.
            channels: `"mean"` averages the channels (files: the default), a number takes one of them (from 0); an array
                (channels, samples) or (samples, channels) is then one recording.
            kwargs: `return_attention_mask` and `pad_to_multiple_of` (frames), as of other feature extractors.

        Returns:
            `input_values` (B, T, M) float32, `attention_mask` (B, T), `valid_frames` (B,); with `clip_lengths_s`
            `piece_frames` and `piece_weights` (B, pieces), zeros after a clip's own.

        Raises:
            AudioDecodeError: a file cannot be read.
            ValueError: a waveform has a wrong shape, holds NaN or is shorter than one frame; or there is no
                `max_length`.
        """
        if max_length is None and (truncation or padding == "max_length"):
            raise ValueError("truncation and padding='max_length' need max_length, in samples at the model's rate")
        config, clips, valid, pieces = self.front_end, [], [], []
        for source in _recordings(raw_speech, channels):
            waveform = np.asarray(source, np.float32) if isinstance(source, list | tuple) else source
            samples = np.concatenate(list(read(waveform, sampling_rate, config, channels)))
            cut, weights = self._pieces(samples[: max_length if truncation else None])
            features = [self._features(piece, config) for piece in cut]
            valid.append(sum(map(len, features)))
            filled = [self._filled(piece).numpy() for piece in features]
            clips.append(np.concatenate(filled))
            pieces.append((np.array(list(map(len, filled))), np.array(weights, np.float32)))
        frames = None
        if padding == "max_length":
            assert max_length is not None
            frames = len(self._filled(torch.empty(max(1, config.num_frames(max_length)), 0)))
        return self.pad(
            BatchFeature({"input_values": clips, "valid_frames": valid, **self._piece_inputs(pieces)}),
            padding=padding,
            max_length=frames,
            return_tensors=return_tensors,
            **{name: kwargs[name] for name in ("return_attention_mask", "pad_to_multiple_of") if name in kwargs},
        )

    def pad(self, processed_features: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """Pad clips, and the frames and weights of their pieces, to equal lengths; as `SequenceFeatureExtractor`."""
        if isinstance(processed_features, list | tuple):
            names = processed_features[0].keys()
            processed_features = {name: [clip[name] for clip in processed_features] for name in names}
        for name in ("piece_frames", "piece_weights"):
            if name in processed_features:
                rows = [np.asarray(row) for row in processed_features[name]]
                most = max(map(len, rows))
                processed_features[name] = [np.pad(row, (0, most - len(row))) for row in rows]
        return super().pad(processed_features, *args, **kwargs)

    def _pieces(self, samples: Any) -> tuple[list[Any], list[float]]:
        """Return the pieces of samples (S,) that are classified one by one, and the seconds each answers for."""
        if self.clip_lengths_s is None:
            return [samples], [1.0]
        config, (shortest_s, median_s, longest_s) = self.front_end, self.clip_lengths_s
        window_s = self.window_frames * config.shift_samples / config.sample_rate_hz
        lengths = WindowLengths.parse(min(median_s, window_s), None, longest_s * LENGTH_TOLERANCE, shortest_s)
        pieces = list(pieces_of([samples], lengths, config.sample_rate_hz))
        bounds_s = (np.array([piece[i] for piece in pieces]) / config.sample_rate_hz for i in (0, 1))
        weights = np.diff(window_edges(*bounds_s)) * [not piece.is_silent for piece in pieces]
        return [piece.samples for piece in pieces], weights.tolist()

    def _piece_inputs(self, pieces: list[tuple[Any, Any]]) -> dict[str, Any]:
        if self.clip_lengths_s is None:
            return {}
        frames, weights = zip(*pieces, strict=True)
        return {"piece_frames": list(frames), "piece_weights": list(weights)}

    def _features(self, samples: Any, config: FrontEndConfig) -> Tensor:
        """Return the normalized features (T, M) of samples (S,), in stretches as `InferenceEngine.features` has."""
        step = config.num_frames(round(_BLOCK_S * config.sample_rate_hz)) * config.shift_samples
        whole = round(_BLOCK_S * config.sample_rate_hz)
        stretches = []
        while len(samples) >= whole + config.frame_samples:
            stretches.append(log_mel(torch.from_numpy(samples[:whole]), config=config))
            samples = samples[step:]
        return torch.cat([*stretches, log_mel(torch.from_numpy(np.ascontiguousarray(samples)), config=config)])

    def _filled(self, features: Tensor) -> Tensor:
        """Append silence to features (T, M) up to whole patches, or to a window."""
        frames, silent = len(features), self.front_end.silent_feature
        if self.fill_window:
            frames = max(frames, self.window_frames)
        span, stride = self.patch_frames, self.patch_stride_frames
        frames = span + max(0, -(-(frames - span) // stride)) * stride
        return F.pad(features, (0, 0, 0, frames - len(features)), value=silent)

    def to_dict(self) -> dict[str, Any]:
        """Return what `preprocessor_config.json` holds."""
        auto_map = {"AutoFeatureExtractor": f"{Path(CODE_FILE).stem}.{type(self).__name__}"}
        return {**super().to_dict(), "feature_extractor_type": "SsambaFeatureExtractor", "auto_map": auto_map}

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoFeatureExtractor") -> None:
        """Do nothing, as `SsambaConfig`."""


class SsambaPipelineInputs(SsambaFeatureExtractor):
    """What `AutoTokenizer` returns, for `pipeline("feature-extraction")`, which asks every model for a tokenizer.

    The features have the name `features`, since that pipeline cannot pad a batch of `input_values` by a tokenizer.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**{**kwargs, "fill_window": False, "clip_lengths_s": None})  # those of classifiers

    def __call__(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Compute features as `SsambaFeatureExtractor`."""
        batch = super().__call__(*args, **kwargs)
        return BatchFeature({"features": batch.pop("input_values"), **batch})


def _recordings(given: Any, channels: OneChannel) -> Sequence[Any]:
    """Return the recordings that were given: a list, the rows of an array, or one."""
    if isinstance(given, list | tuple) and not all(isinstance(one, Number) for one in given[:1]):
        return given
    # Rows that are shorter than there are of them are moments of several channels, about which `read` asks.
    is_batch = channels is None and getattr(given, "ndim", 1) == 2 and given.shape[0] <= given.shape[1]
    return list(given) if is_batch else [given]


def _preprocessor(config: SsambaConfig) -> dict[str, Any]:
    """Return the feature extractor's fields that follow from a model's configuration."""
    encoder, classifier = config.encoder_config, config.classifier or {}
    lengths_s = classifier.get("clip_lengths_s") if classifier.get("label_frames") is None else None
    front_end = config.front_end or FrontEndConfig(num_mel_bins=encoder.num_mel_bins).model_dump(mode="json")
    return {
        **front_end,
        "patch_frames": encoder.patch_size[1],
        "patch_stride_frames": encoder.patch_stride[1],
        "window_frames": encoder.num_frames,
        "fill_window": classifier.get("padding") == "official",
        "clip_lengths_s": lengths_s,
    }
