"""Making a fresh encoder by size and variant."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from ssamba.config import BaseEncoderConfig, EncoderConfig
from ssamba.errors import ConfigError
from ssamba.model.encoder import AlternatingBlocks, SSAMBAEncoder
from ssamba.model.tokens import PatchEncoder

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192},
    "small": {"embed_dim": 384},
    "base": {"embed_dim": 768},
}

VARIANTS: dict[str, dict[str, Any]] = {
    "official": {},
    "ssamba2": {"pair_residual": "mean", "final_norms": 1, "patch_order": "time_major"},
}


def build_encoder(config: BaseEncoderConfig) -> PatchEncoder:
    """The encoder that a configuration describes, randomly initialised."""
    assert isinstance(config, EncoderConfig), type(config)
    return SSAMBAEncoder(config)


def build_blocks(config: BaseEncoderConfig, depth: int) -> nn.Module:
    """A stack of the encoder's kind of blocks, (B, L, D) and lengths (B,) -> (B, L, D); not yet initialised."""
    assert isinstance(config, EncoderConfig), type(config)
    return AlternatingBlocks(config, depth)


def encoder_config(size: str, variant: str = "official", **overrides: Any) -> EncoderConfig:
    """The configuration of a size and variant, with fields of `EncoderConfig` overridden.

    Raises:
        ConfigError: an unknown size, variant or field, or a value that does not fit.
    """
    for kind, name, known in (("size", size, SIZES), ("variant", variant, VARIANTS)):
        if name not in known:
            raise ConfigError(f"unknown {kind} {name!r}: expected one of {', '.join(known)}")
    values = {"variant": variant, **SIZES[size], **VARIANTS[variant], **overrides}
    if variant == "ssamba2" and "patch_size" not in overrides:
        # A token is a moment, over all frequencies: the mean over tokens then keeps what lies at which frequency.
        values["patch_size"] = (values.get("num_mel_bins", 128), 4)
        values.setdefault("patch_stride", values["patch_size"])
    return EncoderConfig.parse(values, f"create_encoder({size!r}, {variant!r})")


def create_encoder(
    size: Literal["tiny", "small", "base"], variant: Literal["official", "ssamba2"] = "official", **overrides: Any
) -> SSAMBAEncoder:
    """A randomly initialised encoder, from normalised features (B, T, M) to tokens (B, 1 + L, D).

    Args:
        size: "tiny" (D = 192), "small" (384) or "base" (768), each of 24 blocks.
        variant: "official" is the released structure; "ssamba2" is ours, its flags still to be settled by measurement.
        overrides: any field of `ssamba.config.EncoderConfig`.

    Raises:
        ConfigError: an unknown size, variant or field, or a value that does not fit.

    Example:
        >>> encoder = create_encoder("tiny", patch_stride=(10, 10)).eval()
    """
    return SSAMBAEncoder(encoder_config(size, variant, **overrides))
