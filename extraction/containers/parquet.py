"""Parquet files, each row of which is a page.

Unusual: a row group is read when the first of its pages is wanted, so a run that resumes skips finished row groups.
"""

from functools import partial
from typing import Any

from ..pages import FailedPage, PageError, describe_error
from .columns import choose_column
from .deferred import DeferredPage, EncodedImage, ListedPages

__all__ = ["list_parquet"]


class _RowGroup:
    """The image column of one row group, read on first use."""

    def __init__(self, file: Any, group: int, column: str) -> None:
        self.file, self.group, self.column = file, group, column
        self.values: Any = None

    def read(self, row: int) -> EncodedImage:
        if self.values is None:
            try:
                self.values = self.file.read_row_group(self.group, columns=[self.column])[self.column]
            except Exception as error:
                self.values = PageError(f"the parquet file cannot be read: {describe_error(error)}")
        if isinstance(self.values, PageError):
            raise self.values
        value = self.values[row].as_py()
        # Paths in a table are not followed, because its author may have written anything there.
        return EncodedImage(value.get("bytes") if isinstance(value, dict) else value)


def _holds_images(kind: Any) -> bool:
    """Whether an Arrow type is binary, or a struct with binary `bytes` as datasets writes it."""
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def list_parquet(path: str, column: str | None) -> ListedPages:
    """List the rows of a parquet file.

    Args:
        path (`str`): the file.
        column (`str`, *optional*): column with the images. Default: the only image column.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        yield FailedPage(path, error=f"the parquet file cannot be read: {describe_error(error)}")
        return
    with file:
        schema = file.schema_arrow
        images = [field.name for field in schema if _holds_images(field.type)]
        name = choose_column(column, images, list(schema.names), path)
        first = 0
        for group in range(file.num_row_groups):
            rows = _RowGroup(file, group, name)
            count = file.metadata.row_group(group).num_rows
            for row in range(count):
                yield DeferredPage(path, first + row, partial(rows.read, row))
            first += count
