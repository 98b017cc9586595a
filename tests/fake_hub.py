"""A local Hub that implements enough of the protocol for the real client."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


class FakeHub:
    """Repositories by id, each a mapping of file name to content.

    Attributes
    ----------
    refusals : dict
        Repository id to (status, X-Error-Code or None).
    file_refusals : dict
        The same for the files only: a gated repository shows its list to anybody.
    fetched : list of str
        Names of files whose content was asked for, in order.
    ranges : list of int
        First byte of each of these responses.
    cuts : dict
        File name to numbers of bytes: after so many the connection breaks, once for each number.
    spoilt : set of str
        Names of files that are sent with their last byte inverted.
    ignores_ranges : bool
        Whether files are always sent from their beginning.
    stall_after : dict
        File name to a number of bytes, after which it sends nothing more until `go_on` is set.
    go_on : threading.Event
    elsewhere : str
        Another hub's address: large files are sent from there, as the real Hub does.
    tokens : list
        The Authorization that each request for a file's content came with, or None.
    commits : dict
        Earlier versions of main by commit hash; see `push`.
    refs : dict
        Further branches and tags, to a commit's hash.
    before : callable
        Called with "listing", "HEAD" or "GET" and a file's name, before that is answered.
    listing : bytes or None
        Sent instead of the listing.
    headers : dict
        File name to headers that are sent in place of the right ones.
    extra : dict
        File name to bytes that are sent after its content, of which no header tells.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Mapping[str, bytes]] = {}
        self.refusals: dict[str, tuple[int, str | None]] = {}
        self.file_refusals: dict[str, tuple[int, str | None]] = {}
        self.fetched: list[str] = []
        self.ranges: list[int] = []
        self.cuts: dict[str, list[int]] = {}
        self.spoilt: set[str] = set()
        self.ignores_ranges = False
        self.stall_after: dict[str, int] = {}
        self.go_on = threading.Event()
        self.elsewhere = ""
        self.tokens: list[str | None] = []
        self.commits: dict[str, Mapping[str, bytes]] = {}
        self.refs: dict[str, str] = {}
        self.main = COMMIT
        self.before: Callable[[str, str], None] = lambda what, name: None
        self.listing: bytes | None = None
        self.headers: dict[str, dict[str, str]] = {}
        self.extra: dict[str, bytes] = {}
        self.endpoint = ""

    def push(self, repo_id: str, files: Mapping[str, bytes]) -> str:
        """Move main on to a new commit; the old one stays to be asked for by its hash."""
        self.commits[self.main] = self.repos[repo_id]
        self.main = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repos[repo_id] = files
        return self.main

    def files(self, repo_id: str, revision: str) -> tuple[str, Mapping[str, bytes]] | None:
        """Return the commit and the files that a revision is now."""
        commit = self.main if revision == "main" else self.refs.get(revision, revision)
        if commit == self.main:
            return commit, self.repos[repo_id]
        return (commit, self.commits[commit]) if commit in self.commits else None


@contextmanager
def running() -> Iterator[FakeHub]:
    """Serve on a free port of 127.0.0.1 until the block ends."""
    hub = FakeHub()

    class Request(_Request):
        pass

    Request.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Request(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/(tree|revision)/([^/]+))?", path):
            repo_id, what, revision = found.groups()
            self.hub.before("listing", "")
            if self._allowed(repo_id):
                self._listing(repo_id, unquote(revision or "main"), tree=what == "tree")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo_id, revision, name = map(unquote, found.groups())
            self.hub.before("GET" if self.command == "GET" else "HEAD", name)
            if refusal := self.hub.file_refusals.get(repo_id):
                self._refuse(*refusal)
            elif self._allowed(repo_id):
                self._file(repo_id, revision, name)
        else:
            self._refuse(404, None)

    def _allowed(self, repo_id: str) -> bool:
        refusal = self.hub.refusals.get(repo_id)
        if refusal is None and repo_id not in self.hub.repos:
            refusal = (404, "RepoNotFound")
        if refusal is not None:
            self._refuse(*refusal)
        return refusal is None

    def _refuse(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _listing(self, repo_id: str, revision: str, *, tree: bool) -> None:
        found = self.hub.files(repo_id, revision)
        if found is None:
            self._refuse(404, "RevisionNotFound")
        elif self.hub.listing is not None:
            self._send(self.hub.listing, {"Content-Type": "application/json"})
        elif tree:
            self._json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": etag(name, content)}
                    for name, content in found[1].items()
                ]
            )
        else:
            self._json(info(repo_id, *found))

    def _json(self, content: object) -> None:
        self._send(json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _file(self, repo_id: str, revision: str, name: str) -> None:
        found = self.hub.files(repo_id, revision)
        if found is None:
            self._refuse(404, "RevisionNotFound")
            return
        commit, files = found
        content = files.get(name)
        if content is None:
            self._refuse(404, "EntryNotFound")
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag(name, content)}"'}
        headers |= self.hub.headers.get(name, {})
        if self.command == "GET":
            self.hub.tokens.append(self.headers.get("Authorization"))
        if self.hub.elsewhere and name.endswith(".safetensors"):
            linked = {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(content))}
            location = {"Location": self.hub.elsewhere + self.path, "X-Repo-Commit": commit}
            self._send(b"", linked | location, 302)
            return
        if self.command != "GET":
            self._send(content, headers)
            return
        if name in self.hub.spoilt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        ranged = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(ranged[1]) if ranged and not self.hub.ignores_ranges else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.hub.fetched.append(name)
        self.hub.ranges.append(start)
        cuts = self.hub.cuts.get(name, [])
        self._send(
            content[start:] + self.hub.extra.get(name, b""),
            headers,
            206 if start else 200,
            cut=cuts.pop(0) if cuts else None,
            stall=self.hub.stall_after.get(name),
        )

    def _send(
        self,
        body: bytes,
        headers: Mapping[str, str],
        status: int = 200,
        *,
        cut: int | None = None,
        stall: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            try:
                if stall is not None:
                    self.wfile.write(body[:stall])
                    self.wfile.flush()
                    self.hub.go_on.wait(60)
                    body = body[stall:]
                self.wfile.write(body[:cut])
            except OSError:
                self.close_connection = True  # the client has cancelled
        if cut is not None:
            self.close_connection = True


def info(repo_id: str, commit: str, files: Mapping[str, bytes]) -> dict[str, object]:
    """Return a listing as the Hub writes it."""
    siblings: list[dict[str, object]] = []
    for name, content in files.items():
        hashed: dict[str, object] = {"blobId": etag(name, content)}
        if name.endswith(".safetensors"):
            large = {"sha256": etag(name, content), "size": len(content), "pointerSize": 134}
            hashed = {"blobId": etag("pointer", content[:9]), "lfs": large}
        siblings.append({"rfilename": name, "size": len(content), **hashed})
    return {"id": repo_id, "sha": commit, "siblings": siblings}


def etag(name: str, content: bytes) -> str:
    """Return what the Hub says: a SHA-256 for a large file, git's hash for any other."""
    if name.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
