"""Load and write checkpoints: known models by name, our folders, official files and names, the hub."""

from ssamba.checkpoint.load import (
    Checkpoint,
    EncoderOnly,
    LoadReport,
    average_checkpoints,
    build_model,
    check_front_end,
    convert_checkpoint,
    load_checkpoint,
    load_encoder,
    save_checkpoint,
    weights_digest,
)
from ssamba.checkpoint.names import FoundModel, ModelInfo, available_models, find_model, has_default_weights

__all__ = [
    "Checkpoint",
    "EncoderOnly",
    "FoundModel",
    "LoadReport",
    "ModelInfo",
    "available_models",
    "average_checkpoints",
    "build_model",
    "check_front_end",
    "convert_checkpoint",
    "find_model",
    "has_default_weights",
    "load_checkpoint",
    "load_encoder",
    "save_checkpoint",
    "weights_digest",
]
