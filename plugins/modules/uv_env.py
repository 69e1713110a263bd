# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One Python environment on a node, made and kept what its lock says."""

from __future__ import annotations

DOCUMENTATION = r"""
module: uv_env
short_description: Make a Python environment on a node exactly what a lock says
version_added: 0.1.0
author:
  - llmops.finetune contributors (@llmops-finetune)
description:
  - Builds one immutable Python environment per lock, in V(<root>/envs/<digest of the lock>), with C(uv).
  - Every apply compares what is installed with the lock, package by package and file by file.
    Damaged packages alone are installed again, packages that are not in the lock are removed, and all are named.
  - An environment whose build was killed has no completion mark; it is never used, but built again.
  - The C(uv) of the controller is copied to the node only when something has to be built. The node needs no C(pip),
    and the environment gets none.
options:
  root:
    description: Folder on the node that holds environments, cache and tools. V(~) is the home of O(user).
    type: str
    default: ~/llmops
  lock:
    description:
      - The lock, a file on the controller that C(uv pip compile --universal --generate-hashes) wrote.
      - An absolute path, a path relative to the playbook, or the name of a file in this collection's C(requirements).
      - Every line is an exact version with hashes. Options in the file, such as an index, are refused.
    type: str
    required: true
  lock_name:
    description: What messages call the lock. By default its file name without the suffix.
    type: str
    default: ""
  python:
    description:
      - The Python (3.11 to 3.13) on the node that carries the environment.
        An environment that was built on another one is built again.
      - By default the first that fits of C(python3.11), C(python3.12), C(python3.13), C(python3) in C(/usr/bin),
        C(/usr/local/bin), the C(PATH) and C(~/.local/bin).
    type: str
    default: ""
  user:
    description:
      - Who the environment belongs to. Root becomes this user first; anybody else can only name themselves.
      - By default the login user, or C(llmops) where that is root.
    type: str
    default: ""
  imports:
    description: Modules that must import after a build or a repair, before the environment counts as complete.
    type: list
    elements: str
    default: []
  index_url:
    description: The package index to use instead of the public one.
    type: str
    default: ""
  find_links:
    description:
      - A folder of wheels on the node, for sites without an index.
      - A package that exists as source only (DeepSpeed, jieba) also needs its build tools there (setuptools).
    type: str
    default: ""
  offline:
    description: Use no network. Packages come from O(find_links) and the cache only.
    type: bool
    default: false
  verify:
    description:
      - V(quick) checks every file's presence and size, and the content of files that were written to since the build.
      - V(full) checks the content of every file (about 8 GB for the training environment).
    type: str
    choices: [quick, full]
    default: quick
  state:
    description: V(absent) removes the environment of this lock; the cache stays.
    type: str
    choices: [present, absent]
    default: present
  uv_version:
    description: Set by the action plugin. Version of the controller's C(uv).
    type: str
    default: ""
  uv_size:
    description: Set by the action plugin. Size of the controller's C(uv) in bytes.
    type: int
    default: 0
  uv_src:
    description: Set by the action plugin. Where the shipped C(uv) lies on the node.
    type: str
    default: ""
  uv_sha256:
    description: Set by the action plugin. Digest of the shipped C(uv).
    type: str
    default: ""
attributes:
  check_mode:
    support: full
    description: Predicts the changes of an apply, refuses what an apply refuses up front, and creates nothing.
  diff_mode:
    support: none
    description: The changes are in the return value.
  idempotent:
    support: full
    description: One module execution when the environment is what the lock says, two when C(uv) has to be shipped.
seealso:
  - name: uv
    description: The installer.
    link: https://docs.astral.sh/uv/
"""

EXAMPLES = r"""
- name: The training environment of this collection
  llmops.finetune.uv_env:
    lock: node-main.txt
    imports: [torch, llamafactory]

- name: An environment of your own for user alice, from a folder of wheels, without a network
  llmops.finetune.uv_env:
    lock: requirements/mine.txt
    root: /srv/llmops
    user: alice
    find_links: /mnt/wheels
    offline: true
  become: true

- name: Check every byte
  llmops.finetune.uv_env:
    lock: node-main.txt
    verify: full
"""

