"""Mapping in processes: in order, even if a worker dies, and stopped at once when the iterator is closed."""

from __future__ import annotations

import os
import signal
import time

import pytest

from ssamba.errors import WorkerDiedError
from ssamba.worker_pool import crashing_items, map_in_processes, run_alone


def doubled(number):
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == -1:
        raise ValueError("below zero")
    return 2 * number


def doubled_all(numbers):
    return [doubled(number) for number in numbers]


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order(workers):
    assert list(map_in_processes(doubled, range(10), workers, ahead=2)) == [(i, 2 * i) for i in range(10)]
    assert list(map_in_processes(doubled, [], workers)) == []
    with pytest.raises(ValueError, match="below zero"):
        list(map_in_processes(doubled, [1, -1, 2], workers))


def test_a_dead_worker_costs_only_its_item():
    results = list(map_in_processes(doubled, range(10, 17), 2, ahead=1))
    assert [item for item, _ in results] == list(range(10, 17))
    assert [item for item, result in results if isinstance(result, WorkerDiedError)] == [13]
    assert isinstance(run_alone(doubled, 13), WorkerDiedError)
    assert run_alone(doubled, 3) == 6


def test_items_that_crash_a_process_are_found():
    assert crashing_items(doubled_all, [12, 13, 14]) == [13]
    assert crashing_items(doubled_all, [12, 14]) == []
    assert crashing_items(doubled_all, []) == []


def test_closing_the_iterator_stops_running_work():
    results = map_in_processes(time.sleep, [0, 60, 60], 2)
    assert next(results) == (0, None)
    started_s = time.monotonic()
    results.close()
    assert time.monotonic() - started_s < 30
