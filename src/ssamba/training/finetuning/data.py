"""Labeled recordings for fine-tuning: a corpus, its classes, and what is true of each clip.

Where labels are of seconds, the manifest's rows are stretches of recordings: clips are then windows of the recordings,
cut at whole seconds, and the labels of a second are those of the row that covers more than half of it.

Shapes: N clips, C classes, S labels of a clip (1, or its seconds).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ssamba.audio.files import Skipped
from ssamba.config import FrontEndConfig
from ssamba.data.cache import CachedCorpus
from ssamba.data.corpus import Corpus, ManifestCorpus, Subset, find_copies, open_corpus
from ssamba.data.manifest import Clip, Manifest, read_manifest, with_durations
from ssamba.errors import DataError
from ssamba.training.finetuning.recipe import FinetuneRecipe

Floats: TypeAlias = "npt.NDArray[np.float32]"
_EXAMPLES = 3


@dataclass(frozen=True)
class Labeled:
    """Recordings and what is true of them."""

    corpus: Corpus
    classes: tuple[str, ...]
    """Names of the classes, sorted."""
    targets: dict[str, Floats]
    """Of each clip's key, (S, C): 1 for a label; a row of NaN where nothing is known."""
    files: tuple[str, ...]
    """Where each clip's audio is (N)."""
    multi: bool
    """Whether a clip may have any number of labels, rather than one."""
    copies: tuple[str | None, ...] = ()
    """Of each clip (N), a name that it shares with clips that are the very same recording; None where there are none."""

    def targets_of(self, i: int) -> Floats:
        """What is true of clip `i`, (S, C)."""
        return self.targets[self.corpus.key(i)]

    def clip_targets(self) -> Floats:
        """Which labels each clip has at all, (N, C)."""
        return np.stack([np.nan_to_num(self.targets_of(i)).max(0) for i in range(len(self.corpus))])

    @property
    def splits(self) -> list[str | None]:
        """Split of each clip (N)."""
        return [self.corpus.clip(i).split for i in range(len(self.corpus))]

    @property
    def groups(self) -> list[str | None]:
        """Group of each clip (N)."""
        return [self.corpus.clip(i).group for i in range(len(self.corpus))]


def open_labeled(
    source: Any,
    recipe: FinetuneRecipe,
    front_end: FrontEndConfig,
    window_s: float,
    on_decoded: Callable[..., None] | None = None,
) -> Labeled:
    """Open what holds labeled recordings.

    Args:
        source: a folder with a folder for each class, a manifest, or anything else that `open_corpus` takes.
        recipe: unit and kind of the labels, and how much may be kept in memory.
        front_end: what recordings are resampled to, and how long a frame is.
        window_s: longest stretch that is used at once.
        on_decoded: called while recordings are decoded into memory: name, clips done, clips in all.

    Raises:
        DataError: there are no labels, fewer than two classes, or they are not of the kind that was asked for.
    """
    settings, sample_rate_hz = recipe.clips, front_end.sample_rate_hz
    if recipe.labels.unit == "second":
        corpus, targets, classes = _by_second(source, sample_rate_hz, math.floor(window_s), settings.workers)
        corpus, files = _usable(corpus, front_end, leave_unlabeled=False)
    else:
        corpus = open_corpus(source, sample_rate_hz, workers=settings.workers, labels="folder")
        corpus, files = _usable(corpus, front_end, leave_unlabeled=recipe.labels.kind != "multi")
        classes = tuple(sorted({label for i in range(len(corpus)) for label in corpus.clip(i).labels}))
        targets = {}
        for i in range(len(corpus)):
            clip = corpus.clip(i)
            targets[clip.key] = _row(clip.labels, classes)[None]
    if len(classes) < 2:
        raise DataError(
            f"{corpus.name}: {len(classes)} label(s) found ({', '.join(classes) or 'none'}), expected at least two. "
            "Give a folder with a folder for each class, or a manifest with a `labels` column"
        )
    counts = np.concatenate([np.unique(target[~np.isnan(target).any(1)].sum(1)) for target in targets.values()])
    single = bool((counts == 1).all())
    if recipe.labels.kind == "single" and not single:
        some = _some(key for key, target in targets.items() if (np.nansum(target, 1) > 1).any())
        raise DataError(
            f"{corpus.name}: labels.kind is 'single', but some clips have several labels: {some}. Give each one, or set "
            "labels.kind to 'multi'"
        )
    multi = recipe.labels.kind == "multi" or not single
    if multi and recipe.loss.kind == "ce":
        some = _some(key for key, target in targets.items() if (np.nansum(target, 1) != 1).any())
        raise DataError(
            f"{corpus.name}: clips have none or several labels ({some}), and loss.kind 'ce' needs one: use 'bce'"
        )
    need_gb = 2e-9 * corpus.hours * 3600 * sample_rate_hz * 1.01
    if need_gb <= settings.cache_gb and not corpus.in_memory:
        opened, name = corpus, corpus.name
        report = None if on_decoded is None else (lambda done, total: on_decoded(name, done, total))
        corpus = CachedCorpus(corpus, limit_gb=max(need_gb * 1.5, 0.1), workers=settings.workers, on_progress=report)
        file_of = dict(zip((opened.key(i) for i in range(len(opened))), files, strict=True))
        files = tuple(file_of[corpus.key(i)] for i in range(len(corpus)))
    return Labeled(corpus, classes, targets, files, multi, find_copies(corpus, files))


