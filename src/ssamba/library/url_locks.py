"""Lock what is at a URL, so that one process at a time writes it, as `ssamba.locks` does for paths.

The lock of `s3://bucket/table` is the object `s3://bucket/table.lock`, which says who holds it. It is created only if
it is not there, which one of any number of processes can do, and written anew every 15 s as a sign of life. A process
of another machine that gave none for two minutes, by the clock of the storage, is gone. Every part of the output is
preceded by a look at the lock.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from ssamba.errors import ConfigError, LockLostError, MissingExtraError, OutputInUseError
from ssamba.library.storage import Place, modified_ns, one_line
from ssamba.library.tables import StoreError
from ssamba.locks import HEARTBEAT_S, STALE_S, Holder

_SETTLE_S = 1.0
_log = logging.getLogger(__name__)


class UrlLock:
    """The right of this process to write what is at a URL; see `lock_url`."""

    def __init__(self, url: str) -> None:
        self._url, self._place = url, Place.of(f"{url}.lock")
        self._content = json.dumps({**asdict(Holder.this_process()), "token": secrets.token_hex(8)}).encode()
        self._stop, self._is_lost = threading.Event(), False
        self._heart = threading.Thread(target=self._beat, name=f"lock of {url}", daemon=True)

    def check(self) -> None:
        """Raise a LockLostError if a heartbeat found the lock lost; costs nothing."""
        if self._is_lost:
            raise LockLostError(
                f"{self._url}: taken over by another process. This process stops and writes nothing more; what it had "
                "written is kept"
            )

    def verify(self) -> None:
        """Raise a LockLostError if another process holds the lock now."""
        self._is_lost = self._is_lost or self._read() != self._content
        self.check()

    def acquire(self, take_over: bool) -> None:
        """Take the lock, also from a process that is gone."""
        if self._create():
            self._heart.start()
            return
        found = self._read()
        holder = _holder(found)
        age_s = self._age_s()
        is_gone = age_s > STALE_S if holder is None else holder.is_gone(age_s)
        if not (take_over or is_gone):
            raise OutputInUseError(
                f"{self._url}: is being written by {holder or 'an unknown process'}; last sign of life {age_s:.0f} s "
                "ago. Wait for it or end it, or choose another output; --take-over (take_over=True) takes the output "
                "away from it"
            )
        self._place.fs.pipe_file(self._place.path, self._content)
        time.sleep(_SETTLE_S)  # of several processes that do so at once, the last one holds the lock
        self.verify()
        _log.warning("%s: taken over from %s", self._url, holder or "an unknown process")
        self._heart.start()

    def _create(self) -> bool:
        try:
            self._place.fs.pipe_file(self._place.path, self._content, mode="create")
        except FileExistsError:
            return False
        return self._read() == self._content  # storage that does not know `create` replaces

    def _read(self) -> bytes | None:
        with suppress(FileNotFoundError):
            content: bytes = self._place.fs.cat_file(self._place.path)
            return content
        return None

    def _age_s(self) -> float:
        """Return the age of the last heartbeat by the clock of the storage."""
        probe = Place.of(f"{self._url}.lock.{secrets.token_hex(4)}")
        probe.fs.pipe_file(probe.path, b"now")
        try:
            now, then = (modified_ns(place.fs.info(place.path)) for place in (probe, self._place))
        except FileNotFoundError:  # released in the meantime
            return float("inf")
        finally:
            probe.fs.rm_file(probe.path)
        return (now - then) / 1e9

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with suppress(Exception):  # the service does not answer at the moment: try again
                if self._read() != self._content:
                    self._is_lost = True
                    return
                self._place.fs.pipe_file(self._place.path, self._content)

    def release(self) -> None:
        """Give the lock back, if it is held."""
        self._stop.set()
        if self._heart.ident is not None:
            self._heart.join(timeout=HEARTBEAT_S)
        with suppress(Exception):  # an abandoned lock is taken over
            if self._read() == self._content:
                self._place.fs.rm_file(self._place.path)


def _holder(content: bytes | None) -> Holder | None:
    try:
        values: dict[str, Any] = json.loads(content or b"")
        values.pop("token")
        return Holder(**values)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


@contextmanager
def lock_url(url: str, take_over: bool = False) -> Iterator[UrlLock]:
    """Hold the lock of a URL, the object `URL.lock`, which says who holds it and is written anew every 15 s.

    Raises:
        OutputInUseError: another process is writing there.
        ConfigError: the URL is a bucket.
        StoreError: nothing can be written there.
    """
    if "/" not in Place.of(url).path:
        raise ConfigError(f"{url}: expected the name of a folder in it, such as {url}/table")
    lock = UrlLock(url)
    try:
        try:
            lock.acquire(take_over)
        except (OutputInUseError, LockLostError, MissingExtraError, ConfigError):
            raise
        except Exception as error:  # each service has errors of its own
            text = f"{url}: cannot be written ({one_line(error)}). Check the URL and the credentials"
            raise StoreError(text) from error
        yield lock
    finally:
        lock.release()
