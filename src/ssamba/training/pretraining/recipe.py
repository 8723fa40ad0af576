"""Recipe of a pretraining run: every setting, as one TOML file that is saved beside the results.

The defaults are ours; `recipes/pretrain/official.toml` holds the settings of the original.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ssamba.audio.augmentation import Augmentation
from ssamba.config import (
    BaseEncoderConfig,
    Config,
    EncoderConfig,
    FrontEndConfig,
    ModelConfig,
    PretrainingConfig,
    SSASTConfig,
)
from ssamba.data.mixing import Backgrounds
from ssamba.errors import ConfigError
from ssamba.model.create import SIZES, encoder_config
from ssamba.model.masking import DEFAULT_MASK_RATIO, MaskStyle
from ssamba.training.recipes import Recipe
from ssamba.training.settings import RunSettings

_RECORDED = ("objectives", "own_objectives", "own_augmentations", "masking", "views", "augmentation")
_ABOUT_LABELS = "views.same_label_share"  # of the recordings at hand: a model that goes on from one has others
_RECORDED_OF_DATA = ("crop_s", "crop", "short_clips", "grouped_share", "backgrounds")
_WITH_MODEL_SETTINGS = ("statistics", "profile", "texture", "units", "teacher")
OBJECTIVE_NAMES = ("discriminative", "generative", "clip", *_WITH_MODEL_SETTINGS, "parts", "part_units", "voice")
"""The objectives that come with ssamba."""
LABELS_NEED_CLIP = (
    "views.same_label_share goes with objectives.clip, which contrasts two views of each clip: give that a weight "
    "above 0, views.count = 2 and data.short_clips = 'bucket' (the recipe laptop has them)"
)


class ModelSettings(Config):
    """The encoder to train."""

    size: Literal["tiny", "small", "base"] = "tiny"
    """Width of the encoder: 192, 384 or 768."""
    variant: str = "ssamba2"
    """Structure: `official`, `ssamba2` (ours), or an SSAST (see `ssamba.create_encoder`)."""
    encoder: dict[str, Any] = Field(default_factory=dict)
    """Fields of the encoder's configuration to change."""
    start: str | None = None
    """Model to start from: a name (`ssamba models` lists them), a checkpoint or run folder, or hf:OWNER/NAME; None
    starts from random weights."""

    @model_validator(mode="after")
    def _check(self) -> ModelSettings:
        try:
            self.config()
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    def config(self) -> EncoderConfig | SSASTConfig:
        """Return the encoder's configuration."""
        return encoder_config(self.size, self.variant, **self.encoder)


class DataSettings(Config):
    """How recordings become batches."""

    crop_s: float = Field(10.24, gt=0)
    """Length of a crop in seconds: longer recordings are cropped to it."""
    crop: Literal["random", "start"] = "random"
    """Position of the crop in a longer recording: random, or (the original) the start."""
    short_clips: Literal["join", "bucket", "pad"] = "bucket"
    """Clips shorter than `crop_s` are joined in time, batched by length, or (the original) padded."""
    batch_s: float = Field(640.0, gt=0)
    """Seconds of audio in a batch, over all processes."""
    shuffle_window: int | None = Field(None, gt=0)
    """Read shards one after the other, in a new order each epoch, and shuffle clips within this many shards: for
    storage that is slow at random access. None shuffles all clips."""
    weights: tuple[float, ...] | None = None
    """Sampling weight of each corpus; None weights corpora by their length."""
    valid_share: float = Field(0.02, ge=0, lt=1)
    """Share of the clips to hold out for validation where a corpus has no `valid` split; at least one of ten."""
    grouped_share: float = Field(0.0, ge=0, le=1, json_schema_extra={"since": 2})
    """Share of the groups of clips that fill batches of their own, for contrasts between clips of one voice or place: a
    clip's group, else its first label, else its folder. Which ones is drawn anew for every 64 batches."""
    backgrounds: Backgrounds = Backgrounds()
    """Other clips mixed under the clips."""
    workers: int = Field(1, ge=0)
    """Data loading workers of each training process; 0 decodes in the training process."""
    cache_gb: float = Field(4.0, ge=0)
    """Memory for decoded audio in GB; a corpus that does not fit is decoded again each epoch."""


