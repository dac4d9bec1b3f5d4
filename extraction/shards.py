"""Finished shards: which there are, whether they are whole, and how damaged ones make room for new ones.

Unusual: a file that was cut short or deleted is noticed whenever the folder is opened, from its size. Damage inside a
file is noticed when it is read, since the pages of parquet files carry checksums. Their footers carry none, so the
manifest records a hash of each. Nor has the safetensors file beside a shard any, so the parquet file, which is written
later, records its size and hash.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .pages import describe_error

if TYPE_CHECKING:
    import pyarrow

__all__ = [
    "DAMAGED",
    "DATA",
    "SEPARATE_SUFFIX",
    "DamagedShardError",
    "check_shard",
    "count_rows",
    "list_shards",
    "read_batches",
    "read_shards",
    "record_tensors",
    "set_aside",
    "verify_shard",
]

DATA = "data"
DAMAGED = "damaged"
"""Folder beside [`DATA`] that keeps damaged shards whose pages are extracted again."""

SEPARATE_SUFFIX = ".safetensors"
TENSORS_KEY = b"deepencoder.safetensors"  # Key of what a parquet file records of the file beside it.
ROWS_AT_ONCE = 64  # Rows, with all their features, that are held in memory while a shard is read back.
BLOCK_SIZE = 1 << 20  # Bytes that are read at once.


Recorded = Mapping[str, Mapping[str, Any]]
"""What the manifest records of files of shards: for each name their `bytes`, and the hash of a parquet `footer`."""


class DamagedShardError(ValueError):
    """A shard is not as it was written.

    Args:
        path: its parquet file.
        reason: one line that says what is wrong.
    """

    def __init__(self, path: Path, reason: str) -> None:
        reason = reason.rstrip(".")
        super().__init__(
            f"{path} is damaged: {reason}. With redo_damaged (--redo-damaged), damaged shards are set aside and their "
            "pages are extracted again."
        )
        self.path, self.reason = path, reason


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(partial(file.read, BLOCK_SIZE), b""):
            digest.update(block)
    return digest.hexdigest()


def record_tensors(path: Path) -> dict[bytes, bytes]:
    """Return the metadata by which a parquet file recognises the safetensors file beside it."""
    return {TENSORS_KEY: json.dumps({"bytes": path.stat().st_size, "sha256": _hash_file(path)}).encode()}


def _read_footer(path: Path) -> tuple[int, dict[str, Any] | None]:
    """Return the number of rows of a parquet file, and what it records of the safetensors file beside it.

    Raises:
        [`DamagedShardError`]
    """
    import pyarrow
    import pyarrow.parquet

    try:
        footer = pyarrow.parquet.read_metadata(path)
        record = (footer.metadata or {}).get(TENSORS_KEY)
        found = None if record is None else json.loads(record)
        facts = None if found is None else {"bytes": int(found["bytes"]), "sha256": str(found["sha256"])}
        return int(footer.num_rows), facts
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedShardError(path, describe_error(error)) from error


def count_rows(path: Path) -> int:
    """Return the number of rows of a parquet file.

    Raises:
        [`DamagedShardError`]
    """
    return _read_footer(path)[0]


def list_shards(folder: Path) -> list[Path]:
    """List the parquet files of the finished shards of an output folder, in the order of their names."""
    return sorted((folder / DATA).glob("part-*.parquet"))


def _hash_footer(path: Path) -> str:
    """Hash the end of a parquet file, which says where its columns are and what they are called."""
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)  # the length of the footer in 4 bytes, and 4 more of the format
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return hashlib.sha256(file.read()).hexdigest()


def check_shard(path: Path, recorded: Recorded) -> list[dict[str, Any]]:
    """Check that the files of a shard are there, and that they have their sizes and their footer.

    Args:
        path: the parquet file.
        recorded: what the manifest records of some files; see [`Recorded`].

    Returns:
        what the manifest has to record of each file.

    Raises:
        [`DamagedShardError`]
    """
    rows, tensors = _read_footer(path)
    beside, found = path.with_suffix(SEPARATE_SUFFIX), []
    for file, facts in ((path, {"footer": _hash_footer(path)}), (beside, {})):
        name = f"{DATA}/{file.name}"
        known = recorded.get(name, {})
        expected = known.get("bytes") if file == path or tensors is None else tensors["bytes"]
        size = file.stat().st_size if file.exists() else None
        if expected is not None and size != expected:
            actual = "is missing" if size is None else f"has {size:,} bytes instead of {expected:,}"
            raise DamagedShardError(path, f"{file.name} {actual}")
        if facts and known.get("footer", facts["footer"]) != facts["footer"]:
            raise DamagedShardError(path, "its footer has changed")
        if size is not None:
            found.append({"name": name, "rows": rows, "bytes": size, **facts})
    return found


def read_shards(folder: Path, recorded: Recorded | None = None) -> list[dict[str, Any]]:
    """List the files of the finished shards in the order of their names; see [`check_shard`].

    Raises:
        [`DamagedShardError`]: the first shard that is damaged.
    """
    return [file for path in list_shards(folder) for file in check_shard(path, recorded or {})]


def read_batches(path: Path, rows: int, columns: list[str] | None = None) -> "Iterator[pyarrow.RecordBatch]":
    """Read columns of a parquet file, or all of them, some rows at a time, and verify their checksums.

    Raises:
        [`DamagedShardError`]
    """
    import pyarrow
    import pyarrow.parquet

    options = {"page_checksum_verification": True, "pre_buffer": False, "buffer_size": BLOCK_SIZE}
    try:
        with pyarrow.parquet.ParquetFile(path, **options) as file:
            yield from file.iter_batches(rows, columns=columns)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DamagedShardError(path, describe_error(error)) from error


def _check_header(tensors: Path, path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(tensors, "np"):
            pass
    except (SafetensorError, OSError) as error:
        raise DamagedShardError(path, f"{tensors.name} cannot be read: {describe_error(error)}") from error


def verify_shard(path: Path, recorded: Recorded) -> list[dict[str, Any]]:
    """Do what [`check_shard`] does, and read everything back: the parquet file and the file beside it."""
    found = check_shard(path, recorded)
    rows, record = _read_footer(path)
    actual = sum(batch.num_rows for batch in read_batches(path, ROWS_AT_ONCE))
    if actual != rows:
        raise DamagedShardError(path, f"it has {actual:,} rows instead of {rows:,}")
    beside = path.with_suffix(SEPARATE_SUFFIX)
    if record is not None and _hash_file(beside) != record["sha256"]:
        raise DamagedShardError(path, f"{beside.name} has another content than when it was written")
    if record is None and beside.exists():  # Earlier versions recorded nothing.
        _check_header(beside, path)
    return found


def set_aside(folder: Path, path: Path) -> None:
    """Move the files of a damaged shard from [`DATA`] to [`DAMAGED`], under names that are not taken there."""
    (folder / DAMAGED).mkdir(exist_ok=True)
    # The parquet file goes last: a safetensors file without it counts as unfinished, and would be removed.
    for file in (path.with_suffix(SEPARATE_SUFFIX), path):
        if file.exists():
            names: Iterable[str] = (f"{file.stem}.{number}{file.suffix}" for number in itertools.count())
            file.rename(next(to for name in names if not (to := folder / DAMAGED / name).exists()))
