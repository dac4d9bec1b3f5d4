"""Which pages of a corpus are done, and which failed.

Unusual: no list of finished pages is kept beside the shards, as the two could disagree. The list is read from the
shards. Failed pages are in `failures.jsonl`; each process appends its own to a hidden file, which is merged later.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..configuration.atomic_files import write_text
from .encoding import PageFeatures
from .shards import list_shards, read_batches

__all__ = ["FAILURES", "FailureLog", "key_of", "merge_failures", "read_finished", "read_finished_keys", "read_keys"]

FAILURES = "failures.jsonl"
ROWS_AT_ONCE = 1 << 16  # Names of pages that are held in memory while shards are read.


def key_of(source: str, page: int) -> int:
    """Hash a page's name to 64 bits. Among 100 million pages, two collide with odds of 1 in 3,700."""
    name = f"{page}\0{source}".encode(errors="surrogatepass")  # A file of failures may hold names that are not text.
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


class FailureLog:
    """Records the failed pages of one process, each on disk as soon as it is known.

    Args:
        folder (`Path`): the output folder.
        rank (`int`): rank of the process.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.path = folder / f".failures-{rank:05d}.jsonl"

    def add(self, row: PageFeatures) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"source": row.page.source, "page": row.page.page, "reason": row.error}) + "\n")


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read the failed pages of a file, and skip the lines that do not describe one.

    One is the last line of a process that was killed; its page is tried again. Other hands may have written more.
    """
    with path.open("rb") as file:
        for line in file:
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if (
                isinstance(found, dict)
                and isinstance(found.get("source"), str)
                and isinstance(found.get("page"), int)
                and isinstance(found.get("reason"), str)
            ):
                yield found


def merge_failures(folder: Path) -> list[dict[str, Any]]:
    """Merge the failures of all processes into `failures.jsonl`, which exists only if a page failed."""
    parts = sorted(folder.glob(".failures-*.jsonl"))
    target = folder / FAILURES
    found = {}
    for path in [target, *parts]:
        if path.exists():
            found.update({(line["source"], line["page"]): line for line in _read_lines(path)})
    if parts:
        write_text(target, "".join(json.dumps(line) + "\n" for line in found.values()))
        for path in parts:
            path.unlink()
    return list(found.values())


def read_keys(path: Path) -> np.ndarray:
    """Read the keys of the pages in a parquet file of pages.

    Raises:
        `ValueError`: it is damaged; names it.
    """
    keys = [np.zeros(0, np.uint64)]
    for batch in read_batches(path, ROWS_AT_ONCE, ["source", "page"]):
        names = zip(batch["source"].to_pylist(), batch["page"].to_pylist(), strict=True)
        keys.append(np.fromiter((key_of(*name) for name in names), np.uint64, len(batch)))
    return np.concatenate(keys)


def read_finished_keys(folder: Path) -> np.ndarray:
    """Read the keys of the pages that are written or failed, sorted.

    Raises:
        `ValueError`: a shard is damaged; names it.
    """
    keys = [read_keys(path) for path in list_shards(folder)]
    if (folder / FAILURES).exists():
        failed = [key_of(line["source"], line["page"]) for line in _read_lines(folder / FAILURES)]
        keys.append(np.array(failed, np.uint64))
    return np.unique(np.concatenate(keys)) if keys else np.zeros(0, np.uint64)


def read_finished(folder: Path) -> Callable[[str, int], bool]:
    """Read which pages are written or failed, and return a function that answers for one.

    The pages are kept as 64-bit keys, so that 100 million of them take 800 MB.

    Raises:
        `ValueError`: a shard is damaged; names it.
    """
    known = read_finished_keys(folder)

    def is_finished(source: str, page: int) -> bool:
        if not len(known):
            return False
        key = np.uint64(key_of(source, page))
        place = int(np.searchsorted(known, key))
        return place < len(known) and bool(known[place] == key)

    return is_finished
