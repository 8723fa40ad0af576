"""Build the corpus: read the packages, screen the recordings, write shards and what is known of them.

    built = build_corpus("corpus/", "debs/", exclude=["suite/"])

Every recording is decoded to 16 kHz, mono. Left out are those shorter than `SHORTEST_S`, those without sound, and
copies: recordings with the same samples. A recording that an excluded suite holds ends the build with an error before
anything is written: a suite's clips are the beginnings of recordings, so the first 2, 3 and 4 s (the longest clips of
the suites' tasks) and the whole are compared with all its clips, by a digest of the decoded samples and by a
fingerprint that recognizes them in another codec (`benchmarks.proxy_suite.known`).

The output is a folder of shards (`ssamba.data.shards`): clips of at most `LONGEST_S`, Opus, each with its package
as group. Beside them are `corpus.json` (hours, levels, what was left out), `PACKAGES.txt`, and in `licenses/` the
notices of every package, which have to go with copies of the recordings. No recording belongs in the repository.

Shapes: samples are (S,), float32.
"""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from benchmarks.corpus.sources import SOURCES, SpeechPackage
from benchmarks.open_suite.build import as_clip
from benchmarks.open_suite.packages import Deb, fetch_deb, find_debs, read_deb
from benchmarks.open_suite.synthesis import RATE_HZ
from benchmarks.open_suite.tasks import OPEN_TASKS
from benchmarks.proxy_suite.known import KnownClips, Signature
from benchmarks.proxy_suite.tasks import PROXY_TASKS
from ssamba.audio.decode import decode
from ssamba.audio.files import Skipped, write_skipped
from ssamba.audio.readers import Samples
from ssamba.checkpoint.files import write_json
from ssamba.data.formats import Clip
from ssamba.data.manifest import Manifest
from ssamba.data.shards import write_shards
from ssamba.errors import AudioDecodeError, AudioWarning, DataError, WorkerDiedError
from ssamba.files import write_text
from ssamba.hashing import hash_bytes
from ssamba.worker_pool import map_in_processes

SHORTEST_S, LONGEST_S = 0.3, 10.24
"""Shorter recordings are left out, longer ones are cut into equal pieces."""
CORRELATION = 0.95
"""Recordings whose fingerprints correlate so much with that of an excluded clip are the same. Measured on `festvox-ru`
against the open suite's clips (24 kbit/s): its 25 clips correlate by .984 and more, all other sentences by at most .67.
"""
REPORT_FILE = "corpus.json"
_SILENT_PEAK = 1e-3
_CLIPPED = 0.99
_BITRATE_KBPS = 24.0
_SHARD_MB = 20.0
_WORK, _LICENSES = ".work", "licenses"
_MOST_NAMED = 5
_PREFIXES_S = tuple(sorted({task.longest_s for task in (*OPEN_TASKS.values(), *PROXY_TASKS.values())}))

OnProgress = Callable[[str, int, int], None]
"""Called at each step with its name, the units done, and their total."""


@dataclass(frozen=True)
class Measured:
    """What is measured on one recording."""

    seconds: float
    digest: bytes
    """Of its samples in 16 bits."""
    peak: float
    level_db: float
    """RMS relative to full scale."""
    offset: float
    """Mean of the samples."""
    clipped: float
    """Share of samples above 0.99 of full scale."""
    signatures: tuple[Signature, ...]
    """Of its beginnings and of the whole."""


@dataclass
class PackageReport:
    """What a package gave."""

    version: str
    kind: str
    license: str
    recordings: int = 0
    """Recordings that the corpus has of it."""
    hours: float = 0.0
    median_s: float = 0.0
    level_db: tuple[float, ...] = ()
    """RMS relative to full scale: 5 % quantile, median, 95 % quantile over its recordings."""
    peak: float = 0.0
    """Median."""
    clipped: float = 0.0
    """Share of its recordings of which more than 0.1 % of the samples are clipped."""
    largest_offset: float = 0.0
    """Largest mean of a recording's samples."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> recordings."""


@dataclass
class BuiltCorpus:
    """Result of `build_corpus`."""

    folder: Path
    packages: dict[str, PackageReport] = field(default_factory=dict)
    compared: int = 0
    """Clips of the excluded suites that every recording was compared with."""
    clips: int = 0
    """Clips in the shards, pieces of long recordings counted."""
    left_out: list[Skipped] = field(default_factory=list)

    @property
    def hours(self) -> float:
        """Hours of audio."""
        return sum(report.hours for report in self.packages.values())


