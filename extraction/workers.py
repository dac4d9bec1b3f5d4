"""Calls that may kill their process or never end, in processes of their own: results in order, some of them ahead.

Unusual: each process has one item at a time and a pipe to itself. So when it dies (a decoder's segmentation fault, the
kernel out of memory) or must be killed, it is known which item that was, and nobody else's answer is cut off or waits.
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

AHEAD = 4  # results for each process that wait to be taken
PAGE_TIMEOUT = 300.0  # seconds, by default: far more than any page takes, and a decoder that hangs holds all others up
TRIES = 2  # it may have been killed for what another process did
_STARTS = threading.Lock()  # A process that inherited another's end of a pipe would hide that one's death.


class DiedError(RuntimeError):
    """There was no answer, at each try: the process died, or the time was up. The message says which."""


class Worker(Generic[Item, Result]):
    """A function, called in a process of its own, which is started again where it dies. Threads take turns.

    Args:
        function: a picklable callable of one picklable argument.
        seconds (`float`, *optional*): that a call may take before its process is killed.
    """

    def __init__(self, function: Callable[[Item], Result], seconds: float | None = None) -> None:
        self._function = function
        self._seconds = None if seconds is None else min(seconds, 1e6)  # more milliseconds than poll can count
        self._turn, self._lock = threading.Lock(), threading.Lock()
        self._closed = False
        self._start()

    def __call__(self, item: Item) -> Result:
        """Return what the function returns for an item, or raise what it raises.

        Raises:
            `DiedError`: its process died, or took too long.
        """
        with self._turn:
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
                end = f"it took longer than {self._seconds:g} s" if late else _describe_end(self._process.exitcode)
                with self._lock:
                    if self._closed:
                        break
                    self._start()
                continue
            except BaseException:  # Ctrl-C: this answer must not be taken for the next item's
                self._process.kill()
                self._connection.close()
                raise
            if raised:
                raise value
            return value
        raise DiedError("it was interrupted" if self._closed else end)

    def close(self) -> None:
        """End the process at once; a call that waits for it, in another thread, raises [`DiedError`]."""
        with self._lock:
            self._closed = True
            self._process.kill()
        self._process.join(timeout=1)

    def _start(self) -> None:
        with _STARTS:
            self._connection, theirs = multiprocessing.Pipe()
            # A daemon: the interpreter, when it exits, ends it too.
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
    """Yield `function(item)` for a stream of items, in order, while processes compute the next ones.

    Args:
        function, seconds: as for [`Worker`].
        items: drawn in this process, as they are needed.
        processes (`int`): how many; at least 1.
        on_death: takes an item without an answer, and the reason; gives the result.
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
    threads = ThreadPoolExecutor(processes)  # each waits for the answer of one process
    try:
        for item in items:
            pending.append(threads.submit(call, item))
            if len(pending) > AHEAD * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for worker in workers:
            worker.close()
        threads.shutdown(cancel_futures=True)


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    import torch

    # Ctrl-C reaches the whole group, and the main process decides; its handlers are not for this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
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
        return  # the main process has gone


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: killed, that cannot tell; and a full pipe would hold us forever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _describe_end(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process died of signal {-code}, {signal.strsignal(-code)}"
    return f"its process died with exit code {code}"
