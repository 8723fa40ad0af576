"""List a public data set as a manifest: compare the clips it should contain with the files that exist.

    prepare("esc50", "ESC-50-master/", "esc50.parquet")

To add a data set, see `dataset.py`.

Missing and damaged files are left out and listed. Clips that are listed twice, and groups (a speaker, a recording) on
both sides of a split, are errors, because they would leak training data into a test.
"""

from __future__ import annotations

import difflib
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ssamba.audio.decode import measure_files
from ssamba.audio.files import Skipped, write_skipped
from ssamba.data.listing import KeptLengths, check_manifest_name, header_workers
from ssamba.data.manifest import Clip, Manifest, read_manifest, write_manifest
from ssamba.datasets.audioset import AUDIOSET_2M, AUDIOSET_20K
from ssamba.datasets.dataset import PublicDataset
from ssamba.datasets.esc50 import ESC50
from ssamba.datasets.fsd50k import FSD50K
from ssamba.datasets.iemocap import IEMOCAP
from ssamba.datasets.librispeech import LIBRISPEECH
from ssamba.datasets.speech_commands import SPEECH_COMMANDS_V1, SPEECH_COMMANDS_V1_SUPERB, SPEECH_COMMANDS_V2
from ssamba.datasets.urbansound8k import URBANSOUND8K, URBANSOUND8K_SCENES
from ssamba.datasets.voxceleb1 import VOXCELEB1
from ssamba.errors import ConfigError, DataError, DatasetStructureError, OtherSettingsError, SkippedFilesError
from ssamba.files import path_text, relative_path, user_path, write_csv
from ssamba.hashing import file_checksum
from ssamba.locks import lock_output
from ssamba.progress import OnProgress, ProgressReporter, counted, format_duration
from ssamba.worker_pool import default_workers

DATASETS: dict[str, PublicDataset] = {
    dataset.name: dataset
    for dataset in (
        AUDIOSET_20K,
        AUDIOSET_2M,
        ESC50,
        FSD50K,
        IEMOCAP,
        LIBRISPEECH,
        SPEECH_COMMANDS_V1,
        SPEECH_COMMANDS_V1_SUPERB,
        SPEECH_COMMANDS_V2,
        URBANSOUND8K,
        URBANSOUND8K_SCENES,
        VOXCELEB1,
    )
}


def find_dataset(name: str) -> PublicDataset:
    """Return the data set of that name; hyphens, underscores and case do not matter.

    Raises:
        ConfigError: there is none; the message names the nearest and all others.
    """
    by_plain_name = {_plain(known): known for known in DATASETS}
    if _plain(name) in by_plain_name:  # audioset20k, speech_commands_v1
        return DATASETS[by_plain_name[_plain(name)]]
    near = difflib.get_close_matches(name.lower().replace("_", "-"), DATASETS, n=1, cutoff=0.6)
    hint = f": did you mean {near[0]!r}? " if near else ". "
    raise ConfigError(f"{name!r} is not a known data set{hint}There are: {', '.join(DATASETS)}")


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


