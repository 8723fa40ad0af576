"""Lock an output, so that one process at a time writes it, also if several machines share the disk.

    with lock_output("birds.npz") as lock:
        write_atomically(...)   # raises LockLostError instead of writing if another process has taken the output over
        lock.verify()           # likewise, to be called before anything else that is renamed or removed
        lock.check()            # the same at no cost, as of the last heartbeat, to be called at every step of a job

The lock of a file `x.npz` is the folder `.x.npz.lock` beside it, that of a folder is `.lock` in it. It holds one file,
named by a random token, that says who holds it: machine, process, start of the process, command. Its modification time
is a heartbeat, renewed every 15 s.

- Acquire: prepare a folder with this file under a temporary name, and rename it to the lock. Of any number of processes
  one succeeds, because a folder cannot replace a folder that is not empty.
- Take over from a process that is gone: remove its file, which leaves an empty folder, and acquire as above. Its token
  is in the name, so a lock that changed hands in the meantime cannot be removed by mistake.
- Gone means: on this machine there is no such process, or one that started later; on another machine the heartbeat is
  older than 2 minutes by the clock of the file server, which is read from the times of files alone.

Renaming and removing are atomic on local disks, NFS, SMB and the usual cluster file systems; kernel locks (`flock`) are
not available on all of them, and hold neither a heartbeat nor who has the lock. Where folders cannot be renamed (some
object stores mounted as folders) a warning says that the output is not locked.
"""

from __future__ import annotations

import errno
import glob
import json
import logging
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from ssamba.errors import ConfigError, LockLostError, OutputInUseError
from ssamba.files import SCHEME, checking_before_replacing, shortened_name, utf8_text

HEARTBEAT_S = 15.0
"""Time between two heartbeats."""
STALE_S = 120.0
"""Age of a heartbeat at which a process of another machine counts as gone."""

_LOCK = ".lock"
_RACE_S = 20.0
"""How long to try again while others acquire, release or take over the same lock."""
_RACE_PAUSE_S = 0.02
_RESTART_PAUSE_S = 5.0
_NO_RENAME = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EXDEV)
_LOST = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_MAX_COMMAND = 200

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    host: str
    """Name of the machine."""
    system: str
    """Identifies the running system: on Linux its boot and its process namespace, elsewhere the machine."""
    pid: int
    """Process id."""
    start: str
    """Start time of the process, as the system writes it; empty where that is unknown."""
    since: str
    """When the lock was acquired, by the clock of that machine."""
    command: str
    """Command line of the process."""
    job: str = ""
    """Identifier of the job under `torchrun`, if it has one."""

    @classmethod
    def this_process(cls) -> Holder:
        """Describe this process."""
        command = shlex.join([Path(sys.argv[0]).name or "python", *sys.argv[1:]]) if sys.argv else "python"
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        pid, job = os.getpid(), os.environ.get("TORCHELASTIC_RUN_ID", "")
        start = process_start(pid) or ""
        return cls(socket.gethostname(), _system(), pid, start, since, utf8_text(command), "" if job == "none" else job)

    @property
    def is_here(self) -> bool:
        """Whether the process belongs to the system that asks, so that its process id means something."""
        return (self.host, self.system) == (socket.gethostname(), _system())

    def is_gone(self, age_s: float) -> bool:
        """Return whether the process has ended, as far as can be known; `age_s` is the age of its heartbeat."""
        if self.is_here:
            start = process_start(self.pid)
            if start is None or (start and self.start):
                return start != self.start
        return age_s > STALE_S

    def __str__(self) -> str:
        command = self.command if len(self.command) <= _MAX_COMMAND else f"{self.command[:_MAX_COMMAND]}..."
        who = "this very process" if self.is_here and self.pid == os.getpid() else f"process {self.pid}"
        return f"{who} on {self.host}, since {self.since} (`{command}`)"


@dataclass(frozen=True)
class LockToken:
    """Names a lock that this process or its parent holds; can be sent to worker processes."""

    output: Path
    """The output that is locked."""
    file: Path | None
    """File of the holder, named by its token; None where the file system cannot lock."""

    def verify(self) -> None:
        """Check on the disk that the lock is still held; to be called before every commit.

        Raises:
            LockLostError: another process has taken the output over.
        """
        if self.file is None:
            return
        try:
            self.file.open("rb").close()  # opening asks the server, where a cached status may be old
        except OSError as error:
            if error.errno in _LOST:
                raise self.lost() from None
            raise

    def lost(self) -> LockLostError:
        """Return the error of a lock that was taken over; it says by whom."""
        found = None if self.file is None else _read_lock(self.file.parent)
        by = f"taken over by {found.holder}" if found and found.holder else "taken over, or its lock was removed"
        return LockLostError(
            f"{self.output}: {by}. This process stops and writes nothing more; what it had written is kept"
        )


