# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""A small Hub on this machine: real HTTP servers that speak what `huggingface_hub` says and asks.

`HubServer` listens on two ports of this machine. The first is the Hub: repositories, commits, branches, tags, and small
files. The second is the storage that large files are redirected to, another host as in reality, so that a client has
to find the metadata on the redirect and must keep its token to itself. Everything is kept in memory. Xet is not spoken:
to push large files a client needs `HF_HUB_DISABLE_XET=1`, because with `hf_xet` installed it tries nothing else.

`huggingface_hub` reads its settings when it is imported, and the tests' own process is offline: `run_python` runs code
in a process of its own, with the server as `HF_ENDPOINT` and an empty `HF_HOME`.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import os
import re
import secrets
import socket
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import torch
import yaml


# Token to user. A user writes in the namespace of the same name; any other token is answered with 401.
WRITER_TOKEN, READER_TOKEN, WRONG_TOKEN = "hf_writer", "hf_reader", "hf_wrong"
USERS = {WRITER_TOKEN: "user", READER_TOKEN: "reader"}
LARGE_FILES = ("*.safetensors", "*.bin", "*.pt", "*.arrow", "*.parquet", "*.zip")
WEB_PREFIX = {"models": "", "datasets": "datasets/"}


# Repositories ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """The content of a file; a large one is in git as a pointer to its sha256."""

    data: bytes
    large: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        """Pointer that git holds in place of a large file."""
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()
        )

    @cached_property
    def git_oid(self) -> str:
        content = self.pointer if self.large else self.data
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.git_oid


@dataclass(frozen=True)
class Commit:
    """A commit and all files of it by path."""

    files: dict[str, File]
    title: str
    description: str = ""
    parent: Commit | None = None

    @cached_property
    def sha(self) -> str:
        tree = sorted((path, file.git_oid) for path, file in self.files.items())
        parent = self.parent.sha if self.parent else None
        return hashlib.sha1(repr((tree, self.title, self.description, parent)).encode()).hexdigest()

    def history(self) -> Iterator[Commit]:
        """This commit and those before it, the newest first."""
        commit = self
        while commit is not None:
            yield commit
            commit = commit.parent


@dataclass
class Repository:
    """A model or data set. It starts with a commit of `.gitattributes`, as on the Hub.

    `objects` are the large files by their sha256, also those that no commit holds. With `large_files=()` there are
    none, and a client that pushes needs neither LFS nor Xet.
    """

    kind: str
    name: str
    private: bool = False
    gated: bool = False
    large_files: tuple[str, ...] = LARGE_FILES
    objects: dict[str, bytes] = field(default_factory=dict)
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)

    def __post_init__(self):
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in self.large_files)
        self.branches["main"] = Commit({".gitattributes": File(attributes.encode())}, "initial commit")

    @property
    def owner(self) -> str:
        return self.name.split("/")[0]

    def is_large(self, path: str) -> bool:
        """Whether git holds only a pointer to the file."""
        return any(fnmatch.fnmatch(path, pattern) for pattern in self.large_files)

    def find(self, revision: str) -> Commit:
        """The commit of a branch, tag or sha."""
        named = {**self.tags, **self.branches}
        if revision in named:
            return named[revision]
        for commit in (commit for head in named.values() for commit in head.history()):
            if commit.sha == revision:
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


# Requests and answers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A request of the client; `path` is still quoted."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes = b""

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None

    def json(self) -> dict:
        return json.loads(self.body)


@dataclass
class Answer:
    """An answer of the server. For HEAD the body is left out, but its length is told."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class HubError(Exception):
    """A refusal as the Hub says it: status, message, and the code that the client tells errors apart by."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        code = {"X-Error-Code": code} if code else {}
        self.answer = json_answer({"error": message}, status, **code, **{"X-Error-Message": message}, **named)


class DroppedConnection(Exception):
    """Request to close the connection in the middle of a body."""