class MaskSettings(Config):
    """Which patches are masked. Give `ratio` or `count`, not both."""

    ratio: float | None = Field(None, gt=0, lt=1)
    """Share of a clip's patches to mask; without `ratio` and `count` it is 400 / 512."""
    count: int | None = Field(None, gt=0)
    """Patches to mask of a full crop of `data.crop_s`; of shorter clips the same share is masked. A crop of 10.24 s has
    512 patches of 16 mel bins x 16 frames (the original's)."""
    style: MaskStyle | None = None
    """`clustered`, `frames`, or `official`; None means `frames` for SSAST's frame model and `clustered` otherwise."""

    @model_validator(mode="after")
    def _check(self) -> MaskSettings:
        if self.ratio is not None and self.count is not None:
            raise ValueError(
                f"masking.ratio = {self.ratio:g} and masking.count = {self.count} exclude each other: give one of them"
            )
        return self


class OtherVoice(Config):
    """Another voice in the second view of some clips (`ssamba.audio.augmentation.change_voice`)."""

    share: float = Field(0.0, ge=0, le=1)
    """Share of the clips."""
    formants: float = Field(0.25, ge=0, le=1)
    """Largest stretch of the spectral envelope, as in `augmentation`."""
    pitch: float = Field(0.5, ge=0, le=3)
    """Largest stretch of the harmonics, as in `augmentation`."""


class MixedView(Config):
    """A second view with another clip of the batch in it: both clips are positives of the clip objective."""

    share: float = Field(0.0, ge=0, le=1)
    """Share of the clips."""
    below_db: tuple[float, float] = (0.0, 5.0)
    """Level of the other clip below the clip's own, by mean power over time, uniform between these, dB."""

    @model_validator(mode="after")
    def _check(self) -> MixedView:
        if not self.below_db[0] <= self.below_db[1]:
            raise ValueError(f"below_db must rise, got {self.below_db}")
        return self


class ViewSettings(Config):
    """The views of a clip that the clip objective compares; one view is the whole crop."""

    count: Literal[1, 2] = 1
    """Views of each clip."""
    longest_s: float = Field(10.24, gt=0)
    """Maximum length of a view in seconds."""
    shortest_share: float = Field(0.7, gt=0, le=1)
    """Minimum length of a view, as a share of the clip (or of the longest view)."""
    whole_s: float = Field(0.0, ge=0)
    """Clips up to this many seconds are not cropped, since a hit without its onset is another sound."""
    same_label_share: float = Field(0.0, ge=0, le=1)
    """Share of the clips with labels whose second view is of another clip of the corpus with the same labels, if there
    is one: the same word by another voice, the same call elsewhere. Above 0, all clips with the same labels in a batch
    are positives of the objectives clip and parts."""
    other_voice: OtherVoice = OtherVoice()
    """Another voice in the second view."""
    mixed: MixedView = MixedView()
    """Another clip in the second view."""


