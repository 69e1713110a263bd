# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The environment as a resource on a node: looked at, and made, repaired or removed when it is not as wanted."""

from __future__ import annotations

import contextlib
import os
import platform
import time
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from . import _builder, _env, _lock, _preflight, _python, _user, _uv
from ._engine import files
from ._errors import FinetuneError

LOCK_WAIT = 3600.0
"""Seconds to wait for another builder of the same environment."""

Result = dict[str, t.Any]


def apply(params: t.Mapping[str, t.Any], check_mode: bool) -> Result:
    """What the module returns for these options, and `warnings`; acts as the run's user."""
    user = _user.account(params["user"])
    # in check mode an earlier task may not have made the account: the same look, of a home that is not there yet
    before = check_mode and user == _user.DEFAULT_ACCOUNT and not _user.exists(user) and os.geteuid() == 0
    with contextlib.ExitStack() as stack:
        stream: t.BinaryIO | None = None
        source = params["uv"].get("src")
        if source:  # opened as the login user, who alone may read what was sent
            try:
                stream = stack.enter_context(Path(source).open("rb"))
            except OSError as error:
                raise FinetuneError(f"The shipped uv cannot be read: {error.strerror}.", where=source) from None

        def work() -> Result:
            return Environment(params, user, check_mode, stream).run()

        return work() if before else _user.as_user(user, work)


@dataclass
class Look:
    """What is at the environment's path. wrong: why it cannot stay ("" = it can, with `found.damages` repaired)."""

    wrong: str
    exists: bool
    mark: dict[str, t.Any] = field(default_factory=dict)
    lock: dict[str, str] = field(default_factory=dict)
    found: _env.Inspection = field(default_factory=_env.Inspection)

    @property
    def complete(self) -> bool:
        return not self.wrong and not self.found.damages

    def changes(self, path: str) -> list[dict[str, str]]:
        """What makes it complete."""
        if not self.wrong:
            return [damage.change(path) for damage in self.found.damages]
        removed = [{"action": "remove", "path": path}] if self.exists else []
        return [*removed, {"action": "build", "path": path}]

    def warning(self, name: str, tense: str) -> list[str]:
        """What a person should know of the changes: somebody else's doing is undone."""
        if not self.wrong:
            return [f"{name} {tense} repaired: {_env.sentence(self.found.damages)}."]
        return [f"{name} {tense} built again: {self.wrong}."] if self.exists else []


