"""A stand-in for the hub's HTTP interface, as far as models need it, on a loopback address."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

REPO, REV = r"(?P<repo>[\w.-]+/[\w.-]+)", r"(?P<rev>[\w.-]+)"
ROUTES = {
    r"/api/repos/create": "create",
    r"/api/validate-yaml": "validate",
    r"/lfs/(?P<oid>\w+)": "store",
    rf"/{REPO}\.git/info/lfs/objects/batch": "batch",
    rf"/api/models/{REPO}/branch/(?P<name>[\w.-]+)": "branch",
    rf"/api/models/{REPO}/preupload/{REV}": "preupload",
    rf"/api/models/{REPO}/commit/{REV}": "commit",
    rf"/api/models/{REPO}/revision/{REV}": "revision",
    rf"/api/models/{REPO}/tree/{REV}": "tree",
    rf"/{REPO}/resolve/{REV}/(?P<file>.+)": "resolve",
}


class Hub(ThreadingHTTPServer):
    """Repositories by name: the files of each commit, and the commit of each branch."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refs: dict[str, dict[str, str]] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def add(self, repo: str, branch: str, files: dict[str, bytes]) -> str:
        commit = hashlib.sha1(f"{repo} {len(self.repos[repo])}".encode()).hexdigest()
        self.repos[repo][commit], self.refs[repo][branch] = files, commit
        return commit


@contextmanager
def serving() -> Iterator[Hub]:
    with Hub() as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


class Handler(BaseHTTPRequestHandler):
    """Weights go as large files, everything else inside the commit, as on the hub."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None: ...

    def reply(self, body: Any = b"", status: int = 200, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def answer(self) -> None:
        """The route of a request, with the repository and the commit that it names."""
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path, self.headers.get("Authorization")))
        named, route = next((m.groupdict(), v) for pattern, v in ROUTES.items() if (m := re.fullmatch(pattern, path)))
        if "repo" in named and named["repo"] not in self.server.repos:
            return self.reply({}, 404, X_Error_Code="RepoNotFound")
        if "rev" in named:
            named["at"] = self.server.refs[named["repo"]].get(named["rev"], named["rev"])
            if named["at"] not in self.server.repos[named["repo"]]:
                return self.reply({}, 404, X_Error_Code="RevisionNotFound")
            self.files = self.server.repos[named["repo"]][named["at"]]
        getattr(self, route)(**named)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def create(self) -> None:
        asked = json.loads(self.body)
        repo, hub = f"{asked['organization']}/{asked['name']}", self.server
        if repo in hub.repos:
            return self.reply({"url": f"{hub.url}/{repo}"}, 409)
        hub.repos[repo], hub.refs[repo] = {}, {}
        hub.add(repo, "main", {".visibility": asked["visibility"].encode()})
        self.reply({"url": f"{hub.url}/{repo}"})

    def validate(self) -> None:
        self.reply({"errors": [], "warnings": []})

    def store(self, oid: str) -> None:
        self.server.large[oid] = self.body
        self.reply()

    def batch(self, repo: str) -> None:
        objects = json.loads(self.body)["objects"]
        upload = [{**o, "actions": {"upload": {"href": f"{self.server.url}/lfs/{o['oid']}"}}} for o in objects]
        self.reply({"transfer": "basic", "objects": upload})

    def branch(self, repo: str, name: str) -> None:
        self.server.refs[repo].setdefault(name, self.server.refs[repo]["main"])
        self.reply()

    def preupload(self, **_: str) -> None:
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
        self.reply({"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]})

    def commit(self, repo: str, rev: str, at: str) -> None:
        files, hub = dict(self.files), self.server
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.large[value["oid"]]
        new = hub.add(repo, rev, files)
        self.reply({"success": True, "commitOid": new, "commitUrl": f"{hub.url}/{repo}/commit/{new}"})

    def revision(self, repo: str, rev: str, at: str) -> None:
        self.reply({"id": repo, "sha": at, "siblings": [{"rfilename": name} for name in self.files]})

    def tree(self, **_: str) -> None:
        files = {path: (hashlib.sha1(content).hexdigest(), len(content)) for path, content in self.files.items()}
        self.reply([{"type": "file", "path": p, "oid": oid, "size": size} for p, (oid, size) in files.items()])

    def resolve(self, repo: str, rev: str, at: str, file: str) -> None:
        if file not in self.files:
            return self.reply({}, 404, X_Error_Code="EntryNotFound")
        etag = hashlib.sha256(self.files[file]).hexdigest()
        self.reply(self.files[file], ETag=f'"{etag}"', X_Repo_Commit=at)
