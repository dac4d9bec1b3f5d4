"""One checkpoint, in a file, a folder or on the Hub: its tensors by name, and the files beside them.

Unusual: opening a checkpoint reads no tensors, as it may be far larger than the encoder in it. Each tensor is read
from its file on access. From the Hub, only the byte ranges of the needed tensors are downloaded.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import RepoCard

from .readers.folders import find_files
from .readers.formats import format_of, open_file
from .readers.hub import HubOptions, RemoteFiles, looks_like_hub_id
from .readers.json_files import read_json_file
from .readers.stored_tensors import StoredTensor, join_shards

__all__ = ["Checkpoint", "open_checkpoint", "open_remote"]

LARGEST_CARD_HEADER = 2**16  # bytes of a model card in which its licence is looked for


class Checkpoint(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint by name. Each access reads the tensor.

    Args:
        tensors: descriptions of all tensors.
        find_file: returns the path of a file beside the tensors, such as `config.json`, or None.
        fetch: downloads tensors and returns their new descriptions.
        commit: commit of a checkpoint on the Hub.
        forget: removes what `fetch` downloaded.
        lock: returns a lock that keeps other processes from removing it.
        mapped: whether tensors that were read may still be backed by the file.
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
        """Read a JSON file beside the tensors. Without such a file, the result is an empty dict.

        Raises:
            `ValueError`: the file is not valid JSON, or is too large.
        """
        path = self._find_file(name)
        if path is None:
            return {}
        try:
            content = read_json_file(path)
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}.") from error
        return content if isinstance(content, dict) else {}

    def read_license(self) -> str | None:
        """Return the licence that the checkpoint's model card states, if any."""
        path = self._find_file("README.md")
        if path is None:
            return None
        try:
            with open(path, "rb") as file:
                start = file.read(LARGEST_CARD_HEADER).decode(errors="replace")
            # The library's pattern takes quadratic time for blank lines.
            license_name = RepoCard(re.sub(r"[\r\n]+", "\n", start)).data.to_dict().get("license")
        except Exception:  # The model card may contain anything.
            return None
        return license_name if isinstance(license_name, str) else None

    def fetch(self, names: Collection[str]) -> None:
        """Download those of the tensors that are not on this machine."""
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

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor.
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def open_remote(remote: RemoteFiles) -> Checkpoint:
    """Open a checkpoint on the Hub."""
    tensors = remote.open()
    mapped = any(format_of(file).mapped for file in remote.files)
    return Checkpoint(tensors, remote.find_file, remote.fetch, remote.commit, remote.forget_parts, remote.lock, mapped)


def open_checkpoint(source: str | Path, hub: HubOptions | None = None) -> Checkpoint:
    """Open a checkpoint without reading its tensors.

    Args:
        source: a folder with a checkpoint (an index of shards, safetensors files or pickles), a single such file, or
            the id of a model on the Hub. Pickles are read as data; no code in them is run.
        hub ([`HubOptions`], *optional*): how to download from the Hub.

    Raises:
        `FileNotFoundError`: there is no such file or folder, and `source` is not a Hub id.
        `ValueError`: a file is damaged, a shard is missing, two shards hold a tensor of the same name, or a pickle
            needs its own code to be loaded.
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

    return Checkpoint(tensors, find_file, mapped=any(format_of(file.name).mapped for file in files))