class Environment:
    """One environment for one user, who we are."""

    def __init__(
        self, params: t.Mapping[str, t.Any], user: str, check_mode: bool, uv_stream: t.BinaryIO | None
    ) -> None:
        home = _user.home(user)
        self.user, self.home, self.check_mode = user, home, check_mode
        self.state, self.everything = params["state"], params["verify"] == "full"
        self.root = _user.expand(params["root"], user).rstrip("/")
        if not self.root.startswith("/"):
            raise FinetuneError(
                f"{params['root']!r} is not an absolute path.",
                where="uv_env_root (train_root)",
                change="start it with / or ~/",
            )
        digest = _env.environment_digest(params["lock"])
        self.python = _user.expand(params["python"], user)
        self.path = _env.environment_path(self.root, digest)
        self.wanted = _builder.Wanted(
            self.path,
            digest,
            params["lock_name"] or digest,
            params["lock"],
            params["build_constraints"],
            tuple(params["imports"]),
            _user.expand(params["find_links"], user),
            params["offline"],
        )
        self.uv = _uv.Uv(self.root, home, {"version": "", "size": 0, **params["uv"]}, uv_stream, params["index_url"])
        self.builder = _builder.Builder(self.wanted, self.uv)
        self.warnings: list[str] = []

    def run(self) -> Result:
        started = time.monotonic()
        try:
            result = self.absent() if self.state == "absent" else self.present()
        except OSError as error:
            raise FinetuneError(
                f"{error.strerror or error} ({self.user})",
                where=str(error.filename or self.root),
                change=f"see that {self.user} may write below uv_env_root (train_root) and that the disk has space",
            ) from error
        return {**result, "seconds": round(time.monotonic() - started, 2)}

    def present(self) -> Result:
        """Look, and build or repair what is not as the lock says."""
        look = self.look()
        if look.complete:
            self.reseal(look)
            return self.result(look, [])
        base, facts = self.find_base(look)
        _preflight.check(self.root, self.user, look.lock, self.wanted.find_links, self.uv.warm)
        missing = self.uv.missing()
        if self.check_mode or (missing and self.uv.stream is None):
            if self.check_mode:
                self.warn(look, "would be")
            return self.result(look, missing + look.changes(self.path), needs_uv=bool(missing))
        with self.locked():
            look = self.look()
            if look.complete:
                return self.result(look, [])
            if look.wrong:
                base, facts = self.find_base(look)
            changes = self.uv.missing() + look.changes(self.path)
            self.uv.install()
            self.warn(look, "was")
            if look.wrong:
                look.mark = self.builder.build(base, facts, look.lock)
            else:
                look.mark = self.builder.repair(look.mark, look.found.damages)
        return self.result(look, changes)

    def absent(self) -> Result:
        there = os.path.lexists(self.path)
        if there and not self.check_mode:
            with self.locked() as lock_path:
                self.builder.clear()
                lock_path.unlink()
        return self.answer([{"action": "remove", "path": self.path}] if there else [])

    def look(self) -> Look:
        """The state of the path, without touching it."""
        there = _env.built(self.path, self.wanted.digest)
        if there.wrong:
            return Look(there.wrong, exists=os.path.lexists(self.path))
        base = there.mark["python"]
        lock = _lock.parse_lock(self.wanted.lock, there.version, self.wanted.name)
        if self.python and os.path.realpath(self.python) != base and self.find_python()[0] != base:
            return Look(f"it was built on {base}, not on {self.python}", exists=True, lock=lock)
        found = _env.inspect(there.site, lock, there.mark["seals"], "all" if self.everything else "unsealed")
        return Look("", exists=True, mark=there.mark, lock=lock, found=found)

    def find_python(self) -> tuple[str, dict[str, t.Any]]:
        return _python.find(self.python, self.user, self.home)

    def find_base(self, look: Look) -> tuple[str, dict[str, t.Any]]:
        """The Python to build on, where a build is needed; completes the look with what it will install."""
        if not look.wrong:
            return "", {}
        base, facts = self.find_python()
        look.lock = _lock.parse_lock(self.wanted.lock, tuple(facts["version"]), self.wanted.name)
        look.mark = {"python_version": ".".join(map(str, facts["version"])), "include": facts["include"]}
        return base, facts

    def reseal(self, look: Look) -> None:
        """Remember new times of files whose content was found right, so that the next look is quick again."""
        if look.found.seals != look.mark["seals"] and not self.check_mode and os.access(self.path, os.W_OK):
            self.builder.seal({**look.mark, "seals": look.found.seals})

    def warn(self, look: Look, tense: str) -> None:
        self.warnings += look.warning(f"The environment {self.wanted.name} in {self.path}", tense)

    def result(self, look: Look, changes: list[dict[str, str]], needs_uv: bool = False) -> Result:
        return {
            **self.answer(changes),
            "python_version": look.mark["python_version"],
            "packages": look.lock,
            "repaired": [] if look.wrong or not changes else [damage.name for damage in look.found.damages],
            "built": bool(look.wrong and changes),
            "notes": _notes(look),
            "needs_uv": needs_uv,
        }

    def answer(self, changes: list[dict[str, str]]) -> Result:
        return {
            "changed": bool(changes),
            "changes": changes,
            "path": self.path,
            "python": f"{self.path}/bin/python",
            "digest": self.wanted.digest,
            "repaired": [],
            "built": False,
            "notes": [],
            "needs_uv": False,
            "warnings": self.warnings,
        }

    @contextlib.contextmanager
    def locked(self) -> t.Iterator[Path]:
        """Hold this environment's lock, a kernel flock: gone with its last holder, never stale. Yields its path."""
        path = Path(self.root) / "envs" / f".lock-{self.wanted.digest}"
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = files.lock(path, patience=LOCK_WAIT)
            if descriptor is None:
                raise FinetuneError(
                    f"{path.read_text(encoding='utf-8').strip() or 'Another process'} has been at work on this "
                    "environment for an hour.",
                    where=str(path),
                    change="see whether that process still makes progress; end it and apply again",
                )
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                break
            os.close(descriptor)  # whoever held it removed the environment, and the lock's name with it
        try:
            path.write_text(f"Process {os.getpid()} of {self.user} on {platform.node()}\n", encoding="utf-8")
            self.uv.lock = descriptor
            yield path
        finally:
            self.uv.lock = None
            os.close(descriptor)


def _notes(look: Look) -> list[str]:
    """What is no error, but will be missed later."""
    if "deepspeed" not in look.lock or os.path.exists(f"{look.mark.get('include', '')}/Python.h"):
        return []
    minor = ".".join(look.mark["python_version"].split(".")[:2])
    return [
        f"Python.h of Python {minor} is not on this node; DeepSpeed needs it and a C++ compiler when it first "
        f"compiles an operation: apt install python{minor}-dev g++"
    ]
