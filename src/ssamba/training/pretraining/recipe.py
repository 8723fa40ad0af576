"""A pretraining recipe: everything that decides a run, as one file (`recipes/*.toml`) that is saved beside its results.

The defaults are ours; `recipes/official-*.toml` hold the original's settings.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ssamba.audio.augmentation import Augmentation
from ssamba.config import Config, EncoderConfig, FrontEndConfig, PretrainingConfig, SSASTConfig
from ssamba.data.mixing import Backgrounds
from ssamba.errors import ConfigError
from ssamba.model.create import encoder_config
from ssamba.model.masking import MaskStyle
from ssamba.training.settings import OptimizerSettings, RunSettings, ScheduleSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class ModelSettings(Config):
    """Which encoder is trained."""

    size: Literal["tiny", "small", "base"] = "tiny"
    """Width of the encoder: 192, 384 or 768."""
    variant: str = "ssamba2"
    """Structure: `official`, `ssamba2` (ours), or an SSAST (see `ssamba.create_encoder`)."""
    encoder: dict[str, Any] = Field(default_factory=dict)
    """Fields of the encoder's configuration to change."""
    start: str | None = None
    """Checkpoint to start from, or `shipped`: the weights that come with ssamba. None starts from random weights."""

    @model_validator(mode="after")
    def _check(self) -> ModelSettings:
        try:
            self.config()
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    def config(self) -> EncoderConfig | SSASTConfig:
        """The encoder's configuration."""
        return encoder_config(self.size, self.variant, **self.encoder)


class DataSettings(Config):
    """How recordings become batches."""

    crop_s: float = Field(10.24, gt=0)
    """Longest stretch of a recording that is used at once, seconds."""
    crop: Literal["random", "start"] = "random"
    """Where in a longer recording that stretch is: anywhere, or (the original) at its start."""
    short_clips: Literal["join", "bucket", "pad"] = "bucket"
    """Clips shorter than that: joined in time, put in batches of clips of like length, or padded (the original)."""
    batch_s: float = Field(640.0, gt=0)
    """Seconds of audio in a batch, over all processes."""
    shuffle_window: int | None = Field(None, gt=0)
    """Shards are read one after the other, in a new order in each epoch, and clips are shuffled within so many of them: for disks and
    networks that are slow at random access. None shuffles all clips."""
    weights: tuple[float, ...] | None = None
    """Shares of several corpora; None is by their length."""
    valid_share: float = Field(0.02, ge=0, lt=1)
    """Share of the clips that is held out for validation where the corpus has no `valid` split."""
    backgrounds: Backgrounds = Backgrounds()
    """Other clips mixed under the clips."""
    workers: int = Field(1, ge=0)
    """Decoding processes of each training process; 0 decodes in the training process."""
    cache_gb: float = Field(4.0, ge=0)
    """Decoded audio is kept in memory when it all fits into so much."""


class MaskSettings(Config):
    """What is hidden."""

    ratio: float = Field(400 / 512, gt=0, lt=1)
    """Share of a clip's patches."""
    style: MaskStyle | None = None
    """`clustered`, `frames`, or `official`; left out, `frames` for SSAST's frame model and else `clustered`."""


class ViewSettings(Config):
    """The views of a clip that the clip objective compares; one view is the whole crop."""

    count: Literal[1, 2] = 1
    """Views of each clip."""
    longest_s: float = Field(10.24, gt=0)
    """Longest view, seconds."""
    shortest_share: float = Field(0.7, gt=0, le=1)
    """A view is at least this share of the clip (or of the longest view)."""
    whole_s: float = Field(0.0, ge=0)
    """Clips of at most so many seconds are not cut: a hit without its beginning is another sound."""


