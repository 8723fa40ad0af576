"""Locks of outputs, with real processes: one writer at a time, whoever is killed, and one winner of every take-over."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from ssamba import locks
from ssamba.errors import ConfigError, LockLostError, OutputInUseError
from ssamba.locks import Holder, LockToken, lock_output, process_start

HOLD = """
import sys, time
from ssamba.locks import lock_output
with lock_output(sys.argv[1], take_over="--take-over" in sys.argv) as lock:
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
    lock.verify()
print("released", flush=True)
"""
ELSEWHERE = dataclasses.replace(
    Holder.this_process(), host="node17", system="another", pid=4242, command="ssamba embed"
)
posix = pytest.mark.skipif(os.name != "posix", reason="needs the start times of processes")


def start(script, *args):
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def holding(output, seconds=60, *args):
    process = start(HOLD, output, seconds, *args)
    assert process.stdout.readline() == "held\n"
    return process


def leave_lock(output, holder=ELSEWHERE, age_s=0.0):
    """What a process leaves that was killed or is somewhere else."""
    folder = output.with_name(f".{output.name}.lock")
    folder.mkdir()
    file = folder / "0123456789abcdef"
    file.write_text(json.dumps(dataclasses.asdict(holder)))
    os.utime(file, (time.time() - age_s,) * 2)
    return file


def test_a_second_process_is_refused_until_the_first_ends(tmp_path):
    output = tmp_path / "new" / "x.npz"
    with holding(output, 2) as process:
        expected = rf"x\.npz: is being written by process {process.pid} on .*, since 20.*\(`-c .*take_over=True"
        with pytest.raises(OutputInUseError, match=expected), lock_output(output):
            pass
        assert "released" in process.communicate()[0]
    with lock_output(output) as lock:
        lock.check()
        lock.verify()
        assert len(list(output.parent.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []  # the folder was created for the lock, and nothing was written to it


def test_a_second_writer_in_this_process_is_refused(tmp_path):
    refused = []

    def write():
        try:
            with lock_output(tmp_path, folder=True):
                pass
        except OutputInUseError as error:
            refused.append(str(error))

    with lock_output(tmp_path, folder=True):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        with pytest.raises(OutputInUseError, match="this very process"), lock_output(tmp_path, folder=True):
            pass
    assert "this very process" in refused[0]
    with lock_output(tmp_path, folder=True), lock_output(tmp_path / "x"), lock_output(tmp_path / "y"):
        pass  # other outputs
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.parametrize("is_waited_for", [True, False])
def test_a_killed_process_holds_nothing(tmp_path, is_waited_for, caplog):
    caplog.set_level(logging.WARNING)
    output = tmp_path / "x.npz"
    with holding(output) as process:
        process.kill()
        if is_waited_for:
            process.wait()
        else:  # it is a zombie
            while process_start(process.pid) is not None:
                time.sleep(0.01)
        with lock_output(output) as lock:
            lock.verify()
    assert caplog.messages == []
    assert list(tmp_path.iterdir()) == []


@posix
def test_a_process_that_sleeps_still_holds(tmp_path):
    output = tmp_path / "x.npz"
    with holding(output, 0.5) as process:
        process.send_signal(signal.SIGSTOP)
        os.utime(next((tmp_path / ".x.npz.lock").iterdir()), (0, 0))
        with pytest.raises(OutputInUseError), lock_output(output):
            pass
        process.send_signal(signal.SIGCONT)
        assert "released" in process.communicate()[0]


@posix
def test_another_process_with_the_number_of_the_holder_is_not_the_holder(tmp_path):
    output = tmp_path / "x.npz"
    leave_lock(output, dataclasses.replace(Holder.this_process(), start="12345"))
    with lock_output(output) as lock:
        lock.verify()


@pytest.mark.parametrize("clock_error_s", [0, 86_400, -86_400])
def test_another_machine_holds_while_its_heart_beats(tmp_path, caplog, monkeypatch, clock_error_s):
    now = time.time
    for age_s in (0, 100, -50):
        output = tmp_path / f"{age_s}.npz"
        leave_lock(output, age_s=age_s)
        monkeypatch.setattr(time, "time", lambda: now() + clock_error_s)
        expected = r"process 4242 on node17.*`ssamba embed`\); last sign of life (0|100) s ago"
        with pytest.raises(OutputInUseError, match=expected), lock_output(output):
            pass
        monkeypatch.undo()
    output = tmp_path / "x.npz"
    leave_lock(output, age_s=121)
    monkeypatch.setattr(time, "time", lambda: now() + clock_error_s)
    with lock_output(output) as lock:
        lock.verify()
    (message,) = caplog.messages
    assert "taken over from process 4242 on node17" in message


def test_a_damaged_lock_is_judged_by_its_age(tmp_path):
    output = tmp_path / "x.npz"
    file = leave_lock(output)
    file.write_bytes(b"\0" * 50)
    with pytest.raises(OutputInUseError, match="an unknown process"), lock_output(output):
        pass
    os.utime(file, (time.time() - 121,) * 2)
    with lock_output(output):
        pass
    (tmp_path / ".x.npz.lock").mkdir()  # a process was killed while it released the lock
    with lock_output(output):
        pass


def test_a_restarted_job_waits_for_its_own_earlier_start(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 7")
    monkeypatch.setattr(locks, "_RESTART_PAUSE_S", 0.05)
    output = tmp_path / "x.npz"
    leave_lock(output, dataclasses.replace(ELSEWHERE, job="job 7"), age_s=119.5)
    with lock_output(output):
        pass
    leave_lock(output, dataclasses.replace(ELSEWHERE, job="job 8"), age_s=119.5)
    with pytest.raises(OutputInUseError), lock_output(output):
        pass


def check_for_20_s(lock):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        time.sleep(0.01)
        lock.check()


def test_the_holder_notices_that_it_was_taken_over(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.05)
    output = tmp_path / "x.npz"
    with lock_output(output) as lock, holding(output, 2, "--take-over") as process:
        with pytest.raises(
            LockLostError, match=rf"x\.npz: taken over by process {process.pid} on .*writes nothing more"
        ):
            lock.verify()
        with pytest.raises(LockLostError):
            pickle.loads(pickle.dumps(lock.token)).verify()
        with pytest.raises(LockLostError):
            check_for_20_s(lock)
        lock._release()  # must not release the other's lock
        with pytest.raises(OutputInUseError), lock_output(output):
            pass
        assert "released" in process.communicate()[0]
    assert list(tmp_path.iterdir()) == []


def test_taking_over_says_from_whom(tmp_path, caplog):
    output = tmp_path / "x.npz"
    with lock_output(output), lock_output(output, take_over=True) as second:
        second.verify()
    (message,) = caplog.messages
    assert "taken away from this very process" in message
    assert list(tmp_path.iterdir()) == []


def test_heartbeats_are_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.05)
    with lock_output(tmp_path / "x.npz") as lock:
        os.utime(lock.token.file, (0, 0))
        deadline = time.monotonic() + 20
        while lock.token.file.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock.token.file.stat().st_mtime > 0
    assert LockToken(tmp_path, None).verify() is None


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    for output in (tmp_path / "run", tmp_path / "run" / "a"):
        with pytest.raises(ConfigError, match="is a file"), lock_output(output, folder=True):
            pass


def test_a_url_is_no_path_to_lock_unless_a_folder_is_named_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = Path("s3://b/x.csv")
    with pytest.raises(ConfigError, match=r"s3:/b/x.csv is a URL, and this .* written to a disk"), lock_output(url):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "s3:").mkdir()
    with lock_output("s3:/x.csv"):
        pass


def test_a_file_system_that_cannot_rename_folders_is_named(tmp_path, monkeypatch, caplog):
    def refuse(self, target):
        raise OSError(locks._NO_RENAME[0], "Function not implemented")

    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    with lock_output(tmp_path / "x.npz") as lock:
        time.sleep(0.1)
        lock.check()
        lock.verify()
    assert "not locked" in caplog.text
    assert list(tmp_path.iterdir()) == []


CONTEND = """
import os, sys, time
from contextlib import ExitStack, suppress
from pathlib import Path
from ssamba.errors import LockLostError, OutputInUseError
from ssamba.locks import lock_output
folder, rounds, begin = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
held, locks = ExitStack(), {}
for number in range(rounds):
    while time.time() < begin + 0.05 * number:
        pass
    with suppress(OutputInUseError):
        locks[number] = held.enter_context(lock_output(folder / str(number), take_over="--take-over" in sys.argv))
