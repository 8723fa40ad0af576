"""Digests of values, files and arrays, and the 64-bit hash behind every random draw of plans and augmentations.

Caches, tables and saved states hold these digests, so none may change its value. No torch here: workers that only
decode import this module.

splitmix64: Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators", figure 17.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

A = TypeVar("A", "npt.NDArray[np.int64]", "Tensor")

_BLOCK_BYTES = 1 << 20

# splitmix64's unsigned constants as signed 64-bit integers with the same bits: torch has no unsigned arithmetic.
GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
"""Step from one state of splitmix64 to the next."""
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLIER_2 = 0x94D049BB133111EB - (1 << 64)


def digest_of(*parts: str | bytes | npt.NDArray[Any] | Mapping[str, Tensor]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of all parts, one after the other.

    Strings count as UTF-8, arrays as their bytes, a mapping of tensors as each name followed by that tensor's bytes.
    """
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Mapping):
            import torch

            for name, tensor in part.items():
                total.update(name.encode())
                # As bytes: NumPy has no bfloat16.
                total.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
        elif isinstance(part, np.ndarray):
            total.update(np.ascontiguousarray(part).data)
        else:
            total.update(part.encode() if isinstance(part, str) else part)
    return total.hexdigest()[:16]


def digest_of_json(values: Any) -> str:
    """Return 16 hexadecimal digits of anything that JSON can hold; the order of keys does not matter."""
    return digest_of(json.dumps(values, sort_keys=True))


def digest_of_files(*paths: Path) -> str:
    """Return 16 hexadecimal digits of the sizes and contents of files."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.stat().st_size.to_bytes(8, "little"))
        _update_from(path, total)
    return total.hexdigest()[:16]


def file_checksum(path: Path, algorithm: str = "sha256") -> str:
    """Return the whole checksum of a file as hexadecimal digits."""
    total = hashlib.new(algorithm, usedforsecurity=False)
    _update_from(path, total)
    return total.hexdigest()


def hash_bytes(data: bytes, size: int = 8) -> bytes:
    """Return `size` bytes that tell `data` apart from other data (BLAKE2b)."""
    return hashlib.blake2b(data, digest_size=size).digest()


def hash_names(names: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Return a 64-bit hash of each name, which may be a path of any bytes (names,)."""
    return np.frombuffer(b"".join(hash_bytes(os.fsencode(name)) for name in names), "<u8").astype(np.uint64)


def splitmix64(state: A) -> A:
    """Return the output of splitmix64 for each state; see `mix64` for types and shapes."""
    return mix64(state + GOLDEN_GAMMA)


def mix64(x: A) -> A:
    """Return splitmix64's finalizer of each number, a bijection of 64 bits that leaves no pattern.

    Args:
        x: int64 NumPy array or tensor of any shape; the bits are those of an unsigned number.
    """
    x = (x ^ shift_right(x, 30)) * _MULTIPLIER_1
    x = (x ^ shift_right(x, 27)) * _MULTIPLIER_2
    return x ^ shift_right(x, 31)


def shift_right(x: A, bits: int) -> A:
    """Shift int64 numbers right as if they were unsigned: zeros come in at the top."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _update_from(path: Path, total: hashlib._Hash) -> None:
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            total.update(block)
