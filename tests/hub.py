"""A hub of this machine: what huggingface_hub asks to make a repository, to fill it and to fetch it."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """Repositories by name: path -> content. Writing needs the token `right`."""

    def __init__(self):
        super().__init__(("localhost", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.address = f"http://localhost:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        pass

    def answer(self, content: object = None, code: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer right":
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.server.files.setdefault(name, {})
            return self.answer({"url": f"{self.server.address}/{name}"})
        if self.path == "/api/validate-yaml":  # a card's head
            return self.answer({"errors": [], "warnings": []})
        repository, what = re.match(r"/api/models/([^/]+/[^/]+)/(\w+)/", self.path).groups()
        if what == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            return self.answer(
                {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
            )
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                self.server.files[repository][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.answer({"success": True, "commitUrl": f"{self.server.address}/{repository}/commit/x", "commitOid": COMMIT})

    def do_GET(self):
        found = re.match(r"/(?:api/models/)?([^/?]+/[^/?]+)(?:/(\w+)/\w+(?:/(.+?))?)?(?:\?.*)?$", self.path)
        repository, what, file = found.groups() if found else ("", "", "")
        held = self.server.files.get(repository)
        if held is None:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        if what == "resolve":
            if file not in held:
                return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            return self.answer(held[file], ETag=f'"{hashlib.sha1(held[file]).hexdigest()}"')
        if what == "tree":
            return self.answer(
                [{"type": "file", "path": path, "size": len(data), "oid": "0"} for path, data in held.items()]
            )
        self.answer({"id": repository, "sha": COMMIT, "siblings": [{"rfilename": path} for path in held]})

    do_HEAD = do_GET


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