(folder / f"tried-{os.getpid()}").touch()
while len(list(folder.glob("tried-*"))) < int(sys.argv[4]):
    time.sleep(0.02)
for number, lock in locks.items():
    with suppress(LockLostError):
        lock.verify()
        (folder / f"won-{number}-{os.getpid()}").touch()
os._exit(0)
"""


@posix
@pytest.mark.parametrize("forced", [False, True])
def test_one_of_many_takes_over(tmp_path, forced):
    rounds, contenders = 20, 6
    for number in range(rounds):
        leave_lock(tmp_path / str(number), age_s=0 if forced else 500)
    arguments = [tmp_path, rounds, time.time() + 1.5, contenders, *(["--take-over"] if forced else [])]
    with ExitStack() as stack:
        for process in [stack.enter_context(start(CONTEND, *arguments)) for _ in range(contenders)]:
            process.communicate()
            assert process.returncode == 0
    winners = [path.name.split("-")[1] for path in tmp_path.glob("won-*")]
    assert sorted(winners, key=int) == [str(number) for number in range(rounds)]


TAKE_TURNS = """
import os, random, signal, sys, time
from pathlib import Path
from ssamba.errors import OutputInUseError
from ssamba.locks import lock_output
folder = Path(sys.argv[1])

def take_turns():
    own = str(os.getpid())
    random.seed(own)
    signal.setitimer(signal.ITIMER_REAL, random.random() / 2)  # the alarm kills
    while True:
        try:
            with lock_output(folder / "x") as lock:
                (folder / "inside").write_text(own)
                time.sleep(random.random() / 500)
                lock.verify()
                if (folder / "inside").read_text() != own:
                    (folder / f"overlap-{own}").touch()
                with (folder / "turns").open("a") as file:
                    file.write(own + "\\n")
        except OutputInUseError:
            pass
        time.sleep(random.random() / 1000)

running = 0
for _ in range(int(sys.argv[2])):
    if not os.fork():
        try:
            take_turns()
        finally:
            os._exit(1)
    running += 1
    if running == 4:
        assert os.WIFSIGNALED(os.wait()[1])
        running -= 1
while running:
    assert os.WIFSIGNALED(os.wait()[1])
    running -= 1
"""


@posix
def test_processes_that_are_killed_at_any_moment_never_overlap(tmp_path):
    with start(TAKE_TURNS, tmp_path, 80) as process:
        process.communicate()
    assert process.returncode == 0
    turns = (tmp_path / "turns").read_text().split()
    assert len(set(turns)) > 10
    assert list(tmp_path.glob("overlap-*")) == []
    with lock_output(tmp_path / "x"):
        pass
    for left in tmp_path.glob(".x.lock.*"):  # of those that were killed before they could say who they are
        for path in (*left.iterdir(), left):
            os.utime(path, (time.time() - 121,) * 2)
    with lock_output(tmp_path / "x"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"inside", "turns"}
