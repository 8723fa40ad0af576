"""The Ray engine of `ssamba embed`: faults, and its rate beside the local engine's.

    python -m benchmarks.ray_engine faults               # some minutes; needs ssamba[ray], s3fs, moto[server]
    python -m benchmarks.ray_engine rate --files 1000    # the engines in turns

`faults` embeds real recordings, whole and broken, with both engines, and compares tables, lists of skipped files and
remarks: undisturbed; with a worker killed (SIGKILL) again and again; with a recording on which every worker dies; with
the whole job killed and repeated; with recordings and table in S3 (moto on loopback), killed and repeated; and with a
second job on the same output. No Ray process may be left. `rate` excludes the start: rates are of the files after the
first tenth of them. Writes benchmarks/results/ray_engine.json, a section for each command. POSIX only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import soundfile

from benchmarks.timing import DEMO_AUDIO, RESULTS, demo_samples, inline
from ssamba import embed_files, load_model, read_embeddings
from ssamba.audio.decode import decode
from ssamba.errors import OutputInUseError
from ssamba.library.embed import EmbedStream
from ssamba.studies.harness import environment, table, write_report

_TOLERANCE = 1e-5
_POISON = "poison.wav"
_WORKING = "ray::MapWorker(MapBatches(_Worker)).submit"
"""Name that Ray gives to the process of a worker while it works."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("faults", "rate"))
    parser.add_argument("--files", type=int, help="number of recordings (faults: 240, rate: 1000)")
    parser.add_argument("--turns", type=int, default=1, help="rate: how often each engine has its turn")
    parser.add_argument("--more", action="store_true", help="rate: add to the turns on record")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ray-engine-") as folder:
        if arguments.what == "faults":
            faults(Path(folder), arguments.files or 240)
        else:
            before = stored().get("rate") if arguments.more else None
            save("rate", rate(Path(folder), arguments.files or 1000, arguments.turns, before))


def save(what: str, found: dict[str, Any]) -> None:
    """Write what was found beside what the other command found."""
    data = stored()
    data[what] = {**found, "ray": version("ray"), "environment": environment()}
    write_report(RESULTS, "ray_engine", data, as_markdown(data))


def stored() -> dict[str, Any]:
    """Return what was found before."""
    path = RESULTS / "ray_engine.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def as_markdown(data: dict[str, Any]) -> str:
    """Return the report of what was measured."""
    lines = ["# The Ray engine", ""]
    if faults_found := data.get("faults"):
        head = f"{faults_found['files']} recordings of which some are broken, ray {faults_found['ray']}, "
        lines += [
            f"`python -m benchmarks.ray_engine faults`: {head}compared with the local engine's table row by row.",
            "",
        ]
        rows = [[name, *map(str, one.values())] for name, one in faults_found["cases"].items()]
        lines += [table(["case", *next(iter(faults_found["cases"].values()))], rows), ""]
    if rates := data.get("rate"):
        lines += [f"`python -m benchmarks.ray_engine rate`: {rates['files']} recordings of 5 to 8 s in each turn, ", ""]
        lines[-2] += f"{inline(rates['environment'])}, ray {rates['ray']}. Start excluded: "
        lines[-2] += "rates are of the files after the first tenth."
        rows = [
            [name, f"{one['real_time']:.0f}x", f"{one['start_s']:.1f} s", str(one["turns"])]
            for name, one in rates["engines"].items()
        ]
        lines += [table(["engine", "real time, all cores", "until the first tenth", "turns"], rows), ""]
        lines += [f"Ray's rate for each core is {rates['ratio']:.2f} of the local engine's.", ""]
    return "\n".join(lines)


# Faults.


