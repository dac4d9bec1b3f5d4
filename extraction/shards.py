"""Shards of features on disk: each is there whole or not at all, and together they say which pages are done.

Unusual: there is no list of finished pages beside the shards, which could disagree with them: it is read from the
shards. A shard is written under a hidden name a part at a time, so that memory does not grow with its size, and in a
thread, so that the model does not wait for the disk.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .batches import PageFeatures
from .features import to_arrow

if TYPE_CHECKING:
    import pyarrow

__all__ = [
    "DATA",
    "STAGING",
    "FailureLog",
    "ShardWriter",
    "collect_staged",
    "key_of",
    "merge_failures",
    "page_schema",
    "read_finished",
    "read_shards",
    "remove_temporaries",
    "to_table",
    "write_atomically",
]

DATA = "data"
STAGING = ".ray"
FAILURES = "failures.jsonl"
FORMATS = ("parquet", "safetensors")
PART_BYTES = 32 << 20  # of features in memory before they are written
PART_ROWS = 4096


def page_schema(features: "Sequence[pyarrow.Field]") -> "pyarrow.Schema":
    """Declare the columns of a shard: what a page is, and its features."""
    import pyarrow

    text, number = pyarrow.string(), pyarrow.int32()
    columns = {
        "source": text,
        "page": number,
        "width": number,
        "height": number,
        "grid": pyarrow.list_(number, 2),
        "num_tokens": number,
        "model": text,
        "commit": text,
        "mode": text,
        "sha256": text,
    }
    return pyarrow.schema([*(pyarrow.field(name, kind) for name, kind in columns.items()), *features])


def to_table(rows: Sequence[PageFeatures], schema: "pyarrow.Schema", **constants: str) -> "pyarrow.Table":
    """Lay pages out as the columns of [`page_schema`].

    Args:
        rows: pages without errors.
        constants: `model`, `commit` and `mode`, the same for all.
    """
    import pyarrow

    facts: dict[str, list[Any]] = {
        "source": [row.page.source for row in rows],
        "page": [row.page.page for row in rows],
        **{name: [getattr(row, name) for row in rows] for name in ("width", "height", "num_tokens", "sha256")},
        "grid": [list(row.grid) for row in rows],
        **{name: [value] * len(rows) for name, value in constants.items()},
    }
    columns = [
        pyarrow.array(facts[field.name], field.type)
        if field.name in facts
        else to_arrow([row.outputs[field.name] for row in rows], field.type)
        for field in schema
    ]
    return pyarrow.Table.from_arrays(columns, schema=schema)


def write_atomically(path: Path, content: str) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ShardWriter:
    """Writes pages into the shards of one process.

    Names are `part-PROCESS-NUMBER`, whose numbers go on where earlier runs of a process of that rank ended.

    Args:
        folder (`Path`): the output's; shards go into `data` in it.
        schema (`pyarrow.Schema`): of [`page_schema`].
        constants (`dict[str, str]`): see [`to_table`].
        rank (`int`): of this process.
        dtype (`str`): of the features; bfloat16 is kept as float32, and its zeros are compressed.
        format (`str`): `"parquet"`; or `"safetensors"`: features in a file beside a parquet file of the other columns.
        shard_size (`int`): bytes of features after which a shard is closed.
        shard_seconds (`float`): seconds after which it is closed in any case: what a kill may cost.
    """

    def __init__(
        self,
        folder: Path,
        schema: "pyarrow.Schema",
        constants: dict[str, str],
        *,
        rank: int = 0,
        dtype: str = "float16",
        format: str = "parquet",
        shard_size: int = 512 << 20,
        shard_seconds: float = 1800.0,
    ) -> None:
        self.folder, self.schema, self.constants = folder / DATA, schema, constants
        self.rank, self.dtype, self.format = rank, dtype, format
        self.shard_size, self.shard_seconds = shard_size, shard_seconds
        self.folder.mkdir(exist_ok=True)
        taken = [int(path.stem.split("-")[2]) for path in self.folder.glob(f"part-{rank:05d}-*.parquet")]
        self._next = max(taken, default=-1) + 1
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None
        self._rows: list[PageFeatures] = []
        self._row_bytes = self._shard_bytes = 0
        self._started = 0.0
        self._file: Any = None
        self._parquet: Any = None

    def add(self, row: PageFeatures) -> None:
        """Take a page. What goes wrong while writing is raised here or at the next page.

        Raises:
            `OSError`: it cannot be written; the shard that was begun is removed.
        """
        if not self._shard_bytes and not self._rows:
            self._started = time.monotonic()
        self._rows.append(row)
        self._row_bytes += sum(array.nbytes for array in row.outputs.values())
        full = self._shard_bytes + self._row_bytes >= self.shard_size
        if full or time.monotonic() - self._started >= self.shard_seconds:
            self.finish_shard()
        elif self.format == "parquet" and (self._row_bytes >= PART_BYTES or len(self._rows) >= PART_ROWS):
            self._flush()

    def finish_shard(self) -> None:
        """Close the shard that was begun, if any, and give it its name."""
        try:
            self._flush()
            self._wait()
            if self._parquet is not None:
                self._parquet.close()
                self._parquet = None
                _sync_and_close(self._file)
                self._file = None
                self._temporary("parquet").replace(self._final("parquet"))
                _sync_folder(self.folder)
                self._next += 1
                self._shard_bytes = 0
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Remove the shard that was begun."""
        self._rows.clear()
        if self._writing is not None:
            self._writing.exception()
            self._writing = None
        if self._file is not None:
            try:
                self._file.close()  # a full disk refuses the last bytes, too
            except OSError:
                pass
        self._file = self._parquet = None
        self._row_bytes = self._shard_bytes = 0
        for suffix in ("parquet", "safetensors"):
            self._temporary(suffix).unlink(missing_ok=True)

    def close(self) -> None:
        """Finish the last shard."""
        self.finish_shard()
        self._thread.shutdown()

    def _temporary(self, suffix: str) -> Path:
        return self.folder / f".{self._final(suffix).name}.tmp"

    def _final(self, suffix: str) -> Path:
        return self.folder / f"part-{self.rank:05d}-{self._next:06d}.{suffix}"

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _flush(self) -> None:
        """Hand what is in memory to the thread, once that is done with what it had."""
        if not self._rows:
            return
        try:
            self._wait()
            rows, self._rows = self._rows, []
            self._shard_bytes += self._row_bytes
            self._row_bytes = 0
            self._writing = self._thread.submit(self._write, rows)
        except BaseException:
            self.abandon()
            raise

    def _write(self, rows: list[PageFeatures]) -> None:
        import pyarrow.parquet

        if self._parquet is None:
            self._file = self._temporary("parquet").open("wb")
            self._parquet = pyarrow.parquet.ParquetWriter(self._file, self._stored_schema, **self._encoding)
        if self.format == "safetensors":
            self._write_tensors(rows)
        self._parquet.write_table(to_table(rows, self._stored_schema, **self.constants))

    @property
    def _stored_schema(self) -> "pyarrow.Schema":
        return page_schema([]) if self.format == "safetensors" else self.schema

    @property
    def _encoding(self) -> dict[str, Any]:
        """Features are noise to a compressor, except for the lower halves of bfloat16 in float32, which are zero."""
        facts = page_schema([]).names
        features = [name for name in self._stored_schema.names if name not in facts]
        options: dict[str, Any] = {
            "use_dictionary": [name for name in facts if name != "grid"],
            "write_statistics": [name for name in facts if name != "grid"],
            "compression": {name: "none" for name in features} | {name: "zstd" for name in facts},
        }
        if self.dtype == "bfloat16":
            leaves = [
                "pooled.list.element" if name == "pooled" else f"{name}.list.element.list.element" for name in features
            ]
            options |= {"use_byte_stream_split": leaves, "compression": "zstd"}
        return options

    def _write_tensors(self, rows: list[PageFeatures]) -> None:
        """Write `ROW.OUTPUT` for each row of the parquet file beside it. It gets its name first: that one counts."""
        import torch
        from safetensors.torch import save_file

        kept = torch.bfloat16 if self.dtype == "bfloat16" else None
        tensors = {
            f"{number}.{name}": torch.from_numpy(np.ascontiguousarray(array)).to(kept).clone()
            for number, row in enumerate(rows)
            for name, array in row.outputs.items()
        }
        temporary = self._temporary("safetensors")
        save_file(tensors, temporary, {"model": self.constants["model"], "commit": self.constants["commit"]})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(self._final("safetensors"))