def build_corpus(
    output: str | Path,
    debs: str | Path,
    exclude: Sequence[str | Path],
    *,
    packages: Sequence[str] | None = None,
    fetch: bool = False,
    overwrite: bool = False,
    workers: int = 0,
    on_progress: OnProgress = lambda step, done, total: None,
) -> BuiltCorpus:
    """Build the corpus; a killed job goes on with the packages that it had not read.

    Args:
        output: folder of the corpus.
        debs: folder with the `.deb` files.
        exclude: folders of suites of which no clip may be in the corpus.
        packages: names of the packages to read; None means all of `SOURCES`.
        fetch: download missing packages to `debs` with apt-get.
        overwrite: build a corpus again that exists.
        workers: processes that decode recordings; 0 decodes in this process.
        on_progress: called at each step.

    Raises:
        DataError: a package is not allowed, missing or damaged; the corpus exists; a recording of an excluded suite is
            among the recordings.
        SuiteError: a folder of `exclude` is no suite.
    """
    folder, debs = Path(output).expanduser(), Path(debs).expanduser()
    for name in packages or ():
        if name not in SOURCES:
            raise DataError(f"{name} is not among the packages of the corpus: {', '.join(SOURCES)}")
    chosen = [package for name, package in SOURCES.items() if not packages or name in packages]
    if (folder / REPORT_FILE).exists() and not overwrite:
        raise DataError(f"{folder} holds a corpus already. Choose another folder, or use --overwrite to build it again")
    found = _find(debs, chosen, fetch, on_progress)
    known = KnownClips.read([Path(suite).expanduser() for suite in exclude])
    built = BuiltCorpus(folder, compared=len(known.names))
    work = folder / _WORK
    clips = []
    excluded: list[Skipped] = []
    seen: dict[bytes, str] = {}
    for package in chosen:
        deb = found[package.name]
        on_progress(f"reading {package.name}", 0, 1)
        files = _write_recordings(package, deb, work)
        built.packages[package.name] = report = PackageReport(deb.version, package.kind, package.license)
        kept = _screen(files, package.name, known, seen, report, workers, on_progress, excluded, built.left_out)
        clips += [Clip(path, group=package.name) for path in kept]
    if excluded:
        write_skipped(Path(f"{folder}.excluded.csv"), excluded)
        shutil.rmtree(work)  # sources.py is to be changed, and then they are read again
        names = "; ".join(entry.reason for entry in excluded[:_MOST_NAMED])
        raise DataError(
            f"{len(excluded)} recordings are clips of an excluded suite: {names}. No corpus was written. All of them "
            f"are in {folder}.excluded.csv: leave them out in benchmarks/corpus/sources.py"
        )
    shards = write_shards(
        Manifest(clips),
        folder,
        bitrate=_BITRATE_KBPS,
        sample_rate=RATE_HZ,
        shard_mb=_SHARD_MB,
        max_clip_s=LONGEST_S,
        damaged="keep",
        overwrite=overwrite,
        workers=workers,
    )
    built.clips = shards.clips
    _write_notices(folder, [found[package.name] for package in chosen])
    write_skipped(folder / "left_out.csv", built.left_out)
    write_json(folder / REPORT_FILE, report_of(built))
    shutil.rmtree(work)
    return built


def _find(debs: Path, packages: Sequence[SpeechPackage], fetch: bool, on_progress: OnProgress) -> dict[str, Deb]:
    names = [package.name for package in packages]
    if fetch:
        debs.mkdir(parents=True, exist_ok=True)
        for name in names:
            if name not in find_debs(debs, [name]):
                on_progress(f"fetching {name}", 0, 1)
                if error := fetch_deb(name, debs):
                    raise DataError(error)
    found = find_debs(debs, names)
    if missing := [name for name in names if name not in found]:
        raise DataError(f"packages are missing in {debs}: {' '.join(missing)}. Put their .deb there, or use --fetch")
    return found


def _write_recordings(package: SpeechPackage, deb: Deb, work: Path) -> list[Path]:
    """Return the recordings of a package as files in `work/PACKAGE`; they are written if that folder does not exist."""
    done, part = work / package.name, work / f".{package.name}.part"
    if not done.is_dir():
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name, data in package.recordings(deb):
            (part / name).write_bytes(data)
        part.replace(done)
    return sorted(done.iterdir())


