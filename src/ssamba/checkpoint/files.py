"""Read and write the files of a checkpoint, tensors and JSON.

Pickles are read with `weights_only=True`, so a file cannot run code. Files are written atomically.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from ssamba.config import Config
from ssamba.errors import CheckpointError
from ssamba.files import json_text, utf8_text, write_atomically

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PREPROCESSOR_FILE = "preprocessor_config.json"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a `.safetensors` file or a PyTorch file (any other suffix), on the CPU.

    Raises:
        CheckpointError: the file is empty, damaged, of another kind, or holds other objects than tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file: expected the weights themselves")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes): the download or copy failed; fetch it again")
    if (what := _other_content(path)) is not None:
        raise CheckpointError(f"{path} holds no weights but {what}")
    if path.suffix == ".safetensors":
        try:
            # The library takes no path that is not UTF-8.
            return load_file(path) if str(path) == utf8_text(str(path)) else load(path.read_bytes())
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{path} is damaged or not a safetensors file ({error}): fetch it again") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and _is_torch_file(path):
            raise CheckpointError(
                f"{path} holds Python objects besides tensors, which ssamba refuses to load because they can run code. "
                "Save it again as torch.save(model.state_dict(), path) where you trust it."
            ) from None
        raise CheckpointError(_not_a_checkpoint(path)) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, UnicodeDecodeError, AttributeError):
        raise CheckpointError(_not_a_checkpoint(path)) from None
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        keys = f" with the keys {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else ""
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}{keys}; expected a state dict (names to tensors). "
            "Save the state dict itself: torch.save(model.state_dict(), path)."
        )
    return dict(content)


def _other_content(path: Path) -> str | None:
    """Return what a file holds that a failed download leaves in place of weights, with what to do; or None."""
    with path.open("rb") as file:
        head = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS: run `git lfs pull` in its clone, or download the file itself"
    if head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return (
            "a web page: the download was answered by a login, consent or error page. Download it again in a browser "
            "(the file itself, not the page that shows it)"
        )
    return None


def _is_torch_file(path: Path) -> bool:
    """Return whether a file looks like PyTorch's: a zip file, or a pickle (before 1.6)."""
    with path.open("rb") as file:
        head = file.read(16)
    return head.startswith(b"PK\x03\x04") or head.startswith(b"\x80")


def _not_a_checkpoint(path: Path) -> str:
    return (
        f"{path} is damaged or not a PyTorch checkpoint ({path.stat().st_size} bytes). Expected a state dict saved "
        "with torch.save, a .safetensors file, or a folder written by `ssamba convert`; "
        "if it was downloaded, fetch it again."
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: expected a folder written by `ssamba convert`") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}): restore it from the original") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}, expected an object")
    return content


def own_keys(values: Mapping[str, Any], config: type[Config]) -> dict[str, Any]:
    """Return the fields of `config` among the values of a JSON file that transformers wrote; of others all values."""
    if values.keys().isdisjoint(("transformers_version", "feature_extractor_type")):
        return dict(values)
    return {key: value for key, value in values.items() if key in config.model_fields}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda target: save_file(contiguous, target, metadata={"format": "pt"}))


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write an indented JSON file atomically."""
    text = json_text(content, indent=2) + "\n"
    write_atomically(path, lambda target: target.write_text(text, encoding="utf-8"))