def faults(folder: Path, files: int) -> None:
    """Disturb the Ray engine in every way, and save after each how its table compares with the local engine's."""
    recordings = make_recordings(folder / "recordings", files)
    expected = Outcome.of(run_command(recordings, folder / "local.parquet"), folder / "local.parquet")
    cases: dict[str, dict[str, Any]] = {}

    def case(name: str, outcome: Outcome, deaths: int = 0, reference: Outcome = expected) -> None:
        cases[name] = {**outcome.compared(reference), "processes killed": deaths, "Ray processes left": ray_processes()}
        print(f"{name}: {inline(cases[name])}", flush=True)
        save("faults", {"files": len(list(recordings.iterdir())), "cases": cases})

    out = folder / "ray.parquet"
    case("undisturbed", Outcome.of(run_command(recordings, out, "--engine", "ray"), out))

    out = folder / "workers.npz"
    with killing_workers() as killed:
        done = run_command(recordings, out, "--engine", "ray")
    case("workers killed", Outcome.of(done, out), len(killed))

    poisoned = folder / "poisoned"
    shutil.copytree(recordings, poisoned)
    shutil.copy(sorted(recordings.glob("*.flac"))[0], poisoned / _POISON)
    embed_files(poisoned, folder / "whole.npz", progress=None, workers=0)
    whole = Outcome.of("", folder / "whole.npz")
    from benchmarks.ray_engine import DeadlyStream  # not of `__main__`, which workers do not know

    with mock.patch("ssamba.library.embed.EmbedStream", DeadlyStream):
        embed_files(poisoned, folder / "poisoned.npz", engine="ray")
    case("a recording that kills its worker", Outcome.of("", folder / "poisoned.npz"), 0, whole.without(_POISON))

    for name, out, more in (
        ("job killed, table of one file", folder / "killed.parquet", ()),
        ("job killed, table in parts", folder / "killed", ()),
    ):
        deaths = kill_and_repeat(recordings, out if out.suffix else f"{out}/", *more)
        case(name, Outcome.of("", out), deaths)

    with s3(recordings) as url:
        deaths = kill_and_repeat(f"{url}/recordings/", f"{url}/table")
        case("job killed, all in S3", Outcome.of("", f"{url}/table"), deaths)
        case("local engine, all in S3", Outcome.of(run_command(f"{url}/recordings/", f"{url}/other"), f"{url}/other"))
        case("second job refused", second_job(f"{url}/recordings/", f"{url}/twice"))


def make_recordings(folder: Path, count: int) -> Path:
    """Write recordings of 5 to 8 s and of other lengths, and some that are broken or remarkable."""
    folder.mkdir(parents=True)
    samples, draw = demo_samples(), random.Random(0)
    for number in range(count):
        length = round(16_000 * draw.uniform(5, 8))
        start = draw.randrange(len(samples) - length)
        soundfile.write(folder / f"{number:04d}.flac", samples[start : start + length], 16_000)
    long = np.tile(samples, 12)  # beyond the length from which files are streamed
    soundfile.write(folder / "long.flac", long, 16_000)
    for path in sorted(DEMO_AUDIO.glob("*.flac"))[:4]:
        shutil.copy(path, folder / path.name)
    whole = (folder / "0000.flac").read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("hello", encoding="utf-8")
    soundfile.write(folder / "nan.wav", np.array([0.0, np.nan] * 9000), 16_000, subtype="FLOAT")
    soundfile.write(folder / "short.wav", np.zeros(100), 16_000)
    soundfile.write(folder / "loud.wav", 20_000 * samples[:80_000], 16_000, subtype="FLOAT")
    bat = np.sin(2 * np.pi * 40_000 * np.arange(2 * 192_000) / 192_000) * (np.arange(2 * 192_000) % 19_200 < 2_000)
    soundfile.write(folder / "bat.wav", 0.3 * bat, 192_000)
    return folder