def _screen(
    files: Sequence[Path],
    package: str,
    known: KnownClips,
    seen: dict[bytes, str],
    report: PackageReport,
    workers: int,
    on_progress: OnProgress,
    excluded: list[Skipped],
    left_out: list[Skipped],
) -> list[Path]:
    """Return the files that go into the corpus, and fill in the report of their package."""
    kept: list[tuple[Path, Measured]] = []
    reasons: Counter[str] = Counter()
    for done, (path, measured) in enumerate(map_in_processes(measure, files, workers), 1):
        on_progress(f"screening {package}", done, len(files))
        name = f"{package}/{path.name}"
        if isinstance(measured, AudioDecodeError | WorkerDiedError):
            reasons["damaged"] += 1
            left_out.append(Skipped(name, f"{name}: {measured}"))
            continue
        if measured.peak < _SILENT_PEAK or measured.seconds < SHORTEST_S:
            reason = "silent" if measured.peak < _SILENT_PEAK else "too short"
            reasons[reason] += 1
            left_out.append(Skipped(name, f"{name}: is {reason} ({measured.seconds:.2f} s)"))
            continue
        if match := find_known(measured.signatures, known):
            excluded.append(Skipped(name, f"{name} {match}"))
            continue
        first = seen.setdefault(measured.digest, name)
        if first != name:
            reasons["copy"] += 1
            left_out.append(Skipped(name, f"{name}: is a copy of {first}"))
            continue
        kept.append((path, measured))
    report.left_out = dict(reasons)
    _summarize([measured for _, measured in kept], report)
    return [path for path, _ in kept]


def _summarize(measured: Sequence[Measured], report: PackageReport) -> None:
    if not measured:
        return
    seconds = [one.seconds for one in measured]
    report.recordings, report.hours = len(measured), sum(seconds) / 3600
    report.median_s = float(np.median(seconds))
    report.level_db = tuple(np.quantile([one.level_db for one in measured], [0.05, 0.5, 0.95]).tolist())
    report.peak = float(np.median([one.peak for one in measured]))
    report.clipped = float(np.mean([one.clipped > 1e-3 for one in measured]))
    report.largest_offset = max(abs(one.offset) for one in measured)


def measure(path: Path) -> Measured | AudioDecodeError:
    """Decode a recording and measure it; an error is returned if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AudioWarning)
            samples = decode(path, sample_rate_hz=RATE_HZ, damaged="keep")
    except AudioDecodeError as error:
        return error
    pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2")
    size = np.abs(samples)
    return Measured(
        seconds=len(samples) / RATE_HZ,
        digest=hash_bytes(pcm.tobytes(), 16),
        peak=float(size.max(initial=0.0)),
        level_db=float(10 * np.log10(np.mean(np.square(samples)) + 1e-12)) if len(samples) else -120.0,
        offset=float(samples.mean()) if len(samples) else 0.0,
        clipped=float((size > _CLIPPED).mean()) if len(samples) else 0.0,
        signatures=signatures_of(samples, str(path)) if pcm.any() else (),
    )


def signatures_of(samples: Samples, name: str) -> tuple[Signature, ...]:
    """Return the signatures of the beginnings that a suite's clips may have, and of all samples (S,)."""
    whole = len(samples) / RATE_HZ
    lengths_s = [seconds for seconds in _PREFIXES_S if seconds < whole]
    return tuple(Signature.of(as_clip(samples, seconds, name)) for seconds in [*lengths_s, whole])


def find_known(signatures: Sequence[Signature], known: KnownClips) -> str | None:
    """Return which known clip has one of the signatures, as `is CLIP (correlation ...)`; None if there is none."""
    for signature in signatures:
        if match := known.find(signature, CORRELATION):
            return f"is {match[0]} (correlation {match[1]:.3f})"
    return None


def report_of(built: BuiltCorpus) -> dict[str, object]:
    """Return what `corpus.json` holds."""
    return {
        "hours": built.hours,
        "clips": built.clips,
        "compared_with_excluded_clips": built.compared,
        "packages": {name: asdict(report) for name, report in built.packages.items()},
    }


def _write_notices(folder: Path, debs: Sequence[Deb]) -> None:
    """Write `PACKAGES.txt`, and copy the notices of the packages (`copyright`, `readme.txt.gz`, ...)."""
    lines = [
        "The packages that this corpus is made of. The recordings are not as they were: resampled to 16 kHz, mono,",
        "cut at 10.24 s and encoded as Opus. Their notices, which go with every copy, are in licenses/.",
        "",
    ]
    for deb in debs:
        target = folder / _LICENSES / deb.name
        target.mkdir(parents=True, exist_ok=True)
        for path, content in read_deb(deb.file, lambda path: path.startswith("usr/share/doc/")):
            (target / PurePosixPath(path).name).write_bytes(content.read())
        lines.append(f"{deb.name} {deb.version}: {SOURCES[deb.name].kind}; license: {SOURCES[deb.name].license}")
    write_text(folder / "PACKAGES.txt", "\n".join(lines) + "\n")
