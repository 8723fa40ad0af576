"""Build a task of acted speech: the voices of Hedgewars (Debian 12), which shout the same lines in character.

    python -m benchmarks.adapt.voices debs/ -o voices/ --fetch

Writes `voices/VOICE/LINE.ogg`, all 15 voices in five languages, and `voices/voices.csv` with the lines of the ten
English voices: the line is the label (variants such as ow1 and ow2 are one), the voice the group, in three folds.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO

from benchmarks.open_suite.packages import fetch_deb, find_debs, read_deb
from ssamba.cli.app import fail, log_to_stderr
from ssamba.files import write_atomically

PACKAGE = "hedgewars-data"
FOLDS = {
    **dict.fromkeys(("Default", "Mobster", "Robot", "Singer"), "fold0"),
    **dict.fromkeys(("British", "HillBilly", "Surfer"), "fold1"),
    **dict.fromkeys(("Classic", "Pirate", "Russian"), "fold2"),
}
"""English voice -> fold."""
_FEWEST = 6
"""Clips of a label that is kept."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the recordings and the table."""
    log_to_stderr()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("debs", type=Path, help=f"folder with {PACKAGE}_*.deb")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--fetch", action="store_true", help="download the package with apt-get; no root needed")
    options = parser.parse_args(arguments)
    options.debs.mkdir(parents=True, exist_ok=True)
    found = find_debs(options.debs, [PACKAGE])
    if options.fetch and not found:
        error = fetch_deb(PACKAGE, options.debs)
        found = find_debs(options.debs, [PACKAGE])
    if not found:
        fail(f"{options.debs} holds no {PACKAGE}_*.deb: {error if options.fetch else 'add --fetch'}")
    labels: dict[str, tuple[str, str]] = {}
    for path, content in read_deb(found[PACKAGE].file, _is_voice):
        voice, name = path.split("/")[-2:]
        (options.output / voice).mkdir(parents=True, exist_ok=True)
        write_atomically(options.output / voice / name, partial(_copy, content))
        if voice in FOLDS:
            labels[f"{voice}/{name}"] = (re.sub(r"\d*\.ogg$", "", name.lower()), voice)
    counts = Counter(line for line, _ in labels.values())
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("clip", "label", "split", "group"))
    rows = [
        (clip, line, FOLDS[voice], voice) for clip, (line, voice) in sorted(labels.items()) if counts[line] >= _FEWEST
    ]
    table.writerows(rows)
    write_atomically(options.output / "voices.csv", lambda path: path.write_text(text.getvalue(), encoding="utf-8"))
    print(f"{len(rows)} clips of {len({row[1] for row in rows})} lines by {len({row[3] for row in rows})} voices")


def _is_voice(path: str) -> bool:
    return "/voices/" in path.lower() and path.endswith(".ogg")


def _copy(content: IO[bytes], path: Path) -> None:
    path.write_bytes(content.read())


if __name__ == "__main__":
    main()
