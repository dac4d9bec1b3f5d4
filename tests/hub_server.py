"""A small Hub on this machine: what huggingface_hub asks of the real one to read models, with faults on demand."""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server serves, how it fails, and what it has sent.

    Args:
        repos: for each id, the folder with the files of its only commit.
        private: ids that need `token`.
        ranges: whether ranges are honoured.
        cut_after: bytes of a body after which the connection is cut, as often as `cuts` says.
        budget: bytes of weights that are still sent before the line is dead; None for any number.
        failures: how many of the next requests for weights get a 503.
        sent: bytes of bodies, by the name of the file.
        requests: `"METHOD path"` of every request.
    """

    url: str = ""
    repos: dict[str, Path] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    token: str = "hf_secret"
    ranges: bool = True
    cut_after: int = 0
    cuts: int = 0
    budget: int | None = None
    failures: int = 0
    sent: Counter[str] = field(default_factory=Counter)
    requests: list[str] = field(default_factory=list)

    def forget(self) -> None:
        self.sent.clear()
        self.requests.clear()


def _make_handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def _reply(self, status: int, headers: dict[str, str], body: bytes = b"", name: str = "") -> None:
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.cuts and hub.cut_after and len(body) > hub.cut_after:
                hub.cuts -= 1
                body = body[: hub.cut_after]
                self.close_connection = True
            if hub.budget is not None and name.endswith(".safetensors"):
                body, whole = body[: hub.budget], body
                hub.budget -= len(body)
                self.close_connection = len(body) < len(whole)
            self.wfile.write(body)
            hub.sent[name] += len(body)

        def _error(self, status: int, code: str) -> None:
            self._reply(status, {"X-Error-Code": code, "X-Error-Message": code, "X-Repo-Commit": COMMIT})

        def do_HEAD(self) -> None:  # noqa: N802
            self.do_GET()

        def do_GET(self) -> None:  # noqa: N802
            hub.requests.append(f"{self.command} {self.path}")
            path = unquote(self.path.split("?")[0])
            match = re.fullmatch(
                r"/(?:api/models/)?([^/]+/[^/]+?)(?:/(resolve|revision|tree)/([^/]+)(?:/(.*))?)?", path
            )
            if match is None:
                return self._error(404, "RepoNotFound")
            repo_id, action, revision, name = match.groups()
            authorized = self.headers.get("Authorization") == f"Bearer {hub.token}"
            if repo_id not in hub.repos or (repo_id in hub.private and not authorized):
                return self._error(401, "RepoNotFound")
            if revision not in (None, "main", COMMIT):
                return self._error(404, "RevisionNotFound")
            folder = hub.repos[repo_id]
            if path.startswith("/api/models/"):
                names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
                content: Any = {"id": repo_id, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                if action == "tree":
                    content = [
                        {"type": "file", "path": name, "size": (folder / name).stat().st_size, "oid": "0" * 40}
                        for name in names
                    ]
                return self._reply(200, {"Content-Type": "application/json"}, json.dumps(content).encode())
            file = folder / (name or "")
            if not name or not file.is_file():
                return self._error(404, "EntryNotFound")
            if hub.failures and name.endswith(".safetensors"):
                hub.failures -= 1
                return self._reply(503, {})
            size = file.stat().st_size
            tag = hashlib.sha256(f"{file} {size} {file.stat().st_mtime_ns}".encode()).hexdigest()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"', "Content-Length": str(size)}
            if self.command == "HEAD":
                return self._reply(200, headers)
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            status, start, end = 200, 0, size
            if asked is not None and hub.ranges:
                status, start = 206, int(asked[1])
                end = min(int(asked[2]) + 1, size) if asked[2] else size
                headers |= {"Content-Range": f"bytes {start}-{end - 1}/{size}", "Content-Length": str(end - start)}
            with open(file, "rb") as opened:
                opened.seek(start)
                self._reply(status, headers, opened.read(end - start), name)

    return Handler


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a Hub as long as the context lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _make_handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
