"""A public data set as a manifest: what there should be, what is there, and what is wrong with it.

    prepared = prepare("esc50", "ESC-50-master/")
    write_prepared(prepared, "esc50.parquet")

Files that are missing or damaged cost themselves only; they are listed. Clips that are listed twice, and groups (a
speaker, a recording) on both sides of a split, are errors: a score on such a test would not be one.
"""

from __future__ import annotations

import csv
import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ssamba.audio.files import Skipped, path_text, write_skipped
from ssamba.data.formats import relative_path
from ssamba.data.manifest import Clip, Manifest, ScanProgress, header_duration_s, write_manifest
from ssamba.datasets.audioset import AUDIOSET_2M, AUDIOSET_20K
from ssamba.datasets.dataset import PublicDataset
from ssamba.datasets.esc50 import ESC50
from ssamba.datasets.fsd50k import FSD50K
from ssamba.datasets.iemocap import IEMOCAP
from ssamba.datasets.librispeech import LIBRISPEECH
from ssamba.datasets.speech_commands import SPEECH_COMMANDS_V1, SPEECH_COMMANDS_V1_SUPERB, SPEECH_COMMANDS_V2
from ssamba.datasets.urbansound8k import URBANSOUND8K, URBANSOUND8K_SCENES
from ssamba.datasets.voxceleb1 import VOXCELEB1
from ssamba.errors import DataError, DatasetStructureError, WorkerDiedError
from ssamba.files import write_atomically
from ssamba.hashing import file_checksum
from ssamba.worker_pool import map_in_processes

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
    """The dataset of that name.

    Raises:
        DataError: there is none; the message has the nearest.
    """
    of_plain = {_plain(known): known for known in DATASETS}
    if _plain(name) in of_plain:  # audioset20k, speech_commands_v1
        return DATASETS[of_plain[_plain(name)]]
    near = difflib.get_close_matches(name.lower().replace("_", "-"), DATASETS, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]!r}? " if near else ". "
    raise DataError(f"{name!r} is no data set that is known{hint}There are: {', '.join(DATASETS)}")


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def verify_archives(folder: Path, archives: Mapping[str, str]) -> list[str]:
    """Compare the archives that are in `folder` with their checksums.

    Args:
        folder: where the data set is.
        archives: `md5:...` or `sha256:...` by file name.

    Returns:
        The names of those that were there, all of them whole.

    Raises:
        DataError: one differs.
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
                f"{path}: its {algorithm} is {found}, published is {digest}: the download is damaged, and "
                "what was unpacked from it may be. Fetch and unpack it again"
            )
        checked.append(name)
    return checked


def balanced_weights(labels: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
    """A weight for each clip (n,): the sum over its classes of 1 / (clips of that class), scaled to a mean of 1.

    As AST and SSAST draw AudioSet (Gong et al., 2021), whose constants do not change the proportions. A clip without a
    label weighs 0.
    """
    counts = Counter(label for clip in labels for label in set(clip))
    weights = np.array([sum(1.0 / counts[label] for label in set(clip)) for clip in labels], np.float64)
    return weights / weights.mean() if weights.any() else weights


@dataclass(frozen=True)
class Prepared:
    """A data set that is ready to be written as a manifest."""

    dataset: PublicDataset
    clips: Sequence[Clip]
    classes: tuple[str, ...] = ()
    """In the order of their official numbers."""
    codes: tuple[str, ...] = ()
    """Other names of the classes (AudioSet's identifiers), or none."""
    missing: Sequence[Skipped] = ()
    """What the data set's tables list and is not there."""
    damaged: Sequence[Skipped] = ()
    """What is there and cannot be read."""
    notes: Sequence[str] = ()
    """What a user should know, numbers that differ from the published ones among it."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Recordings that were found, by split."""

    @property
    def skipped(self) -> list[Skipped]:
        """What was left out."""
        return [*self.missing, *self.damaged]

    @property
    def hours(self) -> float | None:
        """Sum of the durations; None when they are not known."""
        return Manifest(self.clips).hours


def prepare(
    name: str,
    source: str | Path,
    *,
    workers: int = 0,
    headers: bool = True,
    checksums: bool = False,
    allow_leaks: bool = False,
    audio_folder: str | Path | None = None,
    on_progress: Callable[[ScanProgress], None] | None = None,
) -> Prepared:
    """List the clips of a public data set, with labels, splits and groups as published.

    Args:
        name: one of `DATASETS`.
        source: the folder it was unpacked to, or the one around that.
        workers: processes that read headers; 0 reads in this one.
        headers: read the header of every file, for its duration and to notice damage; without, only look for the files.
        checksums: compare the archives that lie in `source` with the published checksums.
        allow_leaks: go on where groups are divided between splits; they are then left out of the manifest.
        audio_folder: where new recordings are written, for data sets that are made of others (urbansound8k-scenes).
        on_progress: called after each file.

    Raises:
        DatasetStructureError: the data set is not in `source`; the message shows what is expected.
        DataError: there is no such data set; a table or an archive is damaged; clips are listed twice; groups are
            divided between splits; nothing of it is there.
    """
    dataset = find_dataset(name)
    source = Path(source).expanduser()
    if not source.is_dir():
        raise DatasetStructureError(f"{source} is not a folder. {_expected(dataset)}")
    if dataset.render is not None and audio_folder is None:
        raise DataError(f"{name} makes new recordings: say with audio_folder where to")
    notes: list[str] = []
    if checksums:
        notes += _checked(verify_archives(source, dataset.archives), dataset)
    try:
        listing = dataset.list_clips(source)
    except DatasetStructureError as error:
        raise DatasetStructureError(f"{source} does not hold {dataset.title}: {error}. {_expected(dataset)}") from None
    notes += listing.notes
    Manifest(clip for clip in listing.clips).check_duplicates()
    clips, missing, damaged = _look(listing.clips, workers, headers, on_progress)
    missing = [*listing.missing, *missing]
    if not clips:
        raise DataError(
            f"{source}: none of the {len(listing.clips) + len(listing.missing)} recordings of {dataset.title} can be "
            f"read. {(missing or damaged or [Skipped('', 'Its tables are empty')])[0].reason}"
        )
    clips, leaks = _without_leaks(clips, dataset, allow_leaks)
    counts = Counter(clip.split or "none" for clip in clips)
    notes += [*leaks, *_differences(clips, counts, dataset)]
    if dataset.render is not None and audio_folder is not None:
        clips, failed = dataset.render(clips, Path(audio_folder).expanduser(), workers, on_progress)
        damaged += failed
    return Prepared(dataset, clips, listing.classes, listing.codes, missing, damaged, notes, counts)


def _expected(dataset: PublicDataset) -> str:
    return f"Expected ({dataset.reference}):\n{dataset.structure}"


def _checked(names: Sequence[str], dataset: PublicDataset) -> list[str]:
    if names:
        return [f"checksums agree with the published ones: {', '.join(names)}"]
    known = f"none of its archives ({', '.join(dataset.archives)}) is in the folder"
    return [f"no checksum was compared: {known if dataset.archives else 'none is known for this data set'}"]


def _look(
    listed: Sequence[Clip], workers: int, headers: bool, on_progress: Callable[[ScanProgress], None] | None
) -> tuple[list[Clip], list[Skipped], list[Skipped]]:
    """The clips that are there, with durations; those that are missing; those that are damaged."""
    files = list(dict.fromkeys(clip.path for clip in listed))
    progress = ScanProgress(len(files))
    missing: list[Skipped] = []
    damaged: list[Skipped] = []
    lengths_s: dict[Path, float | None] = {}
    look: Callable[[Path], float | Exception | None] = _measure if headers else _exists
    for path, found in map_in_processes(look, files, workers if headers else 0, ahead=256):
        if isinstance(found, WorkerDiedError):
            damaged.append(Skipped(path_text(path), f"{path}: the decoder crashed on it, so it is damaged"))
        elif isinstance(found, FileNotFoundError):
            missing.append(Skipped(path_text(path), f"{path}: missing"))
        elif isinstance(found, Exception):
            damaged.append(Skipped(path_text(path), str(found)))
        else:
            lengths_s[path] = found
            progress.audio_s += found or 0.0
        progress.done += 1
        progress.skipped = len(missing) + len(damaged)
        if on_progress is not None:
            on_progress(progress)
    clips: list[Clip] = []
    for clip in listed:
        if clip.path not in lengths_s:
            continue
        length_s = lengths_s[clip.path]
        clips.append(clip if length_s is None or clip.duration_s is not None else replace(clip, duration_s=length_s))
    return clips, missing, damaged


def _exists(path: Path) -> float | Exception | None:
    return None if path.is_file() else FileNotFoundError(path)


def _measure(path: Path) -> float | Exception | None:
    return header_duration_s(path) if path.is_file() else FileNotFoundError(path)


def _without_leaks(clips: list[Clip], dataset: PublicDataset, allow_leaks: bool) -> tuple[list[Clip], list[str]]:
    """The clips with no group that is divided between splits, and what to say of those that were."""
    divided = Manifest(clips).divided_groups()
    if not divided:
        return clips, []
    refused = [group for group, splits in divided.items() if not dataset.splits_sharing_groups.issuperset(splits)]
    if refused and not allow_leaks:
        some = "; ".join(f"{group} is in {' and '.join(divided[group])}" for group in refused[:5])
        raise DataError(
            f"{dataset.title}: {len(refused)} groups are in more than one split, so that a test would not be one: {some}. "
            "As published there are none: were tables or folders changed? --allow-leaks (allow_leaks=True) goes on all "
            "the same, without these groups"
        )
    note = f"{len(divided)} groups are in more than one split ({', '.join(list(divided)[:3])}, ...); the manifest has them not"
    return [replace(clip, group=None) if clip.group in divided else clip for clip in clips], [note]


def _differences(clips: Sequence[Clip], counts: Mapping[str, int], dataset: PublicDataset) -> list[str]:
    """Published numbers that are not those of the clips."""
    notes = []
    short = [
        f"{name} {counts.get(name, 0)} of {n}" for name, n in dataset.published.items() if counts.get(name, 0) != n
    ]
    if short:
        notes.append(f"recordings, of those that are published: {', '.join(short)}")
    found = Counter(label for clip in clips for label in clip.labels)
    if dataset.num_classes and len(found) != dataset.num_classes:
        notes.append(f"classes with recordings: {len(found)} of {dataset.num_classes}")
    short = [f"{name} {found[name]} of {n}" for name, n in dataset.class_counts.items() if found[name] != n]
    if short:
        notes.append(f"recordings of classes, of those that are published: {', '.join(short)}")
    return notes


def write_prepared(prepared: Prepared, output: str | Path) -> list[Path]:
    """Write the manifest, and beside it what belongs to it.

    `OUTPUT.classes.csv` (index, label, code) has the classes in official order; `OUTPUT.weights.csv` (path, start_s,
    weight; paths as in the manifest) how often AST and SSAST draw each training clip of a set that is trained balanced
    (ssamba's own `clips.balanced` draws classes alike, a clip for its rarest); `OUTPUT.skipped.csv` (path,
    reason) what is missing or damaged. What does not apply is removed if it is there from before.

    Returns:
        The files that were written, the manifest first.

    Raises:
        DataError: another suffix than a manifest's, or a value that the format cannot hold.
        MissingExtraError: Parquet without pyarrow.
    """
    output = Path(output).expanduser()
    write_manifest(prepared.clips, output)
    codes = prepared.codes or ("",) * len(prepared.classes)
    classes = ((i, *row) for i, row in enumerate(zip(prepared.classes, codes, strict=True)))
    training = [clip for clip in prepared.clips if clip.split == "train"] if prepared.dataset.balanced else []
    weights = balanced_weights([clip.labels for clip in training])
    weighted = (
        (relative_path(c.path, output.parent.absolute()), c.start_s, f"{w:.9g}")
        for c, w in zip(training, weights, strict=True)
    )
    written = [
        output,
        _write_or_remove(Path(f"{output}.classes.csv"), ("index", "label", "code"), list(classes)),
        _write_or_remove(Path(f"{output}.weights.csv"), ("path", "start_s", "weight"), list(weighted)),
    ]
    report = Path(f"{output}.skipped.csv")
    write_skipped(report, prepared.skipped)
    return [path for path in written if path is not None] + ([report] if prepared.skipped else [])


def _write_or_remove(path: Path, header: Iterable[str], rows: Sequence[Sequence[object]]) -> Path | None:
    if not rows:
        path.unlink(missing_ok=True)
        return None

    def write(target: Path) -> None:
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)

    write_atomically(path, write)
    return path
