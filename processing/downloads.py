"""The bytes behind a URL, within limits of size and time.

Unusual: the request runs in a thread of its own. A server that sends one byte at a time never exceeds the time limit
of a single read, so the caller stops waiting when the whole answer is late, and the thread ends by itself.
"""

import time
from concurrent import futures
from threading import Thread
from typing import NamedTuple

from huggingface_hub import get_session

__all__ = ["DOWNLOAD_LIMITS", "DownloadLimits", "download"]


class DownloadLimits(NamedTuple):
    """How much one download may take.

    Args:
        size (`int`): bytes.
        seconds (`float`): seconds for the whole answer.
        idle (`float`): seconds without a single byte.
    """

    size: int = 256_000_000
    seconds: float = 300.0
    idle: float = 30.0


DOWNLOAD_LIMITS = DownloadLimits()


def _receive(url: str, limits: DownloadLimits) -> bytes:
    end = time.monotonic() + limits.seconds
    content = bytearray()
    headers = {"Accept-Encoding": "identity"}  # A compressed answer may be a thousand times as large as what is sent.
    with get_session().stream("GET", url, headers=headers, timeout=limits.idle, follow_redirects=True) as response:
        if not response.is_success:
            raise ValueError(f"the server answers {response.status_code} {response.reason_phrase}")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise ValueError("the server sends it compressed")
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > limits.size:
                raise ValueError(f"it is larger than {limits.size:,} bytes")
            if time.monotonic() > end:
                raise TimeoutError
    return bytes(content)


def download(url: str, limits: DownloadLimits = DOWNLOAD_LIMITS) -> bytes:
    """Return the bytes behind an `http://` or `https://` URL.

    Raises:
        `TimeoutError`: the answer is not complete in time.
        `ValueError`: the server has no such file, or what it sends is too large.
        `OSError` and the errors of huggingface_hub's HTTP client: the server cannot be reached.
    """
    answer: futures.Future[bytes] = futures.Future()

    def run() -> None:
        try:
            answer.set_result(_receive(url, limits))
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=run, daemon=True).start()
    try:
        return answer.result(limits.seconds)
    except (TimeoutError, futures.TimeoutError) as error:
        raise TimeoutError(f"the download takes longer than {limits.seconds:g} s") from error
