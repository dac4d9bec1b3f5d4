"""Runs functions that may kill their process or never return, in processes of their own.

Unusual: each process holds one item at a time and has a pipe of its own. When it dies (of a segmentation fault in a
decoder, or killed because memory ran out) or must be killed, the item that caused it is known, and no other answer is
lost or delayed. `concurrent.futures` would break the whole pool instead. Whoever waits for an answer can be told to
stop waiting, since a process that hangs answers to nothing but being killed.
"""

import ctypes
import gc
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

__all__ = ["DiedError", "Worker", "map_in_processes"]

Item = TypeVar("Item")
Result = TypeVar("Result")

RESULTS_AHEAD = 4  # results per process that may wait to be taken
TRIES = 2  # a process may have been killed for the memory that another process used
BYTES_AHEAD = 1 << 30  # bytes of items that may wait to be answered; an archive may hold many pages of 1 GiB
POLL = 0.2  # seconds after which those who wait ask again whether they shall stop
INTERRUPTED = "it was interrupted"
KILL_WAIT = 1.0  # seconds to wait for a killed process; one that waits for a dead network drive never ends
PR_SET_PDEATHSIG = 1  # of Linux' prctl.h
_START_LOCK = threading.Lock()  # a process that inherited the pipe of another would hide the death of that one


class DiedError(RuntimeError):
    """Every try ended without an answer. The message says whether the process died or ran out of time."""


