"""Check an installed package in an environment of its own: `python tests/smoke.py demo/audio/misc_crow.flac`.

Run outside the repository's environment, after `pip install` of a wheel or source archive; needs the core alone.
`--plain` accepts a build without kernels.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

import ssamba
from ssamba.ops import available_backends


def main() -> None:
    """Embed a recording, alone and by the command, and check versions, weights and kernels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--plain", action="store_true", help="the package was built without kernels")
    arguments = parser.parse_args()
    source = Path(ssamba.__file__).resolve().parent
    if source.parent.name == "src":
        sys.exit(f"this is the source tree, {source}: install the wheel in a fresh environment")
    if ssamba.__version__ != version("ssamba"):
        sys.exit(f"the version is {ssamba.__version__}, the package's is {version('ssamba')}")
    embedding = ssamba.load_model().embed(arguments.recording)
    if embedding.clip.shape != (192,) or not torch.isfinite(embedding.clip).all():
        sys.exit(f"the embedding is {embedding.clip}")
    kernels = next(status for status in available_backends() if status.name == "cpp")
    if not (kernels.available or arguments.plain):
        sys.exit(f"the kernels cannot run: {kernels.reason}")
    subprocess.run([sys.executable, "-m", "ssamba", "info", "--check"], check=True)
    print(f"ssamba {ssamba.__version__}, torch {torch.__version__}, {sys.version.split()[0]}: fine")


if __name__ == "__main__":
    main()
