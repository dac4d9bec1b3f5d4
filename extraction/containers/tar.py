"""Tar archives (WebDataset shards among them), each image in which is a page.

Unusual: in an uncompressed archive a page is a byte range of the file, which any process can read. In a compressed one
its bytes are read while the archive is listed.
"""

import tarfile
from collections import Counter
from functools import partial
from typing import Any

from ..limits import MAX_ENCODED_BYTES
from ..pages import FailedPage, ImagePage, Page, PageError, describe_error, image_suffixes
from .deferred import DeferredPage, EncodedImage, ListedPages

__all__ = ["list_tar"]


class _Member(tarfile.TarInfo):
    """A member whose damaged header is an error; `tarfile` would take it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(archive)
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
