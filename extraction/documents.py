"""What a corpus is: files, folders, archives, tables and datasets -> an ordered stream of page references.

Unusual: nothing is listed ahead of time, so that a corpus may be larger than memory, and nothing is decoded. The order
is the same every time, in every process: each can take its share without asking the others. What a file is is told by
its first bytes; suffixes only choose which files of a folder are looked at.
"""

import glob
import multiprocessing
import os
import stat
import struct
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from .pages import MAX_ENCODED_BYTES, Page, PageError, describe_error, image_formats, open_pdf
from .workers import PAGE_TIMEOUT, DiedError, Worker

__all__ = ["NoImagesError", "Selector", "list_files", "is_streamed", "list_pages"]

Selector = Callable[[int, str, int], bool]
"""Whether a page is wanted: takes its index in the corpus, its source and its page number."""

MAX_FRAMES = 100_000  # a TIFF may claim any number
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DATASET_FILES = ("dataset_info.json", "dataset_dict.json")


class NoImagesError(ValueError):
    """A table without images, or without that column."""


def list_pages(
    sources: Sequence[str | os.PathLike[str]],
    *,
    dpi: int = 144,
    split: str | None = None,
    column: str | None = None,
    wanted: Selector | None = None,
    left_out: str | os.PathLike[str] | None = None,
) -> Iterator[Page]:
    """List the pages of a corpus, lazily and in the same order every time.

    Args:
        sources: images, PDFs, TIFFs (all their frames), parquet files, WebDataset tars, globs, folders (searched
            recursively, in the order of names, without following links to folders, hidden files left out), folders
            that `datasets` saved, and ids of datasets on the Hub, which are streamed.
        dpi (`int`, defaults to 144): dots per inch of rendered PDFs.
        split (`str`, *optional*): of datasets. Default: the only one.
        column (`str`, *optional*): with the images of parquet files and datasets. Default: the only image column.
        wanted (`Selector`, *optional*): pages to leave out are named to it, and neither read nor given.
        left_out (*optional*): a folder whose files are not part of the corpus, even if a glob matches them.

    Yields:
        [`Page`]. What cannot be listed (a broken PDF, an unreadable folder) is a page of kind `"failed"`.

    Raises:
        `FileNotFoundError`: one of the sources does not exist.
        `ImportError`: a library for this kind of source is missing; names the extra that brings it.
        `ValueError`: a table that is one of the sources and lacks that column (one in a folder is a failed page), a
            table with several columns of images and none chosen, a dataset without that split, a `dpi` that is not
            positive.
    """
    if dpi < 1:
        raise ValueError(f"dpi must be positive, got {dpi}.")
    index = 0
    for page in _list_all([os.fspath(source) for source in sources], dpi, split, column, left_out):
        page = _with_clean_name(page)
        if wanted is None or wanted(index, page.source, page.page):
            yield page.at(index) if isinstance(page, _Later) else replace(page, index=index)
        index += 1


def _with_clean_name(page: "Page | _Later") -> "Page | _Later":
    """File names need not be text; a column of text needs to be."""
    name = page.source.encode(errors="backslashreplace").decode()
    if name == page.source:
        return page
    return replace(page, source=name) if isinstance(page, Page) else _Later(name, page.page, page.read)


class _Later:
    """A page whose bytes are read only if it is wanted."""

    def __init__(self, source: str, page: int, read: Callable[[], Any]) -> None:
        self.source, self.page, self.read = source, page, read

    def at(self, index: int) -> Page:
        try:
            data, path = self.read()
            if path is not None and data is None:
                return Page(self.source, self.page, index, path=path)
            if not isinstance(data, bytes) or not data:
                raise PageError("there is no image in this row")
            if len(data) > MAX_ENCODED_BYTES:
                raise PageError(f"it is larger than {MAX_ENCODED_BYTES:,} bytes")
        except Exception as error:  # of whatever library reads it
            return Page(self.source, self.page, index, kind="failed", error=describe_error(error))
        return Page(self.source, self.page, index, data=data)


