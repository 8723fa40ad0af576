"""Where evaluation keeps what is dear to compute again: decoded clips and embeddings.

Everything is keyed by digests of what it was computed from, so nothing in the folder can be out of date, and the
folder may be deleted at any time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssamba.checkpoint.files import read_tensors, write_tensors
from ssamba.errors import CheckpointError

Array = np.ndarray[Any, Any]


def cache_folder() -> Path:
    """`$SSAMBA_CACHE`, or `ssamba` in the user's cache folder (`$XDG_CACHE_HOME`, `~/.cache`)."""
    own = os.environ.get("SSAMBA_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssamba"


def cached_arrays(path: Path | None, compute: Callable[[], Mapping[str, Array]]) -> dict[str, Array]:
    """The arrays in the safetensors file `path`, in the order in which they were computed; where it is missing or damaged they are computed and written.

    None computes them without keeping them.
    """
    if path is not None and path.exists():
        try:
            kept = read_tensors(path)
            return {name.split(" ", 1)[1]: kept[name].numpy() for name in sorted(kept)}
        except CheckpointError:
            pass  # half a file, or a disk that failed: what it held can be had again
    arrays = dict(compute())
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Safetensors files have no order of their own: numbers keep ours.
        numbered = {f"{number:04d} {name}": array for number, (name, array) in enumerate(arrays.items())}
        write_tensors(path, {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in numbered.items()})
    return arrays
