"""Starts a worker process, prints its id, and lets it hang without releasing the interpreter."""

import ctypes
import multiprocessing

from deepencoder.extraction.workers import Worker


def hang(seconds: int) -> None:
    ctypes.PyDLL(None).sleep(seconds)  # functions of PyDLL hold the lock of the interpreter


if __name__ == "__main__":
    worker = Worker(hang)
    print(multiprocessing.active_children()[0].pid, flush=True)
    worker(20)
