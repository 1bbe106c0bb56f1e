"""A Hugging Face hub on this machine: as much of its HTTP protocol as huggingface_hub needs to find and move a model.

Small files come from the repository itself; safetensors are large files there: a redirect to another host (`localhost`, where
the hub is `127.0.0.1`), with size and hash in headers of the redirect. As on the real hub, what a gated repository is (its
commits, the names of its files) is public and its files are not; and who does not log in is told 401 for what is not there.

Not run by itself; tests/test_hub.py and tests/test_push.py use it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_opensesame"
"""The one token that this hub knows; its owner has accepted the conditions of every gated repository."""
USER = "somebody"
"""The token's owner."""


@dataclass
class Repository:
    """Commits by their 40 digits, each with its files; branches and tags by name."""

    gated: bool = False
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)


class FakeHub:
    """The repositories that are served, and the requests that came: `("GET", "/api/models/…")`, in their order."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.broken: int = 0
        """A status such as 503 with which everything is answered; 0 for none."""
        self.cut_short: bool = False
        """Whether only half of a large file is sent."""
        self.url = self.cdn = ""

    def commit(self, name: str, folder: Path, *, gated: bool = False, branch: str = "main") -> str:
        """Put the files of a folder into a repository as a new commit, and give that."""
        files = {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
        digest = hashlib.sha1(name.encode())
        for path, content in files.items():
            digest.update(path.encode() + content)
        repository = self.repositories.setdefault(name, Repository())
        repository.gated = gated
        repository.commits[digest.hexdigest()] = files
        repository.branches[branch] = digest.hexdigest()
        return digest.hexdigest()

    def asked_for(self, ending: str) -> list[tuple[str, str]]:
        """The requests whose path ends so."""
        return [request for request in self.requests if request[1].endswith(ending)]

    @contextmanager
    def serving(self) -> Iterator[FakeHub]:
        """Answer requests at `url` while the block runs."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url, self.cdn = (f"http://{host}:{server.server_port}" for host in ("127.0.0.1", "localhost"))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(*hub._answer(self.command, self.path, self.headers.get("Authorization")))

            do_HEAD = do_GET

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.answer(*hub._posted(self.path, self.headers.get("Authorization"), body))

            def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def _answer(self, method: str, target: str, authorization: str | None) -> tuple[int, dict[str, str], bytes]:
        path = unquote(urlsplit(target).path)
        self.requests.append((method, path))
        if self.broken:
            return self.broken, {}, b""
        if path.startswith("/cdn/"):
            commits = [commit for repository in self.repositories.values() for commit in repository.commits.values()]
            contents = {_sha256(content): content for files in commits for content in files.values()}
            content = contents[path.removeprefix("/cdn/")]
            return 200, {}, content[: len(content) // 2] if self.cut_short else content
        if authorization not in (None, f"Bearer {TOKEN}"):
            return _error(401, "", "Invalid credentials in Authorization header")
        if path == "/api/whoami-v2":
            return _json({"type": "user", "name": USER}) if authorization else _error(401, "", "Invalid username or password.")
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        verb = next((word for word in ("revision", "tree", "resolve") if word in parts), "")
        place = parts.index(verb) if verb else len(parts)
        name = "/".join(parts[:place])
        if (repository := self.repositories.get(name)) is None:
            return (
                _error(404, "RepoNotFound", "Repository not found")
                if authorization
                else _error(401, "", "Invalid username or password.")
            )
        if verb == "resolve":
            revision, file = parts[place + 1], "/".join(parts[place + 2 :])
        else:
            revision, file = "/".join(parts[place + 1 :]) or "main", ""
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repository.commits[commit]
        if verb == "tree":
            return _json([_entry(path, content) for path, content in files.items()])
        if api:
            about = {"id": name, "modelId": name, "sha": commit, "gated": "manual" if repository.gated else False}
            return _json(
                {
                    **about,
                    "private": repository.private,
                    "tags": [],
                    "downloads": 0,
                    "siblings": [{"rfilename": path} for path in files],
                }
            )
        if repository.gated and not authorization:
            return _error(401, "GatedRepo", f"Access to model {name} is restricted.")
        if file not in files:
            return _error(404, "EntryNotFound", "Entry not found")
        content = files[file]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_git_hash(content)}"'}
        if not file.endswith(".safetensors"):
            return 200, headers, content
        headers |= {"X-Linked-Etag": f'"{_sha256(content)}"', "X-Linked-Size": str(len(content))}
        return 302, {**headers, "Location": f"{self.cdn}/cdn/{_sha256(content)}"}, b""

    def _posted(self, path: str, authorization: str | None, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """What uploading a model asks for; every file is a small one."""
        path = unquote(path)
        self.requests.append(("POST", path))
        if self.broken:
            return self.broken, {}, b""
        if authorization != f"Bearer {TOKEN}":
            return _error(401, "", "Invalid username or password.")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or USER}/{wanted['name']}"
            if wanted.get("organization") not in (None, USER):
                return _error(403, "", f"You don't have the rights to create a model under {wanted['organization']}")
            if name in self.repositories:
                return 409, *_json({"error": "You already created this model repo", "url": f"{self.url}/{name}"})[1:]
            self.repositories[name] = Repository(private=wanted.get("private") or wanted.get("visibility") == "private")
            return _json({"url": f"{self.url}/{name}"})
        if path == "/api/validate-yaml":
            return _json({"warnings": [], "errors": []})
        name, _, verb = path.removeprefix("/api/models/").partition("/preupload/")
        if verb:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]
            ]
            return _json({"files": files})
        name = name.partition("/commit/")[0]
        repository, lines = self.repositories[name], [json.loads(line) for line in body.splitlines()]
        files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
        commit = hashlib.sha1(body).hexdigest()
        repository.commits[commit] = repository.commits.get(repository.branches.get("main", ""), {}) | files
        repository.branches["main"] = commit
        return _json({"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{name}/commit/{commit}"})


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _git_hash(content)}
    if path.endswith(".safetensors"):
        entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
    return entry


def _json(content: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _error(status: int, code: str, message: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}, b""


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
