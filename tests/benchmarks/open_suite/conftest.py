"""Miniature packages, archives and synthesizers, made by the tests themselves from the demo's recordings."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest
import soundfile as sf


def tar_bytes(files, compression):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w" if compression == "zst" else f"w:{compression}") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("./usr/link.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    if compression == "zst":
        return subprocess.run(["zstd", "-qc"], input=data.getvalue(), capture_output=True, check=True).stdout
    return data.getvalue()


def deb_bytes(files, compression="xz"):
    """deb(5): an ar archive of debian-binary, control.tar and data.tar."""
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": tar_bytes({"control": b"Package: x\n"}, "xz"),
        f"data.tar.{compression}".rstrip("."): tar_bytes(files, compression),
    }
    data = b"!<arch>\n"
    for name, content in members.items():
        head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
        data += head.encode() + content + b"\n" * (len(content) % 2)
    return data


def zip_bytes(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def rcc_bytes(files):
    """Qt's resources: files in one folder; every second one compressed."""
    names, contents, nodes = bytearray(), bytearray(), bytearray(struct.pack(">IHIIQ", 0, 2, 1, 1, 0))
    names += struct.pack(">HI", 6, 0) + "sounds".encode("utf-16-be")
    nodes += struct.pack(">IHIIQ", 0, 2, len(files), 2, 0)
    for number, (name, content) in enumerate(files.items()):
        flags = number % 2
        stored = struct.pack(">I", len(content)) + zlib.compress(content) if flags else content
        nodes += struct.pack(">IHIIQ", len(names), flags, 0, len(contents), 0)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        contents += struct.pack(">I", len(stored)) + stored
    start = 24
    head = b"qres" + struct.pack(">IIIII", 3, start, start + len(nodes), start + len(nodes) + len(contents), 0)
    return head + bytes(nodes) + bytes(contents) + bytes(names)


def cat_bytes(files):
    """OpenTTD's catalog of samples: a table, then each name and its RIFF file."""
    table, data = b"", b""
    for name, content in files.items():
        table += struct.pack("<2I", 8 * len(files) + len(data), len(content))
        data += bytes([len(name) + 2]) + name.encode() + b"\0" + content
    return table + data


@pytest.fixture(scope="session")
def wav(medley):
    """The bytes of a recording, each of another part of the demo's."""
    number = 0

    def make(seconds=0.5, rate_hz=16_000):
        nonlocal number
        number += 1
        start = number * 2_311 % (len(medley) - round(seconds * rate_hz))
        data = io.BytesIO()
        sf.write(data, medley[start : start + round(seconds * rate_hz)], rate_hz, format="WAV", subtype="PCM_16")
        return data.getvalue()

    return make


@pytest.fixture
def debs(tmp_path):
    """Writes a package to the folder of packages, which it returns."""
    folder = tmp_path / "debs"
    folder.mkdir()

    def write(name, files, version="1%3a2.0-1", compression="xz"):
        (folder / f"{name}_{version}_all.deb").write_bytes(deb_bytes(files, compression))
        return folder

    write.folder = folder
    return write


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a program, written in Python, on a PATH that holds nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(name, code):
        path = folder / name
        path.write_text(f"#!{sys.executable}\nimport sys\n{code}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    return write


SPEAK = """
import hashlib, struct, wave
from pathlib import Path
words = sys.argv[1:]
out = words[words.index({option!r}) + 1]
seed = "".join(word for word in words if word != out) + sys.stdin.read()
value = hashlib.sha256(seed.encode()).digest()
with wave.open(out, "wb") as file:
    file.setparams(({channels}, 2, {rate}, 0, "NONE", ""))
    file.writeframes(struct.pack("<" + "h" * 16, *[257 * byte - 32768 for byte in value[:16]]) * {repeats})
"""


def speaking(option, rate=16_000, channels=1, repeats=500):
    """A program that writes a sound that follows from its arguments to what stands after `option`."""
    return SPEAK.format(option=option, rate=rate, channels=channels, repeats=repeats)


def files_below(folder: Path):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
