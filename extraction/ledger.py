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

__all__ = ["DATA", "FAILURES", "FailureLog", "key_of", "merge_failures", "read_finished", "read_shards"]

DATA = "data"
FAILURES = "failures.jsonl"


def key_of(source: str, page: int) -> int:
    """Hash a page's name to 64 bits. Among 100 million pages, two collide with odds of 1 in 3,700."""
    return int.from_bytes(hashlib.blake2b(f"{page}\0{source}".encode(), digest_size=8).digest(), "big")


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
    with path.open() as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:  # The last line of a process that was killed. Its page is tried again.
                continue


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


def read_shards(folder: Path) -> list[dict[str, Any]]:
    """List the finished shards in the order of their names.

    Raises:
        `ValueError`: a shard is damaged; names it.
    """
    import pyarrow
    import pyarrow.parquet

    found = []
    for path in sorted((folder / DATA).glob("part-*.parquet")):
        try:
            rows = pyarrow.parquet.read_metadata(path).num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path} is damaged; delete it to extract its pages again: {error}") from error
        for file in (path, path.with_suffix(".safetensors")):
            if file.exists():
                found.append({"name": f"{DATA}/{file.name}", "rows": rows, "bytes": file.stat().st_size})
    return found


def read_finished(folder: Path) -> Callable[[str, int], bool]:
    """Read which pages are written or failed, and return a function that answers for one.

    The pages are kept as 64-bit keys, so that 100 million of them take 800 MB.
    """
    import pyarrow.parquet

    keys: list[np.ndarray] = []
    for shard in read_shards(folder):
        if shard["name"].endswith(".parquet"):
            table = pyarrow.parquet.read_table(folder / shard["name"], columns=["source", "page"], partitioning=None)
            names = zip(table["source"].to_pylist(), table["page"].to_pylist(), strict=True)
            keys.append(np.fromiter((key_of(*name) for name in names), np.uint64, len(table)))
    if (folder / FAILURES).exists():
        failed = [key_of(line["source"], line["page"]) for line in _read_lines(folder / FAILURES)]
        keys.append(np.array(failed, np.uint64))
    known = np.unique(np.concatenate(keys)) if keys else np.zeros(0, np.uint64)

    def is_finished(source: str, page: int) -> bool:
        if not len(known):
            return False
        key = np.uint64(key_of(source, page))
        place = int(np.searchsorted(known, key))
        return place < len(known) and bool(known[place] == key)

    return is_finished