RETURN = r"""
changes:
  description: What was changed, or would be.
  returned: success
  type: list
  elements: dict
  sample: [{"action": "build", "path": "/home/alice/llmops/envs/0123456789abcdef"}]
path:
  description: The environment.
  returned: success
  type: str
  sample: /home/alice/llmops/envs/0123456789abcdef
python:
  description: The environment's Python.
  returned: success
  type: str
  sample: /home/alice/llmops/envs/0123456789abcdef/bin/python
digest:
  description: Digest of the lock, which names the environment.
  returned: success
  type: str
  sample: 0123456789abcdef
python_version:
  description: Version of the environment's Python. In check mode of the Python that would be used.
  returned: when O(state=present)
  type: str
  sample: 3.11.2
packages:
  description: What the lock installs on this node.
  returned: when O(state=present)
  type: dict
  sample: {"torch": "2.8.0"}
repaired:
  description: The packages that were installed again or removed, or would be.
  returned: success
  type: list
  elements: str
built:
  description: Whether the environment was built from nothing, or would be.
  returned: success
  type: bool
seconds:
  description: How long this took on the node.
  returned: success
  type: float
notes:
  description: What is no error but good to know.
  returned: success
  type: list
  elements: str
needs_uv:
  description: Whether C(uv) must be shipped before this can go on. The action plugin acts on it.
  returned: success
  type: bool
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import platform
import pwd
import shutil
import signal
import subprocess
import time
import typing as t
from pathlib import Path
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _env
from ..module_utils._errors import FinetuneError
from ..module_utils._user import DEFAULT_ACCOUNT, drop_to, expand, lookup, run_user

FORMAT = 1
LOCK_WAIT = 3600.0
"""Seconds to wait for another builder of the same environment."""
IMPORT_PROBE = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"


@dataclasses.dataclass
class Look:
    """What is at the environment's path. wrong: why it cannot stay ("" = it can, with `found.damages` repaired)."""

    wrong: str
    exists: bool
    mark: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    lock: dict[str, str] = dataclasses.field(default_factory=dict)
    found: _env.Inspection = dataclasses.field(default_factory=_env.Inspection)

    @property
    def complete(self) -> bool:
        return not self.wrong and not self.found.damages