def _sync_and_close(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


class FailureLog:
    """Failed pages of one process, each on disk as soon as it is known.

    Args:
        folder (`Path`): the output's.
        rank (`int`): of this process.
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
            except ValueError:  # the last line of a process that was killed: its page is done again
                continue


def merge_failures(folder: Path) -> list[dict[str, Any]]:
    """Bring the processes' failures into one file, `failures.jsonl`, which is there only if a page failed."""
    parts = sorted(folder.glob(".failures-*.jsonl"))
    target = folder / FAILURES
    found = {}
    for path in [target, *parts]:
        if path.exists():
            found.update({(line["source"], line["page"]): line for line in _read_lines(path)})
    if parts:
        write_atomically(target, "".join(json.dumps(line) + "\n" for line in found.values()))
        for path in parts:
            path.unlink()
    return list(found.values())


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed run left unfinished."""
    for path in (*folder.glob(".*.tmp"), *(folder / DATA).glob(".*.tmp")):
        path.unlink()
    for path in (folder / DATA).glob("part-*.safetensors"):
        if not path.with_suffix(".parquet").exists():
            path.unlink()


def collect_staged(folder: Path) -> None:
    """Move whole files that Ray wrote among the shards, and remove the rest."""
    import pyarrow
    import pyarrow.parquet

    for path in sorted((folder / STAGING).glob("**/*.parquet")):
        try:
            rows = pyarrow.parquet.read_metadata(path).num_rows
        except (pyarrow.ArrowException, OSError):
            rows = 0  # its writer was killed
        if rows:
            (folder / DATA).mkdir(exist_ok=True)
            path.replace(folder / DATA / f"part-ray-{path.stem}.parquet")
        else:
            path.unlink()


def key_of(source: str, page: int) -> int:
    """A page's name in 64 bits: of 100 million pages, in 800 MB, two agree with odds of 1 in 3,700."""
    return int.from_bytes(hashlib.blake2b(f"{page}\0{source}".encode(), digest_size=8).digest(), "big")


def read_shards(folder: Path) -> list[dict[str, Any]]:
    """List the finished shards, in the order of their names.

    Raises:
        `ValueError`: one of them is damaged, by whatever; names it.
    """
    import pyarrow
    import pyarrow.parquet

    found = []
    for path in sorted((folder / DATA).glob("part-*.parquet")):
        try:
            rows = pyarrow.parquet.read_metadata(path).num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path} is damaged; without it, its pages are done again: {error}") from error
        files = [path, path.with_suffix(".safetensors")]
        for file in files:
            if file.exists():
                found.append({"name": f"{DATA}/{file.name}", "rows": rows, "bytes": file.stat().st_size})
    return found


def read_finished(folder: Path) -> Callable[[str, int], bool]:
    """Read which pages are done, well or badly, and return what answers for one."""
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
