"""Programs that make sounds: whether they are there, and running one so that its file is whole or not there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ssamba.errors import DataError
from ssamba.files import write_atomically

PROGRAMS = {"espeak-ng": "espeak-ng", "flite": "flite", "text2wave": "festival", "fluidsynth": "fluidsynth"}
"""Each program, and the package of Debian that brings it."""


def missing_programs(names: Sequence[str]) -> list[str]:
    """Those that are not there."""
    return [name for name in names if shutil.which(name) is None]


def run_to_file(command: Sequence[str], target: Path, text: str | None = None) -> None:
    """Run a program that writes a file, unless that is there; `{}` in the command stands for its path.

    Raises:
        DataError: the program fails, or writes nothing.
    """
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        written = temporary.with_suffix(target.suffix)  # programs look at the suffix
        try:
            done = subprocess.run(
                [part.replace("{}", str(written)) for part in command],
                input=text or "",
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
            if done.returncode or not written.is_file() or not written.stat().st_size:
                said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
                raise DataError(
                    f"{command[0]} failed (exit code {done.returncode}): {said}. Is all of it installed, voices included?"
                )
            written.replace(temporary)
        finally:
            if written != temporary:
                written.unlink(missing_ok=True)

    write_atomically(target, write)
