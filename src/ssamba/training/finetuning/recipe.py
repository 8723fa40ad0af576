"""Recipe of a fine-tuning run: every setting, as one TOML file (`recipes/finetune/*.toml`).

The defaults are ours, for the user's own recordings; `official-*.toml` hold the original's settings for its tasks.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ssamba.audio.augmentation import Augmentation, SpecAugment
from ssamba.config import Config
from ssamba.data.mixing import Backgrounds, Mixup
from ssamba.training.recipes import Recipe
from ssamba.training.settings import OptimizerSettings, RunSettings, ScheduleSettings


class StartSettings(Config):
    """The model that training starts from."""

    checkpoint: str | None = Field(None, json_schema_extra={"since": 2})
    """A name (`ssamba models` lists them), a checkpoint or run folder, an official .pth file, or hf:OWNER/NAME. None
    means the default model, which ships with ssamba."""
    scratch: bool = False
    """Use the checkpoint's structure with random weights, to measure the benefit of pretraining."""
    frozen: bool = False
    """Freeze the encoder and train only the classifier."""
    fitted_head: bool = False
    """Initialize the classifier by logistic regression on the pretrained encoder; no effect with `scratch`."""
    patch_stride: int | tuple[int, int] | None = None
    """Stride of patches in mel bins and frames; 10 overlaps patches of 16. None means the checkpoint's."""
    front_end: str | None = Field(None, json_schema_extra={"since": 2})
    """Frequencies that the model hears: `16khz`, `48khz`, or `xN`, time expansion by N (`FrontEndConfig.named`). None
    means the checkpoint's."""
    drop_path: float | None = Field(None, ge=0, lt=1)
    """Stochastic depth; None means the checkpoint's, or 0 if the encoder is frozen."""
    pooling: Literal["mean", "cls"] = "mean"
    """Input of the classifier: the mean over patch tokens, or the prefix token."""


class LabelSettings(Config):
    """How labels relate to recordings."""

    unit: Literal["clip", "second"] = "clip"
    """Unit that labels describe. `second`: rows of the manifest are segments of recordings, and a second has the labels
    of the segment that covers more than half of it; seconds that none covers are ignored."""
    tokens: Literal["covering", "official"] = "covering"
    """Tokens that predict a second: those that cover it, or (the original) an equal part of the sequence, which is
    frequency-major."""
    kind: Literal["auto", "single", "multi"] = "auto"
    """One label per clip, or any number; `auto` follows the data."""


class ClipSettings(Config):
    """How recordings become batches."""

    frames: int | None = Field(None, gt=0)
    """Length of a crop in frames of 10 ms, and of the windows that longer recordings are cut into at inference; None
    means the checkpoint's."""
    short_clips: Literal["bucket", "pad"] = "bucket"
    """Shorter clips are batched by length, or (the original) padded with silence that counts as valid."""
    batch_size: int = Field(32, gt=0)
    """Clips of median length per batch, over all processes; batches of shorter clips hold more, of longer ones less."""
    crop: Literal["random", "start"] = "random"
    """Position of the crop in a longer clip: random, or (the original) the start."""
    balanced: bool = False
    """Sample all classes equally often; a clip with several labels counts for its rarest."""
    mixup: Mixup = Mixup()
    """Mixing of clips and their labels; none with a background, which lies under clips without a change of labels."""
    backgrounds: Backgrounds = Backgrounds()
    """Other clips mixed under the clips, whose labels do not change."""
    mean: float | None = None
    """Mean of the log-mel values for normalization; None means the checkpoint's."""
    std: float | None = Field(None, gt=0)
    """Their standard deviation."""
    valid_share: float = Field(0.15, ge=0, lt=1)
    """Share of the training clips to hold out for validation if the data have no `valid` split."""
    test_share: float = Field(0.2, ge=0, lt=1)
    """Share of the clips to hold out for testing if the data have no splits."""
    workers: int = Field(1, ge=0)
    """Data loading workers of each training process; 0 decodes in the training process."""
    cache_gb: float = Field(4.0, ge=0)
    """Memory for decoded audio in GB; a corpus that does not fit is decoded again each epoch."""


