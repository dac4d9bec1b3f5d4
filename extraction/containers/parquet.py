"""Parquet files, each row of which is a page.

Unusual: a file of a few hundred bytes may hold gigabytes, and claim any number of rows. So rows are read one at a
time, and only the bytes of their images. A row group is read from its start when the first of its pages is wanted, so
a run that resumes skips finished row groups.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from ..pages import FailedPage, PageError, describe_error
from .columns import choose_column
from .deferred import DeferredPage, EncodedImage, ListedPages

__all__ = ["list_parquet"]

BATCH_ROWS = 1  # each may hold an image of `MAX_ENCODED_BYTES`
BUFFER_BYTES = 1 << 20  # of the file that are read at once, instead of all of a row group
MAX_ROWS = 100_000_000  # of one row group
MAX_BROKEN_ROWS = 10_000


class _RowGroup:
    """The images of one row group, read in order from the first row that is wanted."""

    def __init__(self, file: Any, group: int, column: str) -> None:
        self.file, self.group, self.column = file, group, column
        self.values: Iterator[Any] | None = None
        self.next_row = 0
        self.error: PageError | None = None

    def read(self, row: int) -> EncodedImage:
        """Read a row. Rows must be asked for in order."""
        if self.values is None:
            self.values = self._read_values()
        while self.error is None:
            try:
                value = next(self.values)
            except StopIteration:
                self.error = PageError("the parquet file has fewer rows than it claims")
            except Exception as error:
                self.error = PageError(f"the parquet file cannot be read: {describe_error(error)}")
            else:
                self.next_row += 1
                if self.next_row > row:
                    # Paths in a table are not followed, because its author may have written anything there.
                    value = value.as_py()
                    return EncodedImage(value.get("bytes") if isinstance(value, dict) else value)
        raise self.error

    def _read_values(self) -> Iterator[Any]:
        batches = self.file.iter_batches(BATCH_ROWS, row_groups=[self.group], columns=[self.column])
        for batch in batches:
            yield from batch.column(0)


def _holds_images(kind: Any) -> bool:
    """Whether an Arrow type is binary, or a struct with binary `bytes` as datasets writes it."""
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _list_rows(path: str, rows: _RowGroup, count: int, first: int, max_broken_rows: int) -> ListedPages:
    """List the rows of a row group that claims `count` of them. `first` is the number of the first one in the file."""
    broken = 0
    for row in range(count):
        if rows.error is not None:
            broken += 1
        if row >= MAX_ROWS or broken > max_broken_rows:
            reason = "it and those after it are not read, as there are too many that are empty or cannot be read"
            yield FailedPage(path, first + row, error=reason)
            return
        yield DeferredPage(path, first + row, partial(rows.read, row))


def list_parquet(path: str, column: str | None, max_broken_rows: int = MAX_BROKEN_ROWS) -> ListedPages:
    """List the rows of a parquet file.

    Args:
        path (`str`): the file.
        column (`str`, *optional*): column with the images. Default: the only image column.
        max_broken_rows (`int`): how many rows are listed after the one at which a row group cannot be read any more.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER_BYTES)
    except (pyarrow.ArrowInvalid, OSError) as error:
        yield FailedPage(path, error=f"the parquet file cannot be read: {describe_error(error)}")
        return
    with file:
        schema = file.schema_arrow
        images = [field.name for field in schema if _holds_images(field.type)]
        name = choose_column(column, images, list(schema.names), path)
        is_struct = pyarrow.types.is_struct(schema.field(name).type)
        first = 0
        for group in range(file.num_row_groups):
            rows = _RowGroup(file, group, f"{name}.bytes" if is_struct else name)
            count = file.metadata.row_group(group).num_rows
            yield from _list_rows(path, rows, count, first, max_broken_rows)
            first += count
