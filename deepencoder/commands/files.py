"""Files that a command will write."""

import os
import tempfile
from pathlib import Path

from .errors import UserError

__all__ = ["check_target"]


def check_target(path: Path | None, option: str, suffixes: tuple[str, ...]) -> None:
    """Raise a [`UserError`] if a file cannot be written, before the work is done and not after it.

    Args:
        path: the file; None is accepted.
        option: the option that names the file, for the message.
        suffixes: the suffixes that the file may have.
    """
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{option} must end in {' or '.join(suffixes)}, got {path.name!r}.")
    if os.path.isdir(path):
        raise UserError(f"{option}: {path} is a folder.")
    try:
        path.lstat()  # Fails for a name that is too long; the temporary name beside it would be shorter.
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{option}: cannot write {path}: {error.strerror}.") from error
    try:
        with tempfile.TemporaryFile(dir=next(parent for parent in path.absolute().parents if parent.exists())):
            pass
    except OSError as error:
        raise UserError(f"{option}: cannot write {path}: {error.strerror}.") from error
