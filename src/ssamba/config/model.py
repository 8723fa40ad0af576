"""Configurations of encoders, heads and models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ssamba.config.base import Config
from ssamba.errors import ConfigError, ModelMismatchError

PatchOrder = Literal["frequency_major", "time_major"]


E = TypeVar("E", bound="BaseEncoderConfig")


class BaseEncoderConfig(Config):
    """Fields of every encoder over spectrogram patches: width, depth and patch grid."""

    family: ClassVar[str]
    """Value of `family` in checkpoints."""

    embed_dim: int = Field(192, gt=0)
    """Width D of the token stream (192 tiny, 384 small, 768 base)."""
    depth: int = Field(gt=0)
    """Number of blocks."""
    num_mel_bins: int = Field(128, gt=0)
    """Mel bins M of the input."""
    num_frames: int = Field(1024, gt=0)
    """Frames of the pretraining input, which is also the window length for long recordings."""
    patch_size: tuple[int, int] = (16, 16)
    """Size of a patch in mel bins and frames."""
    patch_stride: tuple[int, int] = (16, 16)
    """Distance between patches in mel bins and frames; fine-tuning often uses (10, 10)."""
    position_grid: tuple[int, int] | None = None
    """Rows and columns of the learned positions; None means the grid of the pretraining input."""
    patch_order: PatchOrder = "frequency_major"
    """`frequency_major` (official): token = row * columns + column; `time_major`: token = column * rows + row."""
    norm_eps: float = Field(gt=0)
    """Epsilon of every LayerNorm."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth rate of the last block, rising linearly from zero; the official SSAMBA recipes use 0.1."""

    @model_validator(mode="after")
    def _check_grid(self: E) -> E:
        for name, (rows, columns) in (("patch_size", self.patch_size), ("patch_stride", self.patch_stride)):
            if rows < 1 or columns < 1:
                raise ValueError(f"{name} must be at least (1, 1), got {(rows, columns)}")
        if self.num_mel_bins < self.patch_size[0] or self.num_frames < self.patch_size[1]:
            raise ValueError(
                f"an input of {self.num_mel_bins} mel bins x {self.num_frames} frames is smaller than "
                f"one patch of {self.patch_size[0]} x {self.patch_size[1]}"
            )
        return self

    def with_patch_stride(self: E, stride: int | tuple[int, int]) -> E:
        """Return the configuration with another patch stride (one number for both axes) and the same positions.

        Raises:
            ConfigError: the stride is no number or pair, or is larger than a patch, which would leave mel bins or
                frames unread.
        """
        pair = (stride, stride) if isinstance(stride, int) else stride
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(one, int) for one in pair)):
            raise ConfigError(f"patch_stride is a whole number, or one for mel bins and one for frames; got {stride!r}")
        if pair[0] > self.patch_size[0] or pair[1] > self.patch_size[1]:
            raise ConfigError(
                f"patch_stride={stride} leaves gaps between patches of {self.patch_size[0]} mel bins x "
                f"{self.patch_size[1]} frames: choose at most {self.patch_size}. "
                "(The original's 10 is for patches of 16 x 16.)"
            )
        return self.with_changes(patch_stride=pair, position_grid=self.grid)

    @property
    def summary(self) -> str:
        """One-line description of the encoder."""
        raise NotImplementedError

    @property
    def num_prefix_tokens(self) -> int:
        """Number of prefix tokens P."""
        return 1

    @property
    def num_layers(self) -> int:
        """Number of layers with a hidden state."""
        return self.depth

    @property
    def rows(self) -> int:
        """Rows R of the patch grid."""
        return (self.num_mel_bins - self.patch_size[0]) // self.patch_stride[0] + 1

    def columns(self, frames: int) -> int:
        """Return the columns K of the patch grid for `frames` frames: whole patches, 0 if there is none."""
        if frames < self.patch_size[1]:
            return 0
        return (frames - self.patch_size[1]) // self.patch_stride[1] + 1

    def columns_covering(self, frames: int) -> int:
        """Return the columns that cover all of `frames` frames, the last one perhaps only partly filled."""
        return max(0, -(-(frames - self.patch_size[1]) // self.patch_stride[1])) + 1

    def frames_spanned(self, columns: int) -> int:
        """Return the number of frames that `columns` columns cover."""
        return (columns - 1) * self.patch_stride[1] + self.patch_size[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the learned positions."""
        return self.position_grid or (self.rows, self.columns(self.num_frames))


class EncoderConfig(BaseEncoderConfig):
    """The SSAMBA encoder. `variant` names a preset; only the other fields determine the model."""

    family: ClassVar[str] = "ssamba"

    variant: Literal["official", "ssamba2"] = "official"
    """`official` is the released structure, quirks included; `ssamba2` is this project's own."""
    depth: int = Field(24, gt=0)
    """Number of BiMamba blocks; paired blocks need an even number."""
    expand: int = Field(2, gt=0)
    """Inner channels E of a block, as a multiple of embed_dim."""
    state_size: int = Field(16, gt=0)
    """States N per inner channel."""
    conv_kernel: int = Field(4, gt=0)
    """Taps W of the depthwise convolution."""
    delta_rank: int | None = Field(None, gt=0)
    """Rank of the projection to delta; None means ceil(embed_dim / 16)."""
    block_layout: Literal["paired", "sequential"] = "paired"
    """`paired`: blocks 2i and 2i+1 read the same input, the second one reversed in time; outputs are summed."""
    pair_residual: Literal["sum", "mean"] = "sum"
    """Residual streams of a pair are summed (they double at every pair, as in the original) or averaged."""
    final_norms: Literal[1, 2] = 2
    """Number of times that the final LayerNorm is applied; the original applies it twice."""
    norm_eps: float = Field(1e-5, gt=0)
    """Epsilon of every LayerNorm."""

    @model_validator(mode="after")
    def _check(self) -> EncoderConfig:
        if self.block_layout == "paired" and self.depth % 2:
            raise ValueError(f"paired blocks need an even depth, got {self.depth}")
        return self

    @property
    def summary(self) -> str:
        """One-line description of the encoder."""
        return f"SSAMBA {self.variant}, {self.depth} blocks, width {self.embed_dim}, {self.state_size} states"

    @property
    def inner_dim(self) -> int:
        """Inner channels E of a block."""
        return self.expand * self.embed_dim

    @property
    def dt_rank(self) -> int:
        """Rank of the projection to delta."""
        return self.delta_rank or -(-self.embed_dim // 16)

    @property
    def num_layers(self) -> int:
        """Number of layers with a hidden state: pairs of blocks, or blocks if sequential."""
        return self.depth // 2 if self.block_layout == "paired" else self.depth


class SSASTConfig(BaseEncoderConfig):
    """The SSAST encoder (Gong et al., 2022): a vision transformer over the same patches."""

    family: ClassVar[str] = "ssast"

    depth: int = Field(12, gt=0)
    """Number of blocks."""
    num_heads: int = Field(3, gt=0)
    """Attention heads (3 tiny, 6 small, 12 base)."""
    mlp_ratio: int = Field(4, gt=0)
    """Hidden channels of a block's MLP, as a multiple of embed_dim."""
    distillation_token: bool = True
    """Whether a second prefix token follows [CLS], as in the distilled DeiT that the released models start from."""
    attention: Literal["fused", "unfused"] = "fused"
    """`fused`: `scaled_dot_product_attention`, memory linear in L; `unfused`: with an explicit L x L matrix, as in the
    code that the SSAMBA paper measured. Results differ only by rounding."""
    norm_eps: float = Field(1e-6, gt=0)
    """Epsilon of every LayerNorm."""

    @model_validator(mode="after")
    def _check(self) -> SSASTConfig:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        return self

    @property
    def summary(self) -> str:
        """One-line description of the encoder."""
        return f"SSAST, {self.depth} blocks, width {self.embed_dim}, {self.num_heads} heads"

    @property
    def num_prefix_tokens(self) -> int:
        """Number of prefix tokens P: [CLS], and the distillation token if there is one."""
        return 2 if self.distillation_token else 1


ENCODER_CONFIGS: dict[str, type[EncoderConfig] | type[SSASTConfig]] = {
    config.family: config for config in (EncoderConfig, SSASTConfig)
}


class HeadConfig(Config):
    """A head on the encoder in pretraining: one linear layer, or two with an activation between them."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Name of its output."""
    reads: Literal["clip", "visible", "masked"]
    """What it reads: the clip vector (B, D), the encoder's tokens at visible patches (B, visible, D), or the tokens at
    masked patches (B, masked, D), which the decoder fills in if the encoder reads visible patches only."""
    outputs: int = Field(gt=0)
    """Values that it returns for each vector."""
    hidden: int | None = Field(None, gt=0)
    """Width between two linear layers; None is one linear layer."""
    activation: Literal["gelu", "relu"] = "gelu"
    """Activation between the two layers."""
    norm: bool = False
    """LayerNorm before the activation."""


MODEL_TYPES = ("ssamba", SSASTConfig.family)
"""Values of `model_type` in checkpoints: the second one stands in SSAST folders that were written before `family`."""


class PretrainingConfig(Config):
    """Heads and decoder of the pretraining model; the default is the original's."""

    encode: Literal["all", "visible"] = "all"
    """`all`: the encoder reads mask tokens at the masked patches; `visible`: it reads the visible patches only, and a
    decoder reads mask tokens for the rest."""
    decoder_depth: int = Field(0, ge=0)
    """Blocks of the decoder, alternating in direction; `visible` needs at least one."""
    normalize_targets: bool = False
    """Whether the values of each target patch are normalized to mean 0 and variance 1, as in MAE."""
    clip_dim: int = Field(0, ge=0)
    """Channels of the projection of the clip vector for the clip objective; 0 is none."""
    statistics: bool = False
    """Whether a linear head predicts the clip's log-mel statistics from the clip vector."""
    profile: int = Field(0, ge=0)
    """Segments of the clip whose mean spectra a linear head predicts from the clip vector; 0 is none."""
    texture: bool = False
    """Whether a linear head predicts the clip's texture (`objectives.log_mel_texture`) from the clip vector."""
    units: int = Field(0, ge=0)
    """Number of units that linear heads classify tokens into, at visible and at masked patches; 0 is none."""
    teacher: bool = False
    """Whether a head predicts the tokens of an exponential moving average of the encoder that reads the whole clip."""
    heads: tuple[HeadConfig, ...] = Field((), json_schema_extra={"since": 2})
    """Other heads: those of objectives that define their own (`Objective.heads`)."""

    @model_validator(mode="after")
    def _check(self) -> PretrainingConfig:
        names = [head.name for head in self.heads]
        if len({*names}) < len(names):
            raise ValueError(f"two heads have the same name: {', '.join(names)}")
        if (self.encode == "visible") != (self.decoder_depth > 0):
            raise ValueError(f"encode={self.encode!r} and decoder_depth={self.decoder_depth} contradict each other")
        return self


class ClassifierConfig(Config):
    """The head of a fine-tuned model."""

    num_classes: int = Field(gt=0)
    """Outputs of the linear layer."""
    pooling: Literal["mean", "cls"] = "mean"
    """Pooling: the mean over patch tokens (official default), or the prefix token (SSAST: the mean of both)."""
    labels: tuple[str, ...] | None = None
    """Names of the classes, in the order of the logits."""
    activation: Literal["softmax", "sigmoid"] = "softmax"
    """Activation of the logits: `softmax` for one class per clip, `sigmoid` for any number of classes."""
    padding: Literal["patch", "official"] = "patch"
    """Padding that the model was trained with, as in `EmbedOptions.padding`."""
    label_frames: int | None = Field(None, gt=0)
    """Number of frames per label (100 frames are a second); None means one label for the whole clip."""
    token_segments: int | None = Field(None, gt=0)
    """None: each label pools the tokens that cover its frames. A number splits the sequence of all tokens into that
    many equal segments, as the original's `ft_avgtok_1sec` does (60, each about one frequency band over 8 s)."""
    clip_lengths_s: tuple[float, float, float] | None = Field(None, json_schema_extra={"since": 2})
    """5 % quantile, median and 95 % quantile of the lengths of the training clips in seconds; None: unknown, or trained
    on the seconds of recordings."""
    background: str | None = Field(None, json_schema_extra={"since": 2})
    """The label that means "none of the others"; None: there is none."""
    temperature: float | None = Field(None, gt=0, json_schema_extra={"since": 2})
    """Divides the logits of calibrated probabilities; None: not measured."""
    thresholds: tuple[float, ...] | None = Field(None, json_schema_extra={"since": 2})
    """For each class the calibrated probability from which on it counts as present; None: not measured."""
    wanted_precision: float | None = Field(None, gt=0, le=1, json_schema_extra={"since": 2})
    """Precision on held-out clips that the thresholds were chosen for."""

    @model_validator(mode="after")
    def _check(self) -> ClassifierConfig:
        if self.token_segments is not None and self.label_frames is None:
            raise ValueError("token_segments divides the labels of a clip: set label_frames, too")
        if self.label_frames is not None and self.pooling != "mean":
            raise ValueError("label_frames needs pooling = 'mean': the prefix token stands for the whole clip")
        if self.labels is not None and len(self.labels) != self.num_classes:
            raise ValueError(f"{len(self.labels)} labels for {self.num_classes} classes")
        lengths_s = self.clip_lengths_s
        if lengths_s is not None and not 0 < lengths_s[0] <= lengths_s[1] <= lengths_s[2]:
            raise ValueError(f"clip_lengths_s must be above 0 and not fall, got {lengths_s}")
        if self.background is not None and self.background not in (self.labels or ()):
            raise ValueError(f"background {self.background!r} is none of the labels")
        if self.thresholds is not None and len(self.thresholds) != self.num_classes:
            raise ValueError(f"{len(self.thresholds)} thresholds for {self.num_classes} classes")
        if self.thresholds is not None and not all(0 <= one <= 1 for one in self.thresholds):
            raise ValueError(f"thresholds are probabilities from 0 to 1, got {self.thresholds}")
        return self


class ModelIdentity(Config):
    """Name and weights of a model, recorded in what is made with it: tables, scorecards, models trained from it."""

    name: str
    """Versioned name (`ssamba2-tiny-1`, `hf:OWNER/NAME@COMMIT`), or the path that it was loaded from."""
    weights_digest: str
    """16 hexadecimal digits of the encoder's weights; models with equal digests are the same, whatever their names."""
    file_sha256: str | None = Field(None, json_schema_extra={"since": 2})
    """Checksum of the file that was downloaded, 64 hexadecimal digits; None for a model that came from elsewhere."""

    def __str__(self) -> str:
        return f"{self.name} (weights {self.weights_digest})"

    def check_same(self, given: ModelIdentity, what: str, remedy: str) -> None:
        """Refuse another model than this one, which `what` was made with.

        Raises:
            ModelMismatchError: the weights differ; the message names both models and the remedy.
        """
        if self.weights_digest != given.weights_digest:
            raise ModelMismatchError(f"{what} was made with the model {self}, not with {given}: {remedy}")


FORMAT_VERSION = 1


class ModelConfig(Config):
    """Contents of `config.json` in a checkpoint folder: everything needed to rebuild the model."""

    model_type: Literal["ssamba"] = "ssamba"
    """What the Hugging Face classes recognize the folder by (`ssamba.integrations.huggingface`)."""
    family: Literal["ssamba", "ssast"] = Field("ssamba", json_schema_extra={"since": 2})
    """Family of the encoder; set automatically if `encoder` is a configuration object."""
    format_version: Literal[1] = 1
    """Version of the file format."""
    kind: Literal["encoder", "pretraining", "classifier"] = "encoder"
    """The heads that the weights include."""
    encoder: EncoderConfig | SSASTConfig
    """The encoder."""
    classifier: ClassifierConfig | None = None
    """Configuration of the head, if kind is classifier."""
    pretraining: PretrainingConfig | None = None
    """Configuration of the heads and decoder, if kind is pretraining; None means the original's."""
    origin: str | None = None
    """Provenance of the weights, for human readers."""
    base: ModelIdentity | None = Field(None, json_schema_extra={"since": 2})
    """The model that training started from; None means random weights, or unknown."""
    recipe: dict[str, Any] | None = Field(None, json_schema_extra={"since": 2})
    """Objectives, masks, views, augmentation and crops that the model was pretrained with, as sections of a recipe:
    `ssamba pretrain --recipe adapt` goes on with them. None means unknown."""

    @model_validator(mode="before")
    @classmethod
    def _name_family(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        if isinstance(values.get("encoder"), BaseEncoderConfig):
            return {"family": values["encoder"].family, **values}
        if values.get("model_type") == SSASTConfig.family:  # written before `family` existed
            return {**values, "model_type": "ssamba", "family": SSASTConfig.family}
        return values

    @field_validator("encoder", mode="before")
    @classmethod
    def _parse_encoder(cls, value: Any, info: ValidationInfo) -> Any:
        family = ENCODER_CONFIGS.get(info.data.get("family", ""))
        if isinstance(value, Mapping) and family is not None:
            return family.parse(value, "encoder")
        return value

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.encoder.family != self.family:
            raise ValueError(f"family {self.family!r} does not fit an encoder of {self.encoder.family!r}")
        if (self.kind == "classifier") != (self.classifier is not None):
            raise ValueError(f"kind {self.kind!r} and classifier {self.classifier!r} contradict each other")
        if self.pretraining is not None and self.kind != "pretraining":
            raise ValueError(f"kind {self.kind!r} and pretraining {self.pretraining!r} contradict each other")
        return self
