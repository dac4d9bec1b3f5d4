"""Byte ranges of remote files: which requests to make, and how to make them.

Unusual: neighbouring tensors are downloaded by one request, a part. Each part is stored as a small safetensors file of
its own, so that an interrupted download continues where it stopped.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from time import sleep
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff
from safetensors.torch import save_file

from ...configuration.atomic_files import replaced_file
from .safetensors_files import open_safetensors
from .stored_tensors import StoredTensor, as_tensor

__all__ = ["DownloadLimits", "Part", "RangesNotServedError", "RemoteFile", "download_parts", "plan_parts"]


class RangesNotServedError(OSError):
    """The server ignores byte ranges and sends whole files only."""


@dataclass(frozen=True)
class DownloadLimits:
    """How byte ranges are downloaded.

    Args:
        part_size: size of the largest part of several tensors, in bytes.
        workers: number of parts that are downloaded at the same time. All of them are held in memory.
        largest_gap: size of the largest gap in a part, in bytes. A longer gap costs more than another request.
        gaps_share: how much may be downloaded for gaps in total, as a share of the tensors' bytes.
        attempts: number of requests in succession that may fail before the download does.
        first_wait: seconds between the first two attempts. The time doubles with each further attempt.
        longest_wait: most seconds between two attempts.
    """

    part_size: int = 16 * 2**20
    workers: int = 8
    largest_gap: int = 2**14
    gaps_share: float = 0.005
    attempts: int = 6
    first_wait: float = 1
    longest_wait: float = 8


@dataclass(frozen=True)
class Part:
    """Neighbouring tensors of a remote file, which are downloaded by one request.

    Args:
        start: offset of the first byte in the remote file.
        end: offset after the last byte.
        tensors: the wanted tensors in this range. There may be gaps between them.
    """

    start: int
    end: int
    tensors: Mapping[str, StoredTensor]


def plan_parts(tensors: Mapping[str, StoredTensor], limits: DownloadLimits) -> list[Part]:
    """Group tensors of one file, in the order of their offsets, into parts."""
    spare = limits.gaps_share * sum(tensor.end - tensor.start for tensor in tensors.values())
    parts: list[Part] = []
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        last = parts[-1] if parts else None
        gap = tensor.start - last.end if last else 0
        if last is None or gap > min(limits.largest_gap, spare) or tensor.end - last.start > limits.part_size:
            parts.append(Part(tensor.start, tensor.end, {name: tensor}))
        else:
            spare -= gap
            parts[-1] = Part(last.start, tensor.end, {**last.tensors, name: tensor})
    return parts


def _ignore(count: int) -> None:
    pass


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server that answers requests for byte ranges.

    Args:
        repo_id: id of the repository. Error messages name it.
        name: name of the file in the repository.
        url: address of the file.
        headers: headers of every request.
        limits ([`DownloadLimits`], *optional*): how often and when to retry.
    """

    repo_id: str
    name: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    limits: DownloadLimits = DownloadLimits()

    @property
    def label(self) -> str:
        return f"{self.repo_id}/{self.name}"

    def read(self, start: int, end: int, progress: Callable[[int], object] = _ignore) -> tuple[bytearray, int]:
        """Download the bytes from `start` to `end`.

        Args:
            progress: called with the number of bytes whenever some were received. It may raise `InterruptedError`
                to stop the download.

        Returns:
            the bytes, and the size of the whole file.

        Raises:
            `OSError`: the file does not exist, may not be read, or the connection fails repeatedly.
            `RangesNotServedError`: the server ignores byte ranges.
        """
        body = bytearray()
        failures = 0
        while True:
            received = len(body)
            try:
                file_size = self._receive(start, end, body, progress)
                if len(body) == end - start:
                    return body, file_size
                error: Exception = OSError(f"{self.label}: the connection was closed early.")
            except (HfHubHTTPError, RangesNotServedError, InterruptedError):
                raise
            except Exception as raised:  # The HTTP client's own classes differ between versions of huggingface_hub.
                error = raised
            failures = failures + 1 if len(body) == received else 0
            if failures == self.limits.attempts:
                reason = str(error) or type(error).__name__
                raise OSError(f"{self.label} cannot be downloaded: {reason}") from error
            sleep(min(self.limits.longest_wait, self.limits.first_wait * 2.0 ** (failures - 1)))

    def _receive(self, start: int, end: int, body: bytearray, progress: Callable[[int], object]) -> int:
        """Request the bytes that `body` lacks, append what arrives, and return the size of the whole file."""
        position = start + len(body)
        with http_stream_backoff(
            "GET",
            self.url,
            headers={**self.headers, "Accept-Encoding": "identity", "Range": f"bytes={position}-{end - 1}"},
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            max_retries=self.limits.attempts - 1,
            base_wait_time=self.limits.first_wait,
            max_wait_time=self.limits.longest_wait,
            retry_on_exceptions=(),
        ) as response:
            if response.status_code != 416:  # "Range Not Satisfiable" is reported with the other range errors.
                hf_raise_for_status(response)
            file_size = self._check_range(response, position)
            for chunk in response.iter_bytes():
                body += chunk
                progress(len(chunk))
                if len(body) > end - start:
                    raise RangesNotServedError(f"{self.label}: the server sends more bytes than were requested.")
        return file_size

    def _check_range(self, response: Any, start: int) -> int:
        """Check that a response holds the requested range, and return the size of the whole file."""
        content_range = response.headers.get("Content-Range", "")
        content_length = response.headers.get("Content-Length", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range.strip().lower())
        if response.status_code == 206 and match is not None and int(match[1]) == start:
            return int(match[2])
        if response.status_code == 200:
            amount = f"all {int(content_length) / 1e9:.1f} GB" if content_length.isdigit() else "the whole file"
            problem = f"ignores byte ranges and would send {amount}"
        else:
            problem = f"answers with status {response.status_code} and Content-Range {content_range!r}"
        raise RangesNotServedError(
            f"The server of {self.label} {problem}: "
            "pass full_download=True (--full-download) to download the whole file."
        )


