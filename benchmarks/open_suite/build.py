"""The open suite from Debian's packages: `TASK.csv` and `TASK.tar` for each of six tasks.

    built = build_suite("suite/", "debs/")

What cannot be built here (a package or program is missing) is left out with its reason; the other tasks are built. A task
that is there is not built again, and a killed job goes on with the packages that it had not read: they are unpacked to
`suite/.work/`, which is removed when every task that was asked for is there. `PACKAGES.txt` lists what the suite is made of.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.open_suite.debs import Deb, fetch_deb, find_debs
from benchmarks.open_suite.instruments import FONTS, notes, play_font
from benchmarks.open_suite.programs import PROGRAMS, missing_programs
from benchmarks.open_suite.tasks import OPEN_TASKS, OpenTask, chosen, counted, is_taken, label_of
from benchmarks.open_suite.unpack import unpack
from benchmarks.open_suite.words import utterances
from benchmarks.open_suite.write import Source, Written, write_task
from ssamba.audio.files import Skipped, write_skipped
from ssamba.errors import DataError, MissingExtraError
from ssamba.files import write_atomically

_WORK = ".work"
_NAMED = 5  # packages in a message; the others are counted


@dataclass
class BuiltSuite:
    """What came of it."""

    folder: Path
    written: dict[str, Written] = field(default_factory=dict)
    """Tasks that were built."""
    kept: list[str] = field(default_factory=list)
    """Tasks that were there already."""
    left_out: list[Skipped] = field(default_factory=list)
    """Tasks that cannot be built here, and why."""
    skipped: list[Skipped] = field(default_factory=list)
    """Clips that are missing or damaged."""
    notes: list[str] = field(default_factory=list)
    """What a user should know."""


Report = Callable[[str, int, int], None]
"""Hears of each step: what is being done, how much of it is done, of how much."""


def build_suite(
    output: str | Path,
    debs: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    fetch: bool = False,
    overwrite: bool = False,
    workers: int = 0,
    on_progress: Report = lambda step, done, total: None,
) -> BuiltSuite:
    """Build the tasks of the open suite for which everything is there.

    Args:
        output: folder of the suite.
        debs: folder with the `.deb` files.
        tasks: of `OPEN_TASKS`; None is all.
        fetch: download missing packages to `debs` with apt-get.
        overwrite: build tasks again that are there.
        workers: processes that make clips; 0 makes them in this one.
        on_progress: hears how far it is.

    Raises:
        DataError: there is no such task; `debs` is no folder, or holds a package twice.
    """
    unknown = [name for name in tasks or () if name not in OPEN_TASKS]
    if unknown:
        raise DataError(f"the open suite has no task {unknown[0]!r}. It has: {', '.join(OPEN_TASKS)}")
    folder, debs = Path(output).expanduser(), Path(debs).expanduser()
    wanted = [task for name, task in OPEN_TASKS.items() if not tasks or name in tasks]
    built = BuiltSuite(folder)
    built.kept = [task.name for task in wanted if not overwrite and _is_there(folder, task)]
    todo = [task for task in wanted if task.name not in built.kept]
    todo = [task for task in todo if not _lacks_programs(task, built)]
    if fetch:
        debs.mkdir(parents=True, exist_ok=True)
        _fetch(todo, debs, built, on_progress)
    found = find_debs(debs, [name for task in OPEN_TASKS.values() for name in task.packages])
    todo = [task for task in todo if not _lacks_packages(task, found, debs, built)]
    folder.mkdir(parents=True, exist_ok=True)
    unusable = _unpack(todo, found, folder / _WORK, built, on_progress)
    for task in todo:
        bad = [unusable[name] for name in task.packages if name in unusable]
        if bad:
            built.left_out.append(Skipped(task.name, f"{task.name} is left out: {bad[0]}"))
            continue
        try:
            _build(task, folder, workers, built, on_progress)
        except (DataError, MissingExtraError) as error:
            voices = f" Its voices are in {' '.join(task.voices)}" if task.voices else ""
            built.left_out.append(Skipped(task.name, f"{task.name} is left out: {error}{voices}"))
    _write_packages(folder, found)
    write_skipped(Path(f"{folder}.skipped.csv"), [*built.left_out, *built.skipped])
    if not built.left_out:
        shutil.rmtree(folder / _WORK, ignore_errors=True)
    return built


def _is_there(folder: Path, task: OpenTask) -> bool:
    return (folder / f"{task.name}.csv").is_file() and (folder / f"{task.name}.tar").is_file()


def _lacks_programs(task: OpenTask, built: BuiltSuite) -> bool:
    missing = missing_programs(task.programs)
    if missing:
        packages = [*(PROGRAMS[name] for name in task.programs), *task.voices]
        reason = f"there is no {', no '.join(missing)} here. Install it (Debian: apt install {' '.join(packages)})"
        built.left_out.append(Skipped(task.name, f"{task.name} is left out: {reason}"))
    return bool(missing)


def _lacks_packages(task: OpenTask, found: dict[str, Deb], debs: Path, built: BuiltSuite) -> bool:
    missing = [name for name in task.packages if name not in found]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        reason = f"packages are missing in {debs}: {' '.join(missing[:_NAMED])}{more}. Put their .deb there, or --fetch"
        built.left_out.append(Skipped(task.name, f"{task.name} is left out: {reason}"))
    return bool(missing)


def _fetch(tasks: Sequence[OpenTask], debs: Path, built: BuiltSuite, on_progress: Report) -> None:
    names = sorted({name for task in tasks for name in task.packages})
    there = find_debs(debs, names)
    missing = [name for name in names if name not in there]
    for done, name in enumerate(missing):
        on_progress(f"fetching {name}", done, len(missing))
        failed = fetch_deb(name, debs)
        if failed:
            built.notes.append(failed)


def _unpack(
    tasks: Sequence[OpenTask], found: dict[str, Deb], work: Path, built: BuiltSuite, on_progress: Report
) -> dict[str, str]:
    """Unpack what the tasks need; which packages cannot be used, and why."""
    names = sorted({name for task in tasks for name in task.packages})
    unusable: dict[str, str] = {}
    for done, name in enumerate(names):
        on_progress(f"unpacking {name}", done, len(names))
        try:
            built.skipped += [Skipped(name, reason) for reason in unpack(found[name], work, is_taken)]
        except DataError as error:
            unusable[name] = str(error)
    return unusable


def _build(task: OpenTask, folder: Path, workers: int, built: BuiltSuite, on_progress: Report) -> None:
    work = folder / _WORK
    if task.name == "kws35":
        named = [Source(u.name, u.label, work / task.name, task.longest_s, u) for u in utterances()]
    elif task.name == "instr_family":
        played = {}
        for done, (font, (package, _)) in enumerate(FONTS.items()):
            on_progress(f"playing {font}", done, len(FONTS))
            played[font] = play_font(font, work / package, work / task.name)
        named = [Source(n.name, n.label, played[n.font], task.longest_s, n) for n in notes()]
    else:
        named = _recorded(task, work)
    places = chosen(task.name)
    sources = named
    if places:
        sources = sorted((source for source in named if source.name in places), key=lambda s: places[s.name])
        sources += _counted(task, named)
        missing = set(places) - {source.name for source in sources}
        built.skipped += [
            Skipped(name, f"{name}: missing. Its package is of another version than Debian 12's")
            for name in sorted(missing)
        ]
    written = write_task(task.name, sources, folder, workers, lambda done, n: on_progress(task.name, done, n))
    built.written[task.name] = written
    built.skipped += written.skipped
    if written.repeated:
        built.notes.append(f"{task.name}: {written.repeated} clips are the same recording as one of another split")
    if written.clips != task.clips:
        built.notes.append(
            f"{task.name}: {written.clips} of the {task.clips} clips that it has with Debian 12's packages"
        )


def _recorded(task: OpenTask, work: Path) -> list[Source]:
    """Files of the task's packages that it takes, in the order of their paths."""
    sources = []
    for package in task.packages:
        root = work / package
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            inside = path.relative_to(root).as_posix()
            label = label_of(task, package, inside)
            if label is not None:
                sources.append(Source(f"{package}/{inside}", label, path, task.longest_s))
    return sources


