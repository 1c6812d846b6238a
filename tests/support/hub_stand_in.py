"""A stand-in for the hub: serves a folder of repositories over HTTP on this machine, for tests.

    with HubStandIn(root) as hub:       # root/models/OWNER/NAME/FILES and root/datasets/OWNER/NAME/FILES
        ...                             # in a process started with HF_ENDPOINT=hub.endpoint

It answers what transformers, datasets and huggingface_hub ask when they load a repository (description, tree,
paths-info, the files themselves: HEAD, GET, ranges) and when they write one (create, branch, preupload, LFS,
commit). Branch ``main`` is the folder as it stands, other branches are in memory; a commit is named by a hash of
its contents, and what was pushed can still be had by commit when its branch has moved on. As on the hub,
safetensors files go through LFS; Xet is not offered: processes that write need HF_HUB_DISABLE_XET=1.

``accounts`` maps a token to the owner it belongs to, who alone may write below that name and read its private
repositories. ``private`` and ``gated`` name repositories (by id) that nobody else may read; ``failing`` gives ids
a bare status. Failures of the line: a request for which ``cut`` is true loses its connection half-way. Failures
of the disk: files whose path is in ``damaged`` are served with one bit flipped.
"""

import base64
import hashlib
import json
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

Contents = Mapping[str, bytes]
"""path -> content"""


class Commit(NamedTuple):
    id: str
    repo_id: str
    branch: str
    title: str
    paths: list[str]
    """what it adds or changes"""


class HubStandIn:
    def __init__(
        self,
        root: Path,
        gated: Iterable[str] = (),
        private: Iterable[str] = (),
        failing: Mapping[str, int] = MappingProxyType({}),
        accounts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.root, self.gated, self.private, self.failing = root, set(gated), set(private), dict(failing)
        # held for what is read or written of a repository, never during an answer, which may be late or have no end
        self.lock = threading.RLock()
        self.accounts = accounts
        self.requests: list[str] = []
        self.tokens: set[str] = set()
        """Authorization headers seen."""
        self.commits: list[Commit] = []
        self.objects: dict[tuple[str, str], dict[str, bytes]] = defaultdict(dict)
        """LFS: kind and id of a repository -> sha256 -> content"""
        self.cut: Callable[[str], bool] = lambda request: False
        self.disturb: Callable[..., bool] = lambda handler, status, content, headers: False
        """Answers in the handler's place, wrongly, and says that it has."""
        self.gone = False
        self.damaged: set[str] = set()
        self._branches: dict[tuple[str, str, str], Contents] = {}
        self._pushed: dict[tuple[str, str, str], Contents] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "HubStandIn":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.gone = True  # connections that are kept open must not be answered either
        self.server.shutdown()
        self.server.server_close()

    def contents(self, kind: str, repo_id: str, revision: str = "main") -> Contents | None:
        with self.lock:
            if revision == "main":
                folder = self.root / kind / repo_id
                paths = sorted(path for path in folder.rglob("*") if path.is_file())
                return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths} or None
            known = self._branches.get((kind, repo_id, revision)) or self._pushed.get((kind, repo_id, revision))
            return known or (self.contents(kind, repo_id) if revision == self.commit(kind, repo_id) else None)

    def commit(self, kind: str, repo_id: str, revision: str = "main") -> str:
        with self.lock:
            if (kind, repo_id, revision) in self._pushed:
                return revision
            digest = hashlib.sha1()
            for path, content in (self.contents(kind, repo_id, revision) or {}).items():
                digest.update(f"{path}\n{len(content)}\n".encode() + content)
            return digest.hexdigest()

    def push(self, kind: str, repo_id: str, branch: str, title: str, changes: Mapping[str, bytes | None]) -> str:
        """Write (None: delete) files on a branch; returns the commit."""
        with self.lock:
            before = self.contents(kind, repo_id, branch) or {}
            self._pushed[kind, repo_id, self.commit(kind, repo_id, branch)] = before
            after = {**before, **changes}
            contents = {name: held for name in sorted(after, key=PurePosixPath) if (held := after[name]) is not None}
            if branch != "main":
                self._branches[kind, repo_id, branch] = contents
            for path, content in changes.items() if branch == "main" else ():
                self._write(self.root / kind / repo_id / path, content)
            commit = self.commit(kind, repo_id, branch)
            self._pushed[kind, repo_id, commit] = contents
            self.commits.append(Commit(commit, repo_id, branch, title, list(changes)))
            return commit

    def _write(self, file: Path, content: bytes | None) -> None:
        if content is None:
            return file.unlink()
        file.parent.mkdir(parents=True, exist_ok=True)
        arriving = self.root / ".arriving"
        arriving.write_bytes(content)
        os.replace(arriving, file)  # who reads the folder in another process sees no half of it

    def describe(self, kind: str, repo_id: str, path: str, content: bytes) -> dict[str, Any]:
        """A file as the tree lists it."""
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        sha256 = hashlib.sha256(content).hexdigest()
        lfs = {"oid": sha256, "size": len(content), "pointerSize": 130}
        return {"type": "file", "path": path, "oid": blob, "size": len(content)} | (
            {"lfs": lfs} if sha256 in self.objects[kind, repo_id] else {}
        )