def _end_with_parent(main: int) -> None:
    """End this process once its parent is gone. A killed parent cannot say so, and writing to a full pipe blocks."""
    # The fork server is the parent of the processes that it starts, and ends with the main process.
    parent = os.getppid() if multiprocessing.get_start_method() == "forkserver" else main

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if sys.platform == "linux":  # A decoder that hangs without releasing the interpreter stops the thread, too.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before
            os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Keep the garbage collector from running, here and in a process that is forked meanwhile.

    A forked process inherits this one's garbage, but not its threads: an object whose destructor waits for threads,
    such as a session of onnxruntime, would hang it. So it freezes what it inherits before it collects again.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _limit_memory(memory: int | None) -> None:
    """Limit how much more memory this process may take than it holds now, where the system can."""
    if memory is None or sys.platform != "linux":
        return
    import resource

    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    held = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = held + memory if hard == resource.RLIM_INFINITY else min(held + memory, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _serve(connection: Connection, function: Callable[[Any], Any], main: int, memory: int | None) -> None:
    """Answer items from a pipe with `(raised, value or exception)`, until the pipe is closed."""
    import torch

    gc.freeze()
    gc.enable()
    # Ctrl-C reaches the whole process group, but the main process decides what to do; its handlers do not apply here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with_parent(main)
    torch.set_num_threads(1)  # the threads of OpenMP do not survive a fork
    _limit_memory(memory)
    try:
        while True:
            item = connection.recv()
            try:
                answer = False, function(item)
            except Exception as error:
                answer = True, error
            del item
            try:
                connection.send(answer)
            except MemoryError as error:  # nothing was sent yet
                connection.send((True, error))
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
        memory (`int`, *optional*): bytes that the process may take beyond what it holds when it starts, where the
            system can limit them. More raises a `MemoryError` in the function, or kills the process.
    """

    def __init__(
        self, function: Callable[[Item], Result], seconds: float | None = None, memory: int | None = None
    ) -> None:
        self._function, self._seconds, self._memory = function, seconds, memory
        self._call_lock, self._process_lock = threading.Lock(), threading.Lock()
        self._closed = False
        self._start()

    def __call__(self, item: Item, stop: Callable[[], bool] | None = None) -> Result:
        """Return what the function returns for an item, or raise what it raises.

        Args:
            item: the item.
            stop (*optional*): asked several times a second; once it returns True, the process is killed.

        Raises:
            `DiedError`: the process died, exceeded the time limit or was stopped.
        """
        with self._call_lock:
            return self._call(item, stop or (lambda: False))

    def _call(self, item: Item, stop: Callable[[], bool]) -> Result:
        reason = INTERRUPTED
        for _ in range(TRIES):
            if not self._is_ready():
                break
            answer: tuple[bool, Any] | None = None
            try:
                self._connection.send(item)
                reason = self._wait(stop)
                answer = None if reason else self._connection.recv()
            except (EOFError, OSError):
                self._process.join(KILL_WAIT)
                reason = _describe_exit(self._process.exitcode)
            finally:
                if answer is None:  # also after Ctrl-C: a later answer must not be taken for that of the next item
                    self._process.kill()
                    self._connection.close()
            if answer is not None:
                raised, value = answer
                if raised:
                    raise value
                return value
            if stop():
                break
        raise DiedError(INTERRUPTED if self._closed or stop() else reason)

    def _wait(self, stop: Callable[[], bool]) -> str:
        """Wait for an answer. Returns the reason if there is none, and an empty string if there is one."""
        end = math.inf if self._seconds is None else time.monotonic() + self._seconds
        while not self._connection.poll(max(0, min(POLL, end - time.monotonic()))):
            if self._closed or stop():
                return INTERRUPTED
            if time.monotonic() >= end:
                return f"it took longer than {self._seconds:g} s"
        return ""

    def _is_ready(self) -> bool:
        """Start the process again if it has died, even while it was idle. Returns False once the worker is closed."""
        with self._process_lock:
            if not self._closed and (self._connection.closed or not self._process.is_alive()):
                self._process.join(KILL_WAIT)
                self._connection.close()
                self._start()
            return not self._closed

    def interrupt(self) -> None:
        """Kill the process for good. A call that another thread is waiting for raises [`DiedError`]."""
        with self._process_lock:
            self._closed = True
            self._process.kill()

    def close(self) -> None:
        """Do what [`interrupt`] does, and wait for the process to end."""
        self.interrupt()
        self._process.join(KILL_WAIT)

    def _start(self) -> None:
        with _START_LOCK:
            self._connection, theirs = multiprocessing.Pipe()
            arguments = (theirs, self._function, os.getpid(), self._memory)
            # The interpreter ends daemons when it exits.
            self._process = multiprocessing.Process(target=_serve, args=arguments, daemon=True)
            with _garbage_kept():
                self._process.start()
            theirs.close()


def _await(answer: "futures.Future[Result]", stop: Callable[[], bool]) -> bool:
    """Wait until a result is there, or until `stop` returns True. Returns whether the result is there."""
    while not futures.wait([answer], POLL).done:
        if stop():
            return False
    return True


def map_in_processes(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    processes: int,
    on_death: Callable[[Item, str], Result],
    *,
    seconds: float | None = None,
    memory: int | None = None,
    stop: Callable[[], bool] | None = None,
    size_of: Callable[[Item], int] = lambda item: 0,
) -> Iterator[Result]:
    """Yield `function(item)` for a stream of items, in order, while the processes compute the next results.

    Args:
        function, seconds, memory: as for [`Worker`].
        items: the items. They are drawn in this process, as they are needed.
        processes (`int`): number of processes, at least 1.
        on_death: returns the result for an item whose process died or ran out of time. Takes the item and the reason.
        stop (*optional*): asked several times a second; once it returns True, no more results are yielded, and the
            processes are killed.
        size_of (*optional*): bytes that an item takes. Items of more than [`BYTES_AHEAD`] do not wait together.
    """
    stop = stop or (lambda: False)
    workers = [Worker(function, seconds, memory) for _ in range(processes)]
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

    pending: deque[tuple[futures.Future[Result], int]] = deque()
    threads = futures.ThreadPoolExecutor(processes)  # each thread waits for the answer of one process
    try:
        for item in items:
            pending.append((threads.submit(call, item), size_of(item)))
            del item  # it may be large
            while len(pending) > RESULTS_AHEAD * processes or sum(size for _, size in pending) > BYTES_AHEAD:
                if not _await(pending[0][0], stop):
                    return
                yield pending.popleft()[0].result()
            if stop():
                return
        while pending and _await(pending[0][0], stop):
            yield pending.popleft()[0].result()
    finally:
        for worker in workers:
            worker.interrupt()
        for worker in workers:
            worker.close()
        threads.shutdown(cancel_futures=True)
