"""Fine-tuning task of the training loop: a classifier on labeled recordings, from waveforms to the loss.

    waveforms (mixup) -> log-mel features -> augmented, stripes masked -> normalized -> model -> loss

Validation and tests use whole recordings, through the same code as `ssamba predict`.

Shapes: B clips, T frames, M mel bins, S targets of a clip, C classes, N predictions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.audio.augmentation import add_noise_and_roll, augment, change_speed, mask_stripes
from ssamba.audio.fbank import fbank, frame_lengths, normalize
from ssamba.checkpoint import Checkpoint, LoadReport, save_checkpoint
from ssamba.config import BaseEncoderConfig, ClassifierConfig, FrontEndConfig, ModelConfig, ModelIdentity
from ssamba.data.corpus import Corpus, Subset
from ssamba.data.loader import WaveBatch
from ssamba.data.mixing import BackgroundsFrom, add_background
from ssamba.data.plan import Crop, PlanConfig
from ssamba.embedder import Embedder
from ssamba.errors import DataError
from ssamba.hashing import digest_of
from ssamba.model.heads import Classifier
from ssamba.splits import Fold, Ints
from ssamba.training.batches import PlannedBatches, other_data
from ssamba.training.finetuning.data import LabeledData, split_by_class
from ssamba.training.finetuning.recipe import FinetuneRecipe
from ssamba.training.finetuning.report import validation_metrics
from ssamba.training.task import StepContext, StepOutcome

_OFFICIAL_SEGMENTS = 60
_FEW_CLASSES = 20  # with a background, this many classes have independent labels


class Predictions(NamedTuple):
    """Predictions for clips, or for their seconds, with the targets."""

    logits: npt.NDArray[np.float32]
    """(N, C)."""
    targets: npt.NDArray[np.float32]
    """(N, C), 0 or 1."""
    recordings: npt.NDArray[np.int64]
    """Number of the recording of each prediction (N,)."""
    skipped: tuple[tuple[str, str], ...]
    """Key and reason of clips that could not be read."""

    @classmethod
    def joined(cls, parts: Sequence[Predictions]) -> Predictions:
        """Return several predictions as one."""
        logits, targets, recordings, skipped = zip(*parts, strict=True)
        return cls(
            np.concatenate(logits),
            np.concatenate(targets),
            np.concatenate(recordings),
            tuple(entry for part in skipped for entry in part),
        )


class FinetuneTask(PlannedBatches):
    """A classifier and the clips of one fold."""

    def __init__(
        self,
        recipe: FinetuneRecipe,
        data: LabeledData,
        fold: Fold,
        encoder: BaseEncoderConfig,
        front_end: FrontEndConfig,
        weights: Mapping[str, Tensor] | None = None,
        base: ModelIdentity | None = None,
    ):
        """Build the model, seeded by the recipe, and plan the batches.

        Args:
            recipe: all settings.
            data: the recordings and their targets.
            fold: which clips train, validate and test.
            encoder: the encoder's configuration.
            front_end: from waveform to features.
            weights: the encoder's weights; None leaves them random.
            base: the model that the weights come from, for the record.
        """
        torch.manual_seed(recipe.run.seed)
        self.recipe, self.data, self.fold, self.front_end = recipe, data, fold, front_end
        self.base = base
        self.stripes = recipe.spec_augment.with_changes(frames=0) if data.background else recipe.spec_augment
        few = data.background is not None and len(data.classes) <= _FEW_CLASSES + 1
        self.binary = data.multi or few if recipe.loss.kind == "auto" else recipe.loss.kind == "bce"
        config = ClassifierConfig(
            num_classes=len(data.classes),
            pooling=recipe.start.pooling,
            labels=data.classes,
            activation="sigmoid" if self.binary else "softmax",
            padding="official" if recipe.clips.short_clips == "pad" else "patch",
            label_frames=front_end.frames_per_second if recipe.labels.unit == "second" else None,
            token_segments=_OFFICIAL_SEGMENTS if recipe.labels.tokens == "official" else None,
            background=data.background,
            clip_lengths_s=clip_lengths(data.corpus.seconds[fold.train]) if recipe.labels.unit == "clip" else None,
        )
        self.model = Classifier(encoder, config)
        if weights is not None:
            self.model.encoder.load_state_dict(weights)
        if recipe.start.frozen:
            self.model.encoder.requires_grad_(False)
        metric = recipe.choice.metric
        if metric == "auto":
            metric = "mAP" if data.multi else "loss" if data.background else "accuracy"
        if (metric == "mAP") != data.multi and metric != "loss":
            kind = "any number of labels" if data.multi else "one label"
            raise DataError(f"choice.metric is {metric!r}, but each clip has {kind}: leave it at 'auto'")
        self.best_metric: tuple[str, Literal["min", "max"]] = (metric, "min" if metric == "loss" else "max")
        clips = recipe.clips
        is_background = data.is_background(fold.train)
        labeled, background = fold.train[~is_background], fold.train[is_background]
        corpora = split_by_class(data, labeled) if clips.balanced else [Subset(data.corpus, labeled)]
        backgrounds = clips.backgrounds
        if len(background):
            backgrounds = self._backgrounds(len(corpora), recipe.background.mixed.share, recipe.background.windows)
            corpora.append(Subset(data.corpus, background))
        super().__init__(
            corpora,
            self._plan_config(corpora, len(labeled) if len(background) else None),
            workers=clips.workers,
            backgrounds=backgrounds,
            mixup=clips.mixup if clips.mixup.share and not len(background) else None,
        )
        self.unreported = tuple((entry.path, entry.reason) for entry in data.corpus.skipped)

    def _backgrounds(self, corpus: int, share: float, window_share: float) -> BackgroundsFrom:
        """Return how a corpus is mixed under clips, at the recipe's levels."""
        lengths_s = self.model.config.clip_lengths_s
        longest_s = window_s(self.model.encoder.config.num_frames, self.front_end)
        return BackgroundsFrom(
            share=share,
            below_db=self.recipe.background.mixed.below_db,
            corpus=corpus,
            window_s=None if lengths_s is None else min(lengths_s[1], longest_s),
            window_share=window_share,
        )

    def _plan_config(self, corpora: Sequence[Corpus], labeled: int | None) -> PlanConfig:
        """Return the plan; `labeled` is the number of clips before the last corpus if that one is background."""
        recipe, clips, front_end = self.recipe, self.recipe.clips, self.front_end
        config = self.model.encoder.config
        crop_s = window_s(config.num_frames, front_end)
        batch_size = clips.batch_size
        if clips.short_clips == "bucket":
            # The plan counts a batch in seconds: those of `batch_size` clips of median length.
            seconds = np.concatenate([corpus.seconds for corpus in corpora])
            shortest_s = front_end.frame_samples / front_end.sample_rate_hz
            crop_s = min(crop_s, max(float(seconds.max()), shortest_s))
            batch_size = max(1, round(batch_size * float(np.median(seconds.clip(shortest_s, crop_s))) / crop_s))
        weights = (1.0,) * len(corpora) if len(corpora) > 1 else None
        epoch_clips = None
        if labeled is not None:
            share = recipe.background.share
            weights = (*((1 - share) / (len(corpora) - 1) for _ in corpora[:-1]), share)
            epoch_clips = round(labeled / (1 - share))
        return PlanConfig(
            seed=recipe.run.seed,
            sample_rate_hz=front_end.sample_rate_hz,
            crop_s=crop_s,
            # Targets of seconds count from the start of the clip.
            crop="start" if recipe.labels.unit == "second" else clips.crop,
            short_clips=clips.short_clips,
            batch_size=batch_size,
            length_step_s=config.patch_stride[1] * front_end.shift_samples / front_end.sample_rate_hz,
            weights=weights,
            epoch_clips=epoch_clips,
        )

    def step_loss(self, model: nn.Module, batch: WaveBatch, context: StepContext) -> StepOutcome:
        """Return the mean loss over the targets of this rank's part of a batch."""
        skipped, self.unreported = (*self.unreported, *batch.skipped), ()
        if not len(batch):
            return StepOutcome(None, 0.0, skipped=skipped)
        if self.recipe.start.frozen:
            self.model.encoder.eval()  # no stochastic depth in a frozen encoder
        features, lengths = self.inputs(batch, context.device, training=True)
        with context.autocast():
            logits = model(features, lengths)
        targets = self.batch_targets(batch).to(context.device)
        if self.model.config.label_frames is None:
            logits = logits[:, None]
        # The last logits may cover padding only, and the last target a second that no token covers.
        count = min(logits.shape[1], targets.shape[1])
        logits, targets = logits[:, :count].float(), targets[:, :count]
        known = ~targets.isnan().any(2)
        logits, targets = logits[known], targets[known]
        if not len(targets):
            return StepOutcome(None, 0.0, skipped=skipped)
        return StepOutcome(
            self.loss(logits, targets),
            float(len(targets)),
            {} if self.data.multi else {"accuracy": (logits.argmax(1) == targets.argmax(1)).float().mean().detach()},
            clips=len(batch),
            audio_s=batch.num_samples / self.front_end.sample_rate_hz,
            keys=[key for keys in batch.keys for key in keys],
            skipped=skipped,
        )

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of logits (N, C) against targets (N, C), which mixup makes fractional."""
        if self.binary:
            return F.binary_cross_entropy_with_logits(logits, targets)
        return F.cross_entropy(logits, targets, label_smoothing=self.recipe.loss.label_smoothing)

    def batch_targets(self, batch: WaveBatch) -> Tensor:
        """Return the targets of a batch with mixup (B, S, C), NaN where labels are unknown."""
        rows = [torch.from_numpy(self.data.targets[keys[0]]) for keys in batch.keys]
        for i, mixed in enumerate(batch.mixed):
            if mixed is not None:
                other = torch.from_numpy(self.data.targets[mixed.key])
                count = min(len(rows[i]), len(other))
                rows[i] = (1 - mixed.share) * rows[i][:count] + mixed.share * other[:count]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=float("nan"))

    def inputs(self, batch: WaveBatch, device: torch.device, *, training: bool) -> tuple[Tensor, Tensor]:
        """Compute normalized features (B, T, M), augmented while training, and their valid frames (B,)."""
        recipe, front_end, config = self.recipe, self.front_end, self.model.encoder.config
        waves, samples, seeds = (x.to(device, non_blocking=True) for x in (batch.waves, batch.samples, batch.seeds))
        features = fbank(waves, samples, config=front_end)
        frames = frame_lengths(samples, front_end)
        if training and recipe.augmentation.speed:
            features, frames = change_speed(features, seeds, recipe.augmentation.speed, frames, config.num_frames)
        if recipe.clips.short_clips == "pad":
            lengths = torch.full_like(frames, config.num_frames)
            maskable = lengths  # silence counts, and is masked and rolled with the rest
        else:
            beyond = (frames - config.patch_size[1]).clamp(min=0)
            steps = torch.div(beyond + config.patch_stride[1] - 1, config.patch_stride[1], rounding_mode="floor")
            # The last patch of a clip is padded with log-mel 0 and counts as valid, as in `Embedder`.
            lengths = steps * config.patch_stride[1] + config.patch_size[1]
            maskable = frames
        missing = int(lengths.max()) - features.shape[1]
        features = F.pad(features, (0, 0, 0, missing)) if missing > 0 else features[:, : int(lengths.max())]
        if training:
            features = augment(features, seeds, recipe.augmentation, frames, front_end)
            # The original masks with a log-mel of 0, as it pads; we mask with the mean.
            fill = 0.0 if recipe.clips.short_clips == "pad" else front_end.mean
            features = mask_stripes(features, seeds, self.stripes, maskable, fill)
        features = normalize(features, front_end)
        if training:
            features = add_noise_and_roll(features, seeds, recipe.spec_augment, maskable)
        return features, lengths.cpu()

    def after_step(self, step: int) -> None:
        """Do nothing."""

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Return metrics on the validation clips, NaN if there are none; ranks divide the clips among them.

        With a background, clips count a second time with it under them: what hears them through it is better. The
        standard error of the loss is among the metrics then, and the latest state within it is the one that is kept:
        few clips are held out, and what fits them best by chance is often a state that is trained too little.
        """
        missing = {"loss": float("nan"), self.best_metric[0]: float("nan")}
        if not len(self.fold.valid):
            return missing
        assert isinstance(model, Classifier)
        predictions = Predictions.joined(self.held_out(model, self.fold.valid))
        self.unreported = (*self.unreported, *predictions.skipped)  # the log lists each once
        if not len(predictions.logits):
            return missing
        error = {"loss_error": loss_error(predictions, binary=self.binary)} if self.data.background else {}
        return self.metrics(predictions) | error

    def held_out(self, model: Classifier, clips: Ints) -> list[Predictions]:
        """Predict held-out clips, and those with a label again with held-out background mixed under them, if any."""
        is_background = self.data.is_background(clips)
        found = [self.predict(model, clips)]
        if is_background.any() and not is_background.all():
            found.append(self.predict(model, clips[~is_background], under=clips[is_background]))
        return found

    def predict(self, model: Classifier, clips: Ints, under: Ints | None = None) -> Predictions:
        """Predict whole clips; ranks divide the clips among them, and every rank gets all predictions.

        Args:
            model: the classifier.
            clips: clips to predict (n,).
            under: clips that are mixed under them, at the levels of training and the same each time.
        """
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, world_size = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if several else (0, 1)
        own = self._predict(model, clips[rank::world_size], under)
        if world_size == 1:
            return own
        parts: list[Any] = [None] * world_size
        torch.distributed.all_gather_object(parts, own)
        return Predictions.joined(parts)

    def _predict(self, model: Classifier, clips: Ints, under: Ints | None) -> Predictions:
        skipped: list[tuple[str, str]] = []
        corpus = self.data.corpus
        backgrounds = None if under is None else Subset(corpus, under)
        levels = self._backgrounds(0, share=1.0, window_share=1.0)

        def waves() -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
            for i in map(int, clips):
                try:
                    wave = corpus.read(i)
                except (ValueError, OSError) as error:
                    skipped.append((corpus.key(i), str(error)))
                    continue
                if backgrounds is not None:
                    whole = Crop(0, i, 0.0, len(wave) / corpus.sample_rate_hz, seed=i)
                    wave = add_background(wave, whole, [backgrounds], levels)
                yield i, wave

        embedder = Embedder(self.as_checkpoint(model), device=next(model.parameters()).device)
        embedder.follows_load = False  # a resumed run has the same bits
        found: dict[int, Tensor] = {}
        for i, result in embedder.logits_stream(waves()):
            if isinstance(result, Exception):
                skipped.append((corpus.key(i), str(result)))
            else:
                found[i] = result
        width = model.config.num_classes
        logits, targets = [np.zeros((0, width), np.float32)], [np.zeros((0, len(self.data.classes)), np.float32)]
        recordings = [np.zeros(0, np.int64)]
        files = np.unique(self.data.files, return_inverse=True)[1]
        for i in sorted(found):
            target, predicted = self.data.targets_of(i), found[i].reshape(-1, width).numpy()
            count = min(len(target), len(predicted))
            known = ~np.isnan(target[:count]).any(1)
            logits.append(predicted[:count][known])
            targets.append(target[:count][known])
            recordings.append(np.full(int(known.sum()), files[i], np.int64))
        return Predictions(np.concatenate(logits), np.concatenate(targets), np.concatenate(recordings), tuple(skipped))

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return the loss and the metrics that may choose a state."""
        return validation_metrics(
            predictions.logits, predictions.targets, multi=self.data.multi, binary_loss=self.binary
        )

    def pictures(self, model: nn.Module, step: int) -> Mapping[str, Any]:
        """Return no plots: the confusion matrix is plotted at the end."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs besides the model."""
        return {
            "clips": self.plan.fingerprint(),
            "classes": list(self.data.classes),
            "labels": self._labels_digest,
            "data": [f"{self.data.corpus.name}: {len(self.data.corpus)} clips, {self.data.corpus.hours:.3f} h"],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that a saved state is of the same data.

        Raises:
            DataError: the recordings, their labels or their splits are not those of the saved run.
        """
        own = self.state_dict()
        if any(state.get(name) != own[name] for name in ("clips", "classes", "labels")):
            before, now = (
                [*values.get("data", []), f"classes {', '.join(values.get('classes', []))}"] for values in (state, own)
            )
            raise DataError(other_data(before, now))

    @cached_property
    def _labels_digest(self) -> str:
        """Sixteen hexadecimal digits of the splits and the targets of all clips."""
        values: list[str | bytes] = []
        for clips in (self.fold.train, self.fold.valid, self.fold.test):
            values.append(f"{len(clips)}\n")
            for i in map(int, clips):
                values.append(os.fsencode(self.data.corpus.key(i)) + b"\n" + self.data.targets_of(i).tobytes())
        return digest_of(*values)

    def as_checkpoint(self, model: Classifier) -> Checkpoint:
        """Return a model together with its configuration, as a loaded checkpoint."""
        config = ModelConfig(kind="classifier", encoder=model.encoder.config, classifier=model.config, base=self.base)
        count = sum(p.numel() for p in model.parameters())
        return Checkpoint(model, config, self.front_end, LoadReport("in training", "classifier", count))

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the classifier with its labels as a checkpoint folder."""
        assert isinstance(model, Classifier)
        save_checkpoint(folder, model, self.as_checkpoint(model).config, self.front_end)


def loss_error(predictions: Predictions, *, binary: bool) -> float:
    """Return the standard error of the mean loss of predictions: those of one recording are one observation."""
    logits, targets = torch.from_numpy(predictions.logits), torch.from_numpy(predictions.targets)
    if binary:
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1).numpy()
    else:
        losses = F.cross_entropy(logits, targets, reduction="none").numpy()
    recordings = np.unique(predictions.recordings, return_inverse=True)[1]
    sums = np.bincount(recordings, losses - losses.mean())
    return float(np.sqrt(np.square(sums).sum()) / len(losses))


def clip_lengths(seconds: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Return 5 % quantile, median and 95 % quantile of lengths (N,), in seconds."""
    low, median, high = (round(float(one), 3) for one in np.quantile(seconds, (0.05, 0.5, 0.95)))
    return low, median, high


def window_s(frames: int, front_end: FrontEndConfig) -> float:
    """Return the seconds of audio that give this many frames."""
    return ((frames - 1) * front_end.shift_samples + front_end.frame_samples) / front_end.sample_rate_hz
