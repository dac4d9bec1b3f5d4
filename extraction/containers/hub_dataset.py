"""Datasets on the Hub, which are streamed; each row is a page.

Unusual: every process reads the whole stream, because only its order says which page is which.
"""

import glob
import os
from functools import partial
from typing import Any

from ..pages import MAX_ENCODED_BYTES
from .columns import choose_split, import_datasets, select_images
from .deferred import DeferredPage, EncodedImage, ListedPages

__all__ = ["is_hub_dataset", "list_hub_dataset"]

REMOTE_SCHEMES = ("hf://", "https://")


def is_hub_dataset(source: str) -> bool:
    """Whether a source has the form of a dataset's id, `owner/name`, and is neither a local file nor a glob."""
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or os.path.splitext(source)[1]:
        return False
    return not os.path.lexists(source) and not glob.has_magic(source)


def _read(value: Any) -> EncodedImage:
    """Read the image of a row. In a folder of images on the Hub, a row holds only the image's address."""
    if not isinstance(value, dict):
        return EncodedImage(value)
    data, path = value.get("bytes"), value.get("path") or ""
    # Local paths are not followed, because a dataset's author may have written anything there.
    if data is None and path.split("::")[-1].startswith(REMOTE_SCHEMES):
        from datasets.utils.file_utils import xopen

        with xopen(path, "rb") as file:
            data = file.read(MAX_ENCODED_BYTES + 1)
    return EncodedImage(data)


def list_hub_dataset(name: str, split: str | None, column: str | None) -> ListedPages:
    """Stream the rows of a dataset on the Hub.

    Args:
        name (`str`): its id.
        split (`str`, *optional*): the split to read. Default: the only one.
        column (`str`, *optional*): column with the images. Default: the only image column.
    """
    datasets = import_datasets()
    if split is None:
        split = choose_split(None, datasets.get_dataset_split_names(name), name)
    data = datasets.load_dataset(name, split=split, streaming=True)
    features = data.features if data.features is not None else data._resolve_features().features
    data, column = select_images(data, features, column, name)
    for row, example in enumerate(data):
        yield DeferredPage(f"{name}::{split}", row, partial(_read, example[column]))