def list_files(sources: Sequence[str], left_out: str | os.PathLike[str] | None = None) -> Iterator[str]:
    """List the files of a corpus, each once; folders that `datasets` saved, and ids on the Hub, as they are.

    Args:
        sources, left_out: as for [`list_pages`].

    Raises:
        `FileNotFoundError`: one of the sources does not exist.
    """
    for source in sources:  # all of them now, and not after hours of work
        if not (os.path.lexists(source) or glob.has_magic(source) or _is_hub_id(source)):
            raise FileNotFoundError(f"{source!r}: there is no such file or folder.")
    yield from _list_files(sources, set() if left_out is None else {os.path.abspath(left_out)})


def _list_files(sources: Sequence[str], done: set[str]) -> Iterator[str]:
    """`done`: the sources before these, say: a file that two of them name is listed once."""
    for source in sources:
        name = os.path.abspath(source)
        if name in done:
            continue
        if _is_plain_folder(source):
            yield from (path for path in _walk(source) if not _is_covered(path, done))
        elif os.path.lexists(source):  # a link to nothing is a page that fails
            if os.path.isdir(source) or not _is_covered(source, done):
                yield source
        elif glob.has_magic(source):
            found = sorted(glob.glob(source, recursive=True))
            if not found:
                raise FileNotFoundError(f"{source!r}: nothing matches.")
            yield from _list_files(found, done)
        else:
            yield source
        done.add(name)


def _is_plain_folder(path: str) -> bool:
    return os.path.isdir(path) and not any(os.path.isfile(os.path.join(path, name)) for name in DATASET_FILES)


def _list_all(
    sources: list[str], dpi: int, split: str | None, column: str | None, left_out: str | os.PathLike[str] | None
) -> Iterator[Page | _Later]:
    for source in list_files(sources, left_out):
        if os.path.isdir(source) and not _is_plain_folder(source):
            yield from _list_saved_dataset(source, split, column)
        elif _is_hub_id(source) and not os.path.lexists(source):
            yield from _list_hub_dataset(source, split, column)
        else:
            try:
                yield from _list_file(source, dpi, column)
            except NoImagesError as error:
                if source in sources:
                    raise
                yield Page(source, kind="failed", error=str(error))  # it happened to lie there


def _is_covered(path: str, done: set[str]) -> bool:
    """Whether an earlier source is this file or holds it."""
    if not done:
        return False
    path = os.path.abspath(path)
    return path in done or any(str(parent) in done for parent in Path(path).parents)


def is_streamed(source: str) -> bool:
    """Whether this is no file here, but names a dataset on the Hub: listing it is downloading it."""
    return not os.path.lexists(source) and not glob.has_magic(source) and _is_hub_id(source)


