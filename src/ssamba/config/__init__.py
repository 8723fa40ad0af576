"""Configurations of front ends, encoders, heads and models."""

from ssamba.config.base import RENAMED_KEYS, Config, flat_settings, settings_differences
from ssamba.config.front_end import FrontEndConfig
from ssamba.config.model import (
    ENCODER_CONFIGS,
    FORMAT_VERSION,
    MODEL_TYPES,
    BaseEncoderConfig,
    ClassifierConfig,
    EncoderConfig,
    HeadConfig,
    ModelConfig,
    ModelIdentity,
    PatchOrder,
    PretrainingConfig,
    SSASTConfig,
)

__all__ = [
    "ENCODER_CONFIGS",
    "FORMAT_VERSION",
    "MODEL_TYPES",
    "RENAMED_KEYS",
    "BaseEncoderConfig",
    "ClassifierConfig",
    "Config",
    "EncoderConfig",
    "FrontEndConfig",
    "HeadConfig",
    "ModelConfig",
    "ModelIdentity",
    "PatchOrder",
    "PretrainingConfig",
    "SSASTConfig",
    "flat_settings",
    "settings_differences",
]
