"""Folders that `datasets.Dataset.save_to_disk` wrote, each row of which is a page.

Unusual: a row holds the bytes of its image, or a path. Only files in the folder itself are opened for a path. The
offsets in the mapped Arrow files are checked before a row is read.
"""

import os
from functools import partial
from typing import Any

from ..pages import describe_error, find_below
from .columns import choose_split, import_datasets, select_images
from .deferred import DeferredPage, EncodedImage, ListedPages

__all__ = ["is_saved_dataset", "list_saved_dataset"]

DATASET_FILES = ("dataset_info.json", "dataset_dict.json")


def is_saved_dataset(source: str) -> bool:
    """Whether a folder holds a saved `Dataset` or `DatasetDict`."""
    return os.path.isdir(source) and any(os.path.isfile(os.path.join(source, name)) for name in DATASET_FILES)


def _read(folder: str, data: Any, column: str, row: int) -> EncodedImage:
    value = data[row][column]
    if not isinstance(value, dict):
        return EncodedImage(value)
    content, path = value.get("bytes"), value.get("path")
    if content is not None or path is None:
        return EncodedImage(content)
    return EncodedImage(None, find_below(folder, path))


def list_saved_dataset(folder: str, split: str | None, column: str | None) -> ListedPages:
    """List the rows of a saved dataset.

    Args:
        folder (`str`): the folder it was saved to.
        split (`str`, *optional*): split of a `DatasetDict`. Default: the only one.
        column (`str`, *optional*): column with the images. Default: the only image column.

    Raises:
        `ValueError`: the dataset cannot be read; it lacks the split or the column; or none is chosen out of several.
    """
    datasets = import_datasets()
    try:
        data = datasets.load_from_disk(folder)
    except Exception as error:  # damaged files raise whatever the JSON and Arrow readers do
        raise ValueError(f"{folder!r} is not a dataset that can be read: {describe_error(error)}") from error
    if isinstance(data, datasets.DatasetDict):
        data = data[choose_split(split, list(data), folder)]
    data, column = select_images(data, data.features, column, folder)
    try:
        # Arrow reads a mapped file unchecked: offsets beyond its end would kill this process. Only they are read here.
        data.data.column(column).validate(full=True)
    except Exception as error:
        raise ValueError(f"{folder!r} is not a dataset that can be read: {describe_error(error)}") from error
    source = folder if split is None else f"{folder}::{split}"
    for row in range(len(data)):
        yield DeferredPage(source, row, partial(_read, folder, data, column, row))
