"""A hub on this machine: the part of the Hugging Face hub's HTTP interface that repositories of models need, kept in memory.

It makes repositories, takes files (small ones in the commit, safetensors through LFS), and gives them back by commit, with etags,
the redirect of an LFS file, and the errors that the hub gives. Whether `huggingface_hub` speaks to it as to the hub is seen in the
tests that load what was pushed; the real hub was never asked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

OWNER, STRANGER = "hf_ownerSecretToken123", "hf_strangerSecretToken456"
USERS = {OWNER: "me", STRANGER: "else"}
BASE_MODEL = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass
class Repository:
    """Commits, oldest first: (id, {path: bytes}), and whether only its owner sees it."""

    private: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes]) -> str:
        name = hashlib.sha1(repr([(k, hashlib.sha1(v).hexdigest()) for k, v in files.items()]).encode())
        name.update(str(len(self.commits)).encode())
        self.commits.append((name.hexdigest(), files))
        return name.hexdigest()

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((c for c in self.commits if c[0] == revision), None)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1]


@dataclass
class Hub:
    """The state of the server, and every request that it got: (method, path, headers, body)."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    broken: int = 0  # status of every answer, if not 0

    @property
    def storage(self) -> str:
        """Where LFS files are: another host, as of the hub, so that metadata are those of the redirect and no token is sent."""
        return self.url.replace("127.0.0.1", "localhost")

    def add(self, name: str, folder: Path, **options: Any) -> Repository:
        """A repository with the files of a folder."""
        repository = self.repositories[name] = Repository(**options)
        repository.commit({p.name: p.read_bytes() for p in sorted(folder.iterdir())})
        return repository


