"""Build a suite from packages, by default the open suite of six tasks: `TASK.csv` and `TASK.tar` for each.

    built = build_suite("suite/", "debs/")
    built = build_suite("suite/", "debs/", suite=ANOTHER)       # `benchmarks.proxy_suite` builds its own in this way

A task that cannot be built here (a package or program is missing) is left out with its reason; the others are built. A
task that exists is not built again, and a killed job resumes with the packages it had not read: they are unpacked to
`suite/.work/`, which is removed once every requested task is built. `PACKAGES.txt` lists the packages used,
`suite.json` the order of the tasks and how they are scored.

Clips are 16 kHz, mono, 0.3 s to a few seconds long, in Opus. Recordings that occur in two splits, bit for bit, are
counted: they raise a score a little. They stay, because the published suite has them and scores must be comparable.

Shapes: samples are (S,), float32.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import soxr

from benchmarks.open_suite.packages import Deb, fetch_deb, fetch_wheel, find_debs, find_wheel, unpack
from benchmarks.open_suite.synthesis import (
    RATE_HZ,
    Note,
    Utterance,
    cut_note,
    missing_programs,
    notes,
    play_font,
    utterances,
)
from benchmarks.open_suite.tasks import (
    FONTS,
    OPEN_TASKS,
    PROGRAMS,
    Label,
    OpenTask,
    Rule,
    chosen,
    counted,
    is_used,
    label_of,
)
from ssamba.audio.decode import decode
from ssamba.audio.files import Skipped, write_skipped
from ssamba.audio.readers import Samples
from ssamba.checkpoint.files import write_json
from ssamba.data.shards import ShardSettings, add_member, encode
from ssamba.errors import AudioDecodeError, AudioWarning, DataError, MissingExtraError, WorkerDiedError
from ssamba.evaluation.suite import METADATA_FILE, SuiteMetadata, open_suite_metadata
from ssamba.files import write_atomically
from ssamba.worker_pool import map_in_processes

SHORTEST_S = 0.3
"""Shorter clips are padded with silence."""
_SETTINGS = ShardSettings(bitrate_kbps=24.0)
_HEADERLESS = frozenset({".g722", ".gsm"})
_WORK = ".work"
_MOST_NAMED = 5  # packages that a message names


@dataclass(frozen=True)
class Source:
    """Source of a clip: a file, an utterance to synthesize, or a note to cut from a recording."""

    name: str
    label: Label
    path: Path
    """The file; for an utterance, the folder to synthesize it to."""
    longest_s: float
    synthesized: Utterance | Note | None = None


@dataclass(frozen=True)
class WrittenTask:
    """A task that was written."""

    clips: int
    classes: int
    skipped: tuple[Skipped, ...]
    repeated: int
    """Clips that are the same recording as a clip of another split."""


@dataclass
class BuiltSuite:
    """Result of `build_suite`."""

    folder: Path
    written: dict[str, WrittenTask] = field(default_factory=dict)
    """Tasks that were built."""
    existing: list[str] = field(default_factory=list)
    """Tasks that existed before."""
    left_out: list[Skipped] = field(default_factory=list)
    """Tasks that cannot be built here, and why."""
    skipped: list[Skipped] = field(default_factory=list)
    """Clips that are missing or damaged."""
    notes: list[str] = field(default_factory=list)
    """Messages for the user."""


OnProgress = Callable[[str, int, int], None]
"""Called at each step with its name, the units done, and their total."""
Refuse = Callable[[str, Source, str, bytes], str | None]
"""(task, source, digest of its samples, Opus file) -> why the clip is left out; None keeps it."""


@dataclass(frozen=True)
class Suite:
    """The tasks of a suite and their settings, for `build_suite`."""

    tasks: Mapping[str, OpenTask]
    metadata: SuiteMetadata
    is_used: Callable[[str, str], bool]
    """(package, path inside it) -> whether any task uses the file."""
    sources: Callable[[OpenTask, Path, Path, BuiltSuite, OnProgress], Sequence[Source]]
    """(task, folder of unpacked packages and synthesized clips, folder of packages, ...) -> clips in order.

    Raises DataError if the task cannot be built."""


def build_suite(
    output: str | Path,
    debs: str | Path,
    *,
    suite: Suite | None = None,
    tasks: Sequence[str] | None = None,
    fetch: bool = False,
    overwrite: bool = False,
    workers: int = 0,
    on_progress: OnProgress = lambda step, done, total: None,
    refuse: Refuse = lambda task, source, digest, opus: None,
) -> BuiltSuite:
    """Build every requested task whose packages and programs are available.

    Args:
        output: folder of the suite.
        debs: folder with the `.deb` files and wheels.
        suite: the suite to build; None means the open suite.
        tasks: names of its tasks; None builds all.
        fetch: download missing packages to `debs` with apt-get, missing wheels with pip.
        overwrite: build tasks again that exist.
        workers: processes that make clips; 0 makes them in this process.
        on_progress: called at each step.
        refuse: called for each clip; those for which it gives a reason are left out and listed.

    Raises:
        DataError: a task is unknown; `debs` is not a folder, or holds a package twice.
    """
    suite = suite or OPEN_SUITE
    unknown = [name for name in tasks or () if name not in suite.tasks]
    if unknown:
        raise DataError(f"the suite has no task {unknown[0]!r}. It has: {', '.join(suite.tasks)}")
    folder, debs = Path(output).expanduser(), Path(debs).expanduser()
    requested = [task for name, task in suite.tasks.items() if not tasks or name in tasks]
    built = BuiltSuite(folder)
    built.existing = [task.name for task in requested if not overwrite and _exists(folder, task)]
    todo = [task for task in requested if task.name not in built.existing]
    todo = [task for task in todo if not _lacks_programs(task, built)]
    if fetch:
        debs.mkdir(parents=True, exist_ok=True)
        _fetch(todo, debs, built, on_progress)
    found = find_debs(debs, [name for task in suite.tasks.values() for name in task.packages])
    todo = [task for task in todo if not _lacks_packages(task, found, debs, built)]
    folder.mkdir(parents=True, exist_ok=True)
    unusable = _unpack(suite, todo, found, folder / _WORK, built, on_progress)
    for task in todo:
        bad = [unusable[name] for name in task.packages if name in unusable]
        if bad:
            _leave_out(task, bad[0], built)
            continue
        try:
            sources = suite.sources(task, folder / _WORK, debs, built, on_progress)
            _write(task, sources, folder, workers, built, on_progress, refuse)
        except (DataError, MissingExtraError) as error:
            voices = f" Its voices are in {' '.join(task.voices)}" if task.voices else ""
            _leave_out(task, f"{error}{voices}", built)
    _write_packages(suite, folder, found)
    write_json(folder / METADATA_FILE, suite.metadata.model_dump(exclude_defaults=True))
    write_skipped(Path(f"{folder}.skipped.csv"), [*built.left_out, *built.skipped])
    if not built.left_out:
        shutil.rmtree(folder / _WORK, ignore_errors=True)
    return built


def _exists(folder: Path, task: OpenTask) -> bool:
    return (folder / f"{task.name}.csv").is_file() and (folder / f"{task.name}.tar").is_file()


def _leave_out(task: OpenTask, reason: str, built: BuiltSuite) -> None:
    built.left_out.append(Skipped(task.name, f"{task.name} is left out: {reason}"))


def _lacks_programs(task: OpenTask, built: BuiltSuite) -> bool:
    missing = missing_programs(task.programs)
    if missing:
        packages = " ".join([*(PROGRAMS[name] for name in task.programs), *task.voices])
        _leave_out(
            task, f"there is no {', no '.join(missing)} here. Install it (Debian: apt install {packages})", built
        )
    return bool(missing)


def _lacks_packages(task: OpenTask, found: dict[str, Deb], debs: Path, built: BuiltSuite) -> bool:
    missing = [name for name in task.packages if name not in found]
    missing += [wheel for wheel in task.wheels if find_wheel(debs, wheel) is None]
    if missing:
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        names = " ".join(missing[:_MOST_NAMED])
        _leave_out(task, f"packages are missing in {debs}: {names}{more}. Put their .deb there, or use --fetch", built)
    return bool(missing)


def _fetch(tasks: Sequence[OpenTask], debs: Path, built: BuiltSuite, on_progress: OnProgress) -> None:
    names = sorted({name for task in tasks for name in task.packages})
    existing = find_debs(debs, names)
    missing = [name for name in names if name not in existing]
    for done, name in enumerate(missing):
        on_progress(f"fetching {name}", done, len(missing))
        if error := fetch_deb(name, debs):
            built.notes.append(error)
    for wheel in sorted({wheel for task in tasks for wheel in task.wheels}):
        if find_wheel(debs, wheel) is None:
            on_progress(f"fetching {wheel}", 0, 1)
            if error := fetch_wheel(wheel, debs):
                built.notes.append(error)


def _unpack(
    suite: Suite,
    tasks: Sequence[OpenTask],
    found: dict[str, Deb],
    work: Path,
    built: BuiltSuite,
    on_progress: OnProgress,
) -> dict[str, str]:
    """Unpack the packages of the tasks; return the unusable ones with the reason."""
    names = sorted({name for task in tasks for name in task.packages})
    unusable: dict[str, str] = {}
    for done, name in enumerate(names):
        on_progress(f"unpacking {name}", done, len(names))
        try:
            built.skipped += [Skipped(name, reason) for reason in unpack(found[name], work, suite.is_used)]
        except DataError as error:
            unusable[name] = str(error)
    return unusable


def _open_sources(
    task: OpenTask, work: Path, debs: Path, built: BuiltSuite, on_progress: OnProgress
) -> Sequence[Source]:
    """Return the clips of a task of the open suite, in order."""
    if task.name == "kws35":
        candidates = [Source(u.name, u.label, work / task.name, task.longest_s, u) for u in utterances()]
    elif task.name == "instr_family":
        played = {}
        for done, (font, (package, _)) in enumerate(FONTS.items()):
            on_progress(f"playing {font}", done, len(FONTS))
            score = [note for note in notes() if note.font == font]
            played[font] = play_font(font, work / package, work / task.name, score)
        candidates = [Source(n.name, n.label, played[n.font], task.longest_s, n) for n in notes()]
    else:
        candidates = recorded(task, work, partial(label_of, task))
    places = chosen(task.name)
    if not places:
        return candidates
    sources = sorted((s for s in candidates if s.name in places), key=lambda s: places[s.name])
    sources += _counted(task, candidates)
    missing = set(places) - {source.name for source in sources}
    built.skipped += [
        Skipped(name, f"{name}: missing. Its package is of another version than Debian 12's")
        for name in sorted(missing)
    ]
    return sources


OPEN_SUITE = Suite(OPEN_TASKS, open_suite_metadata(), is_used, _open_sources)
"""The six tasks that the project's scores come from."""


