"""A small Hugging Face hub on the loopback: what listing, downloading and uploading a model need of its API."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


class FakeHub:
    """Repositories of files, and the ways in which a hub may answer otherwise."""

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commit = COMMIT
        self.requests: list[tuple[str, str]] = []
        self.gated: set[str] = set()
        self.status = 200
        self.web_page = False
        """Whether every answer is a web page, as of a network with a login page."""
        self.corrupt = False
        """Whether contents are other bytes than the listing's checksums say."""
        self.cut = 0
        """How many downloads still break off in the middle."""
        self.both = None
        """A barrier at which downloads wait for one another."""

    def downloads(self) -> list[str]:
        """Paths of the files whose contents were sent."""
        return [path.split("/resolve/")[1].split("/", 1)[1] for how, path in self.requests if how == "GET FILE"]

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(urlsplit(request.path).path)
        if self.web_page:
            return self.send(request, 200, b"<!DOCTYPE html><p>Please log in</p>", body, {"Content-Type": "text/html"})
        if self.status != 200:
            return self.send(request, self.status, b"busy", body)
        if path.startswith("/api/models/"):
            self.requests.append(("LIST", path))
            return self.list(request, path.removeprefix("/api/models/").split("/revision/"))
        if "/resolve/" not in path:
            return self.send(request, 404, b"", body)
        repo, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        self.requests.append((f"{'GET' if body else 'HEAD'} FILE", path))
        if repo in self.gated:
            return self.send(request, 401, b"", body, {"X-Error-Code": "GatedRepo"})
        content = self.repositories.get(repo, {}).get(file)
        if content is None or revision not in ("main", self.commit):
            return self.send(request, 404, b"", body, {"X-Error-Code": "EntryNotFound"})
        digest = hashlib.sha256(content).hexdigest()
        if self.corrupt:
            content = content[:-9] + bytes(9)
        if body and self.both is not None:
            self.both.wait(timeout=10)
        facts = {"X-Repo-Commit": self.commit, "ETag": f'"{digest}"', "X-Linked-Etag": f'"{digest}"'}
        return self.send(request, 200, content, body, facts)

    def list(self, request: BaseHTTPRequestHandler, asked: list[str]) -> None:
        repo, revision = (*asked, "main")[:2]
        files = self.repositories.get(repo)
        if files is None:
            return self.send(request, 401, b"", True, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", self.commit):
            return self.send(request, 404, b"", True, {"X-Error-Code": "RevisionNotFound"})
        siblings = [
            {
                "rfilename": name,
                "size": len(content),
                "blobId": "0" * 40,
                "lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134},
            }
            for name, content in files.items()
        ]
        facts = {"id": repo, "modelId": repo, "sha": self.commit, "siblings": siblings}
        return self.send(request, 200, json.dumps(facts).encode(), True, {"Content-Type": "application/json"})

    def accept(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a POST: create a repository, say how to upload files, or take a commit."""
        path = unquote(urlsplit(request.path).path)
        lines = request.rfile.read(int(request.headers["Content-Length"])).splitlines()
        content = [json.loads(line) for line in lines]
        self.requests.append(("POST", path))
        answer: dict[str, object] = {"errors": [], "warnings": []}  # to /api/validate-yaml
        if path == "/api/repos/create":
            repo = f"{content[0].get('organization') or 'me'}/{content[0]['name']}"
            self.repositories.setdefault(repo, {})
            answer = {"url": f"http://{request.headers['Host']}/{repo}", "id": repo}
        elif "/preupload/" in path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in content[0]["files"]]
            answer = {"files": [{**file, "shouldIgnore": False, "oid": None} for file in files]}
        elif "/commit/" in path:
            repo = path.removeprefix("/api/models/").split("/commit/")[0]
            for entry in content:
                if entry["key"] == "file":
                    self.repositories[repo][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            url = f"http://{request.headers['Host']}/{repo}/commit/{self.commit}"
            answer = {"commitUrl": url, "commitOid": self.commit, "pullRequestUrl": None}
        self.send(request, 200, json.dumps(answer).encode(), True, {"Content-Type": "application/json"})

    def send(self, request, status: int, content: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if body and self.cut and "ETag" in (headers or {}):
            self.cut -= 1
            content = content[: len(content) // 2]
            request.close_connection = True
        if body:
            request.wfile.write(content)


@contextmanager
def serving(hub: FakeHub):
    """Serve a hub; yields its endpoint."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            hub.answer(self, body=False)

        def do_GET(self):
            hub.answer(self, body=True)

        def do_POST(self):
            hub.accept(self)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
