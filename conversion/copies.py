"""Copies of checkpoints as they are on the disk.

Unusual: files of a folder in the Hub's cache are links, so links to files are followed. Links to folders are refused,
because they could lead anywhere, also round in circles, and so is everything that is not a regular file.
"""

import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

__all__ = ["copy_into"]


def _refuse_linked_folders(folder: str, names: Sequence[str]) -> list[str]:
    for name in names:
        path = Path(folder) / name
        if path.is_symlink() and path.is_dir():
            raise OSError(f"{path} cannot be copied: it is a link to a folder.")
    return []


def _copy_file(source: str | Path, target: str | Path) -> None:
    if not stat.S_ISREG(Path(source).stat().st_mode):
        raise OSError(f"{source} cannot be copied: it is not a regular file.")
    shutil.copyfile(source, target)


def copy_into(source: Path, folder: Path) -> None:
    """Copy a file, or all that is in a folder, into an existing folder.

    Raises:
        `OSError`: something cannot be read or written, or is neither a file nor a folder.
    """
    if not source.is_dir():
        _copy_file(source, folder / source.name)
        return
    failures: list[OSError] = []

    def copy(file: str, target: str) -> None:
        try:
            _copy_file(file, target)
        except OSError as error:
            failures.append(error)
            raise

    try:
        shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=copy, ignore=_refuse_linked_folders)
    except shutil.Error as error:  # It holds a list of all that failed, without their error numbers.
        raise (failures or [OSError(f"{error.args[0][0][0]} cannot be copied: {error.args[0][0][2]}")])[0] from error