def _write(
    task: OpenTask,
    sources: Sequence[Source],
    folder: Path,
    workers: int,
    built: BuiltSuite,
    on_progress: OnProgress,
    refuse: Refuse,
) -> None:
    written = write_task(task.name, sources, folder, workers, lambda done, n: on_progress(task.name, done, n), refuse)
    built.written[task.name] = written
    built.skipped += written.skipped
    if written.repeated:
        built.notes.append(f"{task.name}: {written.repeated} clips are the same recording as one of another split")
    if written.clips != task.clips:
        built.notes.append(
            f"{task.name}: {written.clips} of the {task.clips} clips that it has with Debian 12's packages"
        )


def recorded(task: OpenTask, work: Path, rule: Rule) -> list[Source]:
    """Return the files of the task's packages to which a rule gives a label, sorted by path within each package."""
    sources = []
    for package in task.packages:
        root = work / package
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            inside = path.relative_to(root).as_posix()
            label = rule(package, inside)
            if label is not None:
                sources.append(Source(f"{package}/{inside}", label, path, task.longest_s))
    return sources


def _counted(task: OpenTask, sources: Sequence[Source]) -> list[Source]:
    """Return the clips that are chosen by a hash of their names, as many for each package and class as the task has."""
    picked, named = [], chosen(task.name)
    for (package, label), count in counted(task.name).items():
        of_class = [
            s for s in sources if s.label.label == label and s.name.startswith(f"{package}/") and s.name not in named
        ]
        picked += sorted(of_class, key=lambda s: hashlib.sha256(s.name.encode()).digest())[:count]
    return picked


