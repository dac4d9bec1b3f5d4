"""Writes features into shards, each of which appears in the output folder whole or not at all.

Unusual: a shard is written a part at a time, so that memory does not grow with its size, and in a thread, so that the
model does not wait for the disk.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..configuration.atomic_files import replaced_file
from .arrow import list_sizes, page_schema, to_table
from .encoding import PageFeatures
from .outputs import DTYPES
from .settings import ExtractionSettings, RunOptions
from .shards import DATA, SEPARATE_SUFFIX, record_tensors

if TYPE_CHECKING:
    import pyarrow

__all__ = ["ShardWriter"]

PART_BYTES = 32 << 20  # Features that are held in memory before they are written.
PART_ROWS = 4096
FIRST_SHARD_SECONDS = 60.0  # Age at which the first shard of a run is closed; that of each next one is twice as long.


class ShardWriter:
    """Writes pages into the shards of one process.

    Shards are named `part-RANK-NUMBER`. Numbers go on where earlier runs of a process of that rank ended.

    Args:
        output (`Path`): the output folder. Shards go into the folder `data` in it.
        schema (`pyarrow.Schema`): the columns, as from [`page_schema`].
        settings ([`ExtractionSettings`]): gives the constant columns, the dtype of the features, which decides how
            they are compressed, and the format of the shards.
        options ([`RunOptions`]): gives the size and the age at which a shard is closed; what is in an open shard is
            lost if the process is killed.
        rank (`int`): rank of the process.
        first_seconds (`float`): age at which the first shard is closed, if `options` give no lower one. It doubles
            with each shard, so that a run that is killed again and again still advances.
    """

    def __init__(
        self,
        output: Path,
        schema: "pyarrow.Schema",
        settings: ExtractionSettings,
        options: RunOptions,
        rank: int = 0,
        first_seconds: float = FIRST_SHARD_SECONDS,
    ) -> None:
        self.folder, self.rank = output / DATA, rank
        self.constants, self.dtype = settings.constants, settings.dtype
        self.shard_size, self.shard_seconds = options.shard_size, min(first_seconds, options.shard_seconds)
        self._longest_seconds = options.shard_seconds
        self.has_separate_tensors = settings.format == "safetensors"
        self.schema = page_schema() if self.has_separate_tensors else schema
        self.folder.mkdir(exist_ok=True)
        taken = [int(path.stem.split("-")[2]) for path in self.folder.glob(f"part-{rank:05d}-*.parquet")]
        self._next = max(taken, default=-1) + 1
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None
        self._rows: list[PageFeatures] = []
        self._row_bytes = self._shard_bytes = 0
        self._started = 0.0
        self._shard = ExitStack()  # Holds the temporary file of the open shard; closing it names the shard.
        self._parquet: Any = None

    def add(self, row: PageFeatures) -> None:
        """Take a page. An error while writing is raised here or at one of the next pages.

        Raises:
            `OSError`: the shard cannot be written; it is removed.
        """
        if not self._shard_bytes and not self._rows:
            self._started = time.monotonic()
        self._rows.append(row)
        self._row_bytes += sum(array.nbytes for array in row.outputs.values())
        is_full = self._shard_bytes + self._row_bytes >= self.shard_size
        if is_full or time.monotonic() - self._started >= self.shard_seconds:
            self.finish_shard()
        elif not self.has_separate_tensors and (self._row_bytes >= PART_BYTES or len(self._rows) >= PART_ROWS):
            self._flush()

    def finish_shard(self) -> None:
        """Close the open shard, if there is one, and give it its name."""
        try:
            self._flush()
            self._wait()
            if self._parquet is not None:
                self._parquet.close()
                self._parquet = None
                self._shard.close()
                self._next += 1
                self._shard_bytes = 0
                self.shard_seconds = min(2 * self.shard_seconds, self._longest_seconds)
        except BaseException as error:
            self._abandon(error)
            raise

    def close(self) -> None:
        """Finish the last shard."""
        self.finish_shard()
        self._thread.shutdown()

    def _abandon(self, error: BaseException) -> None:
        """Remove the open shard because of an error."""
        self._rows.clear()
        if self._writing is not None:
            self._writing.exception()
            self._writing = None
        with suppress(Exception):
            if self._parquet is not None:
                self._parquet.close()  # Its destructor would write to the closed file, and print that it cannot.
        with suppress(OSError):  # A full disk refuses the last bytes of the file, too.
            self._shard.__exit__(type(error), error, error.__traceback__)
        self._parquet = None
        self._row_bytes = self._shard_bytes = 0

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _flush(self) -> None:
        """Hand the rows in memory to the thread, once it is done with the rows before."""
        if not self._rows:
            return
        try:
            self._wait()
            rows, self._rows = self._rows, []
            self._shard_bytes += self._row_bytes
            self._row_bytes = 0
            self._writing = self._thread.submit(self._write, rows)
        except BaseException as error:
            self._abandon(error)
            raise

    def _write(self, rows: list[PageFeatures]) -> None:
        import pyarrow.parquet

        if self._parquet is None:
            # With separate tensors, all rows of a shard are written at once.
            record = self._write_tensors(rows) if self.has_separate_tensors else None
            temporary = self._shard.enter_context(replaced_file(self._path(".parquet")))
            file = self._shard.enter_context(temporary.open("wb"))
            schema = self.schema.with_metadata(record)
            self._parquet = pyarrow.parquet.ParquetWriter(file, schema, **self._encoding())
        self._parquet.write_table(to_table(rows, self.schema, self.constants))

    def _path(self, suffix: str) -> Path:
        return self.folder / f"part-{self.rank:05d}-{self._next:06d}{suffix}"

    def _encoding(self) -> dict[str, Any]:
        """Return the options of the parquet writer.

        Features are noise to a compressor, except where a dtype is stored in a wider one: the lower halves of
        bfloat16 values in float32 are zero.
        """
        facts = page_schema().names
        features = [field for field in self.schema if field.name not in facts]
        options: dict[str, Any] = {
            "use_dictionary": [name for name in facts if name != "grid"],
            "write_statistics": [name for name in facts if name != "grid"],
            "compression": {field.name: "none" for field in features} | {name: "zstd" for name in facts},
            "write_page_checksum": True,
        }
        if DTYPES[self.dtype] != self.dtype:
            leaves = [field.name + ".list.element" * len(list_sizes(field.type)[0]) for field in features]
            options |= {"use_byte_stream_split": leaves, "compression": "zstd"}
        return options

    def _write_tensors(self, rows: list[PageFeatures]) -> dict[bytes, bytes]:
        """Write tensors `ROW.OUTPUT` for the rows of a parquet file, and return what that file records of them.

        The file gets its name before the parquet file does, since only the latter counts as a finished shard.
        """
        import torch
        from safetensors.torch import save_file

        tensors = {
            f"{number}.{name}": torch.from_numpy(np.ascontiguousarray(array)).to(getattr(torch, self.dtype)).clone()
            for number, row in enumerate(rows)
            for name, array in row.outputs.items()
        }
        metadata = {"model": self.constants["model"], "commit": self.constants["commit"]}
        with replaced_file(self._path(SEPARATE_SUFFIX)) as temporary:
            save_file(tensors, temporary, metadata)
            return record_tensors(temporary)
