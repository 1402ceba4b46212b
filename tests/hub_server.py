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

MODEL = r"/api/models/(?P<repo>[\w.-]+/[\w.-]+)"


class Hub(ThreadingHTTPServer):
    """Repositories by name: commits by id, and the commit of each branch; every file of a commit as bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refs: dict[str, dict[str, str]] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.private: dict[str, bool] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo: str, branch: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{repo} {len(self.repos[repo])}".encode()).hexdigest()
        self.repos[repo][oid], self.refs[repo][branch] = files, oid
        return oid


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

    def reply(self, status: int, body: Any = b"", **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, hub = self.path.partition("?")[0], self.server
        hub.asked.append((self.command, path, self.headers.get("Authorization")))
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if repo in hub.repos:
                return self.reply(409, {"url": f"{hub.url}/{repo}", "error": "exists"})
            hub.repos[repo], hub.refs[repo] = {}, {}
            hub.private[repo] = asked.get("visibility") == "private" or asked.get("private") is True
            hub.commit(repo, "main", {})
            return self.reply(200, {"url": f"{hub.url}/{repo}", "name": repo})
        if path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if found := re.fullmatch(r"/lfs/(\w+)", path):
            hub.objects[found[1]] = body
            return self.reply(200)
        if found := re.fullmatch(r"/(?P<repo>[\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            upload = [{**o, "actions": {"upload": {"href": f"{hub.url}/lfs/{o['oid']}"}}}
                      for o in json.loads(body)["objects"]]  # fmt: skip
            return self.reply(200, {"transfer": "basic", "objects": upload})
        found = re.fullmatch(rf"{MODEL}/(?P<verb>preupload|commit|branch|revision|tree)/(?P<rev>[\w.-]+)", path)
        found = found or re.fullmatch(
            r"/(?P<repo>[\w.-]+/[\w.-]+)/(?P<verb>resolve)/(?P<rev>[\w.-]+)/(?P<file>.+)", path
        )
        found = found or re.fullmatch(rf"{MODEL}(?P<verb>)(?P<rev>)", path)
        if found is None or found["repo"] not in hub.repos:
            return self.reply(404, {"error": "not found"}, X_Error_Code="RepoNotFound")
        repo, rev, refs = found["repo"], found["rev"] or "main", hub.refs[found["repo"]]
        oid = refs.get(rev, rev)
        if found["verb"] == "branch":
            refs.setdefault(rev, refs["main"])
            return self.reply(200)
        if (files := hub.repos[repo].get(oid)) is None:
            return self.reply(404, {"error": "no such revision"}, X_Error_Code="RevisionNotFound")
        if found["verb"] == "preupload":
            modes = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                      "shouldIgnore": False, "oid": None} for f in json.loads(body)["files"]]  # fmt: skip
            return self.reply(200, {"files": modes})
        if found["verb"] == "commit":
            files = dict(files)
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
            oid = hub.commit(repo, rev, files)
            return self.reply(200, {"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{repo}/commit/{oid}"})
        if found["verb"] == "resolve":
            content = files.get(found["file"])
            if content is None:
                return self.reply(404, {}, X_Error_Code="EntryNotFound")
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self.reply(200, content, ETag=etag, X_Repo_Commit=oid, Accept_Ranges="none")
        entries = [
            {"type": "file", "path": p, "oid": hashlib.sha1(c).hexdigest(), "size": len(c)} for p, c in files.items()
        ]
        if found["verb"] == "tree":
            return self.reply(200, entries)
        self.reply(200, {"id": repo, "sha": oid, "siblings": [{"rfilename": name} for name in files]})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request