class ObjectiveSettings(Config):
    """The objectives that come with ssamba: a weight for each (0 switches it off) and their parameters."""

    discriminative: float = Field(1.0, ge=0)
    """InfoNCE between the masked patches of a clip."""
    generative: float = Field(10.0, ge=0)
    """Mean squared error of the masked patches."""
    clip: float = Field(0.0, ge=0)
    """Contrastive loss between two views of each clip (ours)."""
    temperature: float = Field(0.1, gt=0)
    """Temperature of the objectives that contrast views: clip, parts and voice."""
    clip_queue: int = Field(0, ge=0)
    """Views of earlier batches that are negatives of the clip objective, too."""
    parts: float = Field(0.0, ge=0)
    """Contrastive loss between equal thirds of the sounding region of two views of each clip (ours)."""
    part_units: float = Field(0.0, ge=0)
    """Cross entropy of the shares of sound units in each third of the sounding region (ours); needs `units`."""
    voice: float = Field(0.0, ge=0)
    """Contrastive loss between the first and the last third of a clip, which a voice has in common and words do not;
    where a view has another voice, it counts as another clip (ours)."""
    statistics: float = Field(0.0, ge=0)
    """Squared error of the clip's log-mel statistics, predicted from its vector (ours)."""
    profile: float = Field(0.0, ge=0)
    """Squared error of the mean spectra of the clip's segments, predicted from its vector (ours)."""
    profile_segments: int = Field(4, gt=0)
    """Segments of equal length for `profile`."""
    profile_target: Literal["heard", "clean"] = "heard"
    """`heard`: spectra after augmentation, level and color included; `clean`: spectra before augmentation, within 40 dB
    and less the clip's mean spectrum, so that voices, rooms and noise floors matter less than content."""
    texture: float = Field(0.0, ge=0)
    """Squared error of how the clip's spectra vary over time and along frequency, predicted from its vector (ours)."""
    units: float = Field(0.0, ge=0)
    """Cross entropy of the sound unit of each patch before augmentation (ours, after HuBERT)."""
    unit_count: int = Field(512, gt=1)
    """Number of sound units: k-means clusters of the training clips, computed when a run starts."""
    units_from: str | None = None
    """A model whose hidden states are clustered, as in HuBERT's second iteration; None clusters spectra."""
    units_layer: float = Field(0.5, ge=0, le=1)
    """Which layer of `units_from`, as a share of its depth."""
    teacher: float = Field(0.0, ge=0)
    """Squared error of the momentum teacher's tokens at the masked patches (ours)."""
    teacher_decay: float = Field(0.99, gt=0, lt=1)
    """Momentum of the teacher at the start; it rises to 1 with the square root of the steps."""
    passes: Literal[1, 2] = 1
    """Encoder passes: one for all objectives, or (the original) one for each of the two patch objectives."""
    encode: Literal["all", "visible"] = "visible"
    """Whether the encoder reads mask tokens (`all`, the original) or visible patches only."""
    decoder_depth: int = Field(1, ge=0)
    """Blocks of the decoder if only visible patches are encoded."""
    normalize_targets: bool = True
    """Whether each target patch is normalized."""
    clip_dim: int = Field(128, gt=0)
    """Width of the clip objective's projection."""


class AdaptSettings(Config):
    """Going on from a model with other recordings, without forgetting what it knows. RUN/model is then the model of the
    best validation."""

    original_objectives: bool = True
    """Take objectives, masks, views, augmentation and crops from the model that training starts from, as far as it
    records them (`ModelConfig.recipe`) or has heads for them; settings that are set by `--set` stay."""


