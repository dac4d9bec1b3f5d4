"""Files and folders that appear whole or not at all.

Unusual: everything that this package writes goes through these functions. A file is written under a temporary name
beside its target, flushed to the disk, and then renamed. An interruption leaves only a hidden name that ends in `.tmp`
and the suffix of the target. A full disk is an `OSError` of one line that names the target, whichever library met it.
The module lies in this folder because models on the Hub need it as well.
"""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "TEMPORARY_PATTERN",
    "full_disk_reported",
    "new_folder",
    "replaced_file",
    "temporary_name",
    "write_bytes",
    "write_text",
]

TEMPORARY_PATTERN = ".*.tmp*"
"""Glob pattern of the names that [`temporary_name`] makes."""

# No space, a file larger than the file system or the process may have, and no quota, which Windows does not have.
FULL_DISK = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


def temporary_name(path: Path) -> Path:
    """Return an unused hidden name beside `path`, with the same suffix, for a file or folder that is being written."""
    # The name of the target may already be as long as the file system allows, which is usually 255 bytes.
    stem = path.stem.lstrip(".").encode(errors="ignore")[:64].decode(errors="ignore")
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= 64 else ""
    return path.with_name(f".{stem}.{uuid.uuid4().hex[:8]}.tmp{suffix}")


def sync_folder(folder: Path) -> None:
    """Flush the names of the files in a folder to the disk, where the system supports it."""
    if os.name != "posix":
        return  # Windows does not open folders.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def full_disk_reported(target: Path) -> Iterator[None]:
    """Turn the errors of a full disk into an `OSError` that names the file or folder that cannot be written."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number is None:  # Libraries in Rust, such as safetensors, have exceptions of their own.
            match = re.search(r"\(os error (\d+)\)", str(error))
            number = int(match[1]) if match else None
        if number is None or number not in FULL_DISK:
            raise
        full = OSError(f"cannot write {target}: {os.strerror(number)}")
        full.errno = number
        raise full from error


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, which takes the place of `path` if the block succeeds.

    The file gets the permissions that the umask of the process gives to any new file. If the block raises, the
    temporary file is removed and `path` stays as it was. A symbolic link is itself replaced, and its target stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    permissions = temporary.stat().st_mode
    try:
        with full_disk_reported(path):
            yield temporary
            # Some writers, among them that of safetensors, put a new file in its place that only its owner may read.
            temporary.chmod(permissions)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with replaced_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 text file whole or not at all, with line ends as they are in `content`."""
    write_bytes(path, content.encode())


@contextmanager
def new_folder(target: Path, single_file: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder to fill, which takes the name `target` if the block succeeds.

    If the block raises, the temporary folder and all its content are removed.

    Args:
        target: the folder to create.
        single_file: name of a file in the folder. It alone takes the name `target`, and the rest is removed.

    Raises:
        `FileExistsError`: `target` exists already.
    """
    if os.path.lexists(target):
        raise FileExistsError(f"target: {target} exists already.")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target)
    temporary.mkdir()
    try:
        with full_disk_reported(target):
            yield temporary
            (temporary if single_file is None else temporary / single_file).rename(target)
            sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