class _Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = 1 << 16, True  # else each answer waits 40 ms for an acknowledgement

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.hub.gone:
            return self.hang_up()
        request = f"{self.command} {self.path}"
        self.hub.requests.append(request)
        self.hub.tokens |= {self.headers["Authorization"]} - {None}
        length = int(self.headers.get("Content-Length", 0))
        self.cutting = self.hub.cut(request)
        if self.cutting and length:
            self.rfile.read(length // 2)
            return self.hang_up()
        # The body is read first: what is left of it would pass for the next request of the connection.
        self.body = self.rfile.read(length)
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        try:
            if parts[0] == "api":
                self.api(*parts[1:])
            elif parts[0] == "lfs":
                self.store_object(parts[1], "/".join(parts[2:4]), parts[4])
            elif parts == ["written"]:
                self.written()
            else:
                kind, (owner, name, *rest) = ("datasets", parts[1:]) if parts[0] == "datasets" else ("models", parts)
                if name.endswith(".git"):
                    self.lfs_batch(kind, f"{owner}/{name.removesuffix('.git')}")
                elif rest[:1] == ["resolve"]:
                    self.file(kind, f"{owner}/{name}", rest[1], "/".join(rest[2:]))
                else:
                    raise _Refused(404, "EntryNotFound")
        except _Refused as refused:
            self.answer(refused.status, b"{}", {"X-Error-Code": refused.code})

    do_HEAD = do_POST = do_PUT = do_GET

    # --- reading

    def api(self, kind: str, *parts: str) -> None:
        if kind == "validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if kind == "repos":
            return self.create()
        if not parts and kind in ("models", "datasets"):  # of one owner, as the hub's search lists them
            owner = self.query.get("author", [""])[0]
            ids = sorted(f"{owner}/{folder.name}" for folder in (self.hub.root / kind / owner).glob("*") if owner)
            return self.reply([{"id": name, "modelId": name} for name in ids if name not in self.hub.private])
        repo_id, (action, *arguments) = "/".join(parts[:2]), parts[2:] or ["revision", "main"]
        if action in ("preupload", "commit", "branch"):
            self.may_write(repo_id)
            return getattr(self, action)(kind, repo_id, *arguments)
        if action == "auth-check":
            self.repository(kind, repo_id, "main")
            return self.reply({})
        contents = self.repository(kind, repo_id, arguments[0], described=action == "revision")
        if action == "commits":
            made = [commit for commit in self.hub.commits if commit[1:3] == (repo_id, arguments[0])]
            about = {"authors": [], "date": "2026-01-01T00:00:00.000Z", "message": ""}
            return self.reply([{"id": commit.id, "title": commit.title, **about} for commit in reversed(made)])
        if action == "revision":
            siblings = [{"rfilename": name} for name in contents]
            sha = self.hub.commit(kind, repo_id, arguments[0])
            about = {
                "id": repo_id,
                "sha": sha,
                "siblings": siblings,
                "tags": [],
                "private": repo_id in self.hub.private,
            }
            return self.reply({**about, "gated": "auto" if repo_id in self.hub.gated else False})
        entries = {name: self.hub.describe(kind, repo_id, name, content) for name, content in contents.items()}
        for name in contents:
            for parent in map(str, PurePosixPath(name).parents[:-1]):
                oid = hashlib.sha1(parent.encode()).hexdigest()
                entries[parent] = {"type": "directory", "path": parent, "oid": oid, "size": 0}
        if action == "tree":
            folder = "/".join(arguments[1:]).strip("/")
            if folder and folder not in entries:
                raise _Refused(404, "EntryNotFound")
            below = {n: e for n, e in entries.items() if n.startswith(folder + "/" if folder else "")}
            if self.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
                below = {n: e for n, e in below.items() if Path(n).parent == Path(folder)}
            return self.reply([below[name] for name in sorted(below)])
        if action == "paths-info":
            body = self.body.decode()
            sent = parse_qs(body) if not body.startswith("{") else json.loads(body)
            return self.reply([entries[name] for name in sent.get("paths", []) if name in entries])
        raise _Refused(404, "EntryNotFound")

    def file(self, kind: str, repo_id: str, revision: str, name: str) -> None:
        contents = self.repository(kind, repo_id, revision)
        if name not in contents:
            raise _Refused(404, "EntryNotFound")
        content = contents[name]
        about = self.hub.describe(kind, repo_id, name, content)
        headers = {
            "ETag": f'"{about.get("lfs", about)["oid"]}"',
            "X-Repo-Commit": self.hub.commit(kind, repo_id, revision),
            "Accept-Ranges": "bytes",
        }
        if name in self.hub.damaged:
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        status, wanted = 200, self.headers.get("Range", "")
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last or len(content)) + 1, len(content))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            status, content = 206, content[start:stop]
        self.answer(status, content, headers)

    def repository(self, kind: str, repo_id: str, revision: str, described: bool = False) -> Contents:
        if repo_id in self.hub.failing:
            raise _Refused(self.hub.failing[repo_id], "")
        hidden = repo_id in self.hub.private and self.account() != repo_id.split("/")[0]
        if hidden or not (self.hub.root / kind / repo_id).is_dir():
            raise _Refused(401, "RepoNotFound")
        contents = self.hub.contents(kind, repo_id, revision)
        if contents is None:
            raise _Refused(404, "RevisionNotFound")
        if repo_id in self.hub.gated and not described:
            raise _Refused(403, "GatedRepo")
        return contents

    def account(self) -> str | None:
        way, _, token = (self.headers["Authorization"] or "").partition(" ")
        if way == "Basic":  # as a mirror with a password in its address does
            token = base64.b64decode(token).decode().partition(":")[2]
        return self.hub.accounts.get(token)

    # --- writing

    def may_write(self, repo_id: str) -> None:
        if self.account() is None:
            raise _Refused(401, "")
        if self.account() != repo_id.split("/")[0]:
            raise _Refused(403, "")

    def create(self) -> None:
        wanted = json.loads(self.body)
        kind, repo_id = f"{wanted['type']}s", f"{wanted['organization']}/{wanted['name']}"
        self.may_write(repo_id)
        with self.hub.lock:
            there = self.hub.contents(kind, repo_id)
            if not there and (wanted.get("private") or wanted.get("visibility") == "private"):
                self.hub.private.add(repo_id)
            if not there:
                large = {".gitattributes": b"*.safetensors filter=lfs\n"}
                self.hub.push(kind, repo_id, "main", "initial commit", large)
        about = json.dumps({"url": f"{self.hub.endpoint}/{kind}/{repo_id}"}).encode()
        self.answer(409 if there else 200, about, {})

    def branch(self, kind: str, repo_id: str, name: str) -> None:
        with self.hub.lock:
            if self.hub.contents(kind, repo_id, name) is not None:
                raise _Refused(409, "")
            start = json.loads(self.body).get("startingPoint", "main")
            self.hub.push(kind, repo_id, name, f"branch {name}", self.repository(kind, repo_id, start))
        self.reply({})

    def preupload(self, kind: str, repo_id: str, branch: str) -> None:
        there = self.repository(kind, repo_id, branch)
        ignored = there.get(".gitignore", b"").decode().split()
        answers = []
        for path in (file["path"] for file in json.loads(self.body)["files"]):
            about = self.hub.describe(kind, repo_id, path, there[path]) if path in there else {"oid": None}
            answer = {"path": path, "oid": about.get("lfs", about)["oid"]}
            answer["uploadMode"] = "lfs" if path.endswith(".safetensors") else "regular"
            answers.append(answer | {"shouldIgnore": any(fnmatchcase(path, pattern) for pattern in ignored)})
        self.reply({"files": answers})

    def lfs_batch(self, kind: str, repo_id: str) -> None:
        self.may_write(repo_id)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.endpoint}/lfs/{kind}/{repo_id}/{wanted['oid']}"}}
            there = wanted["oid"] in self.hub.objects[kind, repo_id]
            objects.append(wanted if there else wanted | {"actions": upload})
        self.reply({"transfer": "basic", "objects": objects})

    def store_object(self, kind: str, repo_id: str, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, "")
        self.hub.objects[kind, repo_id][oid] = self.body
        self.reply({})

    def commit(self, kind: str, repo_id: str, branch: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        changes: dict[str, bytes | None] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changes[value["path"]] = self.hub.objects[kind, repo_id][value["oid"]]
            elif line["key"] == "deletedFile":
                changes[value["path"]] = None
        with self.hub.lock:
            parent = self.hub.commit(kind, repo_id, branch)
            if header.get("parentCommit", parent) != parent:
                raise _Refused(412, "")
            commit = self.hub.push(kind, repo_id, branch, header["summary"], changes)
        url = f"{self.hub.endpoint}/{kind}/{repo_id}/commit/{commit}"
        self.reply({"success": True, "commitOid": commit, "commitUrl": url})

    def written(self) -> None:
        """Answers when the connections from before have ended. Two such requests would wait for each other."""
        for thread in set(threading.enumerate()) - {threading.main_thread(), threading.current_thread()}:
            thread.join()
        self.reply({})

    # --- answers

    def reply(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        if self.hub.disturb(self, status, content, headers):
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.cutting else content)
        if self.cutting:
            self.hang_up()

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        with suppress(OSError):  # the other side has gone already
            self.connection.shutdown(socket.SHUT_RDWR)