@dataclass(frozen=True)
class Prepared:
    """A data set that is ready to be written as a manifest."""

    dataset: PublicDataset
    clips: Sequence[Clip]
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their official numbers."""
    codes: tuple[str, ...] = ()
    """Other identifiers of the classes (AudioSet's), or none."""
    missing: Sequence[Skipped] = ()
    """Clips that the data set's tables list and that do not exist."""
    damaged: Sequence[Skipped] = ()
    """Clips that exist and cannot be read."""
    notes: Sequence[str] = ()
    """Remarks for users, including numbers that differ from the published ones."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Recordings found in each split."""
    output: Path | None = None
    """The manifest that was written."""
    is_unchanged: bool = False
    """Whether the manifest existed and held the same rows."""
    elapsed_s: float = 0.0
    """Duration of the call."""

    @property
    def skipped(self) -> list[Skipped]:
        """Missing and damaged clips."""
        return [*self.missing, *self.damaged]

    @property
    def hours(self) -> float | None:
        """Sum of the durations; None if they are unknown."""
        return Manifest(self.clips).hours

    @property
    def skipped_file(self) -> Path | None:
        """The table of missing and damaged clips."""
        return None if self.output is None else Path(f"{self.output}.skipped.csv")

    def __str__(self) -> str:
        counts = sorted(self.counts.items(), key=lambda item: (len(item[0]), item[0]))  # fold2 before fold10
        length = "" if self.hours is None else f", {format_duration(self.hours * 3600)}"
        classes = f", {len(self.classes)} classes" if self.classes else ""
        target = "" if self.output is None else f": {self.output}{' (unchanged)' if self.is_unchanged else ''}"
        return (
            f"{self.dataset.title}: {len(self.clips)} clips{length}{classes} "
            f"({', '.join(f'{split} {count}' for split, count in counts)}), {len(self.missing)} missing, "
            f"{len(self.damaged)} damaged, in {self.elapsed_s:.1f} s{target}"
        )


def prepare(
    dataset: str,
    source: str | Path,
    output: str | Path | None = None,
    *,
    audio: str | Path | None = None,
    headers: bool = True,
    checksums: bool = False,
    allow_leaks: bool = False,
    overwrite: bool = False,
    take_over: bool = False,
    strict: bool = False,
    workers: int | None = None,
    progress: OnProgress | None = None,
) -> Prepared:
    """Make a manifest of a public data set, with labels, splits and groups as published. Nothing is downloaded.

    If the manifest exists, recordings that were missing before are added. The classes are listed beside it in
    `OUTPUT.classes.csv`, missing and damaged clips in `OUTPUT.skipped.csv`, weights for balanced sampling (AudioSet) in
    `OUTPUT.weights.csv`.

    Args:
        dataset: one of `DATASETS`.
        source: the folder it was unpacked to, or the folder around that.
        output: the manifest: `.parquet`, `.csv` or `.jsonl`; None writes nothing.
        audio: folder for new recordings, for data sets made of others (urbansound8k-scenes); None means a folder
            named after `output`.
        headers: read the header of every file, for its duration and to detect damage; otherwise only check that files
            exist.
        checksums: compare the archives in `source` with the published checksums.
        allow_leaks: continue if groups are divided between splits; the manifest then has no group for their clips.
        overwrite: replace a manifest with other rows.
        take_over: take the manifest, and the folder `audio`, away from another process that is writing them.
        strict: raise an error at the end if any clip is missing or damaged.
        workers: processes that read headers; None means cores minus one (at most 8) if there are many files.
        progress: called after each file; returning False stops as Ctrl-C does.

    Raises:
        ConfigError: the name is unknown, or `output` has another suffix.
        DatasetStructureError: the data set is not in `source`; the message shows the expected structure.
        DataError: a table or an archive is damaged; clips are listed twice; groups are divided
            between splits; no clip exists.
        OtherSettingsError: the manifest exists, and rows of it would change or be dropped.
        OutputInUseError: another process is writing the manifest, or to the folder `audio`.
        SkippedFilesError: `strict` is set, and clips are missing or damaged; the manifest is written.
        Interrupted: Ctrl-C; lengths that were read are kept.
    """
    started_s = time.monotonic()
    choices = (headers, checksums, allow_leaks, take_over, workers, progress)
    if output is None:
        prepared = _prepare(dataset, source, audio, *choices, None)
        return replace(prepared, elapsed_s=time.monotonic() - started_s)
    output = user_path(output)
    check_manifest_name(output)
    audio = audio or output.with_name(f"{output.stem}_audio")
    with lock_output(output, take_over=take_over) as lock:
        with KeptLengths.beside(output, lock) as kept:
            prepared = _prepare(dataset, source, audio, *choices, kept)
        is_unchanged = output.exists() and not overwrite and _is_unchanged(output, prepared.clips)
        lock.verify()
        if not is_unchanged:
            write_prepared(prepared, output)
        kept.remove()
    elapsed_s = time.monotonic() - started_s
    prepared = replace(prepared, output=output, is_unchanged=is_unchanged, elapsed_s=elapsed_s)
    if strict and prepared.skipped:
        raise SkippedFilesError(f"{len(prepared.skipped)} clips are missing or damaged, and strict was set", prepared)
    return prepared


def _is_unchanged(output: Path, clips: Sequence[Clip]) -> bool:
    """Return whether a manifest lists these clips; False if some are new.

    Raises:
        OtherSettingsError: it lists others.
    """

    def rows(clips: Iterable[Clip]) -> set[Clip]:
        return {replace(clip, path=Path(os.path.realpath(clip.path))) for clip in clips}

    before, now = rows(read_manifest(output, check=False)), rows(clips)
    lost = sorted(before - now, key=lambda clip: (str(clip.path), clip.start_s))
    if lost:
        raise OtherSettingsError(
            f"{output}: {len(lost)} of its {len(before)} rows would change or be dropped (first {lost[0].path}): it is "
            "of another data set, or was changed. Choose another output, or --overwrite"
        )
    return before == now


def _prepare(
    name: str,
    source: str | Path,
    audio: str | Path | None,
    headers: bool,
    checksums: bool,
    allow_leaks: bool,
    take_over: bool,
    workers: int | None,
    progress: OnProgress | None,
    kept: KeptLengths | None,
) -> Prepared:
    """List the clips of a data set, write new recordings if it is made of others, and check leaks; see `prepare`."""
    dataset = find_dataset(name)
    source = user_path(source)
    expected = f"Expected ({dataset.reference}):\n{dataset.structure}"
    if not source.is_dir():
        raise DatasetStructureError(f"{source} is not a folder. {expected}")
    if dataset.render is not None and audio is None:
        raise DataError(f"{name} writes new recordings: name their folder with audio")
    notes = [_checksum_note(source, dataset)] if checksums else []
    try:
        listing = dataset.list_clips(source)
    except DatasetStructureError as error:
        raise DatasetStructureError(f"{source} does not contain {dataset.title}: {error}. {expected}") from None
    notes += listing.notes
    Manifest(listing.clips).check_duplicates()
    clips, missing, damaged = _find_files(listing.clips, workers, headers, progress, kept)
    missing = [*listing.missing, *missing]
    if not clips:
        raise DataError(
            f"{source}: none of the {len(listing.clips) + len(listing.missing)} recordings of {dataset.title} can be "
            f"read. {(missing or damaged or [Skipped('', 'Its tables are empty')])[0].reason}"
        )
    clips, leaks = _without_leaks(clips, dataset, allow_leaks)
    counts = Counter(clip.split or "none" for clip in clips)
    notes += [*leaks, *_differences(clips, counts, dataset)]
    if dataset.render is not None and audio is not None:
        processes = default_workers() if workers is None else workers
        clips, failed = dataset.render(clips, user_path(audio), processes, progress, take_over)
        damaged += failed
    return Prepared(dataset, clips, listing.classes, listing.codes, missing, damaged, notes, counts)


def verify_archives(folder: Path, archives: Mapping[str, str]) -> list[str]:
    """Compare the archives that are in `folder` with their published checksums.

    Args:
        folder: folder of the data set, which may still contain the archives.
        archives: `md5:...` or `sha256:...` by file name.

    Returns:
        The names of the archives found, which are all intact.

    Raises:
        DataError: a checksum differs.
    """
    checked = []
    for name, expected in archives.items():
        path = folder / name
        if not path.is_file():
            continue
        algorithm, _, digest = expected.partition(":")
        found = file_checksum(path, algorithm)
        if found != digest:
            raise DataError(
                f"{path}: its {algorithm} is {found}, published is {digest}: the download is damaged, and files "
                "unpacked from it may be. Download and unpack it again"
            )
        checked.append(name)
    return checked


def _checksum_note(source: Path, dataset: PublicDataset) -> str:
    if names := verify_archives(source, dataset.archives):
        return f"checksums agree with the published ones: {', '.join(names)}"
    absent = f"none of its archives ({', '.join(dataset.archives)}) is in the folder"
    return f"no checksum was compared: {absent if dataset.archives else 'none is known for this data set'}"


def _find_files(
    listed: Sequence[Clip], workers: int | None, headers: bool, progress: OnProgress | None, kept: KeptLengths | None
) -> tuple[list[Clip], list[Skipped], list[Skipped]]:
    """Return the clips that exist, with durations; those that are missing; those that are damaged."""
    files = list(dict.fromkeys(clip.path for clip in listed))
    reporter = ProgressReporter(progress, "reading headers" if headers else "looking for files", len(files))
    missing: list[Skipped] = []
    damaged: list[Skipped] = []
    lengths_s: dict[Path, float | None] = {}
    processes, audio_s = header_workers(workers, len(files)), 0.0
    lengths: Iterable[tuple[Path, float | Exception | None]]
    if not headers:
        lengths = ((path, None) for path in files)
    else:
        lengths = measure_files(files, processes) if kept is None else kept.read(files, processes)
    for done, (path, found) in enumerate(lengths, start=1):
        if (found is None or isinstance(found, Exception)) and not path.is_file():
            missing.append(Skipped(path_text(path), f"{path}: missing"))
        elif isinstance(found, Exception):
            damaged.append(Skipped(path_text(path), str(found)))
        else:
            lengths_s[path] = found
            audio_s += found or 0.0
        if not reporter.update(done, audio_s=audio_s, skipped=len(missing) + len(damaged)):
            raise KeyboardInterrupt
    clips = [
        clip if clip.duration_s is not None else replace(clip, duration_s=lengths_s[clip.path])
        for clip in listed
        if clip.path in lengths_s
    ]
    return clips, missing, damaged


def _without_leaks(clips: list[Clip], dataset: PublicDataset, allow_leaks: bool) -> tuple[list[Clip], list[str]]:
    """Return the clips without groups that are divided between splits, and notes about these groups."""
    divided = Manifest(clips).divided_groups()
    if not divided:
        return clips, []
    refused = [
        group
        for group, splits in divided.items()
        if not (group in dataset.shared_groups or dataset.splits_sharing_groups.issuperset(splits))
    ]
    if refused and not allow_leaks:
        some = "; ".join(f"{group} is in {' and '.join(divided[group])}" for group in refused[:5])
        raise DataError(
            f"{dataset.title}: {counted(len(refused), 'group')} in more than one split, which leaks training data "
            f"into a test: {some}. None are known in the published data: were tables or folders changed? "
            "--allow-leaks (allow_leaks=True) continues without these groups"
        )
    some = ", ".join(list(divided)[:5]) + (", ..." if len(divided) > 5 else "")
    note = f"{counted(len(divided), 'group')} in more than one split ({some}): these clips get no group"
    return [replace(clip, group=None) if clip.group in divided else clip for clip in clips], [note]


def _differences(clips: Sequence[Clip], counts: Mapping[str, int], dataset: PublicDataset) -> list[str]:
    """Return notes about numbers that differ from the published ones."""
    notes = []
    fewer = [
        f"{name} {counts.get(name, 0)} of {n}" for name, n in dataset.published.items() if counts.get(name, 0) != n
    ]
    if fewer:
        notes.append(f"recordings found, of the published number: {', '.join(fewer)}")
    found = Counter(label for clip in clips for label in clip.labels)
    if dataset.num_classes and len(found) != dataset.num_classes:
        notes.append(f"classes with recordings: {len(found)} of {dataset.num_classes}")
    fewer = [f"{name} {found[name]} of {n}" for name, n in dataset.class_counts.items() if found[name] != n]
    if fewer:
        notes.append(f"recordings of each class found, of the published number: {', '.join(fewer)}")
    return notes


def balanced_weights(labels: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
    """Return a sampling weight for each clip (n,), so that rare classes are sampled as often as common ones.

    The weight is the sum over the clip's classes of 1 / (clips of that class), scaled to a mean of 1, as in AST and
    SSAST for AudioSet (Gong et al., 2021), whose constants do not change the proportions. A clip without labels weighs
    0.
    """
    counts = Counter(label for clip in labels for label in set(clip))
    weights = np.array([sum(1.0 / counts[label] for label in set(clip)) for clip in labels], np.float64)
    return weights / weights.mean() if weights.any() else weights


def write_prepared(prepared: Prepared, output: str | Path) -> list[Path]:
    """Write the manifest and the files that accompany it.

    `OUTPUT.classes.csv` (index, label, code) lists the classes in official order. `OUTPUT.weights.csv` (path, start_s,
    weight; paths as in the manifest) has the weights by which AST and SSAST sample the training clips of a data set
    that is trained balanced (ssamba's own `clips.balanced` samples classes equally, a clip for its rarest class).
    `OUTPUT.skipped.csv` (path, reason) lists missing and damaged clips. A file that does not apply is removed.

    Returns:
        The files that were written, the manifest first.

    Raises:
        DataError: the suffix is not a manifest's, or the format cannot hold a value.
        MissingExtraError: the file is Parquet and pyarrow is not installed.
    """
    output = user_path(output)
    write_manifest(prepared.clips, output)
    codes = prepared.codes or ("",) * len(prepared.classes)
    classes = [(i, *row) for i, row in enumerate(zip(prepared.classes, codes, strict=True))]
    training = [clip for clip in prepared.clips if clip.split == "train"] if prepared.dataset.balanced else []
    weights = balanced_weights([clip.labels for clip in training])
    folder = output.parent.absolute()
    weighted = [
        (relative_path(clip.path, folder), clip.start_s, f"{weight:.9g}")
        for clip, weight in zip(training, weights, strict=True)
    ]
    written = [
        output,
        _write_or_remove(Path(f"{output}.classes.csv"), ("index", "label", "code"), classes),
        _write_or_remove(Path(f"{output}.weights.csv"), ("path", "start_s", "weight"), weighted),
    ]
    report = Path(f"{output}.skipped.csv")
    write_skipped(report, prepared.skipped)
    return [path for path in written if path is not None] + ([report] if prepared.skipped else [])


def _write_or_remove(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path | None:
    if not rows:
        path.unlink(missing_ok=True)
        return None
    write_csv(path, header, rows)
    return path
