"""Helpers for files that readers must refuse."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from deepencoder.conversion.checkpoint import open_checkpoint

__all__ = ["HARMFUL_PICKLE", "LFS_POINTER", "assert_refused"]


class Harmful:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('code of the file was run')",))


HARMFUL_PICKLE = pickle.dumps({"weight": Harmful()}, protocol=2)
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"  # what a checkout without git-lfs holds


def assert_refused(source: Path, pattern: str) -> None:
    """Check that opening `source` raises a `ValueError` of one line that matches `pattern`."""
    with pytest.raises(ValueError, match=pattern) as error:
        open_checkpoint(source)
    assert len(str(error.value).splitlines()) == 1