class OutputLock:
    """The right of this process to write an output; see `lock_output`."""

    def __init__(self, output: Path, folder: bool) -> None:
        self.output = output
        name = secrets.token_hex(8)
        self._lock = _lock_of(output, folder)
        self._prepared = self._lock.with_name(f"{self._lock.name}.{name}")
        self._file = self._lock / name
        self._holder = Holder.this_process()
        self._created: list[Path] = []  # removed at the end if they are empty
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name=f"lock of {output.name}", daemon=True)
        self._is_lost = False
        self.token = LockToken(output, self._file)
        """Names the lock, for worker processes that write parts of the output."""

    def check(self) -> None:
        """Check that no heartbeat found the lock lost; costs nothing, so that it can be called at every step.

        Raises:
            LockLostError: another process has taken the output over.
        """
        if self._is_lost:
            raise self.token.lost()

    def verify(self) -> None:
        """Check on the disk that the lock is still held; to be called before every commit (`write_atomically` does).

        Raises:
            LockLostError: another process has taken the output over.
        """
        self.token.verify()

    def _acquire(self, take_over: bool) -> None:
        self._prepare()
        started_s = time.monotonic()
        ended: _Found | None = None
        forced: str | None = None
        while not self._publish():
            found = _read_lock(self._lock)
            if found is None:  # its holder has just released it, or was killed while it did
                with suppress(OSError):
                    self._lock.rmdir()
                if time.monotonic() - started_s > _RACE_S:
                    raise OutputInUseError(f"{self.output}: cannot be locked: remove the folder {self._lock}")
                time.sleep(_RACE_PAUSE_S)
                continue
            age_s = self._server_time_s() - found.beat_s
            if not found.is_gone(age_s):
                if take_over and forced in (None, found.file.name):
                    forced = found.file.name  # whoever comes next is not the one that the user knows of
                elif self._is_earlier_start(found) and time.monotonic() - started_s < STALE_S + HEARTBEAT_S:
                    time.sleep(_RESTART_PAUSE_S)
                    continue
                else:
                    raise OutputInUseError(self._refusal(found, age_s))
            with suppress(FileNotFoundError):
                found.file.unlink()
                ended = found
        if ended is not None:
            self._report(ended, forced == ended.file.name)
        if self.token.file is not None:
            self._heart.start()
        _remove_abandoned(self._lock, self._server_time_s())

    def _prepare(self) -> None:
        """Write the folder of the lock under its temporary name."""
        folder = self._lock.parent
        self._created = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            self._prepared.mkdir(parents=True)
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(f"{folder} is a file, or lies below one: expected the name of a folder") from None
        except OSError as error:  # names the temporary name
            raise OSError(
                error.errno, f"{error.strerror} (the output {self.output.name} would be written there)", str(folder)
            ) from None
        content = json.dumps(asdict(self._holder))
        (self._prepared / self._file.name).write_text(content, encoding="utf-8")

    def _publish(self) -> bool:
        """Rename the prepared folder to the lock; return whether that succeeded."""
        try:
            self._prepared.rename(self._lock)
        except OSError as error:
            if error.errno in _NO_RENAME:
                _log.warning(
                    "%s: this file system cannot rename folders (%s), so the output is not locked: make sure that one "
                    "process at a time writes it",
                    self.output,
                    error.strerror,
                )
                self.token = LockToken(self.output, None)
                return True
        return not self._prepared.exists()  # also if a server renamed it and its answer was lost

    def _server_time_s(self) -> float:
        """Return the time by the clock that stamps the files of this file system."""
        for file in (self._prepared / self._file.name, self._file):
            with suppress(FileNotFoundError):
                os.utime(file)
                return file.stat().st_mtime
        return time.time()

    def _is_earlier_start(self, found: _Found) -> bool:
        """Return whether the holder is of an earlier start of this `torchrun` job on another machine.

        `torchrun` ends all processes before it starts them again, so its heartbeat will cease.
        """
        holder = found.holder
        return holder is not None and not holder.is_here and bool(holder.job) and holder.job == self._holder.job

    def _refusal(self, found: _Found, age_s: float) -> str:
        is_here = found.holder is not None and found.holder.is_here
        sign = "" if is_here else f"; last sign of life {max(0.0, age_s):.0f} s ago"
        return (
            f"{self.output}: is being written by {found}{sign}. Wait for it or end it, or choose another output; "
            "--take-over (take_over=True) takes the output away from it"
        )

    def _report(self, ended: _Found, is_forced: bool) -> None:
        if is_forced:
            _log.warning("%s: taken away from %s", self.output, ended)
        elif ended.holder is not None and ended.holder.is_here:
            _log.info("%s: taken over from %s, which has ended", self.output, ended)
        else:
            why = f"it gave no sign of life for {STALE_S / 60:g} minutes"
            _log.warning("%s: taken over from %s: %s", self.output, ended, why)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                os.utime(self._file)
            except OSError as error:
                if error.errno in _LOST:
                    self._is_lost = True
                    return
                # Otherwise the server does not answer at the moment: try again.

    def _release(self) -> None:
        self._stop.set()
        if self._holder.pid != os.getpid():
            return  # a forked process; the lock is its parent's
        if self._heart.ident is not None:
            self._heart.join(timeout=1.0)
        with suppress(OSError):
            self._file.unlink()
        with suppress(OSError):
            self._lock.rmdir()
        shutil.rmtree(self._prepared, ignore_errors=True)
        with suppress(OSError):
            for folder in self._created:
                folder.rmdir()


