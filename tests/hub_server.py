"""A small Hub on this machine, with faults on demand.

It answers those requests of huggingface_hub that download and upload models.
"""

import base64
import hashlib
import json
import re
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The repositories of the server, its faults, and a record of what it has sent.

    Args:
        folder: folder for everything that is pushed.
        url: address of the server.
        repos: for each repository id the folder with the files of its first commit, which is on `main`.
        revisions: for each repository id and pushed branch or commit, the commit and the folder with its files.
        private: repository ids that require `token`. Writing always requires it.
        token: the only valid access token.
        ranges: whether byte ranges are supported. Otherwise, whole files are sent.
        cut_after: number of bytes of a body after which the connection is closed.
        cuts: how many more times that happens.
        budget: number of bytes of safetensors files that are sent before all connections are closed early; None for
            no limit.
        failures: how many of the next requests for safetensors files are answered with status 503.
        sent: number of bytes of bodies that were sent, by file name.
        requests: `"METHOD path"` of every request.
        lock: held while faults and records change, as every request has its own thread.
    """

    folder: Path
    url: str = ""
    repos: dict[str, Path] = field(default_factory=dict)
    revisions: dict[tuple[str, str], tuple[str, Path]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    token: str = "hf_secret"
    ranges: bool = True
    cut_after: int = 0
    cuts: int = 0
    budget: int | None = None
    failures: int = 0
    sent: Counter[str] = field(default_factory=Counter)
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def forget(self) -> None:
        """Clear the records."""
        self.sent.clear()
        self.requests.clear()

    def find(self, repo_id: str, revision: str | None) -> tuple[str, Path] | None:
        """Return the commit and the folder of a revision, or None if it does not exist."""
        found = self.revisions.get((repo_id, revision or "main"))
        first = revision in (None, "main", COMMIT) and repo_id in self.repos
        return found or ((COMMIT, self.repos[repo_id]) if first else None)

    def commit(self, repo_id: str, branch: str, files: dict[str, bytes], deleted: Sequence[str] = ()) -> str:
        """Add a commit to a branch, and return it."""
        parent = self.find(repo_id, branch)
        assert parent is not None
        sha = hashlib.sha1(f"{repo_id} {branch} {len(self.revisions)}".encode()).hexdigest()
        folder = self.folder / sha
        shutil.copytree(parent[1], folder)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        for name in deleted:
            (folder / name).unlink()
        self.revisions[repo_id, branch] = self.revisions[repo_id, sha] = (sha, folder)
        return sha


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body are written apart; without this, each body waits 40 ms for the client's acknowledgement.
    disable_nagle_algorithm = True
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def _reply(self, status: int, headers: dict[str, str], body: bytes = b"", name: str = "") -> None:
        sent = b""
        if self.command != "HEAD":
            with self.hub.lock:  # Recorded first: the client may have read the reply before this thread continues.
                sent = self._cut(body, name)
                self.hub.sent[name] += len(sent)
            if len(sent) < len(body):
                self.close_connection = True
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        try:
            self.wfile.write(sent)
        except ConnectionError:  # The client has interrupted the download.
            self.close_connection = True

    def _cut(self, body: bytes, name: str) -> bytes:
        """Return the part of a body that is sent before the connection fails."""
        hub = self.hub
        if hub.cuts and hub.cut_after and len(body) > hub.cut_after:
            hub.cuts -= 1
            body = body[: hub.cut_after]
        if hub.budget is not None and name.endswith(".safetensors"):
            body = body[: hub.budget]
            hub.budget -= len(body)
        return body

    def _json(self, content: Any, status: int = 200) -> None:
        self._reply(status, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _error(self, status: int, code: str, commit: str = COMMIT) -> None:
        self._reply(status, {"X-Error-Code": code, "X-Error-Message": code, "X-Repo-Commit": commit})

    @property
    def _authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def do_HEAD(self) -> None:  # noqa: N802
        self.do_GET()

    def do_GET(self) -> None:  # noqa: N802
        hub = self.hub
        hub.requests.append(f"{self.command} {self.path}")
        path = unquote(self.path.split("?")[0])
        pattern = r"/(?:api/models/)?([^/]+/[^/]+?)(?:/(resolve|revision|tree)/([^/]+)(?:/(.*))?)?"
        match = re.fullmatch(pattern, path)
        if match is None:
            return self._error(404, "RepoNotFound")
        repo_id, action, revision, name = match.groups()
        if hub.find(repo_id, None) is None or (repo_id in hub.private and not self._authorized):
            return self._error(401, "RepoNotFound")
        found = hub.find(repo_id, revision)
        if found is None:
            return self._error(404, "RevisionNotFound")
        commit, folder = found
        if path.startswith("/api/models/"):
            return self._describe(repo_id, commit, folder, tree=action == "tree")
        file = folder / (name or "")
        if not name or not file.is_file():
            return self._error(404, "EntryNotFound", commit)
        with hub.lock:
            fails = hub.failures > 0 and name.endswith(".safetensors")
            hub.failures -= fails
        if fails:
            return self._reply(503, {})
        self._send_file(file, name, commit)

    def _describe(self, repo_id: str, commit: str, folder: Path, tree: bool) -> None:
        """Send the list of a repository's files, with their sizes if `tree`."""
        names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        if not tree:
            return self._json({"id": repo_id, "sha": commit, "siblings": [{"rfilename": name} for name in names]})
        sizes = {name: (folder / name).stat().st_size for name in names}
        self._json([{"type": "file", "path": name, "size": sizes[name], "oid": "0" * 40} for name in names])

    def _send_file(self, file: Path, name: str, commit: str) -> None:
        size = file.stat().st_size
        tag = hashlib.sha256(f"{file} {size} {file.stat().st_mtime_ns}".encode()).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{tag}"', "Content-Length": str(size)}
        if self.command == "HEAD":
            return self._reply(200, headers)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status, start, end = 200, 0, size
        if wanted is not None and self.hub.ranges:
            status, start = 206, int(wanted[1])
            end = min(int(wanted[2]) + 1, size) if wanted[2] else size
            headers |= {"Content-Range": f"bytes {start}-{end - 1}/{size}", "Content-Length": str(end - start)}
        with open(file, "rb") as opened:
            opened.seek(start)
            self._reply(status, headers, opened.read(end - start), name)

    def do_PUT(self) -> None:  # noqa: N802
        self.hub.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        (self.hub.folder / self.path.rpartition("/")[2]).write_bytes(body)
        self._reply(200, {})

    def do_POST(self) -> None:  # noqa: N802
        hub = self.hub
        hub.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._authorized:
            return self._error(401, "Unauthorized")
        path = unquote(self.path.split("?")[0])
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create_repository(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for item in objects:
                item["actions"] = {"upload": {"href": f"{hub.url}/lfs/{item['oid']}"}}
            return self._json({"transfer": "basic", "objects": objects})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/(.+)", path)
        if match is None or hub.find(match[1], None) is None:
            return self._error(404, "RepoNotFound")
        repo_id, action, revision = match.groups()
        if action == "branch":
            return self._create_branch(repo_id, revision)
        if hub.find(repo_id, revision) is None:
            return self._error(404, "RevisionNotFound")
        if action == "commit":
            return self._commit(repo_id, revision, body)
        files = [{"path": file["path"], "shouldIgnore": False} for file in json.loads(body)["files"]]
        for file in files:
            file["uploadMode"] = "lfs" if str(file["path"]).endswith(".safetensors") else "regular"
        self._json({"files": files})

    def _create_repository(self, content: Any) -> None:
        hub = self.hub
        repo_id = f"{content.get('organization') or 'me'}/{content['name']}"
        exists = hub.find(repo_id, None) is not None
        if not exists:
            hub.repos[repo_id] = Path(tempfile.mkdtemp(dir=hub.folder))
            private = content.get("private") or content.get("visibility") == "private"
            hub.private |= {repo_id} if private else set()
        self._json({"url": f"{hub.url}/{repo_id}", "id": repo_id}, 409 if exists else 200)

    def _create_branch(self, repo_id: str, branch: str) -> None:
        hub = self.hub
        exists = hub.find(repo_id, branch) is not None
        main = hub.find(repo_id, None)
        assert main is not None
        hub.revisions.setdefault((repo_id, branch), main)
        self._json({}, 409 if exists else 200)

    def _commit(self, repo_id: str, branch: str, body: bytes) -> None:
        """Commit what a body lists, one operation a line: contents, objects that were uploaded before, deletions."""
        hub = self.hub
        operations = [json.loads(line) for line in body.splitlines()]
        contents = {}
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                contents[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                contents[value["path"]] = (hub.folder / value["oid"]).read_bytes()
        deleted = [operation["value"]["path"] for operation in operations if operation["key"] == "deletedFile"]
        sha = hub.commit(repo_id, branch, contents, deleted)
        self._json({"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{repo_id}/commit/{sha}"})


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a Hub for the duration of the block."""
    with tempfile.TemporaryDirectory() as folder:
        hub = Hub(Path(folder))
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