@dataclass
class Outcome:
    """Holds the rows that a job wrote, by file name, and its lists."""

    rows: dict[str, Any]
    columns: list[str]
    twice: int
    skipped: dict[str, str]
    remarks: dict[str, str]

    @classmethod
    def of(cls, _: str, output: Path | str) -> Outcome:
        """Read the table and the lists beside it."""
        found = read_embeddings(output)
        names = [str(path).rpartition("/")[2] for path in found["path"]]
        rows = {name: found["embedding"][found["file"] == index] for index, name in enumerate(names)}
        return cls(rows, sorted(found), len(names) - len(rows), listed(output, "skipped"), listed(output, "remarks"))

    def without(self, name: str) -> Outcome:
        """Return the outcome of a job that had skipped a file."""
        rows = {key: value for key, value in self.rows.items() if key != name}
        return replace(self, rows=rows, skipped={**self.skipped, name: "two worker processes died"})

    def compared(self, other: Outcome) -> dict[str, Any]:
        """Return how two outcomes differ."""
        shared = self.rows.keys() & other.rows.keys()
        same_shape = all(self.rows[name].shape == other.rows[name].shape for name in shared)
        error = (
            max(float(np.abs(self.rows[name] - other.rows[name]).max()) for name in shared) if same_shape else np.inf
        )
        return {
            "rows": len(self.rows),
            "missing": len(other.rows.keys() - self.rows.keys()),
            "too many": len(self.rows.keys() - other.rows.keys()) + self.twice,
            "largest difference": f"{error:.1e}",
            "same columns": self.columns == other.columns,
            "same skipped list": self.skipped.keys() == other.skipped.keys()
            and all(self.skipped[name].startswith(text) for name, text in other.skipped.items()),
            "same remarks": self.remarks == other.remarks,
        }


def listed(output: Path | str, kind: str) -> dict[str, str]:
    """Read a list beside an output: reasons by file name, without the names of files in them."""
    import csv

    from ssamba.library.storage import local_copy

    with local_copy(Path(f"{output}.{kind}.csv") if isinstance(output, Path) else f"{output}.{kind}.csv") as path:
        if not path.exists():
            return {}
        with path.open(newline="", encoding="utf-8") as file:
            rows = [(row["path"], row["reason"]) for row in csv.DictReader(file)]
    return {name.rpartition("/")[2]: reason.replace(name, "").removeprefix(": ") for name, reason in rows}


def command(recordings: Path | str, output: Path | str, *more: str) -> list[str]:
    return [sys.executable, "-m", "ssamba", "embed", str(recordings), "-o", str(output), *more]