def _write_packages(suite: Suite, folder: Path, found: dict[str, Deb]) -> None:
    lines = [
        "The packages that this suite is made of, their versions, and where the license of each stands.",
        "Licenses differ; some recordings must not be passed on without them.",
        "",
    ]
    for task in suite.tasks.values():
        if not _exists(folder, task):
            continue
        lines.append(f"{task.name}:")
        for name in task.packages:
            version = found[name].version if name in found else "(not in the folder any more)"
            lines.append(f"  {name} {version}: usr/share/doc/{name}/copyright")
        lines += [f"  {wheel}: a wheel of PyPI, its license inside" for wheel in task.wheels]
        lines += [f"  made by {program} (package {PROGRAMS[program]})" for program in task.programs]
    text = "\n".join(lines) + "\n"
    write_atomically(folder / "PACKAGES.txt", lambda target: target.write_text(text, encoding="utf-8"))


def write_task(
    name: str,
    sources: Sequence[Source],
    folder: Path,
    workers: int,
    on_clip: Callable[[int, int], None],
    refuse: Refuse = lambda task, source, digest, opus: None,
) -> WrittenTask:
    """Write the clips of a task, in the order given, to `folder/NAME.tar` and then `folder/NAME.csv`, each atomically.

    Raises:
        DataError: a program that synthesizes a clip fails, or no clip can be read.
        MissingExtraError: a recording needs codecs that are not installed.
    """
    table, archive = folder / f"{name}.csv", folder / f"{name}.tar"
    rows: list[tuple[str, str, str, str]] = []
    skipped: list[Skipped] = []
    split_of: dict[str, str] = {}
    repeated = 0

    def write(target: Path) -> None:
        nonlocal repeated
        with tarfile.open(target, "w") as tar:
            for source, key, data in _made(sources, workers, skipped, lambda done: on_clip(done, len(sources))):
                if reason := refuse(name, source, key, data):
                    skipped.append(Skipped(source.name, f"{source.name}: {reason}"))
                    continue
                member = f"{name}/{len(rows):05d}.opus"
                add_member(tar, member, data)
                repeated += split_of.setdefault(key, source.label.split) != source.label.split
                rows.append((member, source.label.label, source.label.split, source.label.group))
        if not rows:
            raise DataError(
                f"{name}: none of its {len(sources)} clips can be read. {skipped[0].reason if skipped else ''}"
            )

    table.unlink(missing_ok=True)  # the table marks the archive as complete
    write_atomically(archive, write)
    write_atomically(table, lambda target: _write_table(target, rows))
    return WrittenTask(len(rows), len({row[1] for row in rows}), tuple(skipped), repeated)