def _counted(task: OpenTask, sources: Sequence[Source]) -> list[Source]:
    """As many of a package's recordings of a class as the task has, the first by a hash of their names."""
    picked, named = [], chosen(task.name)
    for (package, label), count in counted(task.name).items():
        of_class = [
            s for s in sources if s.label.label == label and s.name.startswith(f"{package}/") and s.name not in named
        ]
        picked += sorted(of_class, key=lambda s: hashlib.sha256(s.name.encode()).digest())[:count]
    return picked


def _write_packages(folder: Path, found: dict[str, Deb]) -> None:
    lines = [
        "What this suite is made of: packages of Debian, their versions, and where in each its license stands.",
        "Licenses differ; some recordings must not be passed on without them.",
        "",
    ]
    for task in OPEN_TASKS.values():
        if not _is_there(folder, task):
            continue
        lines.append(f"{task.name}:")
        lines += [
            f"  {name} {found[name].version if name in found else '(not here any more)'}: usr/share/doc/{name}/copyright"
            for name in task.packages
        ]
        lines += [f"  made by {program} (package {PROGRAMS[program]})" for program in task.programs]
    text = "\n".join(lines) + "\n"
    write_atomically(folder / "PACKAGES.txt", lambda target: target.write_text(text, encoding="utf-8"))
