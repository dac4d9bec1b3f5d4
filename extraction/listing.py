"""Lists a corpus: files, folders, archives, tables and datasets become an ordered stream of page references.

Unusual: pages are listed lazily and nothing is decoded, so a corpus may be larger than memory. The order is the same
every time and in every process, so each process can take its share without coordination.
"""

import glob
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from .containers.columns import NoImagesError
from .containers.deferred import DeferredPage, ListedPages
from .containers.kinds import (
    HEAD_SIZE,
    ListingOptions,
    corpus_suffixes,
    kind_of_file,
    kind_of_source,
    kind_of_suffix,
)
from .limits import MAX_PAGES_PER_DOCUMENT
from .pages import FailedPage, ImagePage, Page

__all__ = ["NoImagesError", "Selector", "is_streamed", "list_files", "list_pages"]

LOOKS_ESCAPED = re.compile(r"\\ud[89a-f][0-9a-f]{2}")  # how a byte that is not text is written

Selector = Callable[[int, str, int], bool]
"""Whether a page is wanted. Takes its index in the corpus, its source and its page number."""


def is_streamed(source: str) -> bool:
    """Whether listing a source means downloading it, as for a dataset on the Hub."""
    kind = kind_of_source(source)
    return kind is not None and kind.is_streamed


def _is_covered(path: str, done: set[str]) -> bool:
    """Whether an earlier source is this file, or a folder that contains it."""
    if not done:
        return False
    path = os.path.abspath(path)
    return path in done or any(str(parent) in done for parent in Path(path).parents)


def _walk(folder: str) -> Iterator[str]:
    """Yield a folder's files in order, and at the end the folders in it that cannot be read."""
    suffixes = corpus_suffixes()
    errors: list[OSError] = []
    for where, folders, names in os.walk(folder, onerror=errors.append, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(suffixes):
                yield os.path.join(where, name)
    yield from (error.filename for error in errors)


def _list_files(sources: Sequence[str], done: set[str]) -> Iterator[str]:
    """List files that no earlier source covers. `done` holds the absolute paths of the earlier sources."""
    for source in sources:
        name = os.path.abspath(source)
        if name in done:
            continue
        if os.path.isdir(source) and kind_of_source(source) is None:
            yield from (path for path in _walk(source) if not _is_covered(path, done))
        elif os.path.lexists(source):  # a broken link becomes a failed page
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


def list_files(sources: Sequence[str], left_out: str | os.PathLike[str] | None = None) -> Iterator[str]:
    """List the files of a corpus, each once. Saved datasets and ids of datasets on the Hub are passed on unchanged.

    Args:
        sources, left_out: as for [`list_pages`].

    Raises:
        `FileNotFoundError`: one of the sources does not exist.
    """
    for source in sources:  # check all of them before hours of work begin
        if not (os.path.lexists(source) or glob.has_magic(source) or kind_of_source(source)):
            raise FileNotFoundError(f"{source!r}: there is no such file or folder.")
    yield from _list_files(sources, set() if left_out is None else {os.path.abspath(left_out)})


def _list_file(path: str, options: ListingOptions) -> ListedPages:
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            yield FailedPage(path, error="it is not a regular file")  # opening a pipe would block
            return
        with open(path, "rb") as file:
            head = file.read(HEAD_SIZE)
    except OSError as error:
        yield FailedPage(path, error=error.strerror or str(error))
        return
    if kind := kind_of_file(path, head):
        yield from kind.list_pages(path, options)
    elif kind := kind_of_suffix(path):
        yield FailedPage(path, error=f"it is not a {kind.name}" if head else "it is an empty file")
    else:
        yield ImagePage(path, path=path)


def _list_all(sources: list[str], options: ListingOptions, left_out: str | os.PathLike[str] | None) -> ListedPages:
    for source in list_files(sources, left_out):
        kind = kind_of_source(source)
        if kind is not None:
            yield from kind.list_pages(source, options)
            continue
        try:
            yield from _list_file(source, options)
        except NoImagesError as error:
            if source in sources:
                raise
            yield FailedPage(source, error=str(error))  # the table was not asked for, only its folder


def _with_printable_source(page: Page | DeferredPage) -> Page | DeferredPage:
    """Escape bytes of a file name that are not valid text, since names are written to a text column.

    Two names never become the same one: in a name that is escaped, backslashes are doubled, and a name that looks as
    if it were escaped is escaped as well.
    """
    if not LOOKS_ESCAPED.search(page.source.encode(errors="backslashreplace").decode()):
        return page
    source = page.source.replace("\\", "\\\\").encode(errors="backslashreplace").decode()
    return replace(page, source=source)


def list_pages(
    sources: Sequence[str | os.PathLike[str]],
    *,
    dpi: int = 144,
    split: str | None = None,
    column: str | None = None,
    wanted: Selector | None = None,
    left_out: str | os.PathLike[str] | None = None,
    max_pages: int = MAX_PAGES_PER_DOCUMENT,
    stop: Callable[[], bool] | None = None,
) -> Iterator[Page]:
    """List the pages of a corpus, lazily and in the same order every time.

    Args:
        sources: images, PDFs, TIFFs (all frames), parquet files, tar archives such as WebDataset shards, globs,
            folders, folders written by `Dataset.save_to_disk`, and ids of datasets on the Hub, which are streamed.
            Folders are searched recursively in the order of names; hidden files are skipped, and links to folders
            are not followed.
        dpi (`int`, defaults to 144): resolution at which PDF pages are rendered, in dots per inch.
        split (`str`, *optional*): dataset split to read. Default: the only one.
        column (`str`, *optional*): image column of parquet files and datasets. Default: the only image column.
        wanted (`Selector`, *optional*): returns False for pages to skip. Skipped pages are not read.
        left_out (*optional*): folder whose files are not part of the corpus, even if a glob matches them.
        max_pages (`int`, defaults to 10,000): how many pages of one PDF or TIFF are listed. If it claims more, the
            next one becomes a [`FailedPage`].
        stop (*optional*): asked while a document is opened, which may hang; once it returns True, the document
            becomes a [`FailedPage`].

    Yields:
        [`Page`]. A source that cannot be listed (a broken PDF, an unreadable folder) becomes a [`FailedPage`].

    Raises:
        `FileNotFoundError`: one of the sources does not exist.
        `ImportError`: a library for this kind of source is missing; the message names the extra that installs it.
        `ValueError`: `dpi` or `max_pages` is not positive; a dataset lacks the split; a table has several image
            columns and none is chosen; or a table that is itself one of the sources lacks the column (a table found in
            a folder becomes a [`FailedPage`]).
    """
    if dpi < 1:
        raise ValueError(f"dpi must be positive, got {dpi}.")
    if max_pages < 1:
        raise ValueError(f"max_pages must be positive, got {max_pages}.")
    options = ListingOptions(dpi, split, column, max_pages, stop)
    for index, page in enumerate(_list_all([os.fspath(source) for source in sources], options, left_out)):
        page = _with_printable_source(page)
        if wanted is None or wanted(index, page.source, page.page):
            yield page.at(index)
