"""Files that a command will write."""

import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .errors import UserError

__all__ = ["check_target", "files_of_model"]

READ_BESIDE_WEIGHTS = ("*.json", "*.py")


def files_of_model(model: str | None) -> list[Path]:
    """Return the files on this machine that are read when a model is loaded; none for a Hub id or for None."""
    from ..conversion.readers.folders import find_files

    if model is None or not os.path.exists(model):
        return []
    path = Path(model)
    folder = path if path.is_dir() else path.parent
    files = [file for pattern in READ_BESIDE_WEIGHTS for file in folder.glob(pattern)]
    with suppress(OSError, ValueError):  # What is wrong with the weights is reported when they are loaded.
        files += find_files(path)[0]
    return files


def _is_same(path: Path, other: str | Path) -> bool:
    with suppress(OSError, ValueError):  # One of them does not exist, or is no path.
        return os.path.samefile(path, other)
    with suppress(OSError, ValueError):
        return os.path.realpath(path) == os.path.realpath(other)
    return False


def check_target(path: Path | None, option: str, suffixes: tuple[str, ...], inputs: Iterable[str | Path] = ()) -> None:
    """Raise a [`UserError`] if a file cannot or must not be written, before the work is done and not after it.

    Args:
        path: the file; None is accepted.
        option: the option that names the file, for the message.
        suffixes: the suffixes that the file may have.
        inputs: what the command reads, and must not overwrite: paths, and names that may be paths.
    """
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{option} must end in {' or '.join(suffixes)}, got {path.name!r}.")
    if os.path.isdir(path):
        raise UserError(f"{option}: {path} is a folder.")
    if any(_is_same(path, other) for other in inputs):
        raise UserError(f"{option}: {path} is an input, and is not overwritten.")
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