def _made(
    sources: Sequence[Source], workers: int, skipped: list[Skipped], on_clip: Callable[[int], None]
) -> Iterator[tuple[Source, str, bytes]]:
    for done, (source, made) in enumerate(map_in_processes(make_clip, sources, workers), 1):
        on_clip(done)
        if isinstance(made, WorkerDiedError | AudioDecodeError):
            skipped.append(Skipped(source.name, f"{source.name}: {made}"))
        else:
            yield source, *made


def _write_table(target: Path, rows: Sequence[Sequence[str]]) -> None:
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("clip", "label", "split", "group"))
        writer.writerows(rows)


def make_clip(source: Source) -> tuple[str, bytes] | AudioDecodeError:
    """Return the digest of a clip's samples (in 16 bits) and its Opus file, or the error if it cannot be read."""
    try:
        if isinstance(source.synthesized, Utterance):
            samples = read_clip(source.synthesized.speak(source.path), source.longest_s)
        elif isinstance(source.synthesized, Note):
            samples = as_clip(cut_note(source.path, source.synthesized), source.longest_s, source.name)
        else:
            samples = read_clip(source.path, source.longest_s)
        pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2")
        return hashlib.sha256(pcm.tobytes()).hexdigest(), encode(samples, _SETTINGS)
    except AudioDecodeError as error:
        return error


def read_clip(path: Path, longest_s: float) -> Samples:
    """Return the first `longest_s` of a recording (S,); of a truncated file, the part that can be read.

    Raises:
        AudioDecodeError: the file cannot be read, or is silent.
        MissingExtraError: reading it needs PyAV.
    """
    if path.suffix.lower() in _HEADERLESS:
        samples = _read_headerless(path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AudioWarning)
            samples = decode(path, sample_rate_hz=RATE_HZ, damaged="keep")
    return as_clip(samples, longest_s, str(path))


def as_clip(samples: Samples, longest_s: float, name: str) -> Samples:
    """Cut samples (S,) at 16 kHz to `longest_s`, or pad them with silence to `SHORTEST_S`.

    Raises:
        AudioDecodeError: the samples are silent.
    """
    samples = samples[: round(longest_s * RATE_HZ)]
    if not len(samples) or not samples.any():
        raise AudioDecodeError(f"{name}: is silent. Leave it out")
    return np.pad(samples, (0, max(0, round(SHORTEST_S * RATE_HZ) - len(samples))))


def _read_headerless(path: Path) -> Samples:
    """Decode a telephone codec without a file header (.g722, .gsm) by FFmpeg (PyAV, the `codecs` extra)."""
    try:
        import av
    except ImportError:
        raise MissingExtraError(f'{path}: needs further codecs. Install them: pip install "ssamba[codecs]"') from None
    try:
        with av.open(str(path.absolute()), "r", format=path.suffix.lower()[1:]) as container:
            rate_hz = int(container.streams.audio[0].codec_context.sample_rate)
            frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    except Exception as error:  # PyAV raises many kinds
        raise AudioDecodeError(f"{path}: cannot be decoded ({error}). Fetch its package again") from None
    samples: Samples = np.concatenate(frames or [np.zeros(0, np.int16)]).astype(np.float32) / np.float32(32768)
    if rate_hz == RATE_HZ:
        return samples
    resampled: Samples = soxr.resample(samples, rate_hz, RATE_HZ, quality="HQ").astype(np.float32, copy=False)
    return resampled
