"""The progress bar of downloads. Unusual: it imports no torch, as the command line enables it by name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from huggingface_hub.utils import tqdm

__all__ = ["PROGRESS_BAR", "progress_bar"]

PROGRESS_BAR = "deepencoder.ranges"
"""Name of the bar for `huggingface_hub.utils.enable_progress_bars` and `disable_progress_bars`."""


@contextmanager
def progress_bar(label: str, total: int, **options: Any) -> Iterator[Callable[[int], object]]:
    """Show how many bytes were downloaded.

    Args:
        label: text before the bar.
        total: number of bytes to download.
        options: further arguments of `tqdm`. By default, the bar is shown on terminals only.

    Yields:
        a function that takes a number of received bytes. Threads may call it at the same time.
    """
    lock = Lock()
    options = {"disable": None} | options
    with tqdm(total=total, unit="B", unit_scale=True, desc=label, name=PROGRESS_BAR, **options) as bar:

        def update(count: int) -> None:
            with lock:
                bar.update(count)

        yield update
