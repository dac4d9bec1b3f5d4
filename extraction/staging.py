"""Where Ray writes its files, and how they become shards.

Unusual: Ray writes into a hidden folder, since a task that dies leaves half a file. Each run has a folder of its own
there and takes only the files in it, as processes of an earlier run may outlive their driver by some seconds and write
one more file. What earlier runs left is taken when the next run of either engine opens the output folder, before the
finished pages are listed. Then a file is taken only if none of its pages is finished, since the pages of a late file
may have been extracted again meanwhile.
"""

import shutil
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np

from .ledger import read_finished_keys, read_keys
from .shards import DATA, DamagedShardError, count_rows

__all__ = ["collect_left", "collect_staged", "new_staging"]

STAGING = ".ray"
LEFT = ".ray-left-*"  # What earlier runs staged, renamed so that no process finds it any more.


def new_staging(output: Path) -> Path:
    """Return the name of a new folder to which a run of Ray writes."""
    return output / STAGING / uuid.uuid4().hex


def _take(path: Path, output: Path) -> None:
    (output / DATA).mkdir(exist_ok=True)
    path.replace(output / DATA / f"part-ray-{path.stem}.parquet")


def collect_staged(output: Path, staging: Path) -> None:
    """Move the complete files of a run that ended to the other shards, and remove its folder."""
    for path in sorted(staging.glob("**/*.parquet")):
        with suppress(DamagedShardError):  # The task that wrote it died.
            if count_rows(path):
                _take(path, output)
    shutil.rmtree(staging, ignore_errors=True)
    with suppress(OSError):
        staging.parent.rmdir()


def collect_left(output: Path) -> None:
    """Move the complete files of runs that were killed to the other shards, unless one of their pages is finished.

    Raises:
        `ValueError`: a shard is damaged; names it.
    """
    if (output / STAGING).exists():
        (output / STAGING).rename(output / LEFT.replace("*", uuid.uuid4().hex))
    left = sorted(output.glob(LEFT))
    if not left:
        return
    finished = read_finished_keys(output)
    for folder in left:
        for path in sorted(folder.glob("**/*.parquet")):
            with suppress(DamagedShardError):  # The process that wrote it was killed.
                keys = read_keys(path)
                if len(keys) and not np.isin(keys, finished).any():
                    _take(path, output)
                    finished = np.union1d(finished, keys)
        shutil.rmtree(folder)