@contextmanager
def lock_output(output: str | Path, *, folder: bool = False, take_over: bool = False) -> Iterator[OutputLock]:
    """Hold the lock of an output; it is released at the end, and when the process ends in whatever way.

    The folders that the output needs are created.

    Args:
        output: the file, or the folder, that will be written.
        folder: whether the output is a folder.
        take_over: take the output away from the process that is writing it.

    Raises:
        OutputInUseError: another process, or another thread of this one, is writing it; the message says which.
        ConfigError: the folder is a file, or the output a URL.
        OSError: the folder cannot be written.
    """
    first = Path(output).parts[:1]
    if first and re.fullmatch(f"{SCHEME}:", first[0]) and not Path(first[0]).exists():
        raise ConfigError(
            f"{output} is a URL, and this output is written to a disk: expected a path. Only tables of embeddings "
            "(`ssamba embed`) are written to URLs, those of storage that fsspec knows, such as s3://bucket/table"
        )
    lock = OutputLock(Path(os.path.abspath(output)), folder)  # noqa: PTH100 - `resolve` would follow links
    try:
        lock._acquire(take_over)
        with checking_before_replacing(lock.verify):
            yield lock
    finally:
        lock._release()


def is_locked(output: str | Path, *, folder: bool = False) -> bool:
    """Return whether a process is writing an output (see `lock_output`), as far as can be known without writing."""
    found = _read_lock(_lock_of(Path(output), folder))
    return found is not None and not found.is_gone(time.time() - found.beat_s)


def _lock_of(output: Path, folder: bool) -> Path:
    """Return the folder that is an output's lock."""
    return output / _LOCK if folder else output.with_name(f".{shortened_name(output.name)}{_LOCK}")


@dataclass(frozen=True)
class _Found:
    """A holder's file, as it was read."""

    file: Path
    holder: Holder | None
    """None if the file is damaged, as a crash of the machine can leave it."""
    beat_s: float
    """Time of the last heartbeat, by the clock of the file server."""

    def is_gone(self, age_s: float) -> bool:
        return age_s > STALE_S if self.holder is None else self.holder.is_gone(age_s)

    def __str__(self) -> str:
        return "an unknown process" if self.holder is None else str(self.holder)


def _read_lock(lock: Path) -> _Found | None:
    """Read the file of the holder in a lock's folder; None if there is none."""
    try:
        # NFS keeps removed files that are still open somewhere under names with a dot.
        for path in sorted(path for path in lock.iterdir() if not path.name.startswith(".")):
            with path.open("rb") as file:
                return _Found(path, _parse(file.read()), os.fstat(file.fileno()).st_mtime)
    except OSError as error:
        if error.errno not in _LOST:
            raise
    return None


def _parse(content: bytes) -> Holder | None:
    try:
        values: dict[str, Any] = json.loads(content)
        return Holder(**values)
    except (ValueError, TypeError):
        return None


def _remove_abandoned(lock: Path, now_s: float) -> None:
    """Remove what processes left that were killed while they acquired the lock."""
    for folder in lock.parent.glob(f"{glob.escape(lock.name)}.*"):
        with suppress(OSError):
            found = _read_lock(folder)
            if now_s - folder.stat().st_mtime > STALE_S if found is None else found.is_gone(now_s - found.beat_s):
                shutil.rmtree(folder)


def process_start(pid: int) -> str | None:
    """Return when a process started, as the system writes it; None if there is no such process.

    The text is empty if there is one, or may be one, and the system does not tell more.
    """
    if os.name != "posix":
        return ""
    with suppress(OSError):  # no /proc here, or it hides processes of other users, or this one has just ended
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X", b"x") else fields[19].decode()
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # of another user
    return _start_from_ps(pid)


def _start_from_ps(pid: int) -> str:
    """Ask `ps` for the start of a process, for systems without /proc."""
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    try:
        found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()


@cache
def _system() -> str:
    """Identify the running system: a container has processes of its own, and a restart ends all processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{uuid.getnode():x}"  # the machine, by the address of its network card
