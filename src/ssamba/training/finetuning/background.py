"""Windows of recordings that hold none of the classes, as clips of a class of their own, "background".

Their lengths are drawn from those of the labeled clips, so that length says nothing about the class; recordings are
drawn by their duration. Windows of one recording stay on one side of a split. If there are few recordings, each is
divided in stretches of time, which take the place of recordings.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ssamba.audio.files import Skipped
from ssamba.data.corpus import ManifestCorpus
from ssamba.data.listing import list_recordings
from ssamba.data.manifest import Clip, Manifest, with_durations
from ssamba.errors import DataError

BACKGROUND = "background"
"""Name of the class, and of a folder of clips that are treated in the same way."""
_FEWEST_STRETCHES = 12
_FEWEST_WINDOWS, _MOST_WINDOWS = 300, 5000


class BackgroundCorpus(ManifestCorpus):
    """Windows of recordings; `file` names the stretch of time that a window comes from."""

    def __init__(self, windows: Sequence[Clip], stretches: Sequence[tuple[Clip, str]], sample_rate_hz: int):
        windows = [replace(clip, path=clip.path.absolute()) for clip in windows]
        one_drive = len({clip.path.anchor for clip in windows}) == 1
        # Keys, and so what is random, do not depend on where the recordings' folder is.
        folder = Path(os.path.commonpath([clip.path.parent for clip in windows])) if one_drive else None
        super().__init__(Manifest(windows, folder), sample_rate_hz, BACKGROUND)
        self.stretches = [clip for clip, _ in stretches]
        self._files = [file for _, file in stretches]

    def file(self, i: int) -> str:
        """Return the recording of window `i`, followed by the number of the stretch if it is divided."""
        return self._files[i]


def open_background(
    data: Any,
    seconds: npt.NDArray[np.float64],
    longest_s: float,
    splits: Sequence[str | None],
    sample_rate_hz: int,
    *,
    label: str = BACKGROUND,
    workers: int = 0,
    encoding: str | None = None,
) -> BackgroundCorpus:
    """Draw windows, the same ones each time.

    Args:
        data: folder, files or manifest of recordings without any of the classes; or a list of these.
        seconds: lengths of the labeled clips (N,).
        longest_s: longest window that the model reads.
        splits: splits of the labeled clips (N), which the windows are divided between in the same shares.
        sample_rate_hz: rate that recordings are resampled to.
        label: label of the windows.
        workers: processes that read headers.
        encoding: of manifests in CSV and JSON, such as `cp1252`; None is UTF-8.

    Raises:
        DataError: there is no recording, or none is as long as the shortest labeled clip.
    """
    listed, skipped = list_recordings(data, workers or None, encoding=encoding)
    recordings, unread = with_durations(listed, workers)
    shortest_s = min(float(seconds.min()), longest_s)
    long_enough = [clip for clip in recordings if (clip.duration_s or 0.0) >= shortest_s]
    skipped += unread
    skipped += [
        Skipped(str(clip.path), f"shorter than the shortest labeled clip ({shortest_s:g} s): no background is drawn")
        for clip in recordings
        if (clip.duration_s or 0.0) < shortest_s
    ]
    if not long_enough:
        reason = f" {skipped[0].reason}" if skipped else ""
        raise DataError(f"background: no recording can be used.{reason}")
    stretches = _stretches(long_enough, longest_s)
    lengths_s = np.minimum(seconds, longest_s)
    durations_s = np.array([clip.duration_s for clip, _ in stretches])
    count = min(max(_FEWEST_WINDOWS, len(seconds)), _MOST_WINDOWS, max(1, int(durations_s.sum() / lengths_s.mean())))
    random = np.random.default_rng(0)
    sides = _sides(len(stretches), splits, random)
    windows, drawn = [], []
    for number in np.sort(random.choice(len(stretches), size=count, p=durations_s / durations_s.sum())):
        stretch, _ = stretches[number]
        own_s = float(stretch.duration_s or 0.0)
        length_s = min(float(random.choice(lengths_s)), own_s)
        start_s = round(stretch.start_s + random.uniform(0.0, own_s - length_s), 3)
        windows.append(Clip(stretch.path, start_s, length_s, (label,), sides[number]))
        drawn.append(stretches[number])
    corpus = BackgroundCorpus(windows, drawn, sample_rate_hz)
    corpus.skipped = tuple(skipped)
    return corpus


def _stretches(recordings: Sequence[Clip], longest_s: float) -> list[tuple[Clip, str]]:
    """Return parts of recordings that no split divides, each with its name; whole recordings if there are enough."""
    each = -(-_FEWEST_STRETCHES // len(recordings)) if len(recordings) < _FEWEST_STRETCHES else 1
    found = []
    for clip in recordings:
        own_s = clip.duration_s or 0.0
        count = max(1, min(each, int(own_s / longest_s)))
        file = os.path.realpath(clip.path)
        for k in range(count):
            part = Clip(clip.path, clip.start_s + k * own_s / count, own_s / count)
            found.append((part, file if count == 1 else f"{file}@{k}"))
    return found


def _sides(count: int, splits: Sequence[str | None], random: np.random.Generator) -> list[str | None]:
    """Return a split for each stretch: those of the labeled clips, in the same shares."""
    shares = Counter(splits)
    given: Counter[str | None] = Counter()
    sides: list[str | None] = [None] * count
    for number in random.permutation(count):
        side = min(shares, key=lambda name: (given[name] + 1) / shares[name])
        sides[number], given[side] = side, given[side] + 1
    return sides
