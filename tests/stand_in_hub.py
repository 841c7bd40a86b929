"""A hub on loopback: the few endpoints that huggingface_hub uses to make a repository, commit to it and fetch from it.

Every file is committed as a plain git blob (the server decides that), so there is no second storage to imitate.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_stand_in"  # no secret: it is checked by nothing but this file


@dataclass
class Hub:
    """What the stand-in holds, and what it was asked."""

    address: str = ""
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)  # repository → commit → files
    branches: dict[str, dict[str, str]] = field(default_factory=dict)  # repository → branch → commit
    private: dict[str, bool] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def put(self, repository: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Commit files on top of what the branch has; returns the commit."""
        kept = self.commits.setdefault(repository, {})
        heads = self.branches.setdefault(repository, {})
        content = {**kept.get(heads.get(branch, ""), {}), **files}
        commit = hashlib.sha1(repr((len(kept), sorted(content.items()))).encode()).hexdigest()
        kept[commit] = content
        heads[branch] = commit
        return commit

    def find(self, repository: str, revision: str) -> str | None:
        """The commit of a branch or of itself."""
        revision = unquote(revision)
        heads = self.branches.get(repository, {})
        return heads.get(revision, revision if revision in self.commits.get(repository, {}) else None)

    def fetched(self) -> set[str]:
        """Names of the files whose content was asked for."""
        return {line.rpartition("/")[2] for line in self.asked if line.startswith("GET") and "/resolve/" in line}


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._fetch()

        def do_HEAD(self) -> None:
            self._fetch()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = self._parts()
            if parts[:2] == ["api", "validate-yaml"]:
                self._json({"errors": [], "warnings": []})
            elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._json({"error": "log in first"}, 401)
            elif parts[:3] == ["api", "repos", "create"]:
                self._create(json.loads(body))
            elif parts[4:5] == ["preupload"]:
                names = [file["path"] for file in json.loads(body)["files"]]
                files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                self._json({"files": files})
            elif parts[4:5] == ["branch"]:
                heads = hub.branches["/".join(parts[2:4])]
                heads.setdefault(parts[5], heads["main"])
                self._json({})
            elif parts[4:5] == ["commit"]:
                self._commit("/".join(parts[2:4]), parts[5], [json.loads(line) for line in body.splitlines()])
            else:
                self._json({"error": "unknown"}, 500)

        def _create(self, wanted: dict[str, Any]) -> None:
            name = f"{wanted['organization']}/{wanted['name']}"
            known = name in hub.branches
            if not known:
                hub.put(name, {".gitattributes": b""})
                hub.private[name] = wanted.get("visibility") == "private"
            self._json({"url": f"{hub.address}/{name}"}, 409 if known else 200)

        def _commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> None:
            hub.messages.append(lines[0]["value"]["summary"])
            files = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines[1:]}
            oid = hub.put(name, files, branch)
            url = f"{hub.address}/{name}/commit/{oid}"
            self._json({"commitUrl": url, "commitOid": oid, "success": True})

        def _fetch(self) -> None:
            parts = self._parts()
            api = parts[0] == "api"
            name = "/".join(parts[2:4] if api else parts[:2])
            rest = parts[4:] if api else parts[2:]
            if name not in hub.branches or (hub.private.get(name) and not self.headers.get("Authorization")):
                self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
                return
            oid = hub.find(name, rest[1] if len(rest) > 1 else "main")
            if oid is None:
                self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
                return
            files = hub.commits[name][oid]
            if api and rest[:1] == ["tree"]:
                self._json([_entry(path, content) for path, content in files.items()])
            elif api:
                self._json({"id": name, "sha": oid, "siblings": [{"rfilename": path} for path in files]})
            elif rest[2] in files:
                content = files[rest[2]]
                self._send(content, 200, {"X-Repo-Commit": oid, "ETag": f'"{_entry(rest[2], content)["oid"]}"'})
            else:
                self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})

        def _parts(self) -> list[str]:
            hub.asked.append(f"{self.command} {self.path}")
            return self.path.partition("?")[0].strip("/").split("/")

        def _json(self, content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
            self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})

        def _send(self, content: bytes, status: int, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    return Handler


def _entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the listing of a repository names it; its id is git's."""
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": oid}