def balanced_parts(data: Labeled, clips: npt.NDArray[np.int64]) -> list[Subset]:
    """The clips as one corpus for each class; a clip with several labels is in that of its rarest, those without in one of
    their own."""
    targets = data.clip_targets()[clips]
    none = len(data.classes)
    rarest = np.where(targets > 0, targets.sum(0), np.inf).argmin(1)
    rarest[~(targets > 0).any(1)] = none
    return [Subset(data.corpus, clips[rarest == c]) for c in range(none + 1) if (rarest == c).any()]


def _usable(corpus: Corpus, front_end: FrontEndConfig, *, leave_unlabeled: bool) -> tuple[Corpus, tuple[str, ...]]:
    """The corpus without clips that say nothing, which count as skipped, and where each clip's audio is.

    Left out is what is shorter than a frame, and, where all others have exactly one label, what has none.
    """
    files = _files(corpus)
    least = front_end.frame_samples / front_end.sample_rate_hz
    reasons = ["" if s >= least else f"shorter than one frame of {front_end.frame_ms:g} ms" for s in corpus.seconds]
    if leave_unlabeled:
        counts = [len(corpus.clip(i).labels) for i in range(len(corpus))]
        if not any(counts):
            raise DataError(
                f"{corpus.name}: no clip has a label. Give a folder with a folder for each class, or a manifest with a "
                "`labels` column"
            )
        if max(counts) == 1:
            why = "has no label, where the others have one (if none is meant: labels.kind = 'multi')"
            reasons = [reason or ("" if count else why) for reason, count in zip(reasons, counts, strict=True)]
    kept = np.flatnonzero([not reason for reason in reasons])
    if len(kept) == len(corpus):
        return corpus, files
    if not len(kept):
        raise DataError(f"{corpus.name}: no clip can be used: {corpus.key(0)} is {reasons[0]}")
    subset = Subset(corpus, kept)
    subset.skipped = (*corpus.skipped, *(Skipped(corpus.key(i), why) for i, why in enumerate(reasons) if why))
    return subset, tuple(files[i] for i in kept)


def _some(keys: Iterable[str]) -> str:
    """A few of the names."""
    return ", ".join(itertools.islice(keys, _EXAMPLES))


def _row(labels: Sequence[str], classes: Sequence[str]) -> Floats:
    row = np.zeros(len(classes), np.float32)
    row[[classes.index(label) for label in labels]] = 1
    return row


def _files(corpus: Corpus) -> tuple[str, ...]:
    if isinstance(corpus, ManifestCorpus):
        return tuple(str(Path(clip.path).resolve()) for clip in corpus.manifest)
    return tuple(corpus.key(i) for i in range(len(corpus)))


def _by_second(
    source: Any, sample_rate_hz: int, window_s: int, workers: int
) -> tuple[Corpus, dict[str, Floats], tuple[str, ...]]:
    """Windows of the recordings of a manifest, and the labels of their seconds."""
    if not isinstance(source, Manifest):
        if not isinstance(source, str | Path) or Path(source).suffix not in (".csv", ".jsonl", ".parquet", ".json"):
            raise DataError(f"{source}: labels of seconds need a manifest whose rows are stretches of recordings")
        source = read_manifest(source)
    rows, skipped = with_durations(source, workers)
    of_file: dict[Path, list[Clip]] = {}
    for row in rows:
        of_file.setdefault(row.path, []).append(row)
    lengths, missing = with_durations(Manifest([Clip(path) for path in of_file]), workers)
    classes = rows.labels
    pieces: list[Clip] = []
    known: list[Floats] = []
    for recording in lengths:
        own = of_file[recording.path]
        sides = {(row.split, row.group) for row in own}
        if len({split for split, _ in sides}) > 1:
            raise DataError(f"{recording.path}: its stretches are in several splits: put a recording in one")
        split, group = next(iter(sides))
        seconds = math.ceil(recording.duration_s or 0)
        for first in range(0, seconds, max(1, window_s)):
            last = min(first + window_s, recording.duration_s or 0)
            if last - first < 0.5 and first:
                continue  # too little for its second
            targets = [_second(own, second, classes) for second in range(first, math.ceil(last))]
            pieces.append(Clip(recording.path, float(first), last - first, (), split, group))
            known.append(np.stack(targets))
    if not pieces:
        raise DataError(
            f"{source.source or 'the manifest'}: no recording can be read. {[*skipped, *missing][0].reason}"
        )
    corpus = ManifestCorpus(
        Manifest(pieces, source.source), sample_rate_hz, source.source.stem if source.source else "manifest"
    )
    corpus.skipped = (*skipped, *missing)
    return corpus, {corpus.key(i): target for i, target in enumerate(known)}, classes


def _second(rows: Sequence[Clip], second: int, classes: Sequence[str]) -> Floats:
    """(C,): the labels of a second, NaN where no row covers more than half of it."""
    labels = [
        label
        for row in rows
        if min(row.start_s + (row.duration_s or 0), second + 1) - max(row.start_s, second) > 0.5
        for label in row.labels or ("",)
    ]
    if not labels:
        return np.full(len(classes), np.nan, np.float32)
    return _row([label for label in labels if label], classes)
