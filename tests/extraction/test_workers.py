"""Functions that are called in processes of their own."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deepencoder.extraction.workers import BYTES_AHEAD, DiedError, Worker, map_in_processes

from ..conftest import ROOT


def act(item: int | Path) -> int:
    """Return, raise, exit, hang or be killed, depending on the item."""
    if isinstance(item, Path):  # dies at the first try only
        if not item.exists():
            item.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 1
    if item == 3:
        raise KeyError("three")
    if item == 4:
        os._exit(7)
    if item == 5:
        time.sleep(600)
    if item == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 7:
        return len(bytearray(1 << 31))  # Zeros that nobody reads: this takes address space, and no memory.
    return 10 * item


def test_a_worker_answers_raises_and_starts_again(tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    worker = Worker(act, 1.0)
    try:
        assert worker(1) == 10
        with pytest.raises(KeyError, match="three"):
            worker(3)
        for item, reason in ((4, "exit code 7"), (5, "it took longer than 1 s"), (6, "died of signal 9")):
            with pytest.raises(DiedError, match=reason):
                worker(item)
            assert worker(2) == 20
        assert worker(tmp_path / "once") == 1  # a second try succeeds
    finally:
        worker.close()
    assert set(multiprocessing.active_children()) <= before


def test_closing_a_worker_interrupts_its_call() -> None:
    worker = Worker(act)
    threading.Timer(0.5, worker.close).start()
    with pytest.raises(DiedError, match="interrupted"):
        worker(5)


def test_results_keep_the_order_and_items_are_drawn_as_needed() -> None:
    before, drawn = set(multiprocessing.active_children()), []

    def items() -> Iterator[int]:
        for number in range(1000):
            drawn.append(number)
            yield number if number == 6 else 100 + number

    results = map_in_processes(act, items(), 2, lambda item, reason: f"{item}: {reason}")  # type: ignore[arg-type]
    found = [next(results) for _ in range(8)]
    assert found[:6] == [1000 + 10 * number for number in range(6)] and found[7] == 1070
    assert str(found[6]).startswith("6: its process died of signal 9")
    assert len(drawn) < 50
    results.close()  # type: ignore[attr-defined]
    assert set(multiprocessing.active_children()) <= before


def test_a_worker_that_died_while_it_was_idle_costs_no_try() -> None:
    worker = Worker(act)
    try:
        for _ in range(3):
            multiprocessing.active_children()[0].kill()
            time.sleep(0.1)
            assert worker(6 - 5) == 10
    finally:
        worker.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is limited on Linux only")
def test_memory_is_limited_and_the_worker_goes_on() -> None:
    """The limit is far from what is asked for: a forked process may give back memory of the tests before this one."""
    worker = Worker(act, memory=1 << 28)
    try:
        with pytest.raises(MemoryError):
            worker(7)
        assert worker(1) == 10
    finally:
        worker.close()
    worker = Worker(act, memory=1 << 32)
    try:
        assert worker(7) == 1 << 31
    finally:
        worker.close()


def test_a_stop_ends_a_call_and_a_map_that_hang() -> None:
    """The process that hangs is killed within two seconds, whatever the time limit."""
    before, start = set(multiprocessing.active_children()), time.monotonic()
    worker = Worker(act)
    with pytest.raises(DiedError, match="it was interrupted"):
        worker(5, lambda: time.monotonic() > start + 0.3)
    assert worker(1) == 10
    worker.close()
    assert time.monotonic() < start + 2

    start = time.monotonic()
    results = map_in_processes(
        act, [1, 5, 2, 5, 5], 2, lambda item, reason: 0, stop=lambda: time.monotonic() > start + 0.5
    )
    assert list(results) == [10]
    assert time.monotonic() < start + 2
    assert set(multiprocessing.active_children()) <= before


def test_large_items_do_not_wait_together() -> None:
    drawn: list[int] = []
    items = (drawn.append(number) or number for number in range(100, 130))
    results = map_in_processes(act, items, 2, lambda item, reason: 0, size_of=lambda item: BYTES_AHEAD // 2)
    for number in range(100, 120):
        assert next(results) == 10 * number
        assert len(drawn) <= number - 100 + 3
    results.close()  # type: ignore[attr-defined]


@pytest.mark.skipif(sys.platform != "linux", reason="uses a signal of Linux")
def test_a_worker_that_holds_the_interpreter_ends_with_its_parent() -> None:
    program = [sys.executable, "-m", "tests.programs.hold_interpreter"]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        time.sleep(0.5)  # it hangs by now
        parent.kill()
    end = time.monotonic() + 3
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:  # which nobody may have waited for
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(multiprocessing.get_all_start_methods()[0] != "fork", reason="processes are not forked here")
def test_garbage_of_the_main_process_does_not_hang_a_worker() -> None:
    program = [sys.executable, "-m", "tests.programs.garbage_that_hangs"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip() == "2", done.stdout + done.stderr[-2000:]
