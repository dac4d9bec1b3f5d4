"""Where checkpoints are: a folder, a file or the Hub, opened without reading tensors.

Unusual: a checkpoint may be far larger than the encoder in it. From files a tensor is read when it is asked for; from
the Hub the tensors that are needed come as byte ranges, and the rest stays there.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import metadata_load

from .files import PICKLES, StoredTensor, find_files, join_shards, open_file
from .remote import HubOptions, RemoteFiles, looks_like_hub_id

__all__ = ["Checkpoint", "open_checkpoint", "open_remote"]


class Checkpoint(Mapping[str, torch.Tensor]):
    """Tensors by name, read one by one.

    Args:
        tensors: what is known of each without reading it.
        find_file: returns the path of a file beside the tensors (`config.json`), or None.
        fetch: brings tensors that are not on this machine; returns them, still unread.
        commit: of a checkpoint on the Hub.
        forget: removes what `fetch` brought.
        lock: keeps other processes from forgetting it meanwhile.
        mapped: whether tensors that are read are still the file's memory.
    """

    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        find_file: Callable[[str], Path | None],
        fetch: Callable[[Collection[str]], Mapping[str, StoredTensor]] | None = None,
        commit: str | None = None,
        forget: Callable[[], None] = lambda: None,
        lock: Callable[[], AbstractContextManager[Any]] = nullcontext,
        mapped: bool = False,
    ) -> None:
        self.tensors = dict(tensors)
        self.shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        self.commit = commit
        self.forget = forget
        self.lock = lock
        self.mapped = mapped
        self._find_file = find_file
        self._fetch = fetch
        self.config = self.read_json("config.json")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a file beside the tensors; an empty dict where there is none.

        Raises:
            `ValueError`: it is not JSON.
        """
        path = self._find_file(name)
        if path is None:
            return {}
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}.") from error
        return content if isinstance(content, dict) else {}

    def read_license(self) -> str | None:
        """Read the licence that the model card beside the tensors names, if there is one."""
        path = self._find_file("README.md")
        try:
            told = None if path is None else (metadata_load(path) or {}).get("license")
        except Exception:  # somebody else's card, which may hold anything
            return None
        return told if isinstance(told, str) else None

    def fetch(self, names: Collection[str]) -> None:
        """See to it that these tensors are on this machine."""
        absent = [name for name in names if self.tensors[name].read is None]
        if absent and self._fetch is not None:
            self.tensors |= self._fetch(absent)

    def __getitem__(self, name: str) -> torch.Tensor:
        read = self.tensors[name].read
        if read is None:
            self.fetch([name])
            read = self.tensors[name].read
        assert read is not None
        return read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def open_remote(remote: RemoteFiles) -> Checkpoint:
    """Open a checkpoint on the Hub."""
    tensors = remote.open()
    mapped = any(file.endswith(PICKLES) for file in remote.files)
    return Checkpoint(tensors, remote.find_file, remote.fetch, remote.commit, remote.forget_parts, remote.lock, mapped)


def open_checkpoint(source: str | Path, hub: HubOptions | None = None) -> Checkpoint:
    """Open a checkpoint without reading its tensors.

    Args:
        source: a folder (with an index of shards, safetensors files or pickles), one such file, or the id of a model
            on the Hub. Pickles are read with `weights_only=True`.
        hub ([`HubOptions`], *optional*): how to reach the Hub.

    Raises:
        `FileNotFoundError`: there is no such file or folder, and it is no Hub id.
        `ValueError`: a damaged file, a missing shard, a name in two shards, a pickle that wants to run code.
        `OSError`: the Hub cannot be reached, or has no such model.
    """
    path = Path(source)
    if not path.exists() and looks_like_hub_id(str(source)):
        return open_remote(RemoteFiles(str(source), hub or HubOptions()))
    files, weight_map = find_files(path)
    tensors = join_shards({file.name: open_file(file) for file in files}, weight_map)
    folder = path if path.is_dir() else path.parent

    def find_file(name: str) -> Path | None:
        return folder / name if (folder / name).is_file() else None

    return Checkpoint(tensors, find_file, mapped=any(file.suffix in PICKLES for file in files))