class Environment:
    """One environment for one user: look, build, repair, remove. Runs as that user."""

    def __init__(self, params: dict[str, t.Any], user: str, check_mode: bool, uv_stream: t.BinaryIO | None) -> None:
        account = lookup(user)
        self.params, self.user, self.home, self.check_mode = params, user, account.pw_dir, check_mode
        self.root = expand(params["root"], user).rstrip("/")
        self.find_links = expand(params["find_links"], user)
        if not self.root.startswith("/"):
            raise FinetuneError(
                f"{params['root']!r} is not an absolute path.",
                where="uv_env_root (train_root)",
                change="start it with / or ~/",
            )
        self.digest = _env.environment_digest(params["lock"])
        self.path = _env.environment_path(self.root, self.digest)
        self.name = params["lock_name"] or self.digest
        self.tool = f"{self.root}/tools/uv-{params['uv_version']}/uv"
        self.uv_stream = uv_stream
        self.lock_stream: t.IO[str] | None = None
        self.warnings: list[str] = []

    # -- look --

    def look(self, content: _env.Content) -> Look:
        """The state of the path, without touching it."""
        mark_path = f"{self.path}/{_env.MARK}"
        if not os.path.lexists(self.path):
            return Look("it is not there", exists=False)
        try:
            mark = json.loads(Path(mark_path).read_text(encoding="utf-8"))
            if (mark["format"], mark["digest"]) != (FORMAT, self.digest):
                return Look("its completion mark is of another environment", exists=True)
            version = tuple(int(part) for part in mark["python_version"].split("."))
            base, config, seals = mark["python"], mark["pyvenv"], mark["seals"]
        except FileNotFoundError:
            return Look("its build was never finished", exists=True)
        except (OSError, ValueError, KeyError, TypeError):
            return Look("its completion mark cannot be read", exists=True)
        lock = _env.parse_lock(self.params["lock"], version, self.name)
        site = _site(self.path, version)
        if not os.access(f"{self.path}/bin/python", os.X_OK) or not os.access(base, os.X_OK):
            return Look(f"its Python {base} is gone", exists=True, lock=lock)
        if _sha256(f"{self.path}/pyvenv.cfg") != config or not os.path.isdir(site):
            return Look("pyvenv.cfg or site-packages was changed", exists=True, lock=lock)
        asked = expand(self.params["python"], self.user)
        if asked and os.path.realpath(asked) != base and self.find_python()[0] != base:
            return Look(f"it was built on {base}, not on {asked}", exists=True, lock=lock)
        found = _env.inspect(site, lock, seals, content)
        return Look("", exists=True, mark=mark, lock=lock, found=found)

    def find_python(self) -> tuple[str, dict[str, t.Any]]:
        """(real path, facts) of the Python to build on; a Python inside a venv stands for the one under it."""
        asked = expand(self.params["python"], self.user)
        tried: dict[str, str] = {}
        for candidate in [asked] if asked else _env.python_candidates(os.environ.get("PATH", ""), self.home):
            path = candidate
            if not os.path.isfile(path):
                if asked:
                    tried[path] = "no file that this user can reach"
                continue
            facts = _probe(path)
            if facts and facts["in_venv"]:
                path = facts["base"]
                facts = _probe(path)
            why = _env.judge_python(facts) if facts else "cannot be run"
            if not why:
                return os.path.realpath(path), facts
            tried[candidate] = why
        raise _env.no_python(tried, asked, self.user)

    def refuse_early(self, lock: dict[str, str]) -> None:
        """What would stop a build, found before anything is written."""
        libc = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else ""
        _env.check_platform(platform.system(), platform.machine(), libc or "", lock)
        if self.find_links and not os.path.isdir(self.find_links):
            raise FinetuneError(
                f"There is no folder {self.find_links} on this node.",
                where="uv_env_find_links",
                change="name a folder of wheels that exists on the node, or leave it empty",
            )
        standing = self.root
        while not os.path.exists(standing):
            standing = os.path.dirname(standing) or "/"
        if not os.access(standing, os.W_OK | os.X_OK):
            raise FinetuneError(
                f"{self.user} may not write in {standing}.",
                where="uv_env_root (train_root)",
                change=f"give {self.user} a folder {self.root}, or name another one",
            )
        space = os.statvfs(standing)
        _env.check_space(space.f_bavail * space.f_frsize, lock, self.cache_is_warm(), standing)

    def cache_is_warm(self) -> bool:
        """Whether the cache holds unpacked packages of earlier builds."""
        unpacked = f"{self.root}/cache/uv/archive-v0"
        return os.path.isdir(unpacked) and bool(os.listdir(unpacked))

    # -- present --

    def present(self) -> dict[str, t.Any]:
        """Look, and build or repair what is not as the lock says."""
        content: _env.Content = "all" if self.params["verify"] == "full" else "unsealed"
        look = self.look(content)
        if look.complete:
            self.reseal(look)
            return self.result(look, [])
        base, facts = self.find_base(look)
        self.refuse_early(look.lock)
        missing = self.tool_change()
        if self.check_mode or (missing and self.uv_stream is None):
            if self.check_mode:
                self.warn(look, "would be")
            return self.result(look, missing + self.changes(look), needs_uv=bool(missing))
        with self.locked():
            look = self.look(content)
            if look.complete:
                return self.result(look, [])
            if look.wrong:
                base, facts = self.find_base(look)
            changes = self.tool_change() + self.changes(look)
            self.install_tool()
            self.warn(look, "was")
            look.mark = self.build(look, base, facts) if look.wrong else self.repair(look)
        return self.result(look, changes)

    def find_base(self, look: Look) -> tuple[str, dict[str, t.Any]]:
        """The Python to build on, where a build is needed; completes the look with what it will install."""
        if not look.wrong:
            return "", {}
        base, facts = self.find_python()
        look.lock = _env.parse_lock(self.params["lock"], tuple(facts["version"]), self.name)
        look.mark = {"python_version": ".".join(map(str, facts["version"])), "include": facts["include"]}
        return base, facts

    def changes(self, look: Look) -> list[dict[str, str]]:
        if not look.wrong:
            return [damage.change(self.path) for damage in look.found.damages]
        removed = [{"action": "remove", "path": self.path}] if look.exists else []
        return [*removed, {"action": "build", "path": self.path}]

    def warn(self, look: Look, tense: str) -> None:
        if not look.wrong:
            named = "; ".join(damage.sentence() for damage in look.found.damages)
            self.warnings.append(f"The environment {self.name} in {self.path} {tense} repaired: {named}.")
        elif look.exists:
            self.warnings.append(f"The environment {self.name} in {self.path} {tense} built again: {look.wrong}.")

    def result(self, look: Look, changes: list[dict[str, str]], needs_uv: bool = False) -> dict[str, t.Any]:
        notes = []
        include = str(look.mark.get("include", ""))
        if "deepspeed" in look.lock and not os.path.exists(f"{include}/Python.h"):
            minor = ".".join(look.mark["python_version"].split(".")[:2])
            notes.append(
                f"Python.h of Python {minor} is not on this node; DeepSpeed needs it and a C++ compiler when it first "
                f"compiles an operation: apt install python{minor}-dev g++"
            )
        return {
            "changed": bool(changes),
            "changes": changes,
            "path": self.path,
            "python": f"{self.path}/bin/python",
            "digest": self.digest,
            "python_version": look.mark["python_version"],
            "packages": look.lock,
            "repaired": [] if look.wrong or not changes else [damage.name for damage in look.found.damages],
            "built": bool(look.wrong and changes),
            "notes": notes,
            "needs_uv": needs_uv,
            "warnings": self.warnings,
        }

    def build(self, look: Look, base: str, facts: dict[str, t.Any]) -> dict[str, t.Any]:
        """Make the environment from nothing, in its final path; the mark comes last."""
        started = time.monotonic()
        self.clear()
        self.uv(_env.venv_args(self.tool, self.path, base))
        Path(f"{self.path}/lock.txt").write_text(self.params["lock"], encoding="utf-8")
        mark = {
            "format": FORMAT,
            "lock": self.name,
            "digest": self.digest,
            "python": base,
            "python_version": ".".join(str(part) for part in facts["version"]),
            "include": facts["include"],
            "uv": self.params["uv_version"],
            "pyvenv": _sha256(f"{self.path}/pyvenv.cfg"),
            "packages": look.lock,
            "seals": {},
        }
        self.sync(_site(self.path, facts["version"]), mark, [])
        mark["seconds"] = round(time.monotonic() - started, 1)
        self.write_mark(mark)
        return mark

    def repair(self, look: Look) -> dict[str, t.Any]:
        """Install only what is damaged again. The mark stays: what a killed repair leaves is seen by the next look."""
        version = tuple(int(part) for part in look.mark["python_version"].split("."))
        self.sync(_site(self.path, version), look.mark, look.found.damages)
        self.write_mark(look.mark)
        return look.mark

    def sync(self, site: str, mark: dict[str, t.Any], damages: list[_env.Damage]) -> None:
        """Bring site-packages to the lock and prove it by content and by imports; sets the mark's seals.

        A file that was damaged in one environment is damaged in the cache too, as both are one file. So a package that
        is still wrong after its installation is taken out of the cache and fetched again, once. What is fetched now,
        into an empty cache, uv has just compared with the lock's hashes: it is not read a second time.
        """
        for _attempt in range(2):
            content: _env.Content = "unsealed" if self.cache_is_warm() else "none"
            self.prepare_repair(site, mark, damages)
            replaced = [damage.name for damage in damages if damage.kind == "version"]
            args = _env.sync_args(
                self.tool,
                self.path,
                f"{self.path}/lock.txt",
                reinstall=replaced,
                find_links=self.find_links,
                offline=self.params["offline"],
            )
            self.uv(args)
            found = _env.inspect(site, mark["packages"], mark["seals"], content)
            damages = [dataclasses.replace(damage, poisoned=True) for damage in found.damages]
            if not damages:
                break
        else:
            raise FinetuneError(
                "What uv installed is not what the lock says: "
                + "; ".join(damage.sentence() for damage in damages)
                + ".",
                where=self.path,
                change="check the disk and what the index serves (uv_env_index_url, uv_env_find_links)",
            )
        self.check_imports()
        mark["seals"] = found.seals

    def prepare_repair(self, site: str, mark: dict[str, t.Any], damages: list[_env.Damage]) -> None:
        """Let uv see damaged packages as missing, and its cache not know them."""
        poisoned = [damage.name for damage in damages if damage.poisoned and damage.kind != "extra"]
        if poisoned:
            self.uv([self.tool, "cache", "clean", "--force", *poisoned])
        names = {damage.name for damage in damages}
        mark["seals"] = {name: seal for name, seal in mark["seals"].items() if name not in names}
        broken = {damage.name for damage in damages if damage.kind == "files" or damage.poisoned}
        for entry in os.listdir(site):
            if entry.endswith(".dist-info") and _env.normalise(entry.partition("-")[0]) in broken:
                shutil.rmtree(f"{site}/{entry}")

    def check_imports(self) -> None:
        if not self.params["imports"]:
            return
        done = subprocess.run(
            [f"{self.path}/bin/python", "-I", "-c", IMPORT_PROBE, *self.params["imports"]],
            env=_env.uv_environ(os.environ, self.root, self.home),
            cwd=self.path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            tail = " | ".join(done.stderr.strip().splitlines()[-3:]) or f"exit status {done.returncode}"
            raise FinetuneError(
                f"The environment is installed but does not import {', '.join(self.params['imports'])}: {tail}",
                where=self.path,
                change="correct uv_env_imports, or name another lock with uv_env_lock",
            )

    # -- uv --

    def tool_change(self) -> list[dict[str, str]]:
        """The change that puts uv on the node; empty when it is there. Its rename is atomic, so the size is proof."""
        try:
            stat = os.stat(self.tool)
        except OSError:
            return [{"action": "create", "path": self.tool}]
        if stat.st_size == self.params["uv_size"] and os.access(self.tool, os.X_OK):
            return []
        return [{"action": "update", "path": self.tool}]

    def install_tool(self) -> None:
        if not self.tool_change():
            return
        if self.uv_stream is None:
            raise FinetuneError(
                "uv was removed from the node while it was needed.", where=self.tool, change="apply again"
            )
        temporary = f"{self.tool}.{os.getpid()}"
        digest = hashlib.sha256()
        os.makedirs(os.path.dirname(self.tool), exist_ok=True)
        try:
            with Path(temporary).open("wb") as target:
                while chunk := self.uv_stream.read(1 << 20):
                    digest.update(chunk)
                    target.write(chunk)
                os.fchmod(target.fileno(), 0o755)
                os.fsync(target.fileno())
            if digest.hexdigest() != self.params["uv_sha256"]:
                raise FinetuneError("uv was damaged on its way to the node.", where=self.tool, change="apply again")
            os.replace(temporary, self.tool)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def uv(self, args: list[str]) -> None:
        """Run uv; its children hold our lock too, so nobody builds beside what a killed apply left running."""
        environ = _env.uv_environ(os.environ, self.root, self.home, self.params["index_url"])
        for folder in ("cache/uv", "cache/tmp"):
            os.makedirs(f"{self.root}/{folder}", exist_ok=True)
        held = (self.lock_stream.fileno(),) if self.lock_stream else ()
        done = subprocess.run(
            args,
            env=environ,
            cwd=self.root,
            pass_fds=held,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode < 0:
            name = signal.Signals(-done.returncode).name
            raise FinetuneError(
                f"uv was ended by {name}.", where=self.path, change="see whether the node is out of memory; apply again"
            )
        if done.returncode != 0:
            raise _env.explain_uv(_env.strip_credentials(done.stderr), self.name)

    # -- marks and locks --

    def write_mark(self, mark: dict[str, t.Any]) -> None:
        temporary = f"{self.path}/.{_env.MARK}.{os.getpid()}"
        with Path(temporary).open("w", encoding="utf-8") as stream:
            json.dump(mark, stream, indent=1, sort_keys=True)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, f"{self.path}/{_env.MARK}")
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def reseal(self, look: Look) -> None:
        """Remember new times of files whose content was found right, so that the next look is quick again."""
        if look.found.seals != look.mark["seals"] and not self.check_mode and os.access(self.path, os.W_OK):
            look.mark["seals"] = look.found.seals
            self.write_mark(look.mark)

    def clear(self) -> None:
        """Remove what is at the path, the mark first."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(f"{self.path}/{_env.MARK}")
        if os.path.islink(self.path) or os.path.isfile(self.path):
            os.unlink(self.path)
        elif os.path.isdir(self.path):
            shutil.rmtree(self.path)

    @contextlib.contextmanager
    def locked(self) -> t.Iterator[str]:
        """Hold this environment's lock, a kernel flock: gone with its last holder, never stale. Yields its path."""
        path = f"{self.root}/envs/.lock-{self.digest}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        deadline = time.monotonic() + LOCK_WAIT
        while True:
            stream = Path(path).open("a+", encoding="utf-8")
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                holder = stream.read().strip() or "another process"
                stream.close()
                if time.monotonic() > deadline:
                    raise FinetuneError(
                        f"{holder} has been at work on this environment for an hour.",
                        where=path,
                        change="see whether that process still makes progress; end it and apply again",
                    ) from None
                time.sleep(0.5)
                continue
            if os.path.exists(path) and os.path.samestat(os.fstat(stream.fileno()), os.stat(path)):
                break
            stream.close()
        with stream:
            stream.truncate(0)
            stream.write(f"process {os.getpid()} of {self.user} on {platform.node()}\n")
            stream.flush()
            self.lock_stream = stream
            try:
                yield path
            finally:
                self.lock_stream = None

    # -- absent --

    def absent(self) -> dict[str, t.Any]:
        there = os.path.lexists(self.path)
        if there and not self.check_mode:
            with self.locked() as lock_path:
                self.clear()
                os.unlink(lock_path)
        return {
            "changed": there,
            "changes": [{"action": "remove", "path": self.path}] if there else [],
            "path": self.path,
            "python": f"{self.path}/bin/python",
            "digest": self.digest,
            "repaired": [],
            "built": False,
            "notes": [],
            "needs_uv": False,
            "warnings": [],
        }

    def run(self) -> dict[str, t.Any]:
        started = time.monotonic()
        try:
            result = self.absent() if self.params["state"] == "absent" else self.present()
        except OSError as error:
            raise FinetuneError(
                f"{error.strerror or error} ({self.user})",
                where=str(error.filename or self.root),
                change=f"see that {self.user} may write below uv_env_root (train_root) and that the disk has space",
            ) from error
        result["seconds"] = round(time.monotonic() - started, 2)
        return result


def _site(path: str, version: t.Sequence[int]) -> str:
    return f"{path}/lib/python{version[0]}.{version[1]}/site-packages"


def _sha256(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


def _probe(path: str) -> dict[str, t.Any]:
    """What an interpreter says of itself; empty when it cannot be run."""
    try:
        done = subprocess.run(
            [path, "-I", "-c", _env.PYTHON_PROBE], capture_output=True, text=True, check=False, timeout=30, cwd="/"
        )
        return dict(json.loads(done.stdout)) if done.returncode == 0 else {}
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return {}


def as_user(user: str, work: t.Callable[[], dict[str, t.Any]]) -> dict[str, t.Any]:
    """What `work` returns, run as `user`. Root drops in a child, so that Ansible can still tidy up after it."""
    account = lookup(user)
    if os.geteuid() == account.pw_uid:
        return work()
    if os.geteuid() != 0:
        drop_to(user)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer: dict[str, t.Any] = {"error": ["The work ended without an answer.", "", "apply again with -vvv"]}
        try:
            os.close(reading)
            drop_to(user)
            answer = {"result": work()}
        except FinetuneError as error:
            answer = {"error": [error.what, error.where, error.change]}
        except Exception as error:
            answer = {"error": [f"{type(error).__name__}: {error}", "", "report this as a defect of uv_env"]}
        finally:
            with os.fdopen(writing, "w") as stream:
                json.dump(answer, stream)
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    answer = json.loads(text) if text else {"error": ["The process that built it was killed.", "", "apply again"]}
    if "error" in answer:
        what, where, change = answer["error"]
        raise FinetuneError(what, where=where, change=change)
    return dict(answer["result"])


def apply(params: dict[str, t.Any], check_mode: bool) -> dict[str, t.Any]:
    """The module without Ansible: the result for these options, acting as the run's user."""
    digest = _env.environment_digest(params["lock"])
    user = run_user(params["user"], pwd.getpwuid(os.geteuid()).pw_name)
    uv_stream: t.BinaryIO | None = None
    try:
        account = lookup(user).pw_name
    except FinetuneError:
        if not check_mode or user != DEFAULT_ACCOUNT:
            raise
        return _before_account(params, user, digest)
    with contextlib.ExitStack() as stack:
        if params["uv_src"]:
            try:
                uv_stream = stack.enter_context(Path(params["uv_src"]).open("rb"))
            except OSError as error:
                raise FinetuneError(
                    f"The shipped uv cannot be read: {error.strerror}.", where=params["uv_src"]
                ) from None
        return as_user(account, lambda: Environment(params, account, check_mode, uv_stream).run())


def _before_account(params: dict[str, t.Any], user: str, digest: str) -> dict[str, t.Any]:
    """The prediction where an earlier task would have created the user's account."""
    root = params["root"]
    if root == "~" or root.startswith("~/"):
        root = f"~{user}{root[1:]}"
    path = _env.environment_path(root, digest)
    changes = [
        {"action": "create", "path": f"{root}/tools/uv-{params['uv_version']}/uv"},
        {"action": "build", "path": path},
    ]
    present = params["state"] == "present"
    return {
        "changed": present,
        "changes": changes if present else [],
        "path": path,
        "python": f"{path}/bin/python",
        "digest": digest,
        "python_version": "",
        "packages": {},
        "repaired": [],
        "built": present,
        "notes": [],
        "needs_uv": present,
        "warnings": [],
        "seconds": 0.0,
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "str", "default": "~/llmops"},
            "lock": {"type": "str", "required": True},
            "lock_name": {"type": "str", "default": ""},
            "python": {"type": "str", "default": ""},
            "user": {"type": "str", "default": ""},
            "imports": {"type": "list", "elements": "str", "default": []},
            "index_url": {"type": "str", "default": ""},
            "find_links": {"type": "str", "default": ""},
            "offline": {"type": "bool", "default": False},
            "verify": {"type": "str", "choices": ["quick", "full"], "default": "quick"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "uv_version": {"type": "str", "default": ""},
            "uv_size": {"type": "int", "default": 0},
            "uv_src": {"type": "str", "default": ""},
            "uv_sha256": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    password = urlsplit(module.params["index_url"]).password
    if password:
        module.no_log_values.add(password)
    try:
        result = apply(module.params, module.check_mode)
    except FinetuneError as error:
        module.fail_json(msg=error.message())
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
