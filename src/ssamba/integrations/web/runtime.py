"""onnxruntime-web, which runs models in browsers: from a folder, or from npm, once, into the cache."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ssamba.errors import ConfigError, MissingExtraError, SsambaError
from ssamba.files import cache_folder, user_path, write_bytes

NAME = "onnxruntime-web"
VERSION = "1.30.0"
"""Version of the npm package onnxruntime-web that a page runs in."""
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the package, in base64 as registries state it."""
SCRIPT, MODULE, WASM = "ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"
_FILES = (SCRIPT, MODULE, WASM)
_NPM_LIMIT_S = 300


@dataclass(frozen=True)
class Runtime:
    """The parts of onnxruntime-web that a page needs."""

    version: str
    files: dict[str, bytes]
    """By name: `SCRIPT`, `MODULE` and `WASM`."""


def read_runtime(folder: str | Path | None = None) -> Runtime:
    """Return onnxruntime-web from a folder, or in the pinned version from the cache, where npm puts it first.

    Args:
        folder: an unpacked package, or its `dist`.

    Raises:
        ConfigError: the folder does not hold onnxruntime-web.
        MissingExtraError: npm is needed and not installed.
        SsambaError: npm cannot fetch the package.
    """
    if folder is not None:
        return _read(user_path(folder))
    kept = cache_folder() / f"{NAME}-{VERSION}"
    if not all((kept / name).is_file() for name in (*_FILES, "package.json")):
        _fetch(kept)
    return _read(kept)


def _read(folder: Path) -> Runtime:
    places = [place for place in (folder, folder / "dist", folder / "package" / "dist") if (place / WASM).is_file()]
    missing = [name for name in _FILES if not (places and (places[0] / name).is_file())]
    if missing:
        raise ConfigError(
            f"{folder}: expected the unpacked npm package {NAME} {VERSION}, and found no {', '.join(missing)} in it or "
            "in its dist folder"
        )
    described = next((p for p in (places[0], places[0].parent) if (p / "package.json").is_file()), None)
    version = json.loads((described / "package.json").read_text("utf-8"))["version"] if described else "unknown version"
    return Runtime(str(version), {name: (places[0] / name).read_bytes() for name in _FILES})


def _fetch(target: Path) -> None:
    """Fetch the package with npm, verify it, and keep the needed files in a folder."""
    elsewhere = (
        f'Or run "npm pack {NAME}@{VERSION}" on a machine that can, unpack the file, and give that folder: '
        "--runtime DIR"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise MissingExtraError(
            f"the page needs {NAME} {VERSION}, which npm fetches, and npm was not found: install Node.js. {elsewhere}"
        )
    with tempfile.TemporaryDirectory() as temporary:
        command = [npm, "pack", f"{NAME}@{VERSION}", "--fetch-retries=1", "--pack-destination", temporary, "--silent"]
        try:
            done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, timeout=_NPM_LIMIT_S)
            problem = "" if done.returncode == 0 else (done.stderr.strip() or f"exit code {done.returncode}")
        except subprocess.TimeoutExpired:
            problem = f"no answer within {_NPM_LIMIT_S} s"
        packed = next(Path(temporary).glob("*.tgz"), None)
        if problem or packed is None:
            reason = " ".join((problem or "it wrote no file").split())[:300]
            raise SsambaError(
                f"npm could not fetch {NAME} {VERSION} ({reason}): is this machine offline? It is needed once, and "
                f"then kept in {target.parent}. {elsewhere}"
            )
        digest = base64.b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode()
        if digest != SHA512:
            raise SsambaError(f"npm fetched another {NAME} {VERSION} than ssamba knows: SHA-512 {digest}. {elsewhere}")
        with tarfile.open(packed) as archive:
            for name in (*(f"dist/{name}" for name in _FILES), "package.json"):
                file = archive.extractfile(f"package/{name}")
                assert file is not None
                write_bytes(target / Path(name).name, file.read())