def run_command(recordings: Path | str, output: Path | str, *more: str) -> str:
    """Run `ssamba embed` to its end, and return what it printed."""
    done = subprocess.run(command(recordings, output, *more), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    print(done.stderr, done.stdout, sep="", flush=True)
    return done.stdout


def ray_processes(name: str = "") -> int:
    """Return the number of Ray's processes that are left a moment after a job."""
    for _ in range(40):
        if not (left := list(_pids("raylet"))):
            return 0
        time.sleep(0.5)
    return len(left)


def _pids(name: str) -> Iterator[int]:
    """Yield the processes of this user's jobs here whose command line begins with, or names, something."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if (
                name in (entry / "cmdline").read_bytes().decode("utf-8", "replace")[:200]
                and int(entry.name) != os.getpid()
            ):
                yield int(entry.name)


@contextmanager
def killing_workers() -> Iterator[list[int]]:
    """Kill a worker of Ray every few seconds while they work, four in all."""
    killed: list[int] = []
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(4.0) and len(killed) < 4:
            if workers := [pid for pid in _pids(_WORKING) if pid not in killed]:
                killed.append(workers[0])
                with suppress(ProcessLookupError):
                    os.kill(workers[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


class DeadlyStream(EmbedStream):
    """A stream that kills its process at one recording."""

    def __call__(self, items: Any) -> Any:
        def watched() -> Iterator[Any]:
            for path, source in items:
                if path.name == _POISON:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield path, source

        return super().__call__(watched())


def kill_and_repeat(recordings: Path | str, output: Path | str, *more: str) -> int:
    """Kill the whole job twice while it works, then let it end; return the number of deaths."""
    killed = 0
    for wait_s in (1.0, 4.0):
        job = subprocess.Popen(
            command(recordings, output, "--engine", "ray", *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while job.poll() is None and not list(_pids(_WORKING)):
            time.sleep(0.1)
        time.sleep(wait_s)
        if job.poll() is None:
            job.kill()
            killed += 1
        job.wait()
        ray_processes()
    run_command(recordings, output, "--engine", "ray", *more)
    return killed


def second_job(recordings: str, output: str) -> Outcome:
    """Start a job, try another one on the same output, which must be refused, and wait for the first."""
    job = subprocess.Popen(command(recordings, output, "--engine", "ray"), stdout=subprocess.DEVNULL)
    while job.poll() is None and not list(_pids(_WORKING)):
        time.sleep(0.1)
    try:
        embed_files(recordings, output)
    except OutputInUseError as error:
        print(error)
    else:
        raise RuntimeError("a second job wrote the output of a running one")
    job.wait()
    return Outcome.of("", output)


@contextmanager
def s3(recordings: Path) -> Iterator[str]:
    """Serve recordings from an S3 stand-in on loopback."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    fs = s3fs.S3FileSystem()
    fs.mkdir("bucket")
    fs.put(str(recordings), "bucket/recordings", recursive=True)
    try:
        yield "s3://bucket"
    finally:
        server.stop()


# Rates.


def rate(folder: Path, files: int, turns: int, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Measure both engines in turns on recordings of 5 to 8 s, each beginning every other turn.

    Args:
        folder: is written to.
        files: number of recordings.
        turns: of each engine.
        before: what was measured earlier, to which these turns are added.
    """
    if before is not None and before["files"] != files:
        raise SystemExit(f"--more: the turns on record are of {before['files']} files, not of {files}")
    samples, draw = demo_samples(), random.Random(1)
    for number in range(files):
        length = round(16_000 * draw.uniform(5, 8))
        start = draw.randrange(len(samples) - length)
        path = folder / "recordings" / f"{number:05d}.flac"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, samples[start : start + length], 16_000)
    for path in (folder / "recordings").iterdir():
        path.read_bytes()  # both engines find them in memory
    decode(path)
    model = load_model(device="cpu")
    earlier = before["engines"] if before else {name: {"turns": [], "starts_s": []} for name in ("local", "ray")}
    engines = {name: {"turns": one["turns"], "starts_s": one["starts_s"]} for name, one in earlier.items()}
    for _ in range(turns):
        done = len(engines["local"]["turns"])
        for engine in ("local", "ray")[:: -1 if done % 2 else 1]:
            real_time, start_s = one_rate(folder, model, engine, files)
            engines[engine]["turns"].append(round(real_time, 1))
            engines[engine]["starts_s"].append(round(start_s, 1))
            print(f"{engine}: {real_time:.0f} times real time, first tenth after {start_s:.1f} s", flush=True)
    for one in engines.values():
        one |= {"real_time": statistics.median(one["turns"]), "start_s": statistics.median(one["starts_s"])}
    ratio = engines["ray"]["real_time"] / engines["local"]["real_time"]
    return {"files": files, "engines": engines, "ratio": ratio}


def one_rate(folder: Path, model: Any, engine: Any, files: int) -> tuple[float, float]:
    """Return the audio of all files after the first tenth by the time they took, and when the first tenth was done."""
    times: list[tuple[float, float]] = []
    started_s = time.monotonic()
    output = folder / f"{engine}.npz"
    embed_files(
        folder / "recordings",
        output,
        model,
        engine=engine,
        overwrite=True,
        progress=lambda state: times.append((time.monotonic(), state.audio_s)),
    )
    assert len(times) == files
    first_s, first_audio_s = times[files // 10]
    last_s, audio_s = times[-1]
    return (audio_s - first_audio_s) / (last_s - first_s), first_s - started_s


if __name__ == "__main__":
    main()