@dataclass
class Fault:
    """Misbehaviour at the next `times` requests that match: answer with `status`, or drop the connection.

    `path` is a regular expression that is searched in path and query. The connection is dropped after `after_bytes` of
    the request's body (for methods that have one) or of the answer's; `reset` sends a TCP reset instead of an orderly
    end. `after_work` drops it when everything is done, so that only the answer is lost.
    """

    method: str
    path: str
    status: int | None = None
    after_bytes: int | None = None
    after_work: bool = False
    reset: bool = False
    times: int = 1

    def concerns(self, method: str, path: str) -> bool:
        return self.times > 0 and self.method == method and re.search(self.path, path) is not None


def json_answer(content, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(content).encode(), {"Content-Type": "application/json", **headers})


def file_answer(request: Request, data: bytes, headers: dict[str, str]) -> Answer:
    """A file, or the part of it that `Range` asks for."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if wanted is None:
        return Answer(200, data, headers)
    start, end = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
    return Answer(206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})


# Who may do what ------------------------------------------------------------------------------------------------------


def identify(request: Request) -> str | None:
    """The user behind the token, None without one."""
    if request.token is not None and request.token not in USERS:
        raise HubError(401, "Invalid credentials in Authorization header")
    return USERS.get(request.token)


def readable(server: HubServer, request: Request, name: str, kind: str = "models") -> Repository:
    """The repository, if the user may know of it: a private one looks as if it did not exist."""
    user = identify(request)
    repository = server.repositories.get((kind, name))
    if repository is None or (repository.private and user != repository.owner):
        if user is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")
    return repository


def downloadable(server: HubServer, request: Request, name: str, kind: str = "models") -> Repository:
    """The repository, if the user may have its files: those of a gated one are for its owner only."""
    repository, user = readable(server, request, name, kind), identify(request)
    if repository.gated and user != repository.owner:
        message = f"Access to model {repository.name} is restricted."
        raise HubError(401 if user is None else 403, message, "GatedRepo")
    return repository


def writable(server: HubServer, request: Request, name: str, kind: str = "models") -> Repository:
    """The repository, if the user may write to it."""
    repository = readable(server, request, name, kind)
    require_writer(request, repository.owner)
    return repository


def require_writer(request: Request, owner: str):
    user = identify(request)
    if user is None:
        raise HubError(401, "Invalid username or password.")
    if user != owner:
        raise HubError(403, f'You don\'t have the rights to write in the namespace "{owner}"')


def signed(server: HubServer, request: Request, name: str, kind: str) -> Repository:
    """The repository, for whoever has the signed address; a token has no place here."""
    if request.query.get("signature") != [server.signature]:
        raise HubError(403, "Access denied")
    return server.repository(name, kind)


# Routes ---------------------------------------------------------------------------------------------------------------

Route = tuple[str, re.Pattern, Callable[..., Repository] | None, Callable[..., Answer]]
HUB_ROUTES: list[Route] = []
STORAGE_ROUTES: list[Route] = []
NAME = "(?P<name>[^/]+/[^/]+)"
API = f"/api/(?P<kind>models|datasets)/{NAME}"
WEB = f"/(?:(?P<kind>datasets)/)?{NAME}"
STORAGE = f"/(?P<kind>models|datasets)/{NAME}/(?P<oid>[0-9a-f]{{64}})"


def route(method: str, pattern: str, access=None, routes: list[Route] = HUB_ROUTES):
    """Register what answers a method and path; `access` finds the repository, other groups are keyword arguments."""

    def register(function):
        routes.append((method, re.compile(pattern), access, function))
        return function

    return register


def dispatch(routes: list[Route], server: HubServer, request: Request) -> Answer:
    """Answer a request by the first route that matches; a route for GET answers HEAD too."""
    method = "GET" if request.method == "HEAD" else request.method
    for route_method, pattern, access, function in routes:
        match = pattern.fullmatch(request.path)
        if match and route_method == method:
            groups = {name: unquote(text) for name, text in match.groupdict().items() if text is not None}
            if access is None:
                return function(server, request)
            place = {name: groups.pop(name) for name in ("name", "kind") if name in groups}
            return function(server, request, access(server, request, **place), **groups)
    raise HubError(404, f"No such page: {request.method} {request.path}")


@route("DELETE", "/faults")
def stop_misbehaving(server: HubServer, request: Request) -> Answer:
    """A route for tests, which the Hub does not have: a client ends the misbehaviour."""
    server.faults.clear()
    return Answer()


@route("POST", "/api/repos/create")
def create_repository(server: HubServer, request: Request) -> Answer:
    asked = request.json()
    kind = asked.get("type", "model") + "s"
    owner = asked.get("organization") or identify(request)
    require_writer(request, owner)
    name = f"{owner}/{asked['name']}"
    answer = {"url": f"{server.url}/{WEB_PREFIX[kind]}{name}", "name": name}
    if (kind, name) in server.repositories:
        return json_answer({"error": f"You already created this {kind[:-1]} repo: {name}", **answer}, 409)
    server.create_repository(name, kind, private=asked.get("visibility") == "private")
    return json_answer(answer)


@route("GET", API, readable)
@route("GET", API + "/revision/(?P<revision>[^/]+)", readable)
def repository_info(server: HubServer, request: Request, repository: Repository, revision: str = "main") -> Answer:
    commit = repository.find(revision)
    gated = "auto" if repository.gated else False
    info = {"id": repository.name, "sha": commit.sha, "private": repository.private, "gated": gated}
    siblings = [{"rfilename": path} for path in sorted(commit.files)]
    return json_answer({**info, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings})


@route("GET", API + "/commits/(?P<revision>[^/]+)", readable)
def list_commits(server: HubServer, request: Request, repository: Repository, revision: str) -> Answer:
    common = {"date": "2026-01-01T00:00:00.000Z", "authors": [{"user": repository.owner}]}
    commits = repository.find(revision).history()
    return json_answer([{"id": c.sha, "title": c.title, "message": c.description, **common} for c in commits])


@route("GET", API + "/tree/(?P<revision>[^/]+)", readable)
@route("GET", API + "/tree/(?P<revision>[^/]+)/(?P<folder>.+)", readable)
def list_tree(server: HubServer, request: Request, repository: Repository, revision: str, folder: str = "") -> Answer:
    commit = repository.find(revision)
    entries = tree_entries(commit, folder, recursive=request.query.get("recursive") == ["true"])
    if folder and not entries:
        raise entry_not_found(commit, folder)
    return json_answer(entries)


def tree_entries(commit: Commit, folder: str, recursive: bool) -> list[dict]:
    """Files and folders below a folder."""
    entries = {}
    prefix = f"{folder.rstrip('/')}/" if folder else ""
    for path, file in sorted(commit.files.items()):
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            parent = prefix + "/".join(parts[:depth])
            oid = hashlib.sha1(f"{commit.sha}/{parent}".encode()).hexdigest()
            entries.setdefault(parent, {"type": "directory", "path": parent, "oid": oid, "size": 0})
        if recursive or len(parts) == 1:
            entries[path] = file_entry(path, file)
    return list(entries.values())


def file_entry(path: str, file: File) -> dict:
    entry = {"type": "file", "path": path, "oid": file.git_oid, "size": len(file.data)}
    if file.large:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.data), "pointerSize": len(file.pointer)}
    return entry


def entry_not_found(commit: Commit, path: str) -> HubError:
    # With the commit, the client may remember that there is no such file.
    return HubError(404, f"Entry not found: {path}", "EntryNotFound", X_Repo_Commit=commit.sha)


@route("POST", API + "/branch/(?P<branch>[^/]+)", writable)
def create_branch(server: HubServer, request: Request, repository: Repository, branch: str) -> Answer:
    repository.branches[branch] = repository.find(request.json().get("startingPoint", "main"))
    return Answer(201)


@route("POST", API + "/tag/(?P<revision>[^/]+)", writable)
def create_tag(server: HubServer, request: Request, repository: Repository, revision: str) -> Answer:
    repository.tags[request.json()["tag"]] = repository.find(revision)
    return Answer(201)


# Downloads ------------------------------------------------------------------------------------------------------------


@route("GET", WEB + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)", downloadable)
def resolve(server: HubServer, request: Request, repository: Repository, revision: str, path: str) -> Answer:
    """Address of a file: the storage for a large one, a page of the commit for a small one."""
    commit = repository.find(revision)
    if path not in commit.files:
        raise entry_not_found(commit, path)
    file, place = commit.files[path], f"{repository.kind}/{repository.name}"
    headers = {"X-Repo-Commit": commit.sha, "X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.data))}
    if not file.large:
        return Answer(307, b"", {**headers, "Location": f"/api/resolve-cache/{place}/{commit.sha}/{path}"})
    filename = path.split("/")[-1]
    location = f"{server.storage_url}/{place}/{file.sha256}?filename={filename}&signature={server.signature}"
    return Answer(302, b"", {**headers, "Location": location})


@route("GET", API.replace("/api", "/api/resolve-cache") + "/(?P<revision>[^/]+)/(?P<path>.+)", downloadable)
def resolve_cache(server: HubServer, request: Request, repository: Repository, revision: str, path: str) -> Answer:
    file = repository.find(revision).files[path]
    return file_answer(request, file.data, {"ETag": f'"{file.etag}"', "X-Repo-Commit": revision})


@route("GET", STORAGE, signed, STORAGE_ROUTES)
def download_large_file(server: HubServer, request: Request, repository: Repository, oid: str) -> Answer:
    disposition = f'inline; filename="{request.query["filename"][0]}";'
    return file_answer(request, repository.objects[oid], {"ETag": f'"{oid}"', "Content-Disposition": disposition})


# Uploads --------------------------------------------------------------------------------------------------------------


@route("POST", "/api/validate-yaml")
def validate_card(server: HubServer, request: Request) -> Answer:
    """The metadata of a model card has to be YAML, and a mapping of the types that the Hub knows."""
    front = re.match(r"---\r?\n(.*?)\r?\n---", request.json()["content"], re.DOTALL)
    if front is None:
        return json_answer({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    errors = card_errors(front[1])
    return json_answer({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)


def card_errors(text: str) -> list[str]:
    try:
        metadata = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        return [f"YAML could not be parsed: {error}"]
    names = [name for name in ("library_name", "pipeline_tag") if not isinstance(metadata.get(name, ""), str)]
    errors = [f'"{name}" must be a string' for name in names]
    if not all(isinstance(tag, str) for tag in metadata.get("tags") or []):
        errors.append('"tags" must be an array of strings')
    return errors


@route("POST", API + "/preupload/(?P<revision>[^/]+)", writable)
def preupload(server: HubServer, request: Request, repository: Repository, revision: str) -> Answer:
    """Tell for each file how it has to be uploaded, and which content of it is there."""
    commit, files = repository.find(revision), []
    for asked in request.json()["files"]:
        path, known = asked["path"], commit.files.get(asked["path"])
        mode = "lfs" if repository.is_large(path) else "regular"
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": known.etag if known else None})
    return json_answer({"files": files})


@route("POST", WEB + r"\.git/info/lfs/objects/batch", writable)
def prepare_large_files(server: HubServer, request: Request, repository: Repository) -> Answer:
    """Tell for each large file where to put it; what is there already needs nothing."""
    answers = []
    for asked in request.json()["objects"]:
        answer, place = {"oid": asked["oid"], "size": asked["size"]}, f"{repository.kind}/{repository.name}"
        if asked["oid"] not in repository.objects:
            upload = f"{server.storage_url}/{place}/{asked['oid']}?signature={server.signature}"
            verify = f"{server.url}/{WEB_PREFIX[repository.kind]}{repository.name}.git/info/lfs/objects/verify"
            answer["actions"] = {"upload": {"href": upload, "header": {}}, "verify": {"href": verify, "header": {}}}
        answers.append(answer)
    return json_answer({"transfer": "basic", "objects": answers})


@route("PUT", STORAGE, signed, STORAGE_ROUTES)
def upload_large_file(server: HubServer, request: Request, repository: Repository, oid: str) -> Answer:
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise HubError(400, "The content does not have the sha256 that was announced")
    repository.objects[oid] = request.body
    return Answer(200, b"", {"ETag": f'"{oid}"'})


@route("POST", WEB + r"\.git/info/lfs/objects/verify", writable)
def verify_large_file(server: HubServer, request: Request, repository: Repository) -> Answer:
    asked = request.json()
    if len(repository.objects.get(asked["oid"], b"")) != asked["size"]:
        raise HubError(404, "The file has not been uploaded")
    return json_answer({})


@route("POST", API + "/commit/(?P<revision>[^/]+)", writable)
def create_commit(server: HubServer, request: Request, repository: Repository, revision: str) -> Answer:
    """One commit of all operations, one operation a line. It is there with all of them or not at all."""
    parent = repository.branches[revision]
    lines = [json.loads(line) for line in request.body.splitlines()]
    header = lines[0]["value"]
    if header.get("parentCommit", parent.sha) != parent.sha:
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    files = dict(parent.files)
    for line in lines[1:]:
        apply_operation(repository, files, line["key"], line["value"])
    commit = Commit(files, header["summary"], header.get("description", ""), parent)
    repository.branches[revision] = commit
    url = f"{server.url}/{WEB_PREFIX[repository.kind]}{repository.name}/commit/{commit.sha}"
    return json_answer({"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""})


def apply_operation(repository: Repository, files: dict[str, File], key: str, value: dict):
    """Change `files` by one line of a commit."""
    path = value["path"]
    if key == "file":
        files[path] = File(base64.b64decode(value["content"]))
    elif key == "lfsFile" and value["oid"] in repository.objects:
        files[path] = File(repository.objects[value["oid"]], large=True)
    else:
        raise HubError(400, f"Your push was rejected: {key} of {path}, which nobody has uploaded")


# The server -----------------------------------------------------------------------------------------------------------


class HubServer:
    """The Hub and its storage, running inside a `with` block.

    Its repositories (by kind and name, as "models" and "user/name"), requests and faults may be read and changed.
    """

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.signature = secrets.token_hex(8)
        self.lock = threading.RLock()
        self._listeners = [self._listener(routes) for routes in (HUB_ROUTES, STORAGE_ROUTES)]
        hub, storage = (listener.server_port for listener in self._listeners)
        self.url = f"http://127.0.0.1:{hub}"
        # By another name: `huggingface_hub` 1.33 tells the storage from the Hub by its host alone, without the port.
        self.storage_url = f"http://localhost:{storage}"

    def _listener(self, routes: list[Route]) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"hub": self, "routes": routes})
        listener = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        listener.daemon_threads = True
        return listener

    def __enter__(self) -> HubServer:
        for listener in self._listeners:
            threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        for listener in self._listeners:
            listener.shutdown()
            listener.server_close()

    def create_repository(self, name: str, kind: str = "models", **options) -> Repository:
        """Add an empty repository; options are those of `Repository`."""
        return self.repositories.setdefault((kind, name), Repository(kind, name, **options))

    def repository(self, name: str, kind: str = "models") -> Repository:
        return self.repositories[kind, name]

    def add_files(self, name: str, files: dict[str, bytes], kind: str = "models") -> str:
        """Commit files without a client; the sha of the commit."""
        repository = self.create_repository(name, kind)
        head = repository.branches["main"]
        new = {path: File(data, repository.is_large(path)) for path, data in files.items()}
        repository.objects.update({file.sha256: file.data for file in new.values() if file.large})
        repository.branches["main"] = Commit({**head.files, **new}, "Add files", parent=head)
        return repository.branches["main"].sha

    def titles(self, name: str) -> list[str]:
        """Titles of a model's commits, the newest first."""
        return [commit.title for commit in self.repository(name).branches["main"].history()]

    def files(self, name: str) -> dict[str, bytes]:
        """The files of a model by path."""
        return {path: file.data for path, file in self.repository(name).branches["main"].files.items()}

    def misbehave(self, method: str, path: str, **options) -> Fault:
        """Let the next requests that match go wrong; options are those of `Fault`."""
        self.faults.append(Fault(method, path, **options))
        return self.faults[-1]

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.concerns(method, path):
                    fault.times -= 1
                    return fault
        return None

    def asked(self, method: str, path: str = "") -> list[Request]:
        """The requests of a method whose path matches."""
        return [request for request in self.requests if request.method == method and re.search(path, request.path)]

    def run_python(self, code: str, *, home: Path, token: str | None = None, check: bool = True, **environment: str):
        """Run code, which may import the helpers of the tests, in a new process whose Hub is this one.

        `home` is `HF_HOME` and the working directory, `token` is `HF_TOKEN`, `environment` has more variables, such as
        `HF_HUB_DISABLE_XET="1"` for pushes. With `check`, the process has to succeed.
        """
        home.mkdir(parents=True, exist_ok=True)
        variables = {name: value for name, value in os.environ.items() if not name.upper().startswith("HF_")}
        variables |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            # Otherwise transformers asks a Space to convert the weights of a repository that has none as safetensors.
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "PYTHONPATH": os.pathsep.join(sys.path),
            **({} if token is None else {"HF_TOKEN": token}),
            **environment,
        }
        command = [sys.executable, "-c", textwrap.dedent(code)]
        process = subprocess.run(command, env=variables, cwd=home, capture_output=True, text=True, timeout=300)
        assert not check or process.returncode == 0, process.stdout + process.stderr
        return process

    def run_function(self, function: Callable, *args, home: Path, **options):
        """Result of a function of a test file, called by `run_python` in a new process with an empty cache."""
        call = f"torch.save({function.__module__}.{function.__name__}(*{args!r}), 'result.pt')"
        self.run_python(f"import torch, {function.__module__}\n{call}", home=home, **options)
        return torch.load(home / "result.pt")


