"""The table of containers: how each kind of source is recognised, and which function lists its pages.

Unusual: a file is recognised from its first bytes where possible. Suffixes mainly decide which files of a folder are
considered at all. Every other file is treated as an image, whose format Pillow recognises.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ..limits import MAX_PAGES_PER_DOCUMENT
from ..pages import image_suffixes
from .deferred import ListedPages
from .hub_dataset import is_hub_dataset, list_hub_dataset
from .parquet import list_parquet
from .pdf import list_pdf
from .saved_dataset import is_saved_dataset, list_saved_dataset
from .tar import list_tar
from .tiff import list_tiff

__all__ = [
    "HEAD_SIZE",
    "SOURCE_KINDS",
    "ListingOptions",
    "SourceKind",
    "corpus_suffixes",
    "kind_of_file",
    "kind_of_source",
    "kind_of_suffix",
]

HEAD_SIZE = 1024  # bytes of a file that `matches_file` is given
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class ListingOptions:
    """Options of the kinds of sources; each kind takes what applies to it.

    Args:
        dpi (`int`): resolution at which PDF pages are rendered, in dots per inch.
        split (`str`, *optional*): split of a dataset. Default: the only one.
        column (`str`, *optional*): image column of parquet files and datasets. Default: the only image column.
        max_pages (`int`): how many pages of a PDF or a TIFF are listed at most.
        stop (*optional*): asked while a document is opened, which may hang; once it returns True, it fails.
    """

    dpi: int = 144
    split: str | None = None
    column: str | None = None
    max_pages: int = MAX_PAGES_PER_DOCUMENT
    stop: Callable[[], bool] | None = None


@dataclass(frozen=True)
class SourceKind:
    """A kind of source: a file with several pages, or a dataset.

    Args:
        name: name in error messages.
        list_pages: takes the source and the options; yields its pages in a fixed order.
        matches_source: whether a source is of this kind, for kinds that are not single files. It must not read data.
        matches_file: whether a file is of this kind. Takes its path in lower case and its first [`HEAD_SIZE`] bytes.
        suffixes: suffixes of such files, in lower case. Files in a folder are listed if they have one of them.
        is_streamed: whether listing the source means downloading it.
    """

    name: str
    list_pages: Callable[[str, ListingOptions], ListedPages]
    matches_source: Callable[[str], bool] = lambda source: False
    matches_file: Callable[[str, bytes], bool] = lambda path, head: False
    suffixes: tuple[str, ...] = ()
    is_streamed: bool = False


# The first row that matches wins.
SOURCE_KINDS = (
    SourceKind(
        "saved dataset",
        lambda source, options: list_saved_dataset(source, options.split, options.column),
        matches_source=is_saved_dataset,
    ),
    SourceKind(
        "Hub dataset",
        lambda source, options: list_hub_dataset(source, options.split, options.column),
        matches_source=is_hub_dataset,
        is_streamed=True,
    ),
    SourceKind(  # its suffixes are among those of images
        "TIFF",
        lambda source, options: list_tiff(source, options.max_pages),
        matches_file=lambda path, head: head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    ),
    SourceKind(
        "parquet file",
        lambda source, options: list_parquet(source, options.column),
        matches_file=lambda path, head: head.startswith(b"PAR1"),
        suffixes=(".parquet",),
    ),
    SourceKind(  # compressed archives are recognised from their suffix
        "tar archive",
        lambda source, options: list_tar(source),
        matches_file=lambda path, head: path.endswith(TAR_SUFFIXES) or head[257:262] == b"ustar",
        suffixes=TAR_SUFFIXES,
    ),
    SourceKind(  # after archives, because the first member of an archive may be a PDF
        "PDF",
        lambda source, options: list_pdf(source, options.dpi, options.max_pages, options.stop),
        matches_file=lambda path, head: b"%PDF-" in head,
        suffixes=(".pdf",),
    ),
)


def kind_of_source(source: str) -> SourceKind | None:
    """Return the kind of a source that is not a file, a folder of files or a glob; else None."""
    return next((kind for kind in SOURCE_KINDS if kind.matches_source(source)), None)


def kind_of_file(path: str, head: bytes) -> SourceKind | None:
    """Return the kind of a file from its first bytes, or None for an image."""
    return next((kind for kind in SOURCE_KINDS if kind.matches_file(path.lower(), head)), None)


def kind_of_suffix(path: str) -> SourceKind | None:
    """Return the kind that a file's suffix promises, or None."""
    return next((kind for kind in SOURCE_KINDS if path.lower().endswith(kind.suffixes)), None)


def corpus_suffixes() -> tuple[str, ...]:
    """Return the suffixes of all files that are listed in a folder."""
    return (*image_suffixes(), *(suffix for kind in SOURCE_KINDS for suffix in kind.suffixes))
