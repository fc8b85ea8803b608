"""A model hub on loopback: folders served the way huggingface_hub, datasets and mteb ask for them.

It speaks the hub's read API (repository info and file trees at a commit, HEAD with commit and etag, redirects
of large files to a store on another host name, ranged downloads) and fails in the ways a real one does, when
told to. Nothing in the client libraries is patched: they are pointed here with ``HF_ENDPOINT``. It serves
plain git-lfs transfers alone; the hub's newer Xet protocol is not spoken.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

#: Files that the hub keeps in its store for large files, by suffix.
LARGE = (".safetensors", ".parquet")
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?$")
FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


@dataclass(frozen=True)
class Repository:
    """A folder as a repository whose only commit is `commit`; a gated one wants a token."""

    folder: Path
    commit: str
    gated: bool = False

    @cached_property
    def files(self) -> dict[str, Path]:
        """Path within the repository -> file."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path for path in paths}

    @cached_property
    def digests(self) -> dict[str, str]:
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in self.files.items()}


@dataclass
class Fault:
    """What the hub does wrong `times` times, to requests whose path matches `pattern`.

    `kind`: ``busy`` answers 429 and when to come back, ``cut`` closes the connection half-way.
    """

    pattern: str
    kind: str
    times: int = 1


@dataclass
class Hub:
    """Repositories by ``models/ORG/NAME`` or ``datasets/ORG/NAME``; `requests` is what was asked so far."""

    repositories: dict[str, Repository]
    token: str = "hf_right"
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    port: int = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def store(self) -> str:
        """The store's host has another name than the hub, as in life: clients treat the two differently."""
        return f"http://localhost:{self.port}/store"

    @cached_property
    def stored(self) -> dict[str, Path]:
        """Digest -> file, of every file of every repository."""
        everything = self.repositories.values()
        return {repo.digests[name]: path for repo in everything for name, path in repo.files.items()}

    def fault(self, path: str) -> str | None:
        """The kind of fault that this request meets, which is then used up."""
        for fault in self.faults:
            if fault.times and re.search(fault.pattern, path):
                fault.times -= 1
                return fault.kind
        return None


class Handler(BaseHTTPRequestHandler):
    """One request; a subclass made by `running` knows its `hub`."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._handle()

    do_HEAD = do_POST = do_GET

    def _handle(self) -> None:
        self.path, query = unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.hub.fault(self.path)
        if fault == "busy":
            return self._answer(429, {"error": "too many requests"}, {"Retry-After": "1"})
        self.cut = fault == "cut"
        if self.path.startswith("/store/"):
            return self._send(self.hub.stored[self.path.removeprefix("/store/")])
        if match := FILE.match(self.path):
            datasets, name, revision, file = match.groups()
            repository = self._repository(f"{'datasets' if datasets else 'models'}/{name}", revision)
            return repository and self._file(repository, file)
        if match := API.match(self.path):
            kind, name, what, revision, folder = match.groups()
            repository = self._repository(f"{kind}/{name}", revision)
            return repository and self._api(repository, name, what, folder or "", query, body)
        return self._answer(404, {"error": "not found"}, {"X-Error-Code": "EntryNotFound"})

    def _repository(self, name: str, revision: str | None) -> Repository | None:
        """The repository asked for, or None after an answer that says why not."""
        repository = self.hub.repositories.get(name)
        problem = None
        if repository is None:
            problem = 404, "RepoNotFound", "repository not found"
        elif repository.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            problem = 401, "GatedRepo", f"access to {name} is restricted: log in and accept its terms"
        elif revision not in (None, "main", repository.commit):
            problem = 404, "RevisionNotFound", f"no revision {revision}"
        if problem is None:
            return repository
        status, code, message = problem
        self._answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})
        return None

    def _file(self, repository: Repository, name: str) -> None:
        """A small file itself; of a large one, where it lies."""
        commit = {"X-Repo-Commit": repository.commit}
        if name not in repository.files:
            return self._answer(404, {"error": "no such file"}, commit | {"X-Error-Code": "EntryNotFound"})
        path, digest = repository.files[name], repository.digests[name]
        if not name.endswith(LARGE):
            return self._send(path, commit | {"ETag": f'"{digest}"'})
        linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(path.stat().st_size)}
        return self._answer(302, {}, commit | linked | {"Location": f"{self.hub.store}/{digest}"})

    def _api(self, repository: Repository, name: str, what: str, folder: str, query: dict, body: bytes):
        """Information about a repository, the files under a folder of it, or about some of its paths."""
        if what in (None, "revision"):
            siblings = [{"rfilename": file} for file in repository.files]
            about = {"id": name, "sha": repository.commit, "siblings": siblings, "private": False}
            about |= {"gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
            return self._answer(200, about | {"lastModified": "2026-01-01T00:00:00.000Z"})
        if what == "paths-info":
            asked = parse_qs(body.decode()).get("paths") if b"=" in body[:6] else json.loads(body)["paths"]
            entries = [_entry(repository, path) for path in asked]
            return self._answer(200, [entry for entry in entries if entry])
        if folder and not _entry(repository, folder):
            return self._answer(404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"})
        deep = query.get("recursive", ["false"])[0].lower() in ("1", "true")
        return self._answer(200, [_entry(repository, path) for path in _paths(repository, folder, deep)])

    def _send(self, path: Path, headers: dict[str, str] | None = None) -> None:
        """A file, or the range of it that is asked for."""
        content, status, headers = path.read_bytes(), 200, dict(headers or {})
        if asked := re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range", "")):
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._write(status, content, headers | {"Accept-Ranges": "bytes"})

    def _answer(self, status: int, content: dict | list, headers: dict[str, str] | None = None) -> None:
        self.cut = False
        self._write(
            status, json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {})
        )

    def _write(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.hub.requests.append((self.command, self.path, status))
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut:
            content, self.close_connection = content[: len(content) // 2], True
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


def _entry(repository: Repository, path: str) -> dict | None:
    """A file or folder as the API lists it; None if there is no such path."""
    if path in repository.files:
        size, digest = repository.files[path].stat().st_size, repository.digests[path]
        entry = {"type": "file", "path": path, "size": size, "oid": digest[:40]}
        return entry | (
            {"lfs": {"oid": digest, "size": size, "pointerSize": 134}} if path.endswith(LARGE) else {}
        )
    if any(file.startswith(f"{path}/") for file in repository.files):
        return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
    return None


def _paths(repository: Repository, folder: str, deep: bool) -> list[str]:
    """What lies in `folder`: with `deep` everything below it, folders included."""
    below = [Path(file).relative_to(folder) for file in repository.files if Path(file).is_relative_to(folder)]
    inside = {path for file in below for path in (file, *file.parents) if path != Path(".")}
    return sorted((Path(folder) / path).as_posix() for path in inside if deep or len(path.parts) == 1)


@contextmanager
def running(repositories: dict[str, Repository], faults: list[Fault] | None = None) -> Iterator[Hub]:
    """A hub that answers on a free port while the block lasts."""
    hub = Hub(repositories, faults=faults or [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
