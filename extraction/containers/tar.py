"""Tar archives (WebDataset shards among them), each image in which is a page.

Unusual: in an uncompressed archive a page is a byte range of the file, which any process can read. In a compressed one
its bytes are read while the archive is listed. `tarfile` reads headers of any size into memory, and in a compressed
archive a gigabyte of them takes a megabyte of the file, so the bytes that are read for headers are counted.
"""

import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..limits import MAX_ENCODED_BYTES
from ..pages import FailedPage, ImagePage, Page, PageError, describe_error, image_suffixes
from .deferred import DeferredPage, EncodedImage, ListedPages

__all__ = ["list_tar"]


MAX_HEADER_BYTES = 1 << 20  # of one member, with its long name, its PAX headers and its map of holes


class _CountedFile:
    """The decompressed bytes of an archive. While a member's headers are read, only so many bytes are."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left: int | None = None  # bytes that may still be read for the headers of the current member

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Count what is read. `tarfile` reads some headers while it reads others, which count together."""
        if self._left is not None:
            yield
            return
        self._left = MAX_HEADER_BYTES
        try:
            yield
        finally:
            self._left = None

    def read(self, size: int = -1) -> Any:
        if self._left is not None:
            if not 0 <= size <= self._left:
                raise tarfile.ReadError(f"the headers of a member are larger than {MAX_HEADER_BYTES:,} bytes")
            self._left -= size
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Member(tarfile.TarInfo):
    """A member whose damaged header is an error; `tarfile` would take it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
        if not isinstance(archive.fileobj, _CountedFile):  # the first member is read while the archive is opened
            archive.fileobj = _CountedFile(archive.fileobj)
        try:
            with archive.fileobj.limited():
                member = super().fromtarfile(archive)
            if member.size < 0:  # the archive would be read backwards, for ever
                raise tarfile.ReadError("the size of a member is negative")
            if sum(map(len, archive.pax_headers.values())) > MAX_HEADER_BYTES:  # they are kept for all members
                raise tarfile.ReadError(f"its global headers are larger than {MAX_HEADER_BYTES:,} bytes")
            return member
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from error


def _open(path: str) -> tuple[tarfile.TarFile, bool]:
    """Open an archive. Returns it and whether it is uncompressed; a compressed one is a stream without seeking."""
    try:
        return tarfile.open(path, "r:", tarinfo=_Member), True
    except tarfile.ReadError:
        return tarfile.open(path, "r|*", tarinfo=_Member), False


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo) -> EncodedImage:
    file = archive.extractfile(member)
    data = file.read() if file is not None else b""
    if not data:
        raise PageError("it is an empty file")
    return EncodedImage(data)


def _to_page(
    path: str, archive: tarfile.TarFile, uncompressed: bool, member: tarfile.TarInfo, number: int
) -> Page | DeferredPage:
    source = f"{path}::{member.name}"
    if not member.isfile():
        return FailedPage(source, number, error="it is a link or a device, not a file")
    if member.size > MAX_ENCODED_BYTES:
        return FailedPage(source, number, error=f"it is larger than {MAX_ENCODED_BYTES:,} bytes")
    if uncompressed and member.size and not member.sparse:
        return ImagePage(source, number, path=path, offset=member.offset_data, size=member.size)
    return DeferredPage(source, number, partial(_extract, archive, member))


def list_tar(path: str) -> ListedPages:
    """List the images of a tar archive. Other members are skipped."""
    names: Counter[str] = Counter()  # an archive may hold several members of the same name
    try:
        archive, uncompressed = _open(path)
        with archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all of them in memory
                if member.isdir() or not member.name.lower().endswith(image_suffixes()):
                    continue
                yield _to_page(path, archive, uncompressed, member, names[member.name])
                names[member.name] += 1
    except Exception as error:  # damaged archives raise whatever their decompressor does
        yield FailedPage(path, error=f"the archive cannot be read: {describe_error(error)}")
