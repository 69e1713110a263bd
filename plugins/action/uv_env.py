# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of uv_env: reads the lock, and ships uv to the node only when something has to be built."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import typing as t
from pathlib import Path

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils import _lock, _sources
from ..module_utils._engine import files
from ..module_utils._errors import FinetuneError

MODULE = "llmops.finetune.uv_env"
CONSTRAINTS = _sources.COLLECTION / "requirements" / "build.txt"

display = Display()


class ActionModule(ActionBase):
    """One module execution when the environment is right or uv is on the node already, else two."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        args = {key: value for key, value in self._task.args.items() if key != "uv"}
        try:
            lock = self._file(str(args.get("lock") or ""), "uv_env_lock")
            constraints = str(args.get("build_constraints", CONSTRAINTS) or "")  # "" is none
            args["lock"] = read(lock)
            args["lock_name"] = args.get("lock_name") or lock.stem
            args["build_constraints"] = read(self._file(constraints, "uv_env_build_constraints")) if constraints else ""
            uv = controller_uv()
            if uv:
                args["uv"] = {"version": uv_version(uv), "size": os.stat(uv).st_size}
            result = self._execute_module(module_name=MODULE, module_args=args, task_vars=task_vars)
            if result.get("failed") or not result.get("needs_uv"):
                return dict(result)
            check_uv(uv)
            if self._task.check_mode:
                return dict(result)
            display.display(
                f"{self._host_name(task_vars)}: making the environment {args['lock_name']} "
                f"({len(result['packages'])} packages); a first build takes minutes"
            )
            args["uv"].update(src=self._ship(uv), sha256=files.sha256(Path(uv)))
            return dict(self._execute_module(module_name=MODULE, module_args=args, task_vars=task_vars))
        except FinetuneError as error:
            raise AnsibleActionFail(error.message()) from None
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)

    @staticmethod
    def _host_name(task_vars: dict[str, t.Any] | None) -> str:
        return str((task_vars or {}).get("inventory_hostname", "node"))

    def _file(self, asked: str, variable: str) -> Path:
        """A lock on the controller: absolute, beside playbook or role, or in this collection's requirements."""
        if not asked:
            raise FinetuneError("No lock is named.", where=variable, change="name a hashed requirements file")
        path = Path(os.path.expanduser(asked))
        if not path.is_absolute():
            try:
                return Path(self._find_needle("files", str(path)))
            except AnsibleError:
                path = _sources.COLLECTION / "requirements" / asked
        if not path.is_file():
            raise FinetuneError(
                f"There is no lock {asked!r} on the controller.",
                where=variable,
                change="name an absolute path, one beside the playbook, or a file of the collection's requirements",
            )
        return path

    def _ship(self, uv: str) -> str:
        """Where the node finds uv: its own path on this machine, else a copy in Ansible's temp folder."""
        become = self._connection.become
        if self._connection.transport == "local" and (
            become is None or self.get_become_option("become_user") == "root"
        ):
            return uv
        shell = self._connection._shell
        if shell.tmpdir is None:
            self._make_tmp_path()
        remote = shell.join_path(shell.tmpdir, "uv")
        self._transfer_file(uv, remote)
        self._fixup_perms2((shell.tmpdir, remote))
        return str(remote)


def read(path: Path) -> str:
    """The text of a lock, refused here when it is none: before any host is asked."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FinetuneError(f"The lock cannot be read: {error}.", where=str(path)) from None
    _lock.read_lock(text, path.name)
    return text


def controller_uv() -> str:
    """The uv of the controller's own Python, else of its PATH, else "" (no need for it until something is built)."""
    try:
        return str(importlib.import_module("uv").find_uv_bin())
    except (ImportError, OSError):
        return shutil.which("uv") or ""


def uv_version(uv: str) -> str:
    """The version that a uv says it has: `uv 0.13.9 (…)` → 0.13.9."""
    try:
        done = subprocess.run([uv, "--version"], capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.split()[1]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise FinetuneError(
            f"The controller's uv cannot be run: {error}.", where=uv, change="install the controller's lock again"
        ) from None


def check_uv(uv: str) -> None:
    """Refuse a uv that a node cannot run."""
    if not uv:
        raise FinetuneError(
            "The controller has no uv to ship.",
            where="the Python that runs Ansible",
            change="install the controller's lock (requirements/controller.txt), or put uv on the PATH",
        )
    with Path(uv).open("rb") as stream:
        head = stream.read(20)
    if head[:5] != b"\x7fELF\x02" or head[18:20] != b"\x3e\x00":
        raise FinetuneError(
            "The controller's uv is not a program for Linux on x86-64, which the nodes are.",
            where=uv,
            change="run Ansible on a Linux x86-64 machine",
        )
