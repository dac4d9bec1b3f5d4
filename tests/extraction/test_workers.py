"""Functions that are called in processes of their own."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepencoder.extraction.workers import DiedError, Worker, map_in_processes


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