class PretrainRecipe(Recipe):
    """Every setting of a pretraining run."""

    command = "pretrain"
    alternatives = (("masking.ratio", "masking.count"),)

    model: ModelSettings = ModelSettings()
    """The encoder."""
    front_end: FrontEndConfig = FrontEndConfig()
    """From waveform to features."""
    data: DataSettings = DataSettings()
    """Crops and batches."""
    masking: MaskSettings = MaskSettings()
    """Masked patches."""
    views: ViewSettings = ViewSettings()
    """Views of a clip."""
    augmentation: Augmentation = Augmentation()
    """Augmentation of the features."""
    objectives: ObjectiveSettings = ObjectiveSettings()
    """Training objective."""
    own_objectives: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Objectives that do not come with ssamba (`ssamba.Objective`), by name: settings of each."""
    own_augmentations: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Augmentations that do not come with ssamba (`ssamba.FeatureAugmentation`), by name: settings of each."""
    adapt: AdaptSettings | None = None
    """Given if the run goes on from a model (`ssamba pretrain -c MODEL --recipe adapt`)."""
    validation_counts: tuple[Annotated[int, Field(gt=0, lt=512)], ...] = Field((250, 300, 400), min_length=1)
    """Masked patches of 512 at which validation is reported."""
    best: Literal["loss", "accuracy"] = "loss"
    """Validation metric that chooses the best state, at the count nearest to the masked share: the weighted sum of the
    objectives, or (the original) the accuracy of InfoNCE."""
    run: RunSettings = RunSettings(epochs=10, picture_every=1000)
    """Length, precision, checkpoints, logs."""

    @model_validator(mode="after")
    def _check(self) -> PretrainRecipe:
        objectives, encoder = self.objectives, self.model.config()
        if objectives.clip and self.views.count != 2:
            raise ValueError("objectives.clip compares two views of each clip: set views.count = 2")
        if objectives.clip and self.data.short_clips == "join":
            raise ValueError("objectives.clip needs one clip to a sequence: set data.short_clips = 'bucket'")
        if self.data.grouped_share and self.data.short_clips != "bucket":
            raise ValueError("data.grouped_share is about batches of single clips: set data.short_clips = 'bucket'")
        if self.views.same_label_share and not objectives.clip and self.adapt is None:  # which may get it later
            raise ValueError(LABELS_NEED_CLIP)
        if objectives.clip and objectives.passes == 2:
            raise ValueError("objectives.passes = 2 is the original's, which has no clip objective")
        for name in ("parts", "voice"):
            if getattr(objectives, name) and not objectives.clip:
                raise ValueError(f"objectives.{name} goes with objectives.clip: give that a weight above 0")
        if objectives.part_units and not objectives.units:
            raise ValueError("objectives.part_units has the units of objectives.units: give that a weight above 0")
        own = any(settings.get("weight", 1) for settings in self.own_objectives.values())
        if not (own or any(getattr(objectives, name) for name in OBJECTIVE_NAMES)):
            raise ValueError("every objective has weight 0: nothing would be learned")
        if self.front_end.num_mel_bins != encoder.num_mel_bins:
            raise ValueError(
                f"front_end.num_mel_bins = {self.front_end.num_mel_bins}, but the encoder takes "
                f"{encoder.num_mel_bins}: set model.encoder.num_mel_bins to the same value"
            )
        if self.data.crop_s * 1000 < self.front_end.frame_ms:
            raise ValueError(
                f"data.crop_s = {self.data.crop_s:g} s is shorter than one frame of {self.front_end.frame_ms:g} ms"
            )
        if self.masking.count is not None and self.masking.count >= self._crop_patches():
            raise ValueError(
                f"masking.count = {self.masking.count}, but a crop of {self.data.crop_s:g} s has "
                f"{self._crop_patches()} patches: at least one must stay visible"
            )
        return self

    @property
    def mask_ratio(self) -> float:
        """Share of a clip's patches to mask, whichever way the recipe gives it."""
        if self.masking.count is not None:
            return self.masking.count / self._crop_patches()
        return DEFAULT_MASK_RATIO if self.masking.ratio is None else self.masking.ratio

    def _crop_patches(self) -> int:
        """Patches of a full crop, the last column filled up."""
        encoder = self.model.config()
        frames = self.front_end.num_frames(round(self.data.crop_s * self.front_end.sample_rate_hz))
        return encoder.rows * encoder.columns_covering(frames)

    def batch_size_setting(self, clips: int) -> tuple[str, Any]:
        """Return key and value of the setting that makes a batch of this many crops."""
        return "data.batch_s", clips * self.data.crop_s

    def starting_from(
        self, start: str, encoder: BaseEncoderConfig, front_end: FrontEndConfig, given: Collection[str]
    ) -> PretrainRecipe:
        """Return a copy that starts from a checkpoint, with its encoder and front end.

        Stochastic depth, which is a setting of the training, stays.

        Args:
            start: name or path of the checkpoint.
            encoder: its encoder.
            front_end: its front end.
            given: keys that the user set, which must agree with the checkpoint.

        Raises:
            ConfigError: they contradict it; every difference is named.
        """
        own = self.model.config()
        encoder = encoder.with_changes(drop_path=own.drop_path)
        theirs = {
            **{f"model.encoder.{key}": value for key, value in encoder.model_dump().items()},
            **{f"front_end.{key}": value for key, value in front_end.model_dump().items()},
        }
        ours = {
            **{f"model.encoder.{key}": value for key, value in own.model_dump().items()},
            **{f"front_end.{key}": value for key, value in self.front_end.model_dump().items()},
        }
        keys = {*given, *({"model.encoder.embed_dim"} if "model.size" in given else ())}
        keys |= {"model.encoder.variant"} if "model.variant" in given else set()
        wrong = [
            f"{key} is {theirs.get(key, 'absent')!r} there, and {ours[key]!r} is given"
            for key in sorted(keys & ours.keys())
            if ours[key] != theirs.get(key)
        ]
        if wrong:
            raise ConfigError(f"{start} has another encoder or front end: {'; '.join(wrong)}. Leave these settings out")
        model = {**settings_of_encoder(encoder), "start": start}
        return self.with_changes(model=model, front_end=front_end.model_dump())

    def task_settings(self) -> dict[str, Any]:
        """Return the settings of the task as plain values; masking is always given by its ratio."""
        return {**super().task_settings(), "masking": {"ratio": self.mask_ratio, "style": self.masking.style}}

    def recorded(self) -> dict[str, Any]:
        """Return the sections that a checkpoint records (`ModelConfig.recipe`)."""
        values = self.task_settings()
        sections = {name: values[name] for name in _RECORDED if values[name]}
        return sections | {"data": {name: values["data"][name] for name in _RECORDED_OF_DATA}}

    def with_original_objectives(self, start: ModelConfig, given: Collection[str]) -> PretrainRecipe:
        """Return a copy with the objectives that a model was pretrained with, for `adapt.original_objectives`.

        Of a model that does not record them, the objectives are those that it has heads for, with their usual weights,
        and all else is this recipe's.

        Args:
            start: the model that training starts from.
            given: keys that the user set, which stay.
        """
        heads, original = start.pretraining, start.recipe
        if original is None:
            if heads is None:
                return self
            own: dict[str, Any] = {
                "encode": heads.encode,
                "normalize_targets": heads.normalize_targets,
                **({"decoder_depth": heads.decoder_depth} if heads.decoder_depth else {}),
                "discriminative": 1.0,
                "generative": 10.0,
                "clip": float(heads.clip_dim > 0),
                **{name: float(bool(getattr(heads, name))) for name in _WITH_MODEL_SETTINGS},
            }
            sizes = {"clip_dim": heads.clip_dim, "profile_segments": heads.profile, "unit_count": heads.units}
            own |= {name: size for name, size in sizes.items() if size}
            original = {"objectives": own, "views": {"count": 2} if heads.clip_dim else {}}
        if "masking.count" in given:
            given = {*given, "masking.ratio"}
        changes = {
            f"{section}.{key}": value
            for section, values in original.items()
            for key, value in values.items()
            if f"{section}.{key}" != _ABOUT_LABELS
            and not any(name in (section, f"{section}.{key}") or name.startswith(f"{section}.{key}.") for name in given)
        }
        return self.with_values(changes)

    def pretraining(self) -> PretrainingConfig:
        """Return the configuration of the heads and the decoder on the encoder."""
        objectives = self.objectives
        return PretrainingConfig(
            encode=objectives.encode,
            decoder_depth=objectives.decoder_depth if objectives.encode == "visible" else 0,
            normalize_targets=objectives.normalize_targets,
            clip_dim=objectives.clip_dim if objectives.clip else 0,
            statistics=objectives.statistics > 0,
            profile=objectives.profile_segments if objectives.profile else 0,
            texture=objectives.texture > 0,
            units=objectives.unit_count if objectives.units else 0,
            teacher=objectives.teacher > 0,
        )


def settings_of_encoder(encoder: BaseEncoderConfig) -> dict[str, Any]:
    """Return `size`, `variant` and `encoder` of the `ModelSettings` that describe an encoder."""
    sizes = {values["embed_dim"]: size for size, values in SIZES.items()}
    size = sizes.get(encoder.embed_dim, "tiny")
    variant = encoder.variant if isinstance(encoder, EncoderConfig) else "ssast"
    values, default = encoder.model_dump(), encoder_config(size, variant).model_dump()
    changes = {key: value for key, value in values.items() if value != default[key]}
    if changes.keys() & {"patch_size", "patch_stride"}:  # the stride follows from a size that is changed alone
        changes |= {key: values[key] for key in ("patch_size", "patch_stride")}
    return {"size": size, "variant": variant, "encoder": changes}