class _Handler(BaseHTTPRequestHandler):
    """Reads a request, asks `dispatch`, and sends the answer, or fails as a fault wants it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: HubServer
    routes: list[Route]

    def _handle(self):
        fault = self.hub.take_fault(self.command, self.path)
        try:
            answer = self._answer(self._read_request(fault), fault)
            if fault is not None and fault.after_work:
                raise DroppedConnection
            self._send(answer, fault)
        except DroppedConnection:
            self._drop(fault.reset)
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _answer(self, request: Request, fault: Fault | None) -> Answer:
        with self.hub.lock:
            self.hub.requests.append(request)
            try:
                if fault is not None and fault.status is not None:
                    raise HubError(fault.status, "Something went wrong on our side")
                return dispatch(self.routes, self.hub, request)
            except HubError as error:
                return error.answer

    def _read_request(self, fault: Fault | None) -> Request:
        address = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        has_body = "content-length" in headers or "transfer-encoding" in headers
        limit = fault.after_bytes if fault is not None and has_body else None
        body = self._read_body(headers, limit)
        return Request(self.command, address.path, parse_qs(address.query), headers, body)

    def _read_body(self, headers: dict[str, str], limit: int | None) -> bytes:
        if "chunked" in headers.get("transfer-encoding", ""):
            return b"".join(self._read_chunks())
        length = int(headers.get("content-length", 0))
        if limit is not None:
            self.rfile.read(min(limit, length))
            raise DroppedConnection
        return self.rfile.read(length)

    def _read_chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _send(self, answer: Answer, fault: Fault | None):
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        limit = fault.after_bytes if fault is not None else None
        if self.command != "HEAD":
            self.wfile.write(answer.body[:limit])
        if limit is not None:
            raise DroppedConnection

    def _drop(self, reset: bool):
        self.close_connection = True
        if reset:
            # Closing without lingering makes the kernel send a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args):
        """Print nothing: `HubServer.requests` is the log."""
