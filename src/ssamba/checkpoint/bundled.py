"""The weights that ship with the package: SSAMBA-tiny of our own pretraining (docs/model-card.md)."""

from __future__ import annotations

from pathlib import Path

from ssamba.checkpoint.load import Checkpoint, load_checkpoint
from ssamba.errors import CheckpointError

BUNDLED_FOLDER = Path(__file__).parent / "weights" / "ssamba2-tiny"


def has_bundled() -> bool:
    """Whether this installation holds them (an editable one of a shallow copy may not)."""
    return (BUNDLED_FOLDER / "model.safetensors").exists()


def load_bundled(patch_stride: int | tuple[int, int] | None = None) -> Checkpoint:
    """Load them; arguments as `load_checkpoint`.

    Raises:
        CheckpointError: this installation lacks them.
    """
    if not has_bundled():
        raise CheckpointError(
            f"{BUNDLED_FOLDER} is missing: this installation of ssamba came without weights. Reinstall it, or name a "
            "checkpoint (a folder, an official .pth file, or hf:OWNER/NAME)"
        )
    return load_checkpoint(BUNDLED_FOLDER, patch_stride)