class Handler(BaseHTTPRequestHandler):
    """One request. The hub is the attribute `hub` of the server."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def answer(self, status: int, body: bytes | Any = b"", **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def error(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    @property
    def user(self) -> str | None:
        return USERS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def do_HEAD(self) -> None:
        self.serve()

    def do_GET(self) -> None:
        self.serve()

    def do_PUT(self) -> None:
        self.serve()

    def do_POST(self) -> None:
        self.serve()

    def serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        if self.hub.broken:
            return self.answer(self.hub.broken, {"error": f"broken, token {self.headers.get('Authorization')}"})
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                more = {"body": body} if self.command in ("POST", "PUT") else {}
                return getattr(self, method)(*map(unquote, match.groups()), **more)
        return self.error(404, "NotFound", f"no such address {path}")

    def seen(self, name: str) -> Repository | None:
        """The repository, if it is there and the user may see it; else the error is answered."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self.user != name.partition("/")[0]):
            self.error(404 if self.user else 401, "RepoNotFound", "Repository not found")
            return None
        return repository

    def commit_of(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.seen(name)
        if repository is None:
            return None
        found = repository.at(revision)
        if found is None:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    # -- what is asked ------------------------------------------------------------------------------------
    def resolve(self, name: str, revision: str, path: str) -> None:
        found = self.commit_of(name, revision)
        if found is None:
            return None
        commit, files = found
        if path not in files:
            return self.error(404, "EntryNotFound", "Entry not found")
        raw = files[path]
        if path.endswith(".safetensors"):
            etag = hashlib.sha256(raw).hexdigest()
            self.hub.blobs[etag] = raw
            return self.answer(
                302, Location=f"{self.hub.storage}/storage/{etag}", X_Repo_Commit=commit, X_Linked_Etag=f'"{etag}"',
                X_Linked_Size=str(len(raw)),
            )  # fmt: skip
        return self.answer(200, raw, X_Repo_Commit=commit, ETag=f'"{hashlib.sha1(raw).hexdigest()}"')

    def storage(self, etag: str) -> None:
        self.answer(200, self.hub.blobs[etag], ETag=f'"{etag}"')

    def info(self, name: str, revision: str = "main") -> None:
        if (found := self.commit_of(name, revision)) is not None:
            siblings = [{"rfilename": path} for path in found[1]]
            self.answer(200, {"id": name, "sha": found[0], "siblings": siblings, "private": False, "tags": []})

    def tree(self, name: str, revision: str) -> None:
        if (found := self.commit_of(name, revision)) is not None:
            self.answer(200, [entry(path, raw) for path, raw in found[1].items()])

    # -- what is written ----------------------------------------------------------------------------------
    def create(self, *, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if self.user is None:
            return self.error(401, "", "Invalid username or password.")
        if self.user != asked["organization"]:
            return self.error(403, "", f"You don't have the rights to create a model under the namespace {name}")
        if name in self.hub.repositories:
            return self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        made = self.hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
        made.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.answer(200, {"url": f"{self.hub.url}/{name}"})

    def validate(self, *, body: bytes) -> None:
        """The hub refuses a card whose base_model is no name of a model."""
        about = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
        base = about.get("base_model")
        wrong = base is not None and not BASE_MODEL.fullmatch(base)
        errors = [{"message": f'"base_model" with value "{base}" is not valid'}] if wrong else []
        self.answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, name: str, _: str, *, body: bytes) -> None:
        if not self.may_write(name):
            return
        files = json.loads(body)["files"]
        modes = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular", "shouldIgnore": False}
            for f in files
        ]  # fmt: skip
        self.answer(200, {"files": modes})

    def lfs_batch(self, name: str, *, body: bytes) -> None:
        if not self.may_write(name):
            return
        given = json.loads(body)["objects"]
        href = f"{self.hub.url}/lfs"
        objects = [
            {**o, "actions": {"upload": {"href": f"{href}/{o['oid']}"}, "verify": {"href": f"{href}-verify"}}}
            for o in given
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str, *, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.error(400, "", "checksum")
        self.hub.blobs[oid] = body
        return self.answer(200)

    def lfs_verify(self, *, body: bytes) -> None:
        self.answer(200 if json.loads(body)["oid"] in self.hub.blobs else 404)

    def commit(self, name: str, _: str, *, body: bytes) -> None:
        if not self.may_write(name):
            return None
        repository = self.hub.repositories[name]
        lines = [json.loads(line) for line in body.splitlines()]
        if lines[0]["value"].get("parentCommit") not in (None, repository.commits[-1][0]):
            return self.error(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(repository.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            else:
                del files[value["path"]]
        made = repository.commit(files)
        return self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{made}", "commitOid": made})

    def may_write(self, name: str) -> bool:
        if self.seen(name) is None:
            return False
        if self.user != name.partition("/")[0]:
            self.error(403, "", "You have no write access to this repository")
            return False
        return True


def entry(path: str, raw: bytes) -> dict[str, Any]:
    """A file in the listing of a commit."""
    about = {"type": "file", "path": path, "size": len(raw), "oid": hashlib.sha1(raw).hexdigest()}
    if path.endswith(".safetensors"):
        about["lfs"] = {"oid": hashlib.sha256(raw).hexdigest(), "size": len(raw), "pointerSize": 134}
    return about


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"POST /api/models/{NAME}/preupload/([^/]+)", "preupload"),
    (rf"POST /api/models/{NAME}/commit/([^/]+)", "commit"),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"PUT /lfs/(\w+)", "lfs_put"),
    (r"POST /lfs-verify", "lfs_verify"),
    (rf"GET /api/models/{NAME}", "info"),
    (rf"GET /api/models/{NAME}/revision/([^/]+)", "info"),
    (rf"GET /api/models/{NAME}/tree/([^/]+)", "tree"),
    (rf"(?:GET|HEAD) /{NAME}/resolve/([^/]+)/(.+)", "resolve"),
    (r"GET /storage/(\w+)", "storage"),
]


@pytest.fixture(scope="session")
def hub_server() -> Iterator[ThreadingHTTPServer]:
    """A server on a free port, one a session."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def hub(hub_server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """An empty hub that huggingface_hub asks, with an empty cache and no saved login."""
    here = Hub(f"http://127.0.0.1:{hub_server.server_address[1]}")
    hub_server.hub = here  # type: ignore[attr-defined]
    settings: dict[str, Any] = {
        "HF_HUB_OFFLINE": False, "ENDPOINT": here.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": True,
        "HUGGINGFACE_CO_URL_TEMPLATE": here.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_TOKEN_PATH": str(tmp_path / "no-token"), "HF_STORED_TOKENS_PATH": str(tmp_path / "no-tokens"),
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # keeps the address that it was given first
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return here
