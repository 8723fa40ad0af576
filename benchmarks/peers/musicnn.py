"""musicnn: a convolutional music tagger (Pons and Serra, arXiv:1909.06654), 3 s at 16 kHz; the model `MSD_musicnn`.

Its weights are a TensorFlow 1 checkpoint. The network is implemented here in torch (after `musicnn/models.py` of the
package) and the checkpoint is read directly, so that TensorFlow is not needed. The vector is the output of its pooling,
the means and maxima over time of all features, as others use it (Castellon et al., arXiv:2107.05677); clips are cut
into consecutive parts of 3 s, and a shorter clip is used whole, since the network takes any length.

The checkpoint's index file is a table of sorted keys in LevelDB's format (blocks of entries that share prefixes with
the one before, and a footer with the location of the index block); its values are `BundleEntryProto` messages, which
locate the numbers of a variable in the data file. Uncompressed tables, one shard and float32 are supported. Formats:
leveldb, doc/table_format.md; TensorFlow, core/protobuf/tensor_bundle.proto.

Shapes: B parts, T frames, M = 96 mel bands, C features.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.peer import Array, Loaded, Peer, parameters_of

_RATE_HZ, _FFT, _HOP, _BANDS = 16_000, 512, 256, 96
_PART_FRAMES = 187
_EPSILON = 1e-3  # TensorFlow's default, not torch's
_FOOTER = 48
_MAGIC = bytes.fromhex("57fb808b247547db")
_FLOAT = 1
_TYPE, _SHAPE, _SHARD, _OFFSET, _SIZE = range(1, 6)


class Musicnn(nn.Module):
    """Front end, middle and pooling of musicnn."""

    def __init__(self, variables: dict[str, Array]):
        """Args: variables of the checkpoint."""
        super().__init__()
        self.normalize = _norm(variables, 0)
        # Two filters over frequency (timbre), three over time (tempo), three dense layers in the middle.
        self.convolutions = nn.ModuleList(_convolution(variables, number) for number in range(8))
        self.norms = nn.ModuleList(_norm(variables, number + 1) for number in range(8))

    def forward(self, bands: Tensor) -> Tensor:
        """Return maxima and means of the features, (B, 2 C), from log-mel bands (B, T, M)."""
        image = self.normalize(bands[:, None])
        front = [self._layer(image, number).amax(3) for number in range(5)]
        features = [torch.cat(front, 1)]
        for number in range(5, 8):
            # Each filter spans all channels, which are therefore moved to the frequency axis.
            layer = self._layer(features[-1].transpose(1, 2)[:, None], number).squeeze(3)
            features.append(layer if number == 5 else layer + features[-1])
        everything = torch.cat(features, 1)
        return torch.cat((everything.amax(2), everything.mean(2)), 1)

    def _layer(self, image: Tensor, number: int) -> Tensor:
        """Apply a convolution that keeps the length, ReLU and normalization: (B, 1, T, M) -> (B, C, T, M')."""
        convolution: Any = self.convolutions[number]
        frames = convolution.kernel_size[0]
        image = F.pad(image, (0, 0, (frames - 1) // 2, frames // 2))
        layer: Tensor = self.norms[number](F.relu(convolution(image)))
        return layer


def _convolution(variables: dict[str, Array], number: int) -> nn.Conv2d:
    name = "conv2d" if number == 0 else f"conv2d_{number}"
    weight = torch.from_numpy(variables[f"{name}/kernel"]).permute(3, 2, 0, 1).contiguous()
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], (weight.shape[2], weight.shape[3]))
    layer.weight.data, layer.bias.data = weight, torch.from_numpy(variables[f"{name}/bias"])  # type: ignore[union-attr]
    return layer


def _norm(variables: dict[str, Array], number: int) -> nn.BatchNorm2d:
    name = "batch_normalization" if number == 0 else f"batch_normalization_{number}"
    values = {
        key: torch.from_numpy(variables[f"{name}/{theirs}"])
        for key, theirs in {
            "weight": "gamma",
            "bias": "beta",
            "running_mean": "moving_mean",
            "running_var": "moving_variance",
        }.items()
    }
    layer = nn.BatchNorm2d(len(values["weight"]), eps=_EPSILON)
    layer.load_state_dict(values, strict=False)
    return layer


def load(folder: Path) -> Loaded:
    """Load the network from the unpacked wheel."""
    weights = folder / "musicnn" / "MSD_musicnn"
    variables = read_checkpoint(weights / ".index", weights / ".data-00000-of-00001")
    network = Musicnn(variables).eval()
    librosa = import_module("librosa")

    def embed(wave: Array) -> Array:
        bands = librosa.feature.melspectrogram(y=wave, sr=_RATE_HZ, hop_length=_HOP, n_fft=_FFT, n_mels=_BANDS).T
        bands = np.log10(
            10_000 * bands.astype(np.float32) + 1
        )  # half precision, as in the package, overflows for loud clips
        with torch.no_grad():
            vectors: Array = torch.cat([network(torch.from_numpy(part)[None]) for part in parts(bands)]).numpy()
        mean: Array = vectors.mean(0)
        return mean

    return Loaded(embed, parameters_of(network))


def parts(bands: Array) -> list[Array]:
    """Split (T, M) into consecutive parts of 3 s, without the remainder; a shorter input is one part."""
    whole = len(bands) // _PART_FRAMES
    return [bands[k * _PART_FRAMES : (k + 1) * _PART_FRAMES] for k in range(whole)] or [bands]


def read_checkpoint(index: Path, data: Path) -> dict[str, Array]:
    """Return the float32 variables of a TensorFlow checkpoint by name.

    Args:
        index: the file `PREFIX.index`.
        data: the file `PREFIX.data-00000-of-00001`.

    Raises:
        ValueError: the files are not a checkpoint, or it is compressed or in several shards.
    """
    table, numbers = index.read_bytes(), data.read_bytes()
    if table[-8:] != _MAGIC:
        raise ValueError(f"{index} is not the index of a TensorFlow checkpoint")
    handles, place = [], len(table) - _FOOTER
    for _ in range(4):  # offset and size of the meta index, then of the index
        value, place = _varint(table, place)
        handles.append(value)
    variables = {}
    for _, handle in _entries(table, handles[2], handles[3]):
        offset, place = _varint(handle, 0)
        size, _ = _varint(handle, place)
        for name, message in _entries(table, offset, size):
            entry = _fields(message)
            if not name or entry[_TYPE] != [_FLOAT]:
                continue  # the header, or a counter
            if entry.get(_SHARD, [0]) != [0]:
                raise ValueError(f"{index} refers to several shards: expected one")
            shape = [_fields(axis)[1][0] for axis in _fields(entry[_SHAPE][0]).get(2, [])]
            start = entry.get(_OFFSET, [0])[0]
            content = numbers[start : start + entry[_SIZE][0]]
            variables[name.decode()] = np.frombuffer(content, "<f4").reshape(shape).copy()
    return variables


def _entries(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block."""
    block = table[offset : offset + size]
    if table[offset + size] != 0:
        raise ValueError("the checkpoint's index is compressed: expected a plain one")
    end = len(block) - 4 - 4 * int.from_bytes(block[-4:], "little")
    place, key = 0, b""
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + own]
        place += own
        yield key, block[place : place + length]
        place += length


def _fields(message: bytes) -> dict[int, list[Any]]:
    """Return the fields (integers or bytes) of a protocol buffer by number."""
    fields: dict[int, list[Any]] = {}
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        if tag & 7 == 0:
            value: Any
            value, place = _varint(message, place)
        elif tag & 7 == 2:
            length, place = _varint(message, place)
            value, place = message[place : place + length], place + length
        else:
            length = {1: 8, 5: 4}[tag & 7]
            value, place = int.from_bytes(message[place : place + length], "little"), place + length
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """Decode an integer of seven bits a byte, the lowest first; return it and the position after it."""
    value = shift = 0
    while True:
        byte = content[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place


MUSICNN = Peer(
    package="musicnn",
    version="0.1.0",
    sample_rate_hz=_RATE_HZ,
    license="ISC",
    how="MSD_musicnn; parts of 3 s, shorter clips whole; means and maxima of its features, their mean",
    needs=("librosa",),
    load=load,
)
