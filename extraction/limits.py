"""What decoding a page may take at most, unless the user says otherwise. Nothing is imported here, for help texts."""

__all__ = [
    "GIVE_UP_AFTER",
    "MAX_ENCODED_BYTES",
    "MAX_PAGES_PER_DOCUMENT",
    "PAGE_MEMORY",
    "PAGE_TIMEOUT",
]

PAGE_TIMEOUT = 300.0  # seconds: far more than a page takes, and a hung decoder delays all others
PAGE_MEMORY = 8 << 30  # bytes beyond what a worker process holds when it starts: several times the largest page
MAX_PAGES_PER_DOCUMENT = 10_000  # one PDF or TIFF may claim any number
GIVE_UP_AFTER = 50  # failed pages in a row of one PDF or TIFF
MAX_ENCODED_BYTES = 1 << 30  # one encoded image in an archive or a table
