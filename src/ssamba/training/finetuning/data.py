"""Labeled recordings for fine-tuning: a corpus, its classes, and the targets of each clip.

With `labels.unit = "second"` the rows of the manifest are segments of recordings. Clips are then windows of the
recordings, cut at whole seconds, and a second has the labels of the row that covers more than half of it.

Shapes: N clips, C classes, S targets of a clip (1, or its seconds).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ssamba.audio.decode import decode
from ssamba.audio.files import Skipped
from ssamba.config import FrontEndConfig
from ssamba.data.corpus import Corpus, ManifestCorpus, Samples, Subset, find_copies, open_corpus
from ssamba.data.joined import join_corpora
from ssamba.data.manifest import MANIFEST_SUFFIXES, Clip, Manifest, as_sources, read_manifest, with_durations
from ssamba.errors import ConfigError, DataError
from ssamba.splits import Ints
from ssamba.training.batches import OnDecoded, above_band_notes, cache_if_it_fits
from ssamba.training.distributed import is_main_process
from ssamba.training.finetuning.background import BACKGROUND, open_background
from ssamba.training.finetuning.recipe import FinetuneRecipe

Floats: TypeAlias = "npt.NDArray[np.float32]"
_MAX_EXAMPLES = 3  # keys listed in a message


@dataclass(frozen=True)
class LabeledData:
    """A corpus with the targets of its clips."""

    corpus: Corpus
    classes: tuple[str, ...]
    """Names of the classes, sorted."""
    targets: dict[str, Floats]
    """Targets (S, C) by key of the clip: 1 for a label, else 0; a row of NaN if the labels are unknown."""
    files: tuple[str, ...]
    """Audio file of each clip (N)."""
    multi: bool
    """Whether clips may have any number of labels (multi-label), or have exactly one."""
    copies: tuple[str | None, ...] = ()
    """A name shared by clips (N) whose recordings are identical; None for all others."""
    background: str | None = None
    """The class that means "none of the others", if there is one."""
    notes: tuple[str, ...] = ()
    """What users should know about the recordings."""
    stretches: Mapping[str, Clip] = field(default_factory=dict)
    """By key of a window of a background, the part of its recording that is on its side of every split."""

    def background_around(self, i: int, seconds: float, position: float) -> Samples:
        """Return a part of the recording that window `i` of a background comes from, of its side of every split.

        Args:
            i: number of the clip; of a background that has no longer recording, the clip itself is returned.
            seconds: length; less if there is less.
            position: where the part begins, as a fraction of the possible range.
        """
        stretch = self.stretches.get(self.corpus.key(i))
        if stretch is None or stretch.duration_s is None:
            return self.corpus.read(i)
        seconds = min(seconds, stretch.duration_s)
        start_s = stretch.start_s + position * (stretch.duration_s - seconds)
        rate_hz = self.corpus.sample_rate_hz
        return decode(stretch.path, sample_rate_hz=rate_hz, start_s=start_s, duration_s=seconds)

    def is_background(self, clips: Ints) -> npt.NDArray[np.bool_]:
        """Return which clips (n,) have the label of the background alone."""
        if self.background is None:
            return np.zeros(len(clips), bool)
        only = np.eye(len(self.classes))[self.classes.index(self.background)]
        alone: npt.NDArray[np.bool_] = (self.clip_targets()[clips] == only).all(1)
        return alone

    def targets_of(self, i: int) -> Floats:
        """Return the targets of clip `i`, (S, C)."""
        return self.targets[self.corpus.key(i)]

    def clip_targets(self) -> Floats:
        """Return the labels of whole clips (N, C): 1 if any second of the clip has the label."""
        return np.stack([np.nan_to_num(self.targets_of(i)).max(0) for i in range(len(self.corpus))])

    @property
    def splits(self) -> list[str | None]:
        """Return the split of each clip (N)."""
        return [self.corpus.clip(i).split for i in range(len(self.corpus))]

    @property
    def groups(self) -> list[str | None]:
        """Return the group of each clip (N)."""
        return [self.corpus.clip(i).group for i in range(len(self.corpus))]


def open_labeled(
    data: Any,
    recipe: FinetuneRecipe,
    front_end: FrontEndConfig,
    window_s: float,
    on_decoded: OnDecoded | None = None,
    encoding: str | None = None,
    background: Any = None,
    labels_from: int | None = None,
) -> LabeledData:
    """Open labeled recordings, and cache them if they fit in memory.

    Args:
        data: a folder with one folder per class, a manifest, or anything else that `open_corpus` takes; or a list.
        recipe: unit and kind of the labels, and size of the cache.
        front_end: sample rate and length of a frame.
        window_s: longest window that the model reads.
        on_decoded: called while recordings are decoded into memory.
        encoding: of manifests in CSV and JSON, such as `cp1252`; None is UTF-8.
        background: recordings without any of the classes, windows of which become clips of the class "background".
        labels_from: number of the level of folders that names the classes, from 1; None finds it.

    Raises:
        ConfigError: there is a background, but the labels are those of seconds; or it is not clear which level of
            folders names the classes.
        DataError: there are no labels, fewer than two classes, or the labels are not of the kind the recipe states.
    """
    settings, sample_rate_hz = recipe.clips, front_end.sample_rate_hz
    stretches: dict[str, Clip] = {}
    if recipe.labels.unit == "second":
        if background is not None:
            raise ConfigError(
                "background: with labels.unit = 'second' list these recordings in the manifest, in rows without a label"
            )
        corpus, targets, classes = _by_second(data, sample_rate_hz, math.floor(window_s), settings.workers, encoding)
        corpus, files = _usable(corpus, front_end, skip_unlabeled=False)
    else:
        corpora = [
            open_corpus(
                one, sample_rate_hz, workers=settings.workers, labels=labels_from or "folder", encoding=encoding
            )
            for one in as_sources(data)
        ]
        corpus, files = _usable(join_corpora(corpora), front_end, skip_unlabeled=recipe.labels.kind != "multi")
        if background is not None:
            corpus, files, stretches = _with_background(corpus, files, background, window_s, settings.workers, encoding)
        classes = tuple(sorted({label for i in range(len(corpus)) for label in corpus.clip(i).labels}))
        targets = {corpus.key(i): _multi_hot(corpus.clip(i).labels, classes)[None] for i in range(len(corpus))}
    if len(classes) < 2:
        raise DataError(
            f"{corpus.name}: {len(classes)} label(s) found ({', '.join(classes) or 'none'}), expected at least two. "
            "Give a folder with one folder per class, or a manifest with a `labels` column"
        )
    counts = np.concatenate([np.unique(target[~np.isnan(target).any(1)].sum(1)) for target in targets.values()])
    single = bool((counts == 1).all())
    if recipe.labels.kind == "single" and not single:
        some = _some(key for key, target in targets.items() if (np.nansum(target, 1) > 1).any())
        raise DataError(
            f"{corpus.name}: labels.kind is 'single', but some clips have several labels: {some}. Give each clip one "
            "label, or set labels.kind to 'multi'"
        )
    multi = recipe.labels.kind == "multi" or not single
    if multi and recipe.loss.kind == "ce":
        some = _some(key for key, target in targets.items() if (np.nansum(target, 1) != 1).any())
        raise DataError(
            f"{corpus.name}: clips have none or several labels ({some}), and loss.kind 'ce' needs one: use 'bce'"
        )
    file_of = {corpus.key(i): file for i, file in enumerate(files)}
    notes = tuple(above_band_notes([corpus])) if is_main_process() else ()
    corpus = cache_if_it_fits(corpus, settings.cache_gb, settings.workers, on_decoded)
    files = tuple(file_of[corpus.key(i)] for i in range(len(corpus)))
    copies = find_copies(corpus, files)
    return LabeledData(corpus, classes, targets, files, multi, copies, _background(classes), notes, stretches)


def split_by_class(data: LabeledData, clips: Ints) -> list[Subset]:
    """Return one corpus per class, for balanced sampling.

    A clip with several labels is in the corpus of its rarest one; clips without a label have a corpus of their own.
    """
    targets = data.clip_targets()[clips]
    none = len(data.classes)
    rarest = np.where(targets > 0, targets.sum(0), np.inf).argmin(1)
    rarest[~(targets > 0).any(1)] = none
    return [Subset(data.corpus, clips[rarest == c]) for c in range(none + 1) if (rarest == c).any()]


def _usable(corpus: Corpus, front_end: FrontEndConfig, *, skip_unlabeled: bool) -> tuple[Corpus, tuple[str, ...]]:
    """Return the corpus without unusable clips, which are added to `skipped`, and the audio file of each clip.

    Unusable are clips shorter than one frame and, with `skip_unlabeled` and if all others have exactly one label, clips
    without a label.
    """
    files = tuple(corpus.file(i) for i in range(len(corpus)))
    frame_s = front_end.frame_samples / front_end.sample_rate_hz
    reasons = ["" if s >= frame_s else f"shorter than one frame of {front_end.frame_ms:g} ms" for s in corpus.seconds]
    if skip_unlabeled:
        counts = [len(corpus.clip(i).labels) for i in range(len(corpus))]
        if not any(counts):
            raise DataError(
                f"{corpus.name}: no clip has a label. Give a folder with one folder per class, or a manifest with a "
                "`labels` column"
            )
        if max(counts) == 1:
            why = "has no label, but the others do (if clips may have none: labels.kind = 'multi')"
            reasons = [reason or ("" if count else why) for reason, count in zip(reasons, counts, strict=True)]
    kept = np.flatnonzero([not reason for reason in reasons])
    if len(kept) == len(corpus):
        return corpus, files
    if not len(kept):
        raise DataError(f"{corpus.name}: no clip can be used: {corpus.key(0)} is {reasons[0]}")
    subset = Subset(corpus, kept)
    subset.skipped = (*corpus.skipped, *(Skipped(corpus.key(i), why) for i, why in enumerate(reasons) if why))
    return subset, tuple(files[i] for i in kept)


def _background(labels: Iterable[str]) -> str | None:
    """Return the label that means "none of the others"; None if there is none."""
    return next((label for label in labels if label.casefold() == BACKGROUND), None)


def _with_background(
    corpus: Corpus, files: tuple[str, ...], background: Any, window_s: float, workers: int, encoding: str | None
) -> tuple[Corpus, tuple[str, ...], dict[str, Clip]]:
    """Return the corpus followed by windows of the background, the audio file of each clip, and the stretches."""
    clips = [corpus.clip(i) for i in range(len(corpus))]
    label = _background(label for clip in clips for label in clip.labels) or BACKGROUND
    splits = [clip.split for clip in clips]
    windows = open_background(
        background, corpus.seconds, window_s, splits, corpus.sample_rate_hz,
        label=label, workers=workers, encoding=encoding,
    )  # fmt: skip
    joined, numbers = join_corpora([corpus, windows]), range(len(windows))
    stretches = {joined.key(len(corpus) + i): windows.stretches[i] for i in numbers}
    return joined, (*files, *map(windows.file, numbers)), stretches


def _some(keys: Iterable[str]) -> str:
    return ", ".join(itertools.islice(keys, _MAX_EXAMPLES))


def _multi_hot(labels: Sequence[str], classes: Sequence[str]) -> Floats:
    """Return labels as 0 and 1 for each class (C,)."""
    row = np.zeros(len(classes), np.float32)
    row[[classes.index(label) for label in labels]] = 1
    return row


def _by_second(
    data: Any, sample_rate_hz: int, window_s: int, workers: int, encoding: str | None
) -> tuple[Corpus, dict[str, Floats], tuple[str, ...]]:
    """Return windows of the recordings of a manifest, the targets of their seconds, and the classes."""
    manifests: list[Manifest] = []
    for one in as_sources(data):
        if not isinstance(one, Manifest) and Path(str(one)).suffix not in MANIFEST_SUFFIXES:
            raise DataError(f"{one}: labels.unit = 'second' needs a manifest whose rows are segments of recordings")
        manifests.append(one if isinstance(one, Manifest) else read_manifest(one, encoding=encoding))
    joined = Manifest(clip for manifest in manifests for clip in manifest)
    source = manifests[0] if len(manifests) == 1 else joined
    rows, skipped = with_durations(source, workers)
    of_file: dict[Path, list[Clip]] = {}
    for row in rows:
        of_file.setdefault(row.path, []).append(row)
    lengths, missing = with_durations(Manifest([Clip(path) for path in of_file]), workers)
    classes = rows.labels
    windows: list[Clip] = []
    targets: list[Floats] = []
    for recording in lengths:
        own = of_file[recording.path]
        sides = {(row.split, row.group) for row in own}
        if len({split for split, _ in sides}) > 1:
            raise DataError(f"{recording.path}: its segments are in several splits: put a recording in one")
        split, group = next(iter(sides))
        seconds = math.ceil(recording.duration_s or 0)
        for first in range(0, seconds, max(1, window_s)):
            last = min(first + window_s, recording.duration_s or 0)
            if last - first < 0.5 and first:
                continue  # less than half of a second
            windows.append(Clip(recording.path, float(first), last - first, (), split, group))
            targets.append(np.stack([_second(own, second, classes) for second in range(first, math.ceil(last))]))
    if not windows:
        raise DataError(
            f"{source.source or 'the manifest'}: no recording can be read. {[*skipped, *missing][0].reason}"
        )
    name = source.source.stem if source.source else "manifest"
    corpus = ManifestCorpus(Manifest(windows, source.source), sample_rate_hz, name)
    corpus.skipped = (*skipped, *missing)
    return corpus, {corpus.key(i): target for i, target in enumerate(targets)}, classes


def _second(rows: Sequence[Clip], second: int, classes: Sequence[str]) -> Floats:
    """Return the targets of a second (C,), NaN if no row covers more than half of it."""
    labels = [
        label
        for row in rows
        if min(row.start_s + (row.duration_s or 0), second + 1) - max(row.start_s, second) > 0.5
        for label in row.labels or ("",)
    ]
    if not labels:
        return np.full(len(classes), np.nan, np.float32)
    return _multi_hot([label for label in labels if label], classes)
