"""Which files of a folder are the checkpoint.

Folders hold indexes of shards, single files with customary names, the same weights in several formats, and files that
trainers write beside the weights.
"""

from collections.abc import Iterable
from pathlib import Path

from .formats import FORMATS, SUFFIXES
from .json_files import read_json_file

__all__ = ["choose_weights", "find_files", "read_index"]

# Prefixes of files that trainers write beside the weights, in the same formats.
NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "random_states")


def read_index(index: Path) -> dict[str, str]:
    """Read the index of a sharded checkpoint.

    Returns:
        for each tensor the file name of its shard.

    Raises:
        `ValueError`: the file is not an index, or names a shard outside its own folder.
    """
    try:
        weight_map = read_json_file(index)["weight_map"]
        if not weight_map:
            raise ValueError("it lists no shards")
        outside = sorted({shard for shard in weight_map.values() if Path(shard).name != shard or shard == ".."})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not a valid index of shards: {error!r}.") from error
    if outside:
        raise ValueError(f"{index} names files outside its folder: {', '.join(outside[:3])}.")
    return weight_map


def choose_weights(names: Iterable[str]) -> list[str]:
    """Choose the files that hold the weights, in a folder without an index.

    Args:
        names: names of files of one folder.

    Returns:
        the file with a customary name if there is one, else all weight files of the preferred format.
    """
    candidates = [name for name in names if not name.startswith((".", *NOT_WEIGHTS))]
    for row in FORMATS:
        if row.usual_name in candidates:
            return [row.usual_name]
    for row in FORMATS:
        found = [name for name in candidates if name.endswith(row.suffix)]
        if found:
            return row.choose(found)
    return []


def find_files(source: Path) -> tuple[list[Path], dict[str, str]]:
    """Find the files of a checkpoint.

    Within a folder, safetensors files are preferred to pickles, and files that an index lists to all others.

    Args:
        source: a folder, or a single file.

    Returns:
        the files, and for each tensor the file name of its shard according to the index. Without an index, the
        latter is empty.

    Raises:
        `FileNotFoundError`: there is no such file or folder.
        `ValueError`: the folder holds no checkpoint, lacks a shard, or has a damaged index.
    """
    if source.is_file():
        return [source], {}
    if not source.is_dir():
        raise FileNotFoundError(f"source: there is no file or folder {str(source)!r}.")
    for suffix in SUFFIXES:
        for index in sorted(source.glob(f"*{suffix}.index.json")):
            weight_map = read_index(index)
            files = [source / name for name in sorted(set(weight_map.values()))]
            missing = [path.name for path in files if not path.is_file()]
            if missing:
                raise ValueError(f"{index} names shards that do not exist: {', '.join(missing[:3])}.")
            return files, weight_map
        names = choose_weights(path.name for path in source.glob(f"*{suffix}") if path.is_file())
        if names:
            return [source / name for name in names], {}
    raise ValueError(f"source: {source} contains no {', '.join(SUFFIXES)} files.")
