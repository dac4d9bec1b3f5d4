"""Runs functions that may kill their process or never return, in processes of their own.

Unusual: each process holds one item at a time and has a pipe of its own. When it dies (of a segmentation fault in a
decoder, or killed because memory ran out) or must be killed, the item that caused it is known, and no other answer is
lost or delayed. `concurrent.futures` would break the whole pool instead.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

__all__ = ["PAGE_TIMEOUT", "DiedError", "Worker", "map_in_processes"]

Item = TypeVar("Item")
Result = TypeVar("Result")

PAGE_TIMEOUT = 300.0  # default limit in seconds: far more than a page takes, and a hung decoder delays all others
RESULTS_AHEAD = 4  # results per process that may wait to be taken
TRIES = 2  # a process may have been killed for the memory that another process used
MAX_TIMEOUT = 1e6  # seconds; `Connection.poll` counts milliseconds in 32 bits
_START_LOCK = threading.Lock()  # a process that inherited the pipe of another would hide the death of that one


class DiedError(RuntimeError):
    """Every try ended without an answer. The message says whether the process died or ran out of time."""


def _exit_with_parent(parent: int) -> None:
    """End this process once its parent is gone. A killed parent cannot say so, and writing to a full pipe blocks."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Answer items from a pipe with `(raised, value or exception)`, until the pipe is closed."""
    import torch

    # Ctrl-C reaches the whole process group, but the main process decides what to do; its handlers do not apply here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)  # the threads of OpenMP do not survive a fork
    try:
        while True:
            item = connection.recv()
            try:
                answer = False, function(item)
            except Exception as error:
                answer = True, error
            del item
            connection.send(answer)
    except (EOFError, OSError):
        return  # the main process is gone


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process died of signal {-code}, {signal.strsignal(-code)}"
    return f"its process died with exit code {code}"


class Worker(Generic[Item, Result]):
    """Calls a function in a separate process, which is started again when it dies. Threads take turns.

    Args:
        function: a picklable callable with one picklable argument.
        seconds (`float`, *optional*): time limit of a call, after which its process is killed.
    """

    def __init__(self, function: Callable[[Item], Result], seconds: float | None = None) -> None:
        self._function = function
        self._seconds = None if seconds is None else min(seconds, MAX_TIMEOUT)
        self._call_lock, self._process_lock = threading.Lock(), threading.Lock()
        self._closed = False
        self._start()

    def __call__(self, item: Item) -> Result:
        """Return what the function returns for an item, or raise what it raises.

        Raises:
            `DiedError`: the process died or exceeded the time limit.
        """
        with self._call_lock:
            return self._call(item)

    def _call(self, item: Item) -> Result:
        for _ in range(TRIES):
            late = False
            try:
                self._connection.send(item)
                late = not self._connection.poll(self._seconds)
                if late:
                    self._process.kill()
                raised, value = self._connection.recv()
            except (EOFError, OSError):
                self._connection.close()
                self._process.join()
                reason = f"it took longer than {self._seconds:g} s" if late else _describe_exit(self._process.exitcode)
                with self._process_lock:
                    if self._closed:
                        break
                    self._start()
                continue
            except BaseException:  # after Ctrl-C, this answer must not be taken for that of the next item
                self._process.kill()
                self._connection.close()
                raise
            if raised:
                raise value
            return value
        raise DiedError("it was interrupted" if self._closed else reason)

    def close(self) -> None:
        """Kill the process. A call that another thread is waiting for raises [`DiedError`]."""
        with self._process_lock:
            self._closed = True
            self._process.kill()
        self._process.join(timeout=1)

    def _start(self) -> None:
        with _START_LOCK:
            self._connection, theirs = multiprocessing.Pipe()
            # The interpreter ends daemons when it exits.
            self._process = multiprocessing.Process(target=_serve, args=(theirs, self._function), daemon=True)
            self._process.start()
            theirs.close()


def map_in_processes(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    processes: int,
    on_death: Callable[[Item, str], Result],
    seconds: float | None = None,
) -> Iterator[Result]:
    """Yield `function(item)` for a stream of items, in order, while the processes compute the next results.

    Args:
        function, seconds: as for [`Worker`].
        items: the items. They are drawn in this process, as they are needed.
        processes (`int`): number of processes, at least 1.
        on_death: returns the result for an item whose process died or ran out of time. Takes the item and the reason.
    """
    workers = [Worker(function, seconds) for _ in range(processes)]
    idle: SimpleQueue[Worker[Item, Result]] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def call(item: Item) -> Result:
        worker = idle.get()
        try:
            return worker(item)
        except DiedError as error:
            return on_death(item, str(error))
        finally:
            idle.put(worker)

    pending: deque[Future[Result]] = deque()
    threads = ThreadPoolExecutor(processes)  # each thread waits for the answer of one process
    try:
        for item in items:
            pending.append(threads.submit(call, item))
            if len(pending) > RESULTS_AHEAD * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for worker in workers:
            worker.close()
        threads.shutdown(cancel_futures=True)