class ObjectiveSettings(Config):
    """What is minimized: weights of the objectives, 0 leaves one out."""

    discriminative: float = Field(1.0, ge=0)
    """InfoNCE between the hidden patches of a clip."""
    generative: float = Field(10.0, ge=0)
    """Mean squared error of the hidden patches."""
    clip: float = Field(0.0, ge=0)
    """Contrast between two views of each clip (ours)."""
    temperature: float = Field(0.1, gt=0)
    """Of the clip objective."""
    statistics: float = Field(0.0, ge=0)
    """Squared error of the clip's log-mel statistics, predicted from its vector (ours)."""
    profile: float = Field(0.0, ge=0)
    """Squared error of the mean spectra of the clip's segments, predicted from its vector (ours)."""
    profile_segments: int = Field(4, gt=0)
    """Segments of equal length that a clip is cut into for it."""
    profile_target: Literal["heard", "clean"] = "heard"
    """`heard`: as augmented, level and color included; `clean`: as it was before, within 40 dB and less the clip's mean
    spectrum, so that voices, rooms and noise floors matter less than what is said."""
    texture: float = Field(0.0, ge=0)
    """Squared error of how the clip's spectra vary over time and along frequency, predicted from its vector (ours)."""
    units: float = Field(0.0, ge=0)
    """Cross entropy of the class of sound of each patch, heard as it was before augmentation (ours, after HuBERT)."""
    unit_count: int = Field(512, gt=1)
    """Classes of sound: clusters that are found in the training clips when a run starts."""
    teacher: float = Field(0.0, ge=0)
    """Squared error of the momentum teacher's tokens at the hidden patches (ours)."""
    teacher_decay: float = Field(0.99, gt=0, lt=1)
    """Momentum of the teacher at the start; it rises to 1 with the square root of the steps."""
    passes: Literal[1, 2] = 1
    """One encoder pass serves all objectives; the original takes one each, with a mask of its own."""
    encode: Literal["all", "visible"] = "visible"
    """Whether the encoder reads mask tokens (the original) or visible patches only."""
    decoder_depth: int = Field(1, ge=0)
    """Blocks of the decoder when only visible patches are encoded."""
    normalize_targets: bool = True
    """Whether target patches are normalized one by one."""
    clip_dim: int = Field(128, gt=0)
    """Outputs of the clip objective's projection."""


class PretrainRecipe(Config):
    """A whole pretraining run."""

    model: ModelSettings = ModelSettings()
    """Which encoder."""
    front_end: FrontEndConfig = FrontEndConfig()
    """From waveform to features."""
    data: DataSettings = DataSettings()
    """Batches."""
    masking: MaskSettings = MaskSettings()
    """What is hidden."""
    views: ViewSettings = ViewSettings()
    """Views of a clip."""
    augmentation: Augmentation = Augmentation()
    """Changes of what is heard."""
    objectives: ObjectiveSettings = ObjectiveSettings()
    """What is minimized."""
    validation_counts: tuple[int, ...] = (250, 300, 400)
    """Masked patches of 512 at which validation is reported."""
    best: Literal["loss", "accuracy"] = "loss"
    """What is best in validation, at the count nearest to the masked share: the sum of all objectives, or (the original) how often
    the right patch is picked."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """The optimizer."""
    schedule: ScheduleSettings = ScheduleSettings()
    """The learning rate."""
    run: RunSettings = RunSettings(epochs=10)
    """Length, precision, checkpoints, logs."""

    @model_validator(mode="after")
    def _check(self) -> PretrainRecipe:
        objectives = self.objectives
        if objectives.clip and self.views.count != 2:
            raise ValueError("objectives.clip compares two views of each clip: set views.count = 2")
        if objectives.clip and self.data.short_clips == "join":
            raise ValueError("objectives.clip needs one clip to a sequence: set data.short_clips = 'bucket'")
        if objectives.clip and objectives.passes == 2:
            raise ValueError("objectives.passes = 2 is the original's, which has no clip objective")
        learned = (
            objectives.discriminative,
            objectives.generative,
            objectives.clip,
            objectives.statistics,
            objectives.profile,
            objectives.texture,
            objectives.units,
            objectives.teacher,
        )
        if not any(learned):
            raise ValueError("every objective has weight 0: nothing would be learned")
        if self.front_end.num_mel_bins != self.model.config().num_mel_bins:
            raise ValueError(
                f"front_end.num_mel_bins = {self.front_end.num_mel_bins}, but the encoder takes "
                f"{self.model.config().num_mel_bins}: set model.encoder.num_mel_bins alike"
            )
        return self

    def pretraining(self) -> PretrainingConfig:
        """What stands on the encoder."""
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


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a mapping; TOML has no null, so the word "none" stands for it.

    Raises:
        ConfigError: it is missing or not TOML.
    """
    try:
        return {key: _with_null(value) for key, value in tomllib.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: expected a recipe (TOML)") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path, or the name of one that comes with ssamba (`laptop`, `official-tiny-400`).

    Raises:
        ConfigError: there is neither.
    """
    path = Path(name)
    if path.exists():
        return path
    shipped = {file.stem: file for file in sorted((Path(__file__).parents[2] / "recipes" / "pretrain").glob("*.toml"))}
    if path.name in shipped and path.parent == Path():
        return shipped[path.name]
    raise ConfigError(f"{name} does not exist: expected a recipe (TOML), or one of {', '.join(shipped)}")


def read_recipe(path: Path) -> PretrainRecipe:
    """Read a pretraining recipe.

    Raises:
        ConfigError: the file is missing or damaged, a key is unknown or a value does not fit; each is named.
    """
    return PretrainRecipe.parse(read_toml(path), str(path))


def _with_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_null(inner) for key, inner in value.items()}
    return None if value == "none" else value
