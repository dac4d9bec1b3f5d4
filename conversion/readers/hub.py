"""Checkpoints on the Hub: only the encoder's tensors are downloaded.

Unusual: safetensors and GGUF files are read in place, the header first and then the byte ranges of the needed tensors.
Files that are in the Hub's cache already are read from there. Pickles are downloaded whole.
"""

import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import (
    HfApi,
    cached_assets_path,
    hf_hub_download,
    hf_hub_url,
    is_offline_mode,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils import WeakFileLock, build_hf_headers
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from .byte_ranges import DownloadLimits, RemoteFile, download_parts, plan_parts
from .folders import choose_weights, read_index
from .formats import SUFFIXES, format_of, open_file
from .progress import progress_bar
from .stored_tensors import StoredTensor, join_shards

__all__ = ["HubOptions", "ProgressBar", "RemoteFiles", "looks_like_hub_id", "model_cache"]

LIBRARY = "deepencoder"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""Type of [`progress_bar`]."""


@dataclass(frozen=True)
class HubOptions:
    """How to download from the Hub. The first five are as in transformers' `from_pretrained`.

    Args:
        revision: a branch, a tag or a commit.
        token: an access token; True for the stored one, False for none.
        cache_dir: folder of the cache; by default, the one that huggingface_hub uses.
        local_files_only: use the cache only and make no requests.
        force_download: download files even if they are in the cache.
        full_download: download whole files instead of byte ranges, for servers that do not support ranges.
        limits ([`DownloadLimits`]): sizes, parallel requests and retries of range downloads.
    """

    revision: str | None = None
    token: bool | str | None = field(default=None, repr=False)
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False
    full_download: bool = False
    limits: DownloadLimits = DownloadLimits()

    @property
    def offline(self) -> bool:
        return self.local_files_only or is_offline_mode()


def looks_like_hub_id(source: str) -> bool:
    """Return whether `source` has the form of a Hub id, `name` or `owner/name`, and not that of a checkpoint file."""
    parts = source.split("/")
    if source.endswith(SUFFIXES):
        return False
    return len(parts) <= 2 and all(part and part[0] not in ".~" for part in parts) and "\\" not in source


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turn errors of the HTTP client, such as a failed connection, into an `OSError` that names the model.

    The client and its classes depend on the version of huggingface_hub, so they are recognised by their module.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise
        raise OSError(
            f"there is no file or folder of this name, and the Hub cannot be asked for {repo_id}: {error}"
        ) from error


def model_cache(repo_id: str, commit: str, options: HubOptions) -> Path:
    """Return the folder for files derived from a model: in the Hub's assets cache, by repository and commit."""
    assets_dir = None if options.cache_dir is None else Path(options.cache_dir) / "assets"
    return cached_assets_path(LIBRARY, namespace=repo_id, subfolder=commit, assets_dir=assets_dir)


class RemoteFiles:
    """The safetensors files of a model on the Hub at one commit, or its pickles or GGUF file if it has no others.

    Args:
        repo_id: `owner/name`.
        options ([`HubOptions`]): how to download.
        progress_bar: called with a label and the number of bytes; see [`progress_bar`].

    Raises:
        `OSError`: the model does not exist, may not be read, or the Hub cannot be reached.
    """

    def __init__(self, repo_id: str, options: HubOptions, progress_bar: ProgressBar = progress_bar) -> None:
        self.repo_id, self.options = repo_id, options
        self.commit = ""
        config = self.find_file("config.json")
        self.commit = extract_commit_hash(None if config is None else str(config), None) or self._find_commit()
        self.files: list[str] = []
        self._progress_bar = progress_bar
        self._stored: dict[str, tuple[str, StoredTensor]] = {}  # for each tensor also its file

    def open(self) -> dict[str, StoredTensor]:
        """Find the tensors of the model. Of safetensors and GGUF files, only the headers are downloaded.

        Raises:
            `OSError`: the repository holds no checkpoint, or the server cannot be reached.
            `RangesNotServedError`: the server ignores byte ranges.
            `ValueError`: a file is damaged.
        """
        index = self.find_file(INDEX)
        weight_map = {} if index is None else read_index(index)
        shards = sorted(set(weight_map.values()))
        if shards:
            opened = {shard: self._open(shard) for shard in shards}
        else:
            try:
                opened = {WEIGHTS: self._open(WEIGHTS)}
            except EntryNotFoundError:  # The files are listed only now, as mirrors may not support listing.
                opened = {name: self._open(name) for name in self._list_weights()}
        tensors = join_shards(opened, weight_map)
        self.files = list(opened)
        self._stored = {name: (file, tensor) for file, content in opened.items() for name, tensor in content.items()}
        return tensors

    def find_file(self, name: str) -> Path | None:
        """Download a small file and return its path, or None if the model has no file of this name."""
        options = self.options
        path = cached_file(
            self.repo_id,
            name,
            revision=self.commit or options.revision,
            token=options.token,
            cache_dir=options.cache_dir,
            local_files_only=options.local_files_only,
            force_download=options.force_download,
            _raise_exceptions_for_missing_entries=False,
        )
        return None if path is None else Path(path)

    def _find_commit(self) -> str:
        """Return the commit of a model without `config.json`."""
        options = self.options
        if options.offline:
            return self._cached_snapshot(options.revision).name
        with hub_errors(self.repo_id):
            commit = HfApi(token=options.token).model_info(self.repo_id, revision=options.revision).sha
        assert commit is not None
        return commit

    def _cached_snapshot(self, revision: str | None) -> Path:
        return Path(
            snapshot_download(self.repo_id, revision=revision, cache_dir=self.options.cache_dir, local_files_only=True)
        )

    def _list_weights(self) -> list[str]:
        options = self.options
        if options.offline:
            names = [path.name for path in self._cached_snapshot(self.commit).iterdir()]
        else:
            with hub_errors(self.repo_id):
                names = HfApi(token=options.token).list_repo_files(self.repo_id, revision=self.commit)
        found = choose_weights(name for name in names if "/" not in name)
        if found:
            return found
        kinds = f"{', '.join(SUFFIXES)} files"
        if options.offline:
            raise OSError(f"The cache contains no {kinds} of {self.repo_id}, and nothing is downloaded offline.")
        raise OSError(f"{self.repo_id} contains no {kinds}.")

    def _open(self, file: str) -> dict[str, StoredTensor]:
        """Find the tensors of a file, without downloading it if possible."""
        options = self.options
        cached = try_to_load_from_cache(self.repo_id, file, cache_dir=options.cache_dir, revision=self.commit)
        if isinstance(cached, str) and not options.force_download:
            return open_file(Path(cached))
        if options.offline:
            raise LocalEntryNotFoundError(
                f"{self.repo_id}/{file} is not in the cache, and nothing is downloaded offline."
            )
        read_header = format_of(file).read_header
        if read_header is not None and not options.full_download:
            remote = self._remote_file(file)
            return read_header(remote.read, remote.label)
        path = hf_hub_download(
            self.repo_id,
            file,
            revision=self.commit,
            token=options.token,
            cache_dir=options.cache_dir,
            force_download=options.force_download,
        )
        return open_file(Path(path))

    def _remote_file(self, file: str) -> RemoteFile:
        return RemoteFile(
            self.repo_id,
            file,
            hf_hub_url(self.repo_id, file, revision=self.commit),
            build_hf_headers(token=self.options.token, library_name=LIBRARY),
            self.options.limits,
        )

    def lock(self) -> AbstractContextManager[object]:
        """Lock the model against other processes, which would remove the parts that this one is reading."""
        return WeakFileLock(self._parts_folder.with_suffix(".lock"))

    @property
    def _parts_folder(self) -> Path:
        return model_cache(self.repo_id, self.commit, self.options) / "parts"

    def fetch(self, names: Collection[str]) -> dict[str, StoredTensor]:
        """Download tensors, except those that an earlier, interrupted call has downloaded.

        Raises:
            `ValueError`: torch has no dtype for one of the tensors.
            `OSError`: the download failed; a later call continues from there.
        """
        by_file: dict[str, dict[str, StoredTensor]] = {}
        for name in names:
            file, tensor = self._stored[name]
            if tensor.dtype is None:
                raise ValueError(f"{name} has a dtype that torch does not support.")
            by_file.setdefault(file, {})[name] = tensor
        limits = self.options.limits
        parts = [
            (remote_file, part)
            for remote_file, tensors in ((self._remote_file(file), by_file[file]) for file in by_file)
            for part in plan_parts(tensors, limits)
        ]
        if self.options.force_download:
            self.forget_parts()
        size = sum(part.end - part.start for _, part in parts)
        with self._progress_bar(f"Encoder of {self.repo_id}", size) as progress:
            return download_parts(parts, self._parts_folder, limits, progress)

    def forget_parts(self) -> None:
        """Remove what `fetch` downloaded, once it has been converted."""
        shutil.rmtree(self._parts_folder, ignore_errors=True)