def download_parts(
    parts: Sequence[tuple[RemoteFile, Part]], folder: Path, limits: DownloadLimits, progress: Callable[[int], object]
) -> dict[str, StoredTensor]:
    """Download parts in parallel, except those that are in `folder` already.

    Args:
        parts: the parts, each with the file that it belongs to.
        folder: where they are stored.
        limits ([`DownloadLimits`]): how many are downloaded at the same time.
        progress: called with numbers of bytes as they arrive, from several threads.

    Returns:
        all tensors of the parts, not read yet.

    Raises:
        `OSError`: a download failed. The finished parts stay in the folder, and a later call continues from there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stop = Event()

    def count(received: int) -> None:
        if stop.is_set():
            raise InterruptedError
        progress(received)

    with ThreadPoolExecutor(limits.workers) as pool:
        futures = [pool.submit(partial(_download_part, file, part, folder, count)) for file, part in parts]
        try:
            downloaded = [future.result() for future in futures]
        except BaseException:  # The first failure and an interruption stop all other downloads.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: tensor for tensors in downloaded for name, tensor in tensors.items()}


def _download_part(
    file: RemoteFile, part: Part, folder: Path, progress: Callable[[int], object]
) -> dict[str, StoredTensor]:
    path = folder / f"{file.name}-{part.start}-{part.end}.safetensors"
    if path.exists():
        try:
            stored = open_safetensors(path)
        except ValueError:  # The stored part is damaged and is downloaded again.
            path.unlink()
        else:
            progress(part.end - part.start)
            return stored
    body, _ = file.read(part.start, part.end, progress)
    tensors = {
        name: as_tensor(body[tensor.start - part.start : tensor.end - part.start], tensor)
        for name, tensor in part.tensors.items()
    }
    with replaced_file(path) as temporary:
        save_file(tensors, temporary)
    return open_safetensors(path)
