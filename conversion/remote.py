"""Checkpoints on the Hub, of which only the encoder's bytes are downloaded.

Unusual: a safetensors file is read in place: its header first, then the ranges of the tensors that are needed, in
parallel. They become small safetensors files of their own, so that a download that was cut goes on where it stopped.
Files that are in the cache already are read there.
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Any

from huggingface_hub import (
    HfApi,
    cached_assets_path,
    constants,
    hf_hub_download,
    hf_hub_url,
    is_offline_mode,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.utils import WeakFileLock, build_hf_headers, hf_raise_for_status, http_stream_backoff, tqdm
from safetensors.torch import save_file
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from .files import (
    PICKLES,
    StoredTensor,
    as_tensor,
    choose_weights,
    header_length,
    join_shards,
    open_file,
    parse_header,
    read_index,
)

__all__ = ["PROGRESS_BAR", "HubOptions", "RangesNotServedError", "RemoteFiles", "looks_like_hub_id", "model_cache"]

LIBRARY = "deepencoder"
PROGRESS_BAR = "deepencoder.ranges"  # as `huggingface_hub.utils.disable_progress_bars` knows it
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PART_SIZE = 16 * 2**20  # bytes of one request: eight of them are in memory at a time
WORKERS = 8
LARGEST_GAP = 2**14  # bytes between two tensors that cost less than a request of its own...
GAPS_SHARE = 0.005  # ...as long as all of them stay below this share
ATTEMPTS = 6


class RangesNotServedError(OSError):
    """The server sends whole files only."""


@dataclass(frozen=True)
class HubOptions:
    """How to reach the Hub; all as in transformers' `from_pretrained`, but the last.

    Args:
        revision: a branch, a tag or a commit.
        token: True for the one that is logged in, False for none.
        cache_dir: where files are kept; environment variables tell the default.
        local_files_only: ask nobody.
        force_download: forget what is in the cache.
        full_download: download whole files, not ranges: for a server that knows no ranges, or to have them all.
    """

    revision: str | None = None
    token: bool | str | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False
    full_download: bool = False

    @property
    def offline(self) -> bool:
        return self.local_files_only or is_offline_mode()


def looks_like_hub_id(source: str) -> bool:
    """Tell whether `source` could be a model on the Hub: `name` or `owner/name`, and not the name of a file."""
    parts = source.split("/")
    if source.endswith((".safetensors", *PICKLES)):
        return False
    return len(parts) <= 2 and all(part and part[0] not in ".~" for part in parts) and "\\" not in source


def model_cache(repo_id: str, commit: str, options: HubOptions) -> Path:
    """Return the folder in which what is made of a model is kept: in the Hub's cache of assets, by repo and commit."""
    assets_dir = None if options.cache_dir is None else Path(options.cache_dir) / "assets"
    return cached_assets_path(LIBRARY, namespace=repo_id, subfolder=commit, assets_dir=assets_dir)


@dataclass(frozen=True)
class _Part:
    """Tensors that are downloaded by one request."""

    file: str
    start: int
    end: int
    tensors: Mapping[str, StoredTensor]


def plan_parts(
    file: str, tensors: Mapping[str, StoredTensor], part_size: int = PART_SIZE, gaps_share: float = GAPS_SHARE
) -> list[_Part]:
    """Put tensors of a file that lie side by side, or nearly so, into requests of about `part_size` bytes."""
    spare = gaps_share * sum(tensor.end - tensor.start for tensor in tensors.values())
    parts: list[_Part] = []
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        last = parts[-1] if parts else None
        gap = tensor.start - last.end if last else 0
        if last is None or gap > min(LARGEST_GAP, spare) or tensor.end - last.start > part_size:
            parts.append(_Part(file, tensor.start, tensor.end, {name: tensor}))
        else:
            spare -= gap
            parts[-1] = _Part(file, last.start, tensor.end, {**last.tensors, name: tensor})
    return parts