def _is_hub_id(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not os.path.splitext(source)[1]


@cache
def _image_suffixes() -> tuple[str, ...]:
    formats = image_formats()
    return tuple(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def _walk(folder: str) -> Iterator[str]:
    """Walk through a folder's files, and at last the folders in it that cannot be read."""
    suffixes = (*_image_suffixes(), ".pdf", ".parquet", *ARCHIVE_SUFFIXES)
    errors: list[OSError] = []
    for where, folders, names in os.walk(folder, onerror=errors.append, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(suffixes):
                yield os.path.join(where, name)
    yield from (error.filename for error in errors)


def _list_file(path: str, dpi: int, column: str | None) -> Iterator[Page | _Later]:
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            yield Page(path, kind="failed", error="it is no regular file")  # a pipe would keep us waiting
            return
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError as error:
        yield Page(path, kind="failed", error=error.strerror or str(error))
        return
    if head.startswith(TIFF_MAGIC):
        yield from _list_tiff(path)
    elif head.startswith(b"PAR1"):
        yield from _list_parquet(path, column)
    elif path.lower().endswith(ARCHIVE_SUFFIXES) or head[257:262] == b"ustar":
        yield from _list_tar(path)
    elif b"%PDF-" in head:  # after archives, whose first member may be a PDF
        yield from _list_pdf(path, dpi)
    elif path.lower().endswith((".pdf", ".parquet")):
        kind = "PDF" if path.lower().endswith(".pdf") else "parquet file"
        yield Page(path, kind="failed", error=f"it is not a {kind}" if head else "it is an empty file")
    else:
        yield Page(path, path=path)


def _list_pdf(path: str, dpi: int) -> Iterator[Page]:
    try:
        count = _pdf_counter(os.getpid())(path) if _may_fork() else _count_pdf_pages(path)
        if not count:
            raise PageError("the PDF has no pages")
    except PageError as error:
        yield Page(path, kind="failed", error=str(error))
        return
    except DiedError as error:
        yield Page(path, kind="failed", error=f"the PDF cannot be read: {error}")
        return
    for number in range(count):
        yield Page(path, number, kind="pdf", path=path, dpi=dpi)


def _count_pdf_pages(path: str) -> int:
    return len(open_pdf(path))


def _may_fork() -> bool:
    """Whether a process costs little, asks nothing of the main module, and is allowed to this one."""
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return method == "fork" and not multiprocessing.current_process().daemon


@lru_cache(maxsize=1)
def _pdf_counter(process: int) -> Worker[str, int]:
    """Broken PDFs are opened elsewhere: should pdfium crash or hang, this process goes on. Kept for all PDFs."""
    return Worker(_count_pdf_pages, PAGE_TIMEOUT)


def _list_tiff(path: str) -> Iterator[Page]:
    for number in range(_count_frames(path)):
        yield Page(path, number, kind="tiff", path=path)


def _count_frames(path: str) -> int:
    """Follow a TIFF's chain of directories. Where it is cut, one more is counted: decoding that page says so."""
    places: set[int] = set()
    try:
        with open(path, "rb") as file:

            def read(kind: str) -> int:
                return int(struct.unpack(order + kind, file.read(struct.calcsize(order + kind)))[0])

            order, big = ("<" if file.read(2) == b"II" else ">"), b"+" in file.read(2)
            start, count, entry, pointer = (8, "Q", 20, "Q") if big else (4, "H", 12, "I")
            file.seek(start)
            while (place := read(pointer)) and place not in places and len(places) < MAX_FRAMES:
                places.add(place)
                file.seek(place)
                file.seek(read(count) * entry, os.SEEK_CUR)
    except (struct.error, OSError, OverflowError):
        pass
    return max(1, len(places))


def _list_parquet(path: str, column: str | None) -> Iterator[Page | _Later]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        yield Page(path, kind="failed", error=f"the parquet file cannot be read: {describe_error(error)}")
        return
    with file:
        schema = file.schema_arrow
        images = [field.name for field in schema if _holds_images(field.type)]
        name = _choose(column, images, list(schema.names), path)
        first = 0
        for group in range(file.num_row_groups):
            rows = _RowGroup(file, group, name)
            for row in range(file.metadata.row_group(group).num_rows):
                yield _Later(path, first + row, lambda rows=rows, row=row: rows.read(row))  # type: ignore[misc]
            first += file.metadata.row_group(group).num_rows


class _RowGroup:
    """The image column of a part of a parquet file, read at the first page that is wanted."""

    def __init__(self, file: Any, group: int, column: str) -> None:
        self.file, self.group, self.column = file, group, column
        self.values: Any = None

    def read(self, row: int) -> tuple[bytes | None, None]:
        if self.values is None:
            try:
                self.values = self.file.read_row_group(self.group, columns=[self.column])[self.column]
            except Exception as error:
                self.values = PageError(f"the parquet file cannot be read: {describe_error(error)}")
        if isinstance(self.values, PageError):
            raise self.values
        value = self.values[row].as_py()
        # Paths in a table are not followed: they are whatever its author wrote.
        return (value.get("bytes") if isinstance(value, dict) else value), None


def _holds_images(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _choose(wanted: str | None, images: list[str], names: list[str], source: str) -> str:
    if wanted is not None:
        if wanted not in names:
            raise NoImagesError(f"column must be one of {', '.join(names)} in {source!r}, got {wanted!r}.")
        return wanted
    if len(images) != 1:
        found = ", ".join(images) if images else "none"
        raise (ValueError if images else NoImagesError)(
            f"column must be named, as {source!r} has not one image column: {found}."
        )
    return images[0]


class _Member(tarfile.TarInfo):
    """A member whose damaged header is an error: else it would pass for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from error


def _list_tar(path: str) -> Iterator[Page | _Later]:
    """List the images of an archive. Uncompressed, they are found again by their place in the file."""
    names: Counter[str] = Counter()  # an archive may hold several members of one name
    try:
        try:
            archive = tarfile.open(path, "r:", tarinfo=_Member)
            plain = True
        except tarfile.ReadError:
            archive, plain = tarfile.open(path, "r|*", tarinfo=_Member), False
        with archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would remember every one
                if member.isdir() or not member.name.lower().endswith(_image_suffixes()):
                    continue
                source, number = f"{path}::{member.name}", names[member.name]
                names[member.name] += 1
                if not member.isfile():
                    yield Page(source, number, kind="failed", error="it is a link or a device, and no file")
                elif member.size > MAX_ENCODED_BYTES:
                    yield Page(source, number, kind="failed", error=f"it is larger than {MAX_ENCODED_BYTES:,} bytes")
                elif plain and member.size and not member.sparse:
                    yield Page(source, number, path=path, offset=member.offset_data, size=member.size)
                else:
                    yield _Later(source, number, lambda member=member: (_extract(archive, member), None))  # type: ignore[misc]
    except Exception as error:  # damaged, it raises whatever its decompressor does
        yield Page(path, kind="failed", error=f"the archive cannot be read: {describe_error(error)}")


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    data = file.read() if file is not None else b""
    if not data:
        raise PageError("it is an empty file")
    return data


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError('Datasets need the datasets library: pip install "deepencoder[datasets]".') from error
    return datasets


def _list_saved_dataset(folder: str, split: str | None, column: str | None) -> Iterator[_Later]:
    datasets = _import_datasets()
    data = datasets.load_from_disk(folder)
    if isinstance(data, datasets.DatasetDict):
        data = data[_choose_split(split, list(data), folder)]
    column = _choose_feature(datasets, data.features, column, folder)
    data = data.select_columns([column])
    if isinstance(data.features[column], datasets.Image):
        data = data.cast_column(column, datasets.Image(decode=False))

    def read(row: int) -> tuple[Any, Any]:
        value = data[row][column]
        if isinstance(value, dict):
            return value.get("bytes"), value.get("path")
        return value, None

    source = folder if split is None else f"{folder}::{split}"
    for row in range(len(data)):
        yield _Later(source, row, lambda row=row: read(row))  # type: ignore[misc]


def _list_hub_dataset(name: str, split: str | None, column: str | None) -> Iterator[_Later]:
    """Stream a dataset: every process reads all of it, as only its order says which page is which."""
    datasets = _import_datasets()
    if split is None:
        split = _choose_split(None, datasets.get_dataset_split_names(name), name)
    data = datasets.load_dataset(name, split=split, streaming=True)
    features = data.features if data.features is not None else data._resolve_features().features
    column = _choose_feature(datasets, features, column, name)
    data = data.select_columns([column])
    if isinstance(features[column], datasets.Image):
        data = data.cast_column(column, datasets.Image(decode=False))
    for row, example in enumerate(data):
        value = example[column]
        yield _Later(f"{name}::{split}", row, lambda value=value: (_read_streamed(value), None))  # type: ignore[misc]


def _read_streamed(value: Any) -> Any:
    """Read an image's bytes: of a folder of images on the Hub, a row has only the address of one."""
    if not isinstance(value, dict):
        return value
    data, path = value.get("bytes"), value.get("path") or ""
    if data is None and path.split("::")[-1].startswith(("hf://", "https://")):  # no file of this machine
        from datasets.utils.file_utils import xopen

        with xopen(path, "rb") as file:
            return file.read(MAX_ENCODED_BYTES + 1)
    return data


def _choose_split(wanted: str | None, splits: list[str], source: str) -> str:
    if wanted is None and len(splits) == 1:
        return splits[0]
    if wanted not in splits:
        raise ValueError(f"split must be one of {', '.join(splits)} of {source!r}, got {wanted!r}.")
    return wanted


def _choose_feature(datasets: Any, features: Any, column: str | None, source: str) -> str:
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    return _choose(column, images, list(features), source)
