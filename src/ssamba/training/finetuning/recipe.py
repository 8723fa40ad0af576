"""A fine-tuning recipe: everything that decides how a pretrained encoder learns labels (`recipes/finetune/*.toml`).

The defaults are ours, for recordings of one's own; `official-*.toml` hold the original's settings for its tasks.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ssamba.audio.augmentation import Augmentation, SpecAugment
from ssamba.config import Config
from ssamba.data.mixing import Backgrounds, Mixup
from ssamba.training.recipes import Recipe
from ssamba.training.settings import OptimizerSettings, RunSettings, ScheduleSettings


class StartSettings(Config):
    """What training starts from."""

    scratch: bool = False
    """Keep the checkpoint's structure and forget its weights, to see what pretraining is worth."""
    frozen: bool = False
    """Leave the encoder as it is, and train the classifier on it alone."""
    fitted_head: bool = False
    """Fit the classifier to the encoder as it is (logistic regression) before the encoder changes; from scratch there is
    nothing to fit it to."""
    patch_stride: int | tuple[int, int] | None = None
    """Distance between patches in mel bins and frames; 10 overlaps patches of 16. None is the checkpoint's."""
    drop_path: float | None = Field(None, ge=0, lt=1)
    """Stochastic depth; None is the checkpoint's, 0 where the encoder is frozen."""
    pooling: Literal["mean", "cls"] = "mean"
    """What the classifier reads: the mean over patch tokens, or the prefix token."""


class LabelSettings(Config):
    """What a label is of."""

    unit: Literal["clip", "second"] = "clip"
    """`second`: rows of the manifest are stretches of recordings, and every second has the labels of the stretch that
    covers more than half of it; a second that none covers counts nowhere."""
    tokens: Literal["covering", "official"] = "covering"
    """Second: the tokens that cover it, or (the original) an equal part of the sequence, which is frequency-major."""
    kind: Literal["auto", "single", "multi"] = "auto"
    """Whether a clip has one label or any number; `auto` looks."""


class ClipSettings(Config):
    """How recordings become batches."""

    frames: int | None = Field(None, gt=0)
    """Longest stretch that is used at once, in frames of 10 ms, and the window of longer recordings afterwards; None is
    the checkpoint's."""
    short_clips: Literal["bucket", "pad"] = "bucket"
    """Shorter clips are batched with their like, or (the original) filled up with silence that counts."""
    batch_size: int = Field(32, gt=0)
    """Clips of middling length in a batch, over all processes; a batch of shorter ones has more, one of longer ones fewer."""
    crop: Literal["random", "start"] = "random"
    """Which stretch of a longer clip: any, or (the original) its first."""
    balanced: bool = False
    """Draw every class equally often; a clip with several labels stands for its rarest."""
    mixup: Mixup = Mixup()
    """Mixing clips and their labels."""
    backgrounds: Backgrounds = Backgrounds()
    """Mixing clips under clips, whose labels stay as they are."""
    mean: float | None = None
    """Mean of the log-mel values for normalization; None is the checkpoint's."""
    std: float | None = Field(None, gt=0)
    """Their standard deviation."""
    valid_share: float = Field(0.15, ge=0, lt=1)
    """Share of the training clips that validates where the data have no `valid` split."""
    test_share: float = Field(0.2, ge=0, lt=1)
    """Share of the clips that tests where the data have no split at all."""
    workers: int = Field(1, ge=0)
    """Decoding processes of each training process; 0 decodes in the training process."""
    cache_gb: float = Field(4.0, ge=0)
    """Decoded audio is kept in memory when it all fits into so much."""


class LossSettings(Config):
    """What is minimized."""

    kind: Literal["auto", "ce", "bce"] = "auto"
    """Cross entropy over classes, or binary for each class; `auto`: by whether clips have one label or several."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Cross entropy: share of each target that is spread over all classes."""


class ChoiceSettings(Config):
    """Which state of a run is kept. Test clips never take part."""

    state: Literal["best", "last"] = "best"
    """By validation, or the last (for recipes with a fixed length; then nothing is held out for validation)."""
    metric: Literal["auto", "accuracy", "balanced_accuracy", "mAP", "loss"] = "auto"
    """What validation is judged by: `auto` is accuracy, or mean average precision with several labels."""


class FinetuneRecipe(Recipe):
    """Every setting of a fine-tuning run."""

    command = "finetune"

    start: StartSettings = StartSettings()
    """What it starts from."""
    labels: LabelSettings = LabelSettings()
    """What a label is of."""
    clips: ClipSettings = ClipSettings()
    """Batches."""
    augmentation: Augmentation = Augmentation()
    """Changes of what is heard."""
    spec_augment: SpecAugment = SpecAugment()
    """What is hidden of it."""
    loss: LossSettings = LossSettings()
    """What is minimized."""
    choice: ChoiceSettings = ChoiceSettings()
    """Which state is kept."""
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=5e-4, layer_decay=0.8)
    """The optimizer."""
    schedule: ScheduleSettings = ScheduleSettings(warmup_steps=50)
    """The learning rate."""
    run: RunSettings = RunSettings(epochs=50, validate_every="epoch", patience=10, ema_decay=0.99, keep_last=1)
    """Length of each round (fold), precision, checkpoints, logs."""

    @model_validator(mode="after")
    def _check(self) -> FinetuneRecipe:
        labels, clips = self.labels, self.clips
        if labels.tokens == "official" and (labels.unit != "second" or clips.short_clips != "pad"):
            raise ValueError("labels.tokens = 'official' needs labels.unit = 'second' and clips.short_clips = 'pad'")
        if labels.unit == "second" and self.start.pooling != "mean":
            raise ValueError("labels.unit = 'second' needs start.pooling = 'mean'")
        if labels.unit == "second" and clips.balanced:
            raise ValueError(
                "clips.balanced draws whole clips by their label: it does not go with labels.unit = 'second'"
            )
        if labels.unit == "second" and clips.mixup.share:
            raise ValueError("clips.mixup cuts clips anywhere: it does not go with labels.unit = 'second'")
        if labels.unit == "second" and self.augmentation.speed:
            raise ValueError(
                "augmentation.speed moves what is heard in time: it does not go with labels.unit = 'second'"
            )
        if labels.kind == "multi" and self.loss.kind == "ce":
            raise ValueError("loss.kind = 'ce' has one class in each clip: several labels need 'bce'")
        return self
