"""musicnn: a convolutional tagger of music (Pons and Serra, arXiv:1909.06654), 3 s at 16 kHz; the model `MSD_musicnn`.

Its weights are a TensorFlow 1 checkpoint, and the network stands here in torch (`musicnn/models.py` of the package), so
that TensorFlow is not needed. The vector is what its pooling hands on, the means and maxima over time of all features,
as others take it (Castellon et al., arXiv:2107.05677); parts of 3 s side by side, of a shorter clip all of it: the
network takes any length.

Shapes: B parts, T frames, M = 96 mel bands, C features.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.peer import Loaded, Peer
from benchmarks.peers.tensorflow_checkpoint import read_checkpoint
from ssamba.metrics.classification import Array

_RATE_HZ, _FFT, _HOP, _BANDS = 16_000, 512, 256, 96
_PART_FRAMES = 187
_EPSILON = 1e-3  # TensorFlow's default, not torch's


class Musicnn(nn.Module):
    """Front end and middle of musicnn, and its pooling."""

    def __init__(self, variables: dict[str, Array]):
        """Args: the checkpoint's variables."""
        super().__init__()
        self.normalize = _norm(variables, 0)
        # Two filters over frequency (timbre), three over time (tempo), three dense layers in the middle.
        self.convolutions = nn.ModuleList(_convolution(variables, number) for number in range(8))
        self.norms = nn.ModuleList(_norm(variables, number + 1) for number in range(8))

    def forward(self, bands: Tensor) -> Tensor:
        """From log-mel bands (B, T, M) to maxima and means of the features, (B, 2 C)."""
        image = self.normalize(bands[:, None])
        front = [self._layer(image, number).amax(3) for number in range(5)]
        features = [torch.cat(front, 1)]
        for number in range(5, 8):
            # Each filter spans all channels, which therefore stand on the frequency axis.
            layer = self._layer(features[-1].transpose(1, 2)[:, None], number).squeeze(3)
            features.append(layer if number == 5 else layer + features[-1])
        everything = torch.cat(features, 1)
        return torch.cat((everything.amax(2), everything.mean(2)), 1)

    def _layer(self, image: Tensor, number: int) -> Tensor:
        """Convolution of the same length in time, ReLU, normalization: (B, 1, T, M) to (B, C, T, M')."""
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
    """From the unpacked wheel."""
    weights = folder / "musicnn" / "MSD_musicnn"
    variables = read_checkpoint(weights / ".index", weights / ".data-00000-of-00001")
    network = Musicnn(variables).eval()
    librosa = import_module("librosa")

    def embed(wave: Array) -> Array:
        bands = librosa.feature.melspectrogram(y=wave, sr=_RATE_HZ, hop_length=_HOP, n_fft=_FFT, n_mels=_BANDS).T
        bands = np.log10(10_000 * bands.astype(np.float32) + 1)  # in half precision, as there, loud clips overflow
        with torch.no_grad():
            vectors: Array = torch.cat([network(torch.from_numpy(part)[None]) for part in parts(bands)]).numpy()
        mean: Array = vectors.mean(0)
        return mean

    return Loaded(embed, sum(parameter.numel() for parameter in network.parameters()))


def parts(bands: Array) -> list[Array]:
    """Stretches of 3 s of (T, M) side by side, what is left at the end dropped; all of it where it is shorter."""
    whole = len(bands) // _PART_FRAMES
    return [bands[k * _PART_FRAMES : (k + 1) * _PART_FRAMES] for k in range(whole)] or [bands]


PEER = Peer(
    package="musicnn",
    version="0.1.0",
    sample_rate_hz=_RATE_HZ,
    license="ISC",
    how="MSD_musicnn; parts of 3 s, shorter clips whole; means and maxima of its features, their mean",
    needs=("librosa",),
    load=load,
)
