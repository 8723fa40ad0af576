"""What the loop trains while fine-tuning: a classifier on labeled recordings, from waveforms to the loss.

A batch goes waveforms (mixed, where there is mixup) -> log-mel features -> changed, stripes hidden -> normalized -> model.
Validation and tests hear whole recordings, as `ssamba predict` does, through the same code.

Shapes: B clips, T frames, M mel bins, S labels of a clip, C classes, N clips.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
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
from ssamba.config import BaseEncoderConfig, ClassifierConfig, FrontEndConfig, ModelConfig
from ssamba.data.corpus import Corpus, Subset
from ssamba.data.loader import WaveBatch, WaveLoader
from ssamba.data.plan import Plan, PlanConfig
from ssamba.embedder import Embedder
from ssamba.errors import DataError
from ssamba.hashing import digest_of
from ssamba.model.heads import Classifier
from ssamba.splits import Fold, Ints
from ssamba.training.finetuning.data import Labeled, balanced_parts
from ssamba.training.finetuning.recipe import FinetuneRecipe
from ssamba.training.finetuning.scores import figures_of_merit
from ssamba.training.task import StepContext, StepOutcome

_OFFICIAL_SEGMENTS = 60


class Answers(NamedTuple):
    """What a model said of some clips, and what is true."""

    logits: npt.NDArray[np.float32]
    """(answers, C), or as many as the model has classes."""
    targets: npt.NDArray[np.float32]
    """(answers, C)."""
    units: npt.NDArray[np.int64]
    """(answers,): a number for the recording that each is of."""
    skipped: tuple[tuple[str, str], ...]
    """Name and reason of clips that could not be read."""


def classifier_config(recipe: FinetuneRecipe, data: Labeled, front_end: FrontEndConfig) -> ClassifierConfig:
    """The classifier that a recipe asks for."""
    by_second = recipe.labels.unit == "second"
    return ClassifierConfig(
        num_classes=len(data.classes),
        pooling=recipe.start.pooling,
        labels=data.classes,
        activation="sigmoid" if binary_loss(recipe, data) else "softmax",
        padding="official" if recipe.clips.short_clips == "pad" else "patch",
        label_frames=front_end.frames_per_second if by_second else None,
        token_segments=_OFFICIAL_SEGMENTS if recipe.labels.tokens == "official" else None,
    )


def binary_loss(recipe: FinetuneRecipe, data: Labeled) -> bool:
    """Whether the loss is binary for each class."""
    return data.multi if recipe.loss.kind == "auto" else recipe.loss.kind == "bce"


class FinetuneTask:
    """A classifier on the clips of one round."""

    def __init__(
        self,
        recipe: FinetuneRecipe,
        data: Labeled,
        part: Fold,
        encoder: BaseEncoderConfig,
        front_end: FrontEndConfig,
        weights: Mapping[str, Tensor] | None = None,
    ):
        """Build the model, from the recipe's seed, and plan the batches.

        Args:
            recipe: everything else.
            data: the recordings.
            part: which of them train, validate, test.
            encoder: the encoder's configuration.
            front_end: from waveform to features.
            weights: the encoder's; None leaves it random.
        """
        torch.manual_seed(recipe.run.seed)
        self.recipe, self.data, self.part, self.front_end = recipe, data, part, front_end
        self.binary = binary_loss(recipe, data)
        self.model = Classifier(encoder, classifier_config(recipe, data, front_end))
        if weights is not None:
            self.model.encoder.load_state_dict(weights)
        if recipe.start.frozen:
            self.model.encoder.requires_grad_(False)
        metric = recipe.choice.metric
        if metric == "auto":
            metric = "mAP" if data.multi else "accuracy"
        if (metric == "mAP") != data.multi and metric != "loss":
            kind = "any number of labels" if data.multi else "one label"
            raise DataError(f"choice.metric is {metric!r}, but each clip has {kind}: leave it at 'auto'")
        self.best_metric: tuple[str, Literal["min", "max"]] = (metric, "min" if metric == "loss" else "max")
        clips = recipe.clips
        self.training: list[Corpus] = (
            [*balanced_parts(data, part.train)] if clips.balanced else [Subset(data.corpus, part.train)]
        )
        self.plan = Plan(self._plan_config(), self.training)
        self._loader: WaveLoader | None = None
        self.unreported = tuple((entry.path, entry.reason) for entry in data.corpus.skipped)

    def _plan_config(self) -> PlanConfig:
        recipe, clips, front_end = self.recipe, self.recipe.clips, self.front_end
        config = self.model.encoder.config
        crop_s = window_s(config.num_frames, front_end)
        batch_size = clips.batch_size
        if clips.short_clips == "bucket":
            # The plan counts a batch in seconds: here those of so many clips of middling length.
            seconds = np.concatenate([corpus.seconds for corpus in self.training])
            shortest_s = front_end.frame_samples / front_end.sample_rate_hz
            crop_s = min(crop_s, max(float(seconds.max()), shortest_s))
            batch_size = max(1, round(batch_size * float(np.median(seconds.clip(shortest_s, crop_s))) / crop_s))
        return PlanConfig(
            seed=recipe.run.seed,
            sample_rate_hz=front_end.sample_rate_hz,
            crop_s=crop_s,
            # Labels of seconds stand at their seconds.
            crop="start" if recipe.labels.unit == "second" else clips.crop,
            short_clips=clips.short_clips,
            batch_size=batch_size,
            length_step_s=config.patch_stride[1] * front_end.shift_samples / front_end.sample_rate_hz,
            weights=(1.0,) * len(self.training) if len(self.training) > 1 else None,
        )

    def batches(self, epoch: int, start: int, rank: int, world: int) -> Iterator[WaveBatch]:
        """This process's shares of an epoch's batches."""
        if self._loader is None or (self._loader.rank, self._loader.world_size) != (rank, world):
            clips = self.recipe.clips
            self._loader = WaveLoader(
                self.training,
                self.plan,
                rank=rank,
                world_size=world,
                workers=clips.workers,
                backgrounds=clips.backgrounds,
                mixup=clips.mixup if clips.mixup.share else None,
            )
        return self._loader.batches(epoch, start)

    def batches_in_epoch(self, epoch: int) -> int:
        """Global batches of an epoch."""
        return len(self.plan.batches(epoch))

    def step_loss(self, model: nn.Module, batch: WaveBatch, context: StepContext) -> StepOutcome:
        """The mean loss over the labels of a share of a batch."""
        skipped, self.unreported = (*self.unreported, *batch.skipped), ()
        if not len(batch):
            return StepOutcome(None, 0.0, skipped=skipped)
        if self.recipe.start.frozen:
            self.model.encoder.eval()  # no stochastic depth in what does not learn
        features, lengths = self.inputs(batch, context.device, training=True)
        with context.autocast():
            logits = model(features, lengths)
        targets = self.batch_targets(batch).to(context.device)
        if self.model.config.label_frames is None:
            logits = logits[:, None]
        # A last label may stand for a few frames that only fill a patch, or be of a second that no token covers.
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
        """Mean loss of logits against targets, both (answers, C); targets may be shares of several classes."""
        if self.binary:
            return F.binary_cross_entropy_with_logits(logits, targets)
        return F.cross_entropy(logits, targets, label_smoothing=self.recipe.loss.label_smoothing)

    def batch_targets(self, batch: WaveBatch) -> Tensor:
        """What is true of each clip of a batch, and of what was mixed into it: (B, S, C), NaN where nothing is known."""
        rows = [torch.from_numpy(self.data.targets[keys[0]]) for keys in batch.keys]
        for i, mixed in enumerate(batch.mixed):
            if mixed is not None:
                other = torch.from_numpy(self.data.targets[mixed.key])
                count = min(len(rows[i]), len(other))
                rows[i] = (1 - mixed.share) * rows[i][:count] + mixed.share * other[:count]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=float("nan"))

    def inputs(self, batch: WaveBatch, device: torch.device, *, training: bool) -> tuple[Tensor, Tensor]:
        """Normalized features (B, T, M) of a batch, changed at random while training, and their valid frames (B,)."""
        recipe, front_end, config = self.recipe, self.front_end, self.model.encoder.config
        waves, samples, seeds = (x.to(device, non_blocking=True) for x in (batch.waves, batch.samples, batch.seeds))
        features = fbank(waves, samples, config=front_end)
        heard = frame_lengths(samples, front_end)
        if training and recipe.augmentation.speed:
            features, heard = change_speed(features, seeds, recipe.augmentation.speed, heard, config.num_frames)
        if recipe.clips.short_clips == "pad":
            lengths = torch.full_like(heard, config.num_frames)
            shown = lengths  # silence counts, and is masked and rolled with the rest
        else:
            beyond = (heard - config.patch_size[1]).clamp(min=0)
            steps = torch.div(beyond + config.patch_stride[1] - 1, config.patch_stride[1], rounding_mode="floor")
            # The last patch is filled with frames of log-mel 0 and counts, as when a clip is embedded.
            lengths = steps * config.patch_stride[1] + config.patch_size[1]
            shown = heard
        missing = int(lengths.max()) - features.shape[1]
        features = F.pad(features, (0, 0, 0, missing)) if missing > 0 else features[:, : int(lengths.max())]
        if training:
            features = augment(features, seeds, recipe.augmentation, heard, front_end)
            # The original hides with a log-mel of 0, as it pads; ours with the mean.
            fill = 0.0 if recipe.clips.short_clips == "pad" else front_end.mean
            features = mask_stripes(features, seeds, recipe.spec_augment, shown, fill)
        features = normalize(features, front_end)
        if training:
            features = add_noise_and_roll(features, seeds, recipe.spec_augment, shown)
        return features, lengths.cpu()

    def after_step(self, step: int) -> None:
        """Nothing follows the weights."""

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Figures of merit on the validation clips, which the processes share; NaN where there are none."""
        nothing = {"loss": float("nan"), self.best_metric[0]: float("nan")}
        if not len(self.part.valid):
            return nothing
        assert isinstance(model, Classifier)
        answers = self.answers(model, self.part.valid)
        self.unreported = (*self.unreported, *answers.skipped)  # the log lists each once
        return self.figures(answers) if len(answers.logits) else nothing

    def answers(self, model: Classifier, clips: Ints) -> Answers:
        """What a model says of whole clips; in company each process hears its share, and all get all answers."""
        company = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if company else (0, 1)
        own = self._answers(model, clips[rank::world])
        if world == 1:
            return own
        parts: list[Any] = [None] * world
        torch.distributed.all_gather_object(parts, own)
        logits, targets, units, skipped = zip(*parts, strict=True)
        return Answers(
            np.concatenate(logits),
            np.concatenate(targets),
            np.concatenate(units),
            tuple(entry for part in skipped for entry in part),
        )

    def _answers(self, model: Classifier, clips: Ints) -> Answers:
        skipped: list[tuple[str, str]] = []
        corpus = self.data.corpus

        def waves() -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
            for i in map(int, clips):
                try:
                    wave = corpus.read(i)
                except (ValueError, OSError) as error:
                    skipped.append((corpus.key(i), str(error)))
                    continue
                yield i, wave

        embedder = Embedder(self.as_checkpoint(model), device=next(model.parameters()).device)
        found: dict[int, Tensor] = {}
        for i, result in embedder.logits_stream(waves()):
            if isinstance(result, Exception):
                skipped.append((corpus.key(i), str(result)))
            else:
                found[i] = result
        width = model.config.num_classes
        logits, targets = [np.zeros((0, width), np.float32)], [np.zeros((0, len(self.data.classes)), np.float32)]
        units = [np.zeros(0, np.int64)]
        files = np.unique(self.data.files, return_inverse=True)[1]
        for i in sorted(found):
            truth, said = self.data.targets_of(i), found[i].reshape(-1, width).numpy()
            count = min(len(truth), len(said))
            known = ~np.isnan(truth[:count]).any(1)
            logits.append(said[:count][known])
            targets.append(truth[:count][known])
            units.append(np.full(int(known.sum()), files[i], np.int64))
        return Answers(np.concatenate(logits), np.concatenate(targets), np.concatenate(units), tuple(skipped))

    def figures(self, answers: Answers) -> dict[str, float]:
        """Figures of merit of answers."""
        return figures_of_merit(answers.logits, answers.targets, multi=self.data.multi, binary_loss=self.binary)

    def pictures(self, model: nn.Module, step: int) -> Mapping[str, Any]:
        """None while training: the confusion is drawn at the end."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the model."""
        return {"clips": self.plan.fingerprint(), "classes": list(self.data.classes), "labels": self._labels_digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            DataError: the recordings or their labels are not those of the saved run.
        """
        if dict(state) != self.state_dict():
            raise DataError(
                "the recordings are not those of the saved run (clips or classes were added, removed or changed, or "
                "other clips train): resume with the same data, or start a new run in another folder"
            )

    @cached_property
    def _labels_digest(self) -> str:
        """Sixteen hexadecimal digits of which clips train, validate and test, and of what is true of each."""
        values: list[str | bytes] = []
        for clips in (self.part.train, self.part.valid, self.part.test):
            values.append(f"{len(clips)}\n")
            for i in map(int, clips):
                values.append(os.fsencode(self.data.corpus.key(i)) + b"\n" + self.data.targets_of(i).tobytes())
        return digest_of(*values)

    def as_checkpoint(self, model: Classifier) -> Checkpoint:
        """The classifier with everything that using it needs."""
        config = ModelConfig(kind="classifier", encoder=model.encoder.config, classifier=model.config)
        count = sum(p.numel() for p in model.parameters())
        return Checkpoint(model, config, self.front_end, LoadReport("in training", "classifier", count))

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the classifier, its labels inside, as a checkpoint folder."""
        assert isinstance(model, Classifier)
        save_checkpoint(folder, model, self.as_checkpoint(model).config, self.front_end)


def window_s(frames: int, front_end: FrontEndConfig) -> float:
    """Seconds of audio that make so many frames."""
    return ((frames - 1) * front_end.shift_samples + front_end.frame_samples) / front_end.sample_rate_hz
