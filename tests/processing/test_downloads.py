"""Downloads are bounded in size and time."""

import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest

from deepencoder.processing.downloads import DownloadLimits, download

CONTENT = bytes(range(256)) * 400


@pytest.fixture
def server() -> Iterator[tuple[str, list[Any]]]:
    """A server for files, some of which never end, and the headers of the requests that it got."""
    ended, headers = Event(), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            headers.append(self.headers)
            if self.path == "/silent-drip":  # the status line and a header that goes on for ever
                self.drip(b"HTTP/1.1 200 OK\r\nX: ")
                return
            self.send_response(200 if self.path != "/missing" else 404)
            if self.path == "/compressed":
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            if self.path == "/drip":
                self.drip(b"")
            else:
                self.wfile.write(CONTENT)

        def drip(self, first: bytes) -> None:
            self.wfile.write(first)
            try:
                while not ended.wait(0.02):
                    self.wfile.write(b"x")
            except OSError:
                pass  # the client has left

        def log_message(self, format: str, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", headers
    ended.set()
    httpd.shutdown()
    httpd.server_close()


def test_whole_files_arrive_uncompressed(server: tuple[str, list[Any]]) -> None:
    url, headers = server
    assert download(f"{url}/file", DownloadLimits(size=len(CONTENT))) == CONTENT
    assert headers[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("path", "limits", "words"),
    [
        ("missing", DownloadLimits(), "404"),
        ("compressed", DownloadLimits(), "compressed"),
        ("file", DownloadLimits(size=1000), "larger than 1,000 bytes"),
    ],
)
def test_what_exceeds_the_limits_is_refused(
    server: tuple[str, list[Any]], path: str, limits: DownloadLimits, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        download(f"{server[0]}/{path}", limits)


@pytest.mark.parametrize("path", ["drip", "silent-drip"])
def test_a_dripping_server_holds_nobody(server: tuple[str, list[Any]], path: str) -> None:
    """Each byte arrives in time, but the file never ends."""
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="longer than 0.3 s"):
        download(f"{server[0]}/{path}", DownloadLimits(seconds=0.3))
    assert time.monotonic() - start < 2
