"""Where the page reader is: a small trained DeepEncoder that ships with the package.

Unusual: the weights are files of the package, so this needs no download and imports nothing.
"""

import os

__all__ = ["page_reader"]


def page_reader() -> str:
    """Return the folder of the page reader, for `from_pretrained`.

    It is a [`DeepEncoder`] of 5.7 million parameters with its image processor and, in the subfolder `reading_head`,
    the head that reads its tokens. It has learned to read printed English; see `docs/read.md`.
    """
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "page-reader")
