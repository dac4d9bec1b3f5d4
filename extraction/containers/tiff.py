"""TIFFs, each frame of which is a page.

Unusual: frames are counted by following the file's chain of directories, which reads a few bytes for each frame, where
Pillow would parse every tag.
"""

import os
import struct

from ..limits import MAX_PAGES_PER_DOCUMENT
from ..pages import ImagePage, cut_document
from .deferred import ListedPages

__all__ = ["count_frames", "list_tiff"]


def count_frames(path: str, limit: int) -> int:
    """Count the frames of a TIFF or BigTIFF, up to a limit.

    If the chain of directories is cut off, the missing one is counted too, so that decoding it reports the error.
    """
    places: set[int] = set()
    try:
        with open(path, "rb") as file:

            def read(kind: str) -> int:
                return int(struct.unpack(order + kind, file.read(struct.calcsize(order + kind)))[0])

            order, big = ("<" if file.read(2) == b"II" else ">"), b"+" in file.read(2)
            start, count, entry_size, pointer = (8, "Q", 20, "Q") if big else (4, "H", 12, "I")
            file.seek(start)
            while (place := read(pointer)) and place not in places and len(places) < limit:
                places.add(place)
                file.seek(place)
                file.seek(read(count) * entry_size, os.SEEK_CUR)
    except (struct.error, OSError, OverflowError):
        pass
    return max(1, len(places))


def list_tiff(path: str, max_pages: int = MAX_PAGES_PER_DOCUMENT) -> ListedPages:
    """List the frames of a TIFF, up to `max_pages`."""
    count = count_frames(path, max_pages + 1)
    return cut_document(path, (ImagePage(path, number, path=path, frame=number) for number in range(count)), max_pages)
