"""Loading and writing checkpoints: our folders, official files, hub names."""

from ssamba.checkpoint.average import average_checkpoints
from ssamba.checkpoint.bundled import has_bundled, load_bundled
from ssamba.checkpoint.load import (
    Checkpoint,
    EncoderOnly,
    LoadReport,
    build_model,
    convert_checkpoint,
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
