"""A table of embeddings that a resumable job writes.

While a job for `x.npz` runs, the folder `x.npz.partial` holds its settings (`run.json`) and its parts: the embeddings
of some files (`part-N-TOKEN.npy`, and `.times.npy` for time steps) and the list of these files (`part-N-TOKEN.json`,
written last, so that a part without it does not count). A killed job loses at most the part it was collecting. At the
end the parts and the rows of an earlier table are written under a temporary name, the result is renamed, and the folder
is removed: an earlier table stays as it is until then. All rows are never in memory at once.

One process at a time works in the folder (`ssamba.locks`). Should the output be taken away from it just while it
writes, no row gets another file's vector: every process has names of its own (the token), and a part says what it
depends on. Before the table is renamed, `run.json` notes its size and time: a folder beside that table is what a job
left that was killed before it had removed the folder.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ssamba.checkpoint.files import read_json, write_json
from ssamba.config import ModelIdentity
from ssamba.embedding import EmbedOptions
from ssamba.errors import ConfigError, ModelMismatchError, OtherSettingsError
from ssamba.library.tables import (
    FORMATS,
    Array,
    FileRecord,
    Listing,
    Rows,
    StoreError,
    read_listing,
    require_pyarrow,
    row_batches,
    times_file,
    write_array,
    write_table,
)

_FLUSH_FILES = 256
_FLUSH_BYTES = 1 << 26
_FLUSH_S = 10.0
_SETTINGS_FILE = "run.json"
_REPLACES = "replaces"
_WROTE = "wrote"


def check_output(output: Path) -> None:
    """Refuse a name that cannot become a table.

    Raises:
        ConfigError: an unknown suffix, or a folder.
        MissingExtraError: the format needs pyarrow.
    """
    if output.suffix not in FORMATS:
        raise ConfigError(f"{output}: expected a file name that ends in {', '.join(FORMATS)}")
    if output.is_dir():
        raise ConfigError(f"{output} is a folder: give the name of a file in it, such as {output / 'embeddings.npz'}")
    if output.suffix != ".npz":
        require_pyarrow()


class Store:
    """Collects the embeddings of one job in parts and writes its table.

    Attributes:
        output: the table.
        partial: the folder of the parts.
    """

    def __init__(
        self,
        output: str | Path,
        settings: Mapping[str, Any],
        frames: bool,
        verify: Callable[[], None] = lambda: None,
    ):
        """Check the name of the output; nothing is written yet.

        Args:
            output: the file to write; its suffix chooses the format.
            settings: what the embeddings depend on; `model`, `weights_digest`, `window_s` and `config_hash` become
                columns.
            frames: rows are time steps, or stretches of time, instead of files.
            verify: called before everything that is committed; raises if the output is not this process's any more.

        Raises:
            ConfigError: as `check_output`.
            MissingExtraError: as `check_output`.
        """
        self.output, self.frames, self.verify = Path(output), frames, verify
        check_output(self.output)
        self.settings = {**settings, "frames": frames}
        self.partial = self.output.with_name(self.output.name + ".partial")
        self._replaces = False
        self._parts: dict[str, Rows] = {}
        self._table: Listing | None = None
        self._in_table: dict[str, FileRecord] = {}
        self._pending_bytes = 0
        self._pending: list[tuple[FileRecord, Array, Array | None]] = []
        self._flushed_s = time.monotonic()
        self._token = secrets.token_hex(4)
        self._last_part = 0

    def open(self, overwrite: bool = False) -> None:
        """Take up what is there: an interrupted run, a finished table, both or none. Nothing is written yet.

        Raises:
            OtherSettingsError: what is there was made with other settings, and `overwrite` was not asked for.
            StoreError: the output exists and is not a table.
        """
        run = None if overwrite else self._interrupted_run()
        if run is None:
            self._remove_partial()
            self._replaces = overwrite
        else:
            self._replaces = bool(run.pop(_REPLACES, False))
            remedy = "the command of that run to resume it, or --overwrite (overwrite=True) to start anew"
            check_settings(run, self.settings, f"{self.partial} is of an interrupted run", remedy)
            for part in sorted(self.partial.glob("part-*.json")):
                self._index(part)
        if self.output.exists() and not self._replaces:
            try:
                table = read_listing(self.output)
            except StoreError as error:
                raise StoreError(f"{error}. Use {ANEW}") from None
            if table.records:  # else it is of no model
                self._take_up(table)

    def _interrupted_run(self) -> dict[str, Any] | None:
        """Return the settings of a run that did not finish; None if there is none, or it had written no part."""
        started = self.partial / _SETTINGS_FILE
        if not started.exists() or not any(self.partial.glob("part-*.json")):
            return None
        run = read_json(started)
        wrote = run.pop(_WROTE, None)
        return None if wrote is not None and wrote == _size_and_time(self.output) else run

    def _remove_partial(self) -> None:
        # The parts do not count without the settings, so a killed process leaves all of them or none.
        (self.partial / _SETTINGS_FILE).unlink(missing_ok=True)
        shutil.rmtree(self.partial, ignore_errors=True)

    def _take_up(self, table: Listing) -> None:
        if "config_hash" not in table.settings:
            raise StoreError(f"{self.output} does not say how it was made, so nothing can be added. Use {ANEW}")
        check_settings({**table.settings, "frames": table.frames}, self.settings, f"{self.output} was made")
        self._table = table
        self._in_table = {record.key: record for record in table.records}

    @property
    def records(self) -> dict[str, FileRecord]:
        """The files that are there, by key."""
        return {**self._in_table, **{key: rows.record for key, rows in self._parts.items()}}

    def add(self, record: FileRecord, embedding: Array, times_s: Array | None) -> None:
        """Add the rows of a file, (rows, D), and the times of time steps, (rows,); written within ten seconds."""
        self._pending.append((record, embedding, times_s))
        self._pending_bytes += embedding.nbytes
        is_much = len(self._pending) >= _FLUSH_FILES or self._pending_bytes >= _FLUSH_BYTES
        if is_much or time.monotonic() - self._flushed_s > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last call as a part."""
        self._flushed_s = time.monotonic()
        if not self._pending:
            return
        part = self._new_part()
        arrays = [rows for _, rows, _ in self._pending]
        write_array(part, (sum(map(len, arrays)), arrays[0].shape[1]), arrays)
        if self.frames:
            np.save(times_file(part), np.concatenate([times for _, _, times in self._pending]))
        self._complete(part, [record for record, _, _ in self._pending])
        self._pending, self._pending_bytes = [], 0

    def finish(self, order: Sequence[str], dropped: Collection[str] = ()) -> int:
        """Write the table, unless it is there and nothing changes, and return its number of rows.

        Args:
            order: keys of files; those that are there come first, in this order, then the others as they were.
            dropped: keys of files to leave out.

        Raises:
            StoreError: another process has removed parts of this run.
        """
        self.flush()
        if not self._parts and not any(key in self._in_table for key in dropped) and self._table is not None:
            return sum(record.rows for record in self._table.records)
        if self._table is not None:
            self._import(self._table.records)
        wanted = {key: self._parts[key] for key in order if key in self._parts}
        rows = [entry for key, entry in {**wanted, **self._parts}.items() if key not in dropped]
        if gone := next((part for part in sorted({entry.part for entry in rows}) if not part.exists()), None):
            raise StoreError(f"{gone} has been removed by another process. No table is written: run the command again")
        # Written among the parts, so that a killed run leaves everything in one place, and renamed.
        self.partial.mkdir(parents=True, exist_ok=True)
        target = self.partial / f"output-{self._token}{self.output.suffix}"
        write_table(target, rows, self.settings, self.frames)
        self._write_settings({_WROTE: _size_and_time(target)})
        self.verify()
        target.replace(self.output)
        self._remove_partial()
        return sum(entry.record.rows for entry in rows)

    def _new_part(self) -> Path:
        """Return the path of the next part, in the folder of the run."""
        self.partial.mkdir(parents=True, exist_ok=True)
        if not (self.partial / _SETTINGS_FILE).exists():
            self._write_settings({})
        numbers = [int(part.stem.split("-")[1]) for part in self.partial.glob("part-*.json")]
        # No name twice, also if another process has removed the parts: their rows would be those of other files.
        self._last_part = max(self._last_part, *numbers, 0) + 1
        return self.partial / f"part-{self._last_part:06d}-{self._token}.npy"

    def _write_settings(self, more: Mapping[str, Any]) -> None:
        self.verify()
        write_json(self.partial / _SETTINGS_FILE, {**self.settings, _REPLACES: self._replaces, **more})

    def _complete(self, part: Path, records: Sequence[FileRecord]) -> None:
        self.verify()
        content = {**self._depends_on(), "files": [asdict(record) for record in records]}
        write_json(part.with_suffix(".json"), content)
        self._index(part.with_suffix(".json"))

    def _depends_on(self) -> dict[str, Any]:
        return {name: self.settings.get(name) for name in ("config_hash", "frames")}

    def _index(self, part: Path) -> None:
        content = json.loads(part.read_text(encoding="utf-8"))
        files = content.pop("files")
        if content != self._depends_on():
            return
        records, array = [FileRecord(**record) for record in files], part.with_suffix(".npy")
        # A machine that crashed may leave a damaged part: its files are embedded again.
        try:
            if len(np.load(array, mmap_mode="r")) != sum(record.rows for record in records):
                return
        except (OSError, ValueError, EOFError):
            return
        first = 0
        for record in records:
            self._parts[record.key] = Rows(record, array, first, record.rows)
            first += record.rows

    def _import(self, records: Sequence[FileRecord]) -> None:
        """Copy the rows of the table as one part; files of other parts are newer."""
        newer = dict(self._parts)
        part, times = self._new_part(), list[Array]()
        found = row_batches(self.output)
        head = next(found)

        def pieces() -> Iterator[Array]:
            for embedding, times_s in chain([head], found):
                if times_s is not None:
                    times.append(times_s)
                yield embedding

        write_array(part, (sum(record.rows for record in records), head[0].shape[1]), pieces())
        if times:
            np.save(times_file(part), np.concatenate(times))
        self._complete(part, records)
        self._parts.update(newer)