class RemoteFiles:
    """The safetensors files (else the pickles) of a model on the Hub, at one commit.

    Args:
        repo_id: `owner/name`.
        options ([`HubOptions`]): how to reach it.

    Raises:
        `OSError`: there is no such model, it may not be read, or it cannot be reached.
    """

    def __init__(self, repo_id: str, options: HubOptions) -> None:
        self.repo_id, self.options = repo_id, options
        self.commit = ""
        config = self.find_file("config.json")
        self.commit = extract_commit_hash(None if config is None else str(config), None) or self._ask_commit()
        self.tensors: dict[str, StoredTensor] = {}
        self._places: dict[str, str] = {}
        self.files: list[str] = []

    def open(self) -> dict[str, StoredTensor]:
        """Find out what is in the files, without downloading more of them than their headers.

        Raises:
            `OSError`: it is no checkpoint, or the server cannot be reached.
            `RangesNotServedError`: the server sends whole files only.
            `ValueError`: a damaged file.
        """
        index = self.find_file(INDEX)
        weight_map = {} if index is None else read_index(index)
        shards = sorted(set(weight_map.values()))
        if shards:
            opened = {shard: self._open(shard) for shard in shards}
        else:
            try:
                opened = {WEIGHTS: self._open(WEIGHTS)}
            except EntryNotFoundError:  # the usual name is asked for first, as a mirror may not list files
                opened = {name: self._open(name) for name in self._list_weights()}
        self.tensors = join_shards(opened, weight_map)
        self._places = {name: file for file, tensors in opened.items() for name in tensors}
        self.files = list(opened)
        return self.tensors

    def find_file(self, name: str) -> Path | None:
        """Download a small file, and return its path; None where the model has none of this name."""
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

    def _ask_commit(self) -> str:
        """Find out the commit of a model that has no `config.json`."""
        options = self.options
        if options.offline:
            folder = snapshot_download(
                self.repo_id, revision=options.revision, cache_dir=options.cache_dir, local_files_only=True
            )
            return Path(folder).name
        commit = HfApi(token=options.token).model_info(self.repo_id, revision=options.revision).sha
        assert commit is not None
        return commit

    def _list_weights(self) -> list[str]:
        options = self.options
        if options.offline:
            folder = snapshot_download(
                self.repo_id, revision=self.commit, cache_dir=options.cache_dir, local_files_only=True
            )
            names = [path.name for path in Path(folder).iterdir()]
        else:
            names = HfApi(token=options.token).list_repo_files(self.repo_id, revision=self.commit)
        found = choose_weights(name for name in names if "/" not in name)
        if found:
            return found
        kinds = f"safetensors, {', '.join(PICKLES)} files"
        if options.offline:
            raise OSError(f"The cache has no {kinds} of {self.repo_id}, and offline nothing is downloaded.")
        raise OSError(f"{self.repo_id} has no {kinds}.")

    def _open(self, file: str) -> dict[str, StoredTensor]:
        """Find out what is in a file, without downloading it if that can be."""
        options = self.options
        cached = try_to_load_from_cache(self.repo_id, file, cache_dir=options.cache_dir, revision=self.commit)
        if isinstance(cached, str) and not options.force_download:
            return open_file(Path(cached))
        if options.offline:
            raise EntryNotFoundError(f"{self.repo_id}/{file} is not in the cache, and offline nothing is downloaded.")
        if options.full_download or file.endswith(PICKLES):
            path = hf_hub_download(
                self.repo_id,
                file,
                revision=self.commit,
                token=options.token,
                cache_dir=options.cache_dir,
                force_download=options.force_download,
            )
            return open_file(Path(path))
        label = f"{self.repo_id}/{file}"
        first_bytes, file_size = self._download(file, 0, 8)
        length = header_length(first_bytes, file_size, label)
        header, _ = self._download(file, 8, 8 + length)
        return parse_header(bytes(header), file_size, label)

    def _download(
        self, file: str, start: int, end: int, progress: Callable[[int], object] = lambda count: None
    ) -> tuple[bytearray, int]:
        """Download bytes `start` to `end`, and tell the size of the file."""
        url = hf_hub_url(self.repo_id, file, revision=self.commit)
        headers = build_hf_headers(token=self.options.token, library_name=LIBRARY) | {"Accept-Encoding": "identity"}
        body = bytearray()
        attempt = 0
        while True:
            attempt += 1
            headers["Range"] = f"bytes={start + len(body)}-{end - 1}"
            try:
                with http_stream_backoff(
                    "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, retry_on_exceptions=()
                ) as response:
                    if response.status_code != 416:  # a range that it does not like
                        hf_raise_for_status(response)
                    file_size = self._check_range(response, file, start + len(body))
                    for chunk in response.iter_bytes():
                        body += chunk
                        attempt = 0  # the line is bad, but not dead
                        progress(len(chunk))
                        if len(body) > end - start:
                            raise RangesNotServedError(
                                f"{self.repo_id}/{file}: the server sends more than it was asked for."
                            )
                if len(body) == end - start:
                    return body, file_size
                error: Exception = OSError(f"{self.repo_id}/{file}: the connection ended early.")
            except (HfHubHTTPError, RangesNotServedError, InterruptedError):
                raise
            except Exception as broken:  # whatever the HTTP client raises, whose package changed between versions
                error = broken
            if attempt == ATTEMPTS:
                reason = str(error) or type(error).__name__
                raise OSError(f"{self.repo_id}/{file} cannot be downloaded: {reason}") from error
            time.sleep(min(8, 0.5 * 2**attempt))

    def _check_range(self, response: Any, file: str, start: int) -> int:
        told, size = response.headers.get("Content-Range", ""), response.headers.get("Content-Length", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", told.strip().lower())
        if response.status_code == 206 and match is not None and int(match[1]) == start:
            return int(match[2])
        if response.status_code == 200:
            amount = f"all {int(size) / 1e9:.1f} GB" if size.isdigit() else "the whole file"
            what = f"ignores byte ranges and would send {amount}"
        else:
            what = f"answers a range with status {response.status_code} and Content-Range {told!r}"
        raise RangesNotServedError(
            f"The server of {self.repo_id}/{file} {what}: "
            "pass full_download=True (--full-download) to download it whole."
        )

    def lock(self) -> Any:
        """Keep other processes from converting this model meanwhile: they would forget each other's parts."""
        return WeakFileLock(self._parts_folder.with_suffix(".lock"))

    @property
    def _parts_folder(self) -> Path:
        return model_cache(self.repo_id, self.commit, self.options) / "parts"

    def fetch(self, names: Collection[str]) -> dict[str, StoredTensor]:
        """Download tensors; those of an earlier call that was cut are there already.

        Raises:
            `OSError`: the server cannot be reached any more; a later call goes on from here.
        """
        places: dict[str, dict[str, StoredTensor]] = {}
        for name in names:
            if self.tensors[name].dtype is None:
                raise ValueError(f"{name} has a dtype that cannot be read.")
            places.setdefault(self._places[name], {})[name] = self.tensors[name]
        parts = [part for file, tensors in places.items() for part in plan_parts(file, tensors)]
        folder = self._parts_folder
        folder.mkdir(parents=True, exist_ok=True)
        if self.options.force_download:
            for path in folder.iterdir():
                path.unlink()
        with _progress_bar(f"Encoder of {self.repo_id}", sum(part.end - part.start for part in parts)) as progress:
            tasks = [partial(self._fetch_part, part, folder, progress) for part in parts]
            opened = _run_all(tasks)
        return {name: tensor for tensors in opened for name, tensor in tensors.items()}

    def _fetch_part(
        self, part: _Part, folder: Path, progress: Callable[[int], object], stopped: Callable[[], bool]
    ) -> dict[str, StoredTensor]:
        path = folder / f"{Path(part.file).stem}-{part.start}-{part.end}.safetensors"
        if path.exists():
            try:
                found = open_file(path)
            except ValueError:  # not as it was written: again, then
                path.unlink()
            else:
                progress(part.end - part.start)
                return found

        def count(received: int) -> None:
            if stopped():
                raise InterruptedError
            progress(received)

        body, _ = self._download(part.file, part.start, part.end, count)
        tensors = {
            name: as_tensor(body[tensor.start - part.start : tensor.end - part.start], tensor)
            for name, tensor in part.tensors.items()
        }
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".incomplete")
        os.close(handle)
        try:
            save_file(tensors, temporary)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return open_file(path)

    def forget_parts(self) -> None:
        """Remove what `fetch` downloaded, once something has been made of it."""
        shutil.rmtree(self._parts_folder, ignore_errors=True)


@contextmanager
def _progress_bar(label: str, total: int) -> Iterator[Callable[[int], object]]:
    lock = Lock()
    with tqdm(total=total, unit="B", unit_scale=True, desc=label, name=PROGRESS_BAR, disable=None) as bar:

        def update(count: int) -> None:
            with lock:
                bar.update(count)

        yield update


def _run_all(tasks: Sequence[Callable[..., dict[str, StoredTensor]]]) -> list[dict[str, StoredTensor]]:
    """Run tasks in parallel; the first that fails, or an interruption, stops them all."""
    stop = Event()
    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(task, stop.is_set) for task in tasks]
        try:
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
