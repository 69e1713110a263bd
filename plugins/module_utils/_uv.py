# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""uv on a node: put there, run in an environment of its own, and its failures explained."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import typing as t
from dataclasses import dataclass
from pathlib import Path

from ._engine import files
from ._errors import FinetuneError


class Uv:
    """The installer below one root, and the only one that runs it.

    shipped: version, size in bytes and sha256 of the controller's uv. stream: its bytes, None until they were sent.
    """

    def __init__(
        self, root: str, home: str, shipped: t.Mapping[str, t.Any], stream: t.BinaryIO | None, index_url: str
    ) -> None:
        self.root, self.shipped, self.stream = root, shipped, stream
        self.program = f"{root}/tools/uv-{shipped['version']}/uv"
        self.environ = environment(os.environ, root, home, index_url)
        self.lock: int | None = None
        """Descriptor of the lock that its processes hold too."""

    @property
    def warm(self) -> bool:
        """Whether the cache holds unpacked packages of earlier builds."""
        unpacked = f"{self.root}/cache/uv/archive-v0"
        return os.path.isdir(unpacked) and bool(os.listdir(unpacked))

    def missing(self) -> list[dict[str, str]]:
        """The change that puts it on the node; empty when it is there. Its rename is atomic, so the size is proof."""
        try:
            stat = os.stat(self.program)
        except OSError:
            return [{"action": "create", "path": self.program}]
        if stat.st_size == self.shipped["size"] and os.access(self.program, os.X_OK):
            return []
        return [{"action": "update", "path": self.program}]

    def install(self) -> None:
        if not self.missing():
            return
        if self.stream is None:
            raise FinetuneError(
                "uv was removed from the node while it was needed.", where=self.program, change="apply again"
            )
        if not files.receive(self.stream, Path(self.program), self.shipped["sha256"], 0o755):
            raise FinetuneError("uv was damaged on its way to the node.", where=self.program, change="apply again")

    def run(self, arguments: t.Sequence[str], lock_name: str) -> None:
        """Run it; a FinetuneError says what its failure means."""
        for folder in ("cache/uv", "cache/tmp"):
            os.makedirs(f"{self.root}/{folder}", exist_ok=True)
        done = self.process([self.program, *arguments], self.root)
        if done.returncode < 0:
            raise FinetuneError(
                f"uv was ended by {signal.Signals(-done.returncode).name}.",
                where=lock_name,
                change="see whether the node is out of memory; apply again",
            )
        if done.returncode != 0:
            raise explain(strip_credentials(done.stderr), lock_name)

    def process(self, command: t.Sequence[str], folder: str) -> subprocess.CompletedProcess[str]:
        """What became of a command in uv's environment. It and its children hold our lock too, so nobody builds beside
        what a killed apply left running."""
        return subprocess.run(
            command,
            env=self.environ,
            cwd=folder,
            pass_fds=() if self.lock is None else (self.lock,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )


_KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "NETRC", "UV_HTTP_TIMEOUT", "CC", "CXX")


def environment(environ: t.Mapping[str, str], root: str, home: str, index_url: str = "") -> dict[str, str]:
    """The whole environment that uv runs in: proxies and certificates pass, nobody's uv or pip settings do."""
    kept = {key: value for key, value in environ.items() if key in _KEPT or key.lower().endswith("_proxy")}
    kept.setdefault("PATH", "/usr/local/bin:/usr/bin:/bin")
    kept.update(
        HOME=home,
        TMPDIR=f"{root}/cache/tmp",
        UV_CACHE_DIR=f"{root}/cache/uv",
        UV_NO_CONFIG="1",
        UV_NO_PROGRESS="1",
        UV_PYTHON_DOWNLOADS="never",
    )
    if index_url:
        kept["UV_DEFAULT_INDEX"] = index_url
    return kept


def venv_arguments(path: str, python: str) -> list[str]:
    """Make an empty environment. No pip in it: what a lock describes is not changed by hand."""
    return ["venv", "--quiet", "--no-project", "--python", python, "--prompt", "llmops", path]


def sync_arguments(
    path: str,
    lock: str,
    *,
    constraints: str = "",
    reinstall: t.Sequence[str] = (),
    find_links: str = "",
    offline: bool = False,
) -> list[str]:
    """Make an environment what its lock says. constraints: a lock of what source packages are built with; its hashes
    are checked like those of the lock."""
    arguments = ["pip", "sync", "--require-hashes", "--python", f"{path}/bin/python"]
    if constraints:
        arguments += ["--build-constraints", constraints]
    for name in reinstall:
        arguments += ["--reinstall-package", name]
    if find_links:
        arguments += ["--find-links", find_links]
    if offline:
        arguments += ["--offline", *(["--no-index"] if find_links else [])]
    return [*arguments, lock]


@dataclass(frozen=True)
class Trouble:
    """A kind of failure of uv: how it is recognised, what it means, what to change."""

    pattern: str
    meaning: str
    remedy: str


_TROUBLES = (
    Trouble(
        r"hash mismatch|hashes? (are|is) required|no hash",
        "A package does not have the hash that the lock says.",
        "check what uv_env_index_url and uv_env_find_links serve; if the lock is old, make it again",
    ),
    Trouble(
        r"no space left|disk quota exceeded|os error 28|os error 122",
        "The disk is full.",
        "free some space, or put uv_env_root (train_root) on a larger file system",
    ),
    Trouble(
        r"permission denied|os error 13",
        "Some files of the environment belong to somebody else.",
        "give them to the environment's user (chown -R below uv_env_root), or remove the environment and apply again",
    ),
    Trouble(
        r"network (connectivity )?(was|is) disabled|not found in the cache|packages were unavailable because index|"
        r"not found in the provided package locations",
        "A package is not in the wheel folder or the cache, and the network may not be used.",
        "put it into the folder of uv_env_find_links (for an sdist also setuptools), or set uv_env_offline=false",
    ),
    Trouble(
        r"dns error|error sending request|tcp connect|connection (refused|reset|closed)|timed out|unreachable|"
        r"http status (client|server) error|certificate|not found in the package registry|there is no version",
        "The package index cannot be reached, or does not have a package.",
        "name an index that this node reaches with uv_env_index_url, or a folder of wheels with uv_env_find_links; "
        "a proxy is set with the task's environment (HTTPS_PROXY)",
    ),
    Trouble(
        r"failed to build|build backend",
        "A source package could not be built.",
        "read uv's words below; it may need a compiler",
    ),
    Trouble(
        r"no (compatible |matching |usable )?(wheels?|source distribution)|platform tag|abi tag|python tag",
        "A package has no wheel for this node's Python or platform.",
        "name another Python with uv_env_python, or a lock made for this platform with uv_env_lock",
    ),
)


def explain(stderr: str, lock_name: str) -> FinetuneError:
    """What uv's failure means for the person who set the variables; uv's own last lines are kept."""
    tail = "\n".join(line for line in stderr.strip().splitlines() if line.strip())[-1500:]
    what, change = "uv failed.", "read uv's words below"
    for trouble in _TROUBLES:
        if re.search(trouble.pattern, stderr, re.IGNORECASE):
            what, change = trouble.meaning, trouble.remedy
            break
    return FinetuneError(what, where=lock_name, change=f"{change}\n  uv:     " + tail.replace("\n", "\n          "))


def strip_credentials(text: str) -> str:
    """URLs without what stands before the @."""
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", text)