def _size_and_time(path: Path) -> list[int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


ANEW = "another output, or --overwrite (overwrite=True) to start anew"


def check_settings(before: Mapping[str, Any], now: Mapping[str, Any], what: str, remedy: str = ANEW) -> None:
    """Refuse to extend what was made with other settings; settings of earlier versions may lack names.

    Raises:
        OtherSettingsError: something differs; the message names each difference and the remedy.
        ModelMismatchError: the model does.
    """
    if all(before.get(name) == now.get(name) for name in ("config_hash", "frames")):
        return
    old, new = _flat(before), _flat(now)
    named = sorted(old.keys() & new.keys() - {"config_hash", "model", "weights_digest", "file_sha256"})
    changed = [f"{name} was {old[name]!r}, is {new[name]!r}" for name in named if old[name] != new[name]]
    models = [ModelIdentity(name=one["model"], weights_digest=one.get("weights_digest", "")) for one in (old, new)]
    if "weights_digest" in old:
        other_model = models[0].weights_digest != models[1].weights_digest
    else:
        other_model = models[0].name != models[1].name
    if other_model:
        changed.insert(0, f"the model was {models[0]}, is {models[1]}")
        by_name = len(changed) == 1 and models[0].name != models[1].name
        remedy = f"-c {models[0].name}, {remedy}" if by_name else remedy
    elif not changed:
        changed.append(f"config_hash was {old['config_hash']!r}, is {new['config_hash']!r} (it does not say why)")
    message = f"{what} with other settings: {'; '.join(changed)}. Use {remedy}"
    raise ModelMismatchError(message) if other_model else OtherSettingsError(message)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the embedding options among them; options that an earlier version lacked were at default."""
    options = settings.get("options")
    if options is None:
        return dict(settings)
    options = json.loads(options) if isinstance(options, str) else options
    rest = {name: value for name, value in settings.items() if name != "options"}
    return {**rest, **EmbedOptions().model_dump(), "channels": "mean", "readout": "clip", "every_s": None, **options}
