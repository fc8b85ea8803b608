"""A model hub on loopback, in memory: what huggingface_hub asks of one to send files and to fetch them."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """Repositories that were made: {name: {file: bytes}}; `token` is the one that may write."""

    token = "hf_right"

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.stored: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers of the hub's API, and of its store for large files (git-lfs basic transfers)."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, content: dict, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_PUT(self):
        self.server.stored[self.path.rsplit("/", 1)[1]] = self._body()
        self._answer({})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if "/resolve/" in self.path:
            return self._file(*self.path[1:].split("/resolve/"))
        name = self.path.removeprefix("/api/models/").split("?")[0].split("/revision")[0]
        self._answer({"id": name, "sha": "0" * 40, "siblings": [], "private": True, "tags": []})

    def _file(self, name: str, place: str) -> None:
        """A file of a repository, or that there is none."""
        data = self.server.repositories.get(name, {}).get(place.split("/", 1)[1])
        self.send_response(404 if data is None else 200)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", '"0"')
        if data is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data or b"")

    def do_POST(self):
        body, hub = self._body(), self.server
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._answer({"error": "Invalid user token."}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            hub.repositories.setdefault(name, {})
            return self._answer({"url": f"{hub.address}/{name}", "name": name})
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            kind = lambda path: "lfs" if path.endswith(".safetensors") else "regular"  # noqa: E731
            listed = [
                {"path": f["path"], "uploadMode": kind(f["path"]), "shouldIgnore": False} for f in asked
            ]
            return self._answer({"files": listed})
        if self.path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            place = lambda o: {"upload": {"href": f"{hub.address}/store/{o['oid']}"}}  # noqa: E731
            return self._answer(
                {"transfer": "basic", "objects": [{**o, "actions": place(o)} for o in wanted]}
            )
        if "/commit/" in self.path:
            name = self.path.removeprefix("/api/models/").split("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "lfsFile":
                    hub.repositories[name][value["path"]] = hub.stored[value["oid"]]
            return self._answer(
                {"commitUrl": f"{hub.address}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40}
            )
        return self._answer({})

    def log_message(self, *arguments):
        pass


@contextmanager
def running():
    """A hub that answers while the block lasts."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
