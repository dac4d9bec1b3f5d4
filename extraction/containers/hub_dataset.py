"""Datasets on the Hub, which are streamed; each row is a page.

Unusual: every process reads the whole stream, because only its order says which page is which. In a folder of images
on the Hub, a row holds only the image's address. Whoever wrote the dataset chose it, so it is read here, and opened
only if it lies in the dataset's own repository; the libraries below would open local files and chains of protocols.
"""

import glob
import os
import re
import zipfile
from functools import partial
from typing import Any, NamedTuple

from ..limits import MAX_ENCODED_BYTES
from ..pages import PageError
from .columns import choose_split, import_datasets, select_images
from .deferred import DeferredPage, EncodedImage, ListedPages

__all__ = ["Address", "is_hub_dataset", "list_hub_dataset", "parse_address"]

ADDRESS = re.compile(
    r"(?:zip://(?P<member>.+)::)?"
    r"hf://(?P<file>datasets/(?P<repository>[^/@:]+/[^/@:]+)@(?:refs/(?:convert|pr)/)?[^/@:]+/(?P<path>.+))"
)


class Address(NamedTuple):
    """The place of an image in a dataset's repository.

    Args:
        file: path of a file, as `huggingface_hub.HfFileSystem` spells it.
        member: path of the image within that file, if it is a zip archive.
    """

    file: str
    member: str | None


def is_hub_dataset(source: str) -> bool:
    """Whether a source has the form of a dataset's id, `owner/name`, and is neither a local file nor a glob."""
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or os.path.splitext(source)[1]:
        return False
    return not os.path.lexists(source) and not glob.has_magic(source)


def parse_address(address: str, repository: str) -> Address | None:
    """Return the place that a row names, or None unless it is in the dataset's own repository.

    Args:
        address (`str`): `hf://datasets/OWNER/NAME@REVISION/PATH`, or `zip://MEMBER::` and such an address.
        repository (`str`): the dataset's id, `OWNER/NAME`. The Hub ignores the case of its letters.
    """
    found = ADDRESS.fullmatch(address)
    if found is None or address.count("::") != (found["member"] is not None):
        return None
    if found["repository"].lower() != repository.lower() or {"", ".", ".."} & set(found["path"].split("/")):
        return None
    return Address(found["file"], found["member"])


class _Repository:
    """Reads files of a dataset's repository, with the user's token."""

    def __init__(self, name: str) -> None:
        from huggingface_hub import HfFileSystem

        self.name, self.files = name, HfFileSystem()
        self.archive: tuple[str, zipfile.ZipFile] | None = (
            None  # the last one, since rows of an archive are neighbours
        )

    def read(self, value: Any) -> EncodedImage:
        """Read the image of a row: its bytes, or what lies at its address."""
        if not isinstance(value, dict):
            return EncodedImage(value)
        data, path = value.get("bytes"), value.get("path")
        if data is not None or path is None:
            return EncodedImage(data)
        address = parse_address(path, self.name)
        if address is None:
            raise PageError(f"its row names a file that is not in {self.name}, which is not opened")
        return EncodedImage(self._read_file(address))

    def _read_file(self, address: Address) -> bytes:
        if address.member is None:
            with self.files.open(address.file, "rb") as file:
                return bytes(file.read(MAX_ENCODED_BYTES + 1))
        if self.archive is None or self.archive[0] != address.file:
            self.archive = address.file, zipfile.ZipFile(self.files.open(address.file, "rb"))
        with self.archive[1].open(address.member) as member:
            return member.read(MAX_ENCODED_BYTES + 1)


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
    repository = _Repository(name)
    for row, example in enumerate(data):
        yield DeferredPage(f"{name}::{split}", row, partial(repository.read, example[column]))
