"""Starts a worker while this process holds garbage that would hang it, and prints the answer of the worker."""

import gc
import os
import time

from deepencoder.extraction.workers import Worker

MAIN = os.getpid()


class Session:
    """An object in a cycle whose destructor waits for threads, which a forked process does not have."""

    def __init__(self) -> None:
        self.cycle = self

    def __del__(self) -> None:
        if os.getpid() != MAIN:
            time.sleep(3600)


def collect(item: int) -> int:
    gc.collect()
    return item + 1


if __name__ == "__main__":
    gc.disable()
    Session()
    gc.enable()
    print(Worker(collect, seconds=20)(1))
