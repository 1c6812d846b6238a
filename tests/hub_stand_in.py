"""A stand-in for the hub: serves a folder of repositories over HTTP on this machine, for tests.

    with HubStandIn(root) as hub:       # root/models/OWNER/NAME/FILES and root/datasets/OWNER/NAME/FILES
        ...                             # in a process started with HF_ENDPOINT=hub.endpoint

It answers what transformers, datasets and huggingface_hub ask when they load a repository: description, tree,
paths-info, and the files themselves (HEAD, GET, ranges). Each repository has one branch, ``main``, with one
commit, a hash of the contents. ``gated`` and ``private`` name repositories (by id) that nobody may read;
``failing`` gives ids a bare status.
"""

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from urllib.parse import parse_qs, unquote, urlsplit


class HubStandIn:
    def __init__(
        self,
        root: Path,
        gated: Iterable[str] = (),
        private: Iterable[str] = (),
        failing: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.root, self.gated, self.private, self.failing = root, set(gated), set(private), failing
        self.requests: list[str] = []
        self.tokens: set[str] = set()
        """Authorization headers seen."""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "HubStandIn":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, kind: str, repo_id: str) -> dict[str, Path]:
        folder = self.root / kind / repo_id
        return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}

    def commit(self, kind: str, repo_id: str) -> str:
        contents = [(name, path.read_bytes()) for name, path in self.files(kind, repo_id).items()]
        return hashlib.sha1(repr(contents).encode()).hexdigest()


class _Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        # The body is read first: what is left of it would pass for the next request of the connection.
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.hub.requests.append(f"{self.command} {self.path}")
        self.hub.tokens |= {self.headers["Authorization"]} - {None}
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        try:
            if url.path.startswith("/api/"):
                kind, *parts = url.path.removeprefix("/api/").split("/")
                self.api(kind, "/".join(parts[:2]), [unquote(part) for part in parts[2:]])
            else:
                kind = "datasets" if url.path.startswith("/datasets/") else "models"
                owner, name, *rest = unquote(url.path).removeprefix("/datasets").strip("/").split("/")
                if rest[:1] != ["resolve"]:
                    raise _Refused(404, "EntryNotFound")
                self.file(kind, f"{owner}/{name}", rest[1], "/".join(rest[2:]))
        except _Refused as refused:
            self.answer(refused.status, b"{}", {"X-Error-Code": refused.code})

    do_HEAD = do_POST = do_GET

    def api(self, kind: str, repo_id: str, rest: list[str]) -> None:
        action, *arguments = rest or ["revision", "main"]
        if action == "auth-check":
            self.repository(kind, repo_id, "main")
            return self.reply({})
        files = self.repository(kind, repo_id, arguments[0], described=action == "revision")
        if action == "revision":
            siblings = [{"rfilename": name} for name in files]
            about = {"id": repo_id, "sha": self.hub.commit(kind, repo_id), "siblings": siblings, "tags": []}
            return self.reply({**about, "private": False, "gated": "auto" if repo_id in self.hub.gated else False})
        entries = {name: _entry(name, path) for name, path in files.items()}
        for name in files:
            for parent in Path(name).parents[:-1]:
                entries[parent.as_posix()] = _entry(parent.as_posix(), None)
        if action == "tree":
            folder = "/".join(arguments[1:]).strip("/")
            if folder and folder not in entries:
                raise _Refused(404, "EntryNotFound")
            below = {n: e for n, e in entries.items() if n.startswith(folder + "/" if folder else "")}
            if self.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
                below = {n: e for n, e in below.items() if Path(n).parent == Path(folder)}
            return self.reply([below[name] for name in sorted(below)])
        if action == "paths-info":
            sent = parse_qs(self.body) if not self.body.startswith("{") else json.loads(self.body)
            return self.reply([entries[name] for name in sent.get("paths", []) if name in entries])
        raise _Refused(404, "EntryNotFound")

    def file(self, kind: str, repo_id: str, revision: str, name: str) -> None:
        files = self.repository(kind, repo_id, revision)
        if name not in files:
            raise _Refused(404, "EntryNotFound")
        content = files[name].read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": self.hub.commit(kind, repo_id),
            "Accept-Ranges": "bytes",
        }
        status, wanted = 200, self.headers.get("Range", "")
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last or len(content)) + 1, len(content))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            status, content = 206, content[start:stop]
        self.answer(status, content, headers)

    def repository(self, kind: str, repo_id: str, revision: str, described: bool = False) -> dict[str, Path]:
        if repo_id in self.hub.failing:
            raise _Refused(self.hub.failing[repo_id], "")
        files = self.hub.files(kind, repo_id)
        if not files or repo_id in self.hub.private:
            raise _Refused(401, "RepoNotFound")
        if revision not in ("main", self.hub.commit(kind, repo_id)):
            raise _Refused(404, "RevisionNotFound")
        if repo_id in self.hub.gated and not described:
            raise _Refused(403, "GatedRepo")
        return files

    def reply(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(name: str, path: Path | None) -> dict[str, object]:
    if path is None:
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
    content = path.read_bytes()
    return {"type": "file", "path": name, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}
