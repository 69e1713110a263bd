# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for a model hub: what of its protocol is used, over HTTP on loopback. Files come by plain requests.

Branches point to commits, a commit is a folder of files. Large ones are as with git LFS: named by SHA-256, and had
from another path, where the hub sends the client.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import random
import re
import threading
import time
import typing as t
import urllib.parse

SMALL = 4096
"""Bytes up to which a file is git's own."""


class Hub:
    """Models by id: commits with their files, and branches. `cut` drops each answer after so many bytes."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.gated: dict[str, str] = {}
        """Model by the token that is let in."""
        self.cut: t.Callable[[], int | None] = lambda: None
        self.pause = 0.0
        """Seconds before each block of a file."""
        self.spoilt: set[str] = set()
        """Files that come with another byte than the hub tells."""
        self.asked: list[tuple[str, str, str]] = []
        """Method, path and Range of each request."""
        self.instead: bytes | None = None
        """What each request is answered with, as something else would that is no hub."""
        self.sent = 0
        """Bytes of files."""
        self.address = ""
        self.open(0)

    def open(self, port: int) -> None:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def reopen(self) -> None:
        self.open(self._server.server_port)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def push(self, model: str, files: dict[str, bytes], branch: str = "main") -> str:
        """A commit with these files, which the branch points to then."""
        said = json.dumps({name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())})
        commit = hashlib.sha1(said.encode()).hexdigest()
        self.commits.setdefault(model, {})[commit] = files
        self.branches.setdefault(model, {})[branch] = commit
        return commit

    def randomly(self, seed: int, least: int, most: int) -> None:
        numbers = random.Random(seed)
        self.cut = lambda: numbers.randint(least, most)

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                self._answer()

            def log_message(self, *_: t.Any) -> None:
                pass

            def _answer(self) -> None:
                path = urllib.parse.urlsplit(self.path).path
                hub.asked.append((self.command, path, self.headers.get("Range", "")))
                if hub.instead is not None:
                    self._plain(200, hub.instead, {})
                elif found := re.fullmatch(r"/api/models/(.+)/revision/([^/]+)", path):
                    self._told(*map(urllib.parse.unquote, found.groups()))
                elif found := re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path):
                    self._file(*map(urllib.parse.unquote, found.groups()))
                elif found := re.fullmatch(r"/api/v1/models/(.+)/repo(/files)?", path):
                    self._modelscope(found[1], bool(found[2]))
                elif found := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
                    contents = [c for m in hub.commits.values() for files in m.values() for c in files.values()]
                    self._send(next(c for c in contents if hashlib.sha256(c).hexdigest() == found[1]), found[1], {})
                else:
                    self._refuse(404, "")

            def _commit(self, model: str, revision: str) -> str | None:
                if model not in hub.commits:
                    self._refuse(401, "RepoNotFound", "Invalid username or password.")
                    return None
                commit = hub.branches[model].get(revision, revision)
                if commit not in hub.commits[model]:
                    self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
                    return None
                return commit

            def _told(self, model: str, revision: str) -> None:
                commit = self._commit(model, revision)
                if commit is None:
                    return
                siblings = []
                for name, content in hub.commits[model][commit].items():
                    one: dict[str, t.Any] = {"rfilename": name, "size": len(content), "blobId": blob(content)}
                    if len(content) > SMALL:
                        one["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
                        one["lfs"]["pointerSize"] = 130
                    siblings.append(one)
                gated = "manual" if model in hub.gated else False
                about: dict[str, t.Any] = {
                    "_id": "1",
                    "id": model,
                    "modelId": model,
                    "sha": commit,
                    "gated": gated,
                    "private": False,
                }
                about |= {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0}
                self._plain(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

            def _file(self, model: str, revision: str, name: str) -> None:
                if model in hub.gated and self.headers.get("Authorization") != f"Bearer {hub.gated[model]}":
                    self._refuse(403, "GatedRepo", "Access to this model is restricted.")
                    return
                commit = self._commit(model, revision)
                if commit is None:
                    return
                content = hub.commits[model][commit].get(name)
                if content is None:
                    self._refuse(404, "EntryNotFound", "Entry not found")
                    return
                headers = {"X-Repo-Commit": commit}
                if len(content) <= SMALL:
                    self._send(content, blob(content), headers, spoilt=name in hub.spoilt)
                    return
                digest = hashlib.sha256(content).hexdigest()
                headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{digest}"'}
                self._plain(302, b"", {**headers, "Location": f"{hub.address}/lfs/{digest}"})

            def _modelscope(self, model: str, lists: bool) -> None:
                """The same models as ModelScope tells and gives them; its first branch is `master`."""
                asked = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
                commit = hub.branches.get(model, {}).get(asked.get("Revision", ["master"])[0].replace("master", "main"))
                if commit is None:
                    self._plain(404, json.dumps({"Code": 404, "Message": "not found", "Success": False}).encode(), {})
                    return
                files = hub.commits[model][commit]
                if lists:
                    told = [
                        {"Path": name, "Name": name, "Type": "blob", "Size": len(content)}
                        | {"Sha256": hashlib.sha256(content).hexdigest(), "Revision": commit}
                        for name, content in files.items()
                    ]
                    answer = {"Code": 200, "Success": True, "Message": "", "Data": {"Files": told}}
                    self._plain(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})
                    return
                content = files.get(asked["FilePath"][0])
                if content is None:
                    self._plain(404, b"{}", {})
                    return
                self._send(content, hashlib.sha256(content).hexdigest(), {})

            def _send(self, content: bytes, etag: str, headers: dict[str, str], spoilt: bool = False) -> None:
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                start = int(asked[1]) if asked else 0
                self.send_response(206 if asked else 200)
                for name, value in {**headers, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}.items():
                    self.send_header(name, value)
                if asked:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                if self.command == "HEAD":
                    return
                left, block = hub.cut(), 16384
                content = bytes([content[0] ^ 1]) + content[1:] if spoilt or etag in hub.spoilt else content
                for place in range(start, len(content), block):
                    time.sleep(hub.pause)
                    part = content[place : place + block]
                    if left is not None and len(part) > left:
                        self._write(part[:left])
                        self.close_connection = True
                        self.connection.close()
                        return
                    self._write(part)
                    left = None if left is None else left - len(part)

            def _write(self, part: bytes) -> None:
                try:
                    self.wfile.write(part)
                    self.wfile.flush()
                    hub.sent += len(part)
                except OSError:  # the client was ended
                    self.close_connection = True

            def _refuse(self, status: int, code: str, message: str = "") -> None:
                self._plain(status, b"{}", {"X-Error-Code": code, "X-Error-Message": message})

            def _plain(self, status: int, content: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

        return Handler


def blob(content: bytes) -> str:
    """SHA-1 as git counts it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