class LossSettings(Config):
    """The loss."""

    kind: Literal["auto", "ce", "bce"] = "auto"
    """Cross entropy over classes (softmax), or binary cross entropy for each class (sigmoid, independent labels).
    `auto` is `bce` if clips may have several labels, or if there is a background and at most 20 classes beside it."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing of the cross entropy."""


class BackgroundSettings(Config):
    """Use of the class "background" (`--background`, or a folder of that name), which is none of the others."""

    share: float = Field(0.25, gt=0, lt=1)
    """Share of the training sequences that are background alone."""
    mixed: Backgrounds = Backgrounds(share=0.7, below_db=(-12.0, 12.0))
    """Background mixed under the training clips, whose labels do not change."""
    windows: float = Field(0.5, ge=0, le=1)
    """Share of the clips with background under them that become a window as `predict --events` reads it, of the clips'
    median length: a shorter clip lies somewhere in the background, of a longer one a part with much of its sound is
    left."""


class ChoiceSettings(Config):
    """Model selection. Test clips never take part."""

    state: Literal["best", "last"] = "best"
    """The state with the best validation (see `metric`), or the last (for a fixed length; no validation clips are held
    out then)."""
    metric: Literal["auto", "accuracy", "balanced_accuracy", "mAP", "loss"] = "auto"
    """Validation metric: `auto` is accuracy, mean average precision if clips have several labels, or with a background
    the loss, of which the latest state within one standard error of the lowest is chosen."""


class FinishSettings(Config):
    """What happens after the test."""

    precision: float = Field(0.9, gt=0, le=1)
    """Precision that the threshold of each class is chosen for: of held-out clips, with a background of the events in
    scenes of these."""
    refit: bool = True
    """Train the final classifier on all labeled clips, for as many steps a clip as the chosen epochs were."""


class FinetuneRecipe(Recipe):
    """Every setting of a fine-tuning run."""

    command = "finetune"

    start: StartSettings = StartSettings()
    """The initial model."""
    labels: LabelSettings = LabelSettings()
    """Labels."""
    clips: ClipSettings = ClipSettings()
    """Crops and batches."""
    augmentation: Augmentation = Augmentation()
    """Augmentation of the features."""
    spec_augment: SpecAugment = SpecAugment()
    """Masked stripes of the features; with a background of mel bins alone, because it hides parts of clips as well."""
    loss: LossSettings = LossSettings()
    """Loss."""
    background: BackgroundSettings = BackgroundSettings()
    """Use of the class "background", if there is one."""
    choice: ChoiceSettings = ChoiceSettings()
    """Model selection."""
    finish: FinishSettings = FinishSettings()
    """After the test."""
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=5e-4, layer_decay=0.8)
    """The optimizer."""
    schedule: ScheduleSettings = ScheduleSettings(warmup_steps=50)
    """The learning rate over the run."""
    run: RunSettings = RunSettings(epochs=50, validate_every="epoch", patience=10, ema_decay=0.99, keep_last=1)
    """Length of the training of each fold, precision, checkpoints, logs."""

    @model_validator(mode="after")
    def _check(self) -> FinetuneRecipe:
        labels, clips = self.labels, self.clips
        if labels.tokens == "official" and (labels.unit != "second" or clips.short_clips != "pad"):
            raise ValueError("labels.tokens = 'official' needs labels.unit = 'second' and clips.short_clips = 'pad'")
        if labels.unit == "second" and self.start.pooling != "mean":
            raise ValueError("labels.unit = 'second' needs start.pooling = 'mean'")
        if labels.unit == "second" and clips.balanced:
            raise ValueError(
                "clips.balanced samples whole clips by their label: it cannot be combined with labels.unit = 'second'"
            )
        if labels.unit == "second" and clips.mixup.share:
            raise ValueError("clips.mixup crops clips at random: it cannot be combined with labels.unit = 'second'")
        if labels.unit == "second" and self.augmentation.speed:
            raise ValueError(
                "augmentation.speed shifts sounds in time: it cannot be combined with labels.unit = 'second'"
            )
        if labels.kind == "multi" and self.loss.kind == "ce":
            raise ValueError("loss.kind = 'ce' needs one label per clip: use 'bce' for several labels")
        return self

    def batch_size_setting(self, clips: int) -> tuple[str, Any]:
        """Return key and value of the setting that makes a batch of this many clips."""
        return "clips.batch_size", clips
