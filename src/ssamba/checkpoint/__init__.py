"""Load and write checkpoints: our folders, official files, hub names, the bundled weights."""

from ssamba.checkpoint.load import (
    Checkpoint,
    EncoderOnly,
    LoadReport,
    average_checkpoints,
    build_model,
    convert_checkpoint,
    has_bundled,
    load_bundled,
    load_checkpoint,
    load_encoder,
    save_checkpoint,
)

__all__ = [
    "Checkpoint",
    "EncoderOnly",
    "LoadReport",
    "average_checkpoints",
    "build_model",
    "convert_checkpoint",
    "has_bundled",
    "load_bundled",
    "load_checkpoint",
    "load_encoder",
    "save_checkpoint",
]
