"""Mapping in processes: in order, whoever dies; who is to blame; and processes that end without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssamba import worker_pool
from ssamba.errors import WorkerDiedError, WorkerStartError
from ssamba.worker_pool import map_in_processes, run_alone

posix = pytest.mark.skipif(os.name != "posix", reason="signals")


def doubled(number):
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 14:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == -1:
        raise ValueError("below zero")
    return 2 * number


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order(workers):
    assert list(map_in_processes(doubled, range(10), workers, ahead=2)) == [(i, 2 * i) for i in range(10)]
    assert list(map_in_processes(doubled, [], workers)) == []
    with pytest.raises(ValueError, match="below zero"):
        list(map_in_processes(doubled, [1, -1, 2], workers))


def test_many_short_items_and_large_results():
    assert list(map_in_processes(abs, range(-3000, 0), 3, ahead=256)) == [(i, -i) for i in range(-3000, 0)]
    assert [len(data) for _, data in map_in_processes(bytes, [10_000_000] * 5, 2)] == [10_000_000] * 5
    items = [b"x" * 1_000_000] * 20  # larger than a pipe holds
    assert list(map_in_processes(bytes, items, 2)) == [(item, item) for item in items]


@posix
def test_a_process_that_dies_costs_only_its_item():
    results = list(map_in_processes(doubled, range(9, 19), 2, ahead=4))
    assert [item for item, _ in results] == list(range(9, 19))
    found = {item: str(result) for item, result in results if isinstance(result, WorkerDiedError)}
    assert found.keys() == {13, 14}
    assert found[13].startswith(
        "the process was killed (out of memory?) twice, the second time with this alone (SIGKILL)"
    )
    assert found[14].startswith("it crashes the decoder (SIGSEGV)")
    assert isinstance(run_alone(doubled, 13), WorkerDiedError)
    assert run_alone(doubled, 3) == 6


def die_at_first(marker_and_signal):
    """Die while there is no file `marker`; note who else is at work."""
    marker, number = marker_and_signal
    running = marker.parent / f"running-{os.getpid()}"
    running.touch()
    try:
        time.sleep(0.05)
        if number is not None and not marker.exists():
            marker.touch()
            running.unlink()
            os.kill(os.getpid(), number)
        return len(list(marker.parent.glob("running-*")))
    finally:
        running.unlink()


@posix
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_an_item_is_tried_again_alone(tmp_path, number):
    items = [(tmp_path / str(i), number if i == 7 else None) for i in range(20)]
    results = [result for _, result in map_in_processes(die_at_first, items, 3)]
    assert not any(isinstance(result, WorkerDiedError) for result in results)
    assert results[7] == 1
    assert max(results) > 1


def crash_after_others(number_and_folder):
    """Crash unless this process has just started, as codecs do whose memory an earlier file damaged."""
    number, folder = number_and_folder
    mine = folder / str(os.getpid())
    is_first = not mine.exists()
    mine.touch()
    if number == 5 and not is_first:
        os.abort()
    return number


@posix
def test_who_crashes_an_old_process_only_is_not_to_blame(tmp_path):
    results = map_in_processes(crash_after_others, [(i, tmp_path) for i in range(8)], 1)
    assert [result for _, result in results] == list(range(8))


def kill_the_first_time_crash_later(marker):
    with marker.open("a") as file:
        file.write(".")
    os.kill(os.getpid(), signal.SIGKILL if marker.stat().st_size == 1 else signal.SIGABRT)


@posix
def test_a_new_process_must_crash_twice(tmp_path):
    result = run_alone(kill_the_first_time_crash_later, tmp_path / "runs")
    assert str(result).startswith("it crashes the decoder (SIGABRT)")
    assert (tmp_path / "runs").stat().st_size == 3


def leave(code):
    os._exit(code)


def test_a_process_that_ends_itself_is_told_by_its_exit_code():
    assert "exit code 7" in str(run_alone(leave, 7))


class OddError(Exception):
    def __init__(self, one, two):
        super().__init__("odd")


def raise_odd(item):
    raise OddError(item, item)


def test_errors_come_back_whatever_they_are():
    with pytest.raises(RuntimeError, match="OddError: odd") as caught:
        run_alone(raise_odd, 1)
    assert "in raise_odd" in str(caught.value.__cause__)
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        run_alone(doubled, lambda: 1)
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        list(map_in_processes(lambda number: number, [1], 1))


def test_closing_the_iterator_stops_running_work():
    results = map_in_processes(time.sleep, [0, 60, 60], 2)
    assert next(results) == (0, None)
    started_s = time.monotonic()
    results.close()
    assert time.monotonic() - started_s < 30


def test_a_worker_that_cannot_start_is_no_items_fault(monkeypatch):
    monkeypatch.setattr(worker_pool, "_BOOT", "import sys; sys.exit('no such codec')")
    with pytest.raises(WorkerStartError, match=r"exit code 1: no such codec.*workers=0"):
        list(map_in_processes(doubled, range(5), 2))
    monkeypatch.setattr(worker_pool, "_BOOT", "import time; time.sleep(60)")
    monkeypatch.setattr(worker_pool, "START_TIMEOUT_S", 0.2)
    with pytest.raises(WorkerStartError, match=r"not ready within 0\.2 s"):
        list(map_in_processes(doubled, range(5), 2))
    monkeypatch.undo()
    monkeypatch.setattr("multiprocessing.spawn.get_executable", lambda: "/no/such/python")
    with pytest.raises(WorkerStartError, match="No such file"):
        list(map_in_processes(doubled, range(5), 2))


def test_what_start_up_files_print_does_no_harm(monkeypatch):
    monkeypatch.setattr(worker_pool, "_BOOT", "print('welcome'); print('to', end='', flush=True)" + worker_pool._BOOT)
    assert list(map_in_processes(doubled, range(5), 2)) == [(i, 2 * i) for i in range(5)]


SCRIPT = """
from ssamba.worker_pool import map_in_processes
FUNCTION
print([result for _, result in map_in_processes(f, range(3), 2)])
"""
IMPORTED, OWN = "f = str", "def f(x):\n    return str(x)"


def output_of(script, *arguments, standard_input=""):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, input=standard_input, capture_output=True, text=True, check=False)


def test_scripts_need_no_main_guard(tmp_path):
    script = SCRIPT.replace("FUNCTION", IMPORTED)
    (tmp_path / "script.py").write_text(script)
    for done in (output_of(script, tmp_path / "script.py"), output_of(script, "-", standard_input=script)):
        assert (done.returncode, done.stdout, done.stderr) == (0, "['0', '1', '2']\n", "")


def test_functions_of_a_script_need_a_guard_and_the_message_says_so(tmp_path):
    script = SCRIPT.replace("FUNCTION", OWN)
    (tmp_path / "script.py").write_text(script)
    done = output_of(script, tmp_path / "script.py")
    assert done.returncode == 1
    assert 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]
    done = output_of(script, "-", standard_input=script)
    assert done.returncode == 1
    assert "put them into a module, or use workers=0" in done.stderr.splitlines()[-1]
    guarded = script.replace("print(", 'if __name__ == "__main__":\n    print(')
    (tmp_path / "script.py").write_text(guarded)
    assert output_of(guarded, tmp_path / "script.py").stdout == "['0', '1', '2']\n"


UNFINISHED = """
import os, sys, time
from ssamba.worker_pool import map_in_processes
results = map_in_processes(time.sleep, [0] * 4 + [60] * 4, 2)
next(results)
"""


def test_an_iterator_that_nobody_finishes_holds_nothing_up():
    started_s = time.monotonic()
    done = output_of(UNFINISHED, "-c", UNFINISHED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - started_s < 30


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists child processes in /proc")
def test_workers_of_a_killed_parent_exit():
    script = UNFINISHED + "print('begun', flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        workers = [
            pid
            for thread in Path(f"/proc/{process.pid}/task").iterdir()
            for pid in (thread / "children").read_text().split()
        ]
        process.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@posix
def test_an_interrupt_ends_everything_quietly():
    script = "import time\nfrom ssamba.worker_pool import map_in_processes\nprint('begun', flush=True)\n"
    script += "try:\n    list(map_in_processes(time.sleep, [60] * 9, 2))\nexcept KeyboardInterrupt:\n    print('ended')"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for delay_s in (0.0, 0.05, 0.5):
        with subprocess.Popen([sys.executable, "-c", script], start_new_session=True, **pipes) as process:
            assert process.stdout.readline() == "begun\n"
            time.sleep(delay_s)
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate()
        assert (process.returncode, err) == (0, "") if out else process.returncode != 0
