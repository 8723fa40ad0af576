"""Create an untrained encoder from its configuration, or by size and variant."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from ssamba.config import BaseEncoderConfig, EncoderConfig, SSASTConfig
from ssamba.errors import ConfigError
from ssamba.model.encoder import AlternatingBlocks, PatchEncoder, SSAMBAEncoder
from ssamba.model.ssast import AttentionBlocks, SSASTEncoder
from ssamba.ops.dispatch import warn_without_kernels

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192},
    "small": {"embed_dim": 384},
    "base": {"embed_dim": 768},
}

VARIANTS: dict[str, dict[str, Any]] = {
    "official": {},
    "ssamba2": {"pair_residual": "mean", "final_norms": 1, "patch_order": "time_major"},
    "ssast": {},
    "ssast_frame": {"patch_size": (128, 2), "patch_stride": (128, 2)},
}

_HEAD_SIZE = 64  # channels of an attention head in every released SSAST model


def build_encoder(config: BaseEncoderConfig) -> PatchEncoder:
    """Build the randomly initialized encoder that a configuration describes."""
    if isinstance(config, SSASTConfig):
        return SSASTEncoder(config)
    assert isinstance(config, EncoderConfig), type(config)
    warn_without_kernels()
    return SSAMBAEncoder(config)


def build_blocks(config: BaseEncoderConfig, depth: int) -> nn.Module:
    """Build an uninitialized stack of the encoder's blocks: tokens (B, L, D), lengths (B,) -> (B, L, D)."""
    if isinstance(config, SSASTConfig):
        return AttentionBlocks(config, [0.0] * depth)
    assert isinstance(config, EncoderConfig), type(config)
    return AlternatingBlocks(config, depth)


def encoder_config(size: str, variant: str = "official", **overrides: Any) -> EncoderConfig | SSASTConfig:
    """Return the configuration of a size and variant, with fields of `EncoderConfig` or `SSASTConfig` overridden.

    Raises:
        ConfigError: the size, the variant or a field is unknown, or a value is invalid.
    """
    for kind, name, known in (("size", size, SIZES), ("variant", variant, VARIANTS)):
        if not isinstance(name, str) or name not in known:
            raise ConfigError(
                f"unknown {kind} {name!r}: expected one of {', '.join(known)}, for an encoder with random weights "
                "(ssamba.load_encoder and ssamba.load_model take names of trained models)"
            )
    source = f"create_encoder({size!r}, {variant!r})"
    if variant.startswith("ssast"):
        heads = {"num_heads": SIZES[size]["embed_dim"] // _HEAD_SIZE}
        return SSASTConfig.parse({**SIZES[size], **heads, **VARIANTS[variant], **overrides}, source)
    values = {"variant": variant, **SIZES[size], **VARIANTS[variant], **overrides}
    if variant == "ssamba2" and "patch_size" not in overrides:
        # A token spans all frequencies, so that the mean over tokens preserves the spectrum.
        values["patch_size"] = (values.get("num_mel_bins", 128), 4)
        values.setdefault("patch_stride", values["patch_size"])
    return EncoderConfig.parse(values, source)


def create_encoder(
    size: Literal["tiny", "small", "base"],
    variant: Literal["official", "ssamba2", "ssast", "ssast_frame"] = "official",
    **overrides: Any,
) -> PatchEncoder:
    """Create a randomly initialized encoder: features (B, T, M) -> tokens (B, P + L, D), prefix tokens first.

    Args:
        size: "tiny" (D = 192), "small" (384) or "base" (768); SSAMBA has 24 blocks, SSAST 12.
        variant: "official" is the released SSAMBA; "ssamba2" is this project's own; "ssast" is the transformer over
            16 x 16 patches, "ssast_frame" the one over frames (128 x 2).
        overrides: any field of `ssamba.config.EncoderConfig`, or of `SSASTConfig` for the transformers, such as
            `distillation_token=False` (one prefix token) and `attention="unfused"`.

    Raises:
        ConfigError: the size, the variant or a field is unknown, or a value is invalid.

    Examples:
        >>> encoder = create_encoder("tiny", patch_stride=(10, 10)).eval()
        >>> transformer = create_encoder("base", "ssast", distillation_token=False).eval()
    """
    return build_encoder(encoder_config(size, variant, **overrides))
