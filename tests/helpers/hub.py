"""A small local imitation of the Hugging Face Hub: an HTTP server for tests that use the Hub's real clients,
``huggingface_hub`` and ``datasets``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote


@dataclass
class Hub:
    """Requests and files that the hub has received."""

    endpoint: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Repository -> path -> content now."""
    datasets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Repository of a data set -> path -> content; data sets are only read."""
    private: dict[str, str | None] = field(default_factory=dict)
    """Repository -> visibility that its creation requested."""
    commits: list[tuple[str, list[str]]] = field(default_factory=list)
    """(message, added or deleted paths) in order."""
    tokens: set[str | None] = field(default_factory=set)
    fetched: list[str] = field(default_factory=list)
    """Files that were fetched, in order."""
    closed: bool = False
    """Whether the hub refuses all commits."""


@contextmanager
def hub() -> Iterator[Hub]:
    """Serve until the block ends. Repositories of the owner ``others`` may not be written."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def answer(self, status: int, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            state.tokens.add(self.headers.get("Authorization"))
            path = self.path.partition("?")[0]
            if path == "/api/repos/create":
                self.answer(*create(state, json.loads(body)))
            elif path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
            elif "/paths-info/" in path:
                wanted = parse_qs(body.decode())["paths"]
                self.answer(200, listed(held_by(state, path), lambda name: name in wanted))
            elif "/preupload/" in path:
                self.answer(200, {"files": [known(state, path, file) for file in json.loads(body)["files"]]})
            elif "/commit/" in path:
                self.answer(*commit(state, path, [json.loads(line) for line in body.splitlines()]))
            else:
                self.answer(404, {"error": path})

        def do_HEAD(self) -> None:
            self.send_file(body=False)

        def send_file(self, body: bool) -> None:
            """Send a file of a repository, ``/owner/name/resolve/main/path``, perhaps behind ``/datasets``."""
            path = unquote(self.path.partition("?")[0])
            held = state.datasets if path.startswith("/datasets/") else state.files
            parts = path.removeprefix("/datasets").split("/")
            content = held.get("/".join(parts[1:3]), {}).get("/".join(parts[5:]))
            self.send_response(404 if content is None else 200)
            self.send_header("X-Repo-Commit", "0" * 40)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("ETag", f'"{oid(content or b"")}"')
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if body and content is not None:
                state.fetched.append("/".join(parts[5:]))
                self.wfile.write(content)

        def do_GET(self) -> None:
            if "/resolve/" in self.path:
                return self.send_file(body=True)
            held = held_by(state, self.path)
            if held is None:
                self.answer(404, {"error": self.path})
            elif "/tree/" in self.path:
                self.answer(200, listed(held))
            else:
                names = [{"rfilename": name} for name in held]
                self.answer(200, {"id": repository_in(self.path), "sha": "0" * 40, "siblings": names})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def repository_in(path: str) -> str:
    """The repository in ``/api/models/owner/name/...``."""
    return "/".join(path.partition("?")[0].split("/")[3:5])


def held_by(state: Hub, path: str) -> dict[str, bytes] | None:
    kind = {"models": state.files, "datasets": state.datasets}.get(path.split("/")[2])
    return None if kind is None else kind.get(repository_in(path))


def listed(held: dict[str, bytes] | None, wanted: Callable[[str], bool] = lambda name: True) -> list[dict[str, Any]]:
    """Files as the hub lists them."""
    found = ((name, content) for name, content in (held or {}).items() if wanted(name))
    return [{"type": "file", "path": name, "size": len(content), "oid": oid(content)} for name, content in found]


def create(state: Hub, wanted: dict[str, Any]) -> tuple[int, Any]:
    name = f"{wanted['organization']}/{wanted['name']}"
    if wanted["organization"] == "others":
        return 403, {"error": "You may not write there"}
    if name in state.files:
        return 409, {"error": "You already created this model repo", "url": f"{state.endpoint}/{name}"}
    state.files[name], state.private[name] = {}, wanted.get("visibility")
    return 200, {"url": f"{state.endpoint}/{name}", "name": name}


def known(state: Hub, path: str, file: dict[str, Any]) -> dict[str, Any]:
    """Answer that every file goes into the commit itself, unless the hub has it."""
    held = state.files["/".join(path.split("/")[3:5])].get(file["path"])
    return {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": oid(held) if held else None}


def oid(content: bytes) -> str:
    """The id that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def commit(state: Hub, path: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
    if state.closed:
        return 403, {"error": "closed for maintenance"}
    repository = "/".join(path.split("/")[3:5])
    held, touched = state.files[repository], []
    for line in lines[1:]:
        name = line["value"]["path"]
        touched.append(name)
        if line["key"] == "file":
            held[name] = base64.b64decode(line["value"]["content"])
        else:
            for gone in [key for key in held if key == name or key.startswith(f"{name.rstrip('/')}/")]:
                del held[gone]
    state.commits.append((lines[0]["value"]["summary"], touched))
    return 200, {"success": True, "commitOid": "1" * 40, "commitUrl": f"{state.endpoint}/{repository}/commit/1"}
