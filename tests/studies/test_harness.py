"""Timing in turns, memory peaks and limits, environment and tables."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ssamba.studies import harness
from ssamba.studies.harness import environment, in_child, is_out_of_memory, table, timings_s


def test_sides_take_turns_after_a_warm_call():
    calls = []
    times = timings_s({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=4)
    assert calls == ["a", "b"] * 5
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4}
    assert len(timings_s({"a": lambda: None}, budget_s=0)["a"]) == 3


def test_a_slow_side_does_not_use_up_the_rounds_of_a_quick_one(monkeypatch):
    monkeypatch.setattr(harness, "once_s", lambda run, _: run())  # seconds by no clock: other work would stretch them
    times = timings_s({"quick": lambda: 0.001, "slow": lambda: 0.02, "very slow": lambda: 6.0}, repeats=30, each_s=0.02)
    assert {name: len(values) for name, values in times.items()} == {"quick": 20, "slow": 5, "very slow": 3}


def test_errors_of_allocators_count_as_out_of_memory():
    for text in ("Unable to allocate 3 GiB", "libgomp: Out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "MemoryError"):
        assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError("num_frames"))
    with pytest.raises(RuntimeError, match="SIGABRT"):
        in_child("import os; os.abort()", [])


@pytest.mark.skipif(sys.platform != "linux", reason="resident peaks are Linux's")
def test_memory_that_was_freed_does_not_hide_a_peak():
    code = (
        "import torch; from ssamba.studies.harness import resident_peak\n"
        "parts = [torch.ones(2**14) for _ in range(1000)]; del parts\n"  # 64 MB of the allocator's own heap
        "print(resident_peak(lambda: [torch.ones(2**14) for _ in range(1000)]))"
    )
    peak = in_child(code, [])
    assert peak is None or peak > 50 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_resident_peak_includes_memory_held_only_during_the_call():
    # In a process of its own: here, memory that earlier tests gave back would hide what a call takes.
    code = (
        "import torch; from ssamba.studies.harness import resident_peak\n"
        "print(resident_peak(lambda: torch.ones(16, 2**20)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None" or 60 * 2**20 <= int(done.stdout) <= 80 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's")
def test_a_limited_process_gets_an_error_when_it_asks_for_too_much():
    code = (
        "import json, torch; from ssamba.studies.harness import limit_memory; limit_memory(share=0.01)\n"
        "try: torch.empty(2**44, dtype=torch.uint8)\n"
        "except RuntimeError as e: print(json.dumps(str(e)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "allocate memory" in json.loads(done.stdout)


def test_the_environment_is_json_and_tables_are_markdown():
    json.dumps(environment())
    assert table(["a", "bc"], [["1", "2"]]) == "| a | bc |\n| - | -- |\n| 1 | 2  |"
