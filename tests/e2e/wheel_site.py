# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A site with a lock of tiny wheels that are made on the spot, and a node with a root: no network, no index."""

from __future__ import annotations

import base64
import hashlib
import os
import pwd
import sys
import tempfile
import typing as t
import zipfile
from dataclasses import dataclass
from pathlib import Path

import ansible_collections.llmops.finetune
import ansible_runner
from ansible_collections.llmops.finetune.plugins.action import uv_env as action
from ansible_collections.llmops.finetune.plugins.module_utils import _env, _environment
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files

COLLECTIONS = Path(next(iter(ansible_collections.llmops.finetune.__path__))).parents[2]
ME = pwd.getpwuid(os.geteuid()).pw_name
SLOW = "import os, time\nwhile os.path.exists({gate!r}):\n    time.sleep(0.1)\n"


def make_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> str:
    """Write a wheel and return its lock line."""
    info = f"{name}-{version}.dist-info"
    contents = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}"
        for path, text in contents.items()
    ]
    contents[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""])
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in contents.items():
            archive.writestr(member, text)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@dataclass
class Site:
    """One place to work in: a lock of two packages, their wheels, and a root with a space in its path."""

    folder: Path

    def __post_init__(self) -> None:
        self.wheels = self.folder / "wheels"
        self.wheels.mkdir()
        self.gate = self.folder / "gate"
        lines = [
            make_wheel(
                self.wheels,
                "tiny_alpha",
                "1.0",
                {"tiny_alpha/__init__.py": "alpha = 1\n", "tiny_alpha/b.py": "b = 2\n"},
            ),
            make_wheel(self.wheels, "tiny_beta", "2.0", {"tiny_beta.py": SLOW.format(gate=str(self.gate))}),
            f"tiny_windows==9 ; sys_platform == 'win32' --hash=sha256:{'0' * 64}",
        ]
        self.lock = self.folder / "tiny.txt"
        self.lock.write_text("# made for this test\n" + "\n".join(lines) + "\n")
        self.root = self.folder / "the root"
        self.path = Path(_env.environment_path(str(self.root), _env.environment_digest(self.lock.read_text())))

    @property
    def packages(self) -> Path:
        return next(self.path.glob("lib/python3.*/site-packages"))

    def variables(self, **more: t.Any) -> dict[str, t.Any]:
        return {
            "uv_env_lock": str(self.lock),
            "uv_env_root": str(self.root),
            "uv_env_user": ME,
            "uv_env_become": False,
            "uv_env_find_links": str(self.wheels),
            "uv_env_offline": True,
            "uv_env_imports": ["tiny_alpha", "tiny_beta"],
            **more,
        }

    def play(self, *options: str, **variables: t.Any) -> Outcome:
        """Run the shipped playbook through ansible-runner."""
        private = Path(tempfile.mkdtemp(dir=self.folder))
        private.chmod(0o755)
        scratch = private / "scratch"
        scratch.mkdir()
        scratch.chmod(0o1777)
        (private / "project").mkdir()
        (private / "project" / "environment.yml").write_text("- import_playbook: llmops.finetune.environment\n")
        hosts = "trainers:\n  hosts:\n    here:\n      ansible_connection: local\n"
        (private / "hosts.yml").write_text(
            hosts + "      ansible_python_interpreter: '{{ ansible_playbook_python }}'\n"
        )
        done = ansible_runner.run(
            private_data_dir=str(private),
            playbook="environment.yml",
            inventory=str(private / "hosts.yml"),
            extravars=self.variables(**variables),
            envvars={
                "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "TMPDIR": str(scratch),
            },
            cmdline=" ".join(["-vvv", *options]),
            quiet=True,
        )
        results = [
            event["event_data"]["res"]
            for event in done.events
            if event["event"] in ("runner_on_ok", "runner_on_failed")
            and event["event_data"]["task_action"] == "llmops.finetune.uv_env"
        ]
        output = Path(done.config.artifact_dir, "stdout").read_text()
        assert len(results) == 1, output
        return Outcome(done.rc, results[0], output, sorted(path.name for path in scratch.iterdir()))

    def apply(self, check: bool = False, **params: t.Any) -> dict[str, t.Any]:
        """The module's own work in this process: the same code, without the play around it."""
        uv = action.controller_uv()
        given = {
            "root": str(self.root),
            "lock": self.lock.read_text(),
            "lock_name": "tiny",
            "python": "",
            "user": ME,
            "imports": [],
            "index_url": "",
            "find_links": str(self.wheels),
            "offline": True,
            "verify": "quick",
            "state": "present",
            "build_constraints": "",
            "uv": {
                "version": action.uv_version(uv),
                "size": os.stat(uv).st_size,
                "src": uv,
                "sha256": files.sha256(Path(uv)),
            },
        }
        return _environment.apply({**given, **params}, check)


@dataclass
class Outcome:
    rc: int
    result: dict[str, t.Any]
    output: str
    left: list[str]
    """What lies in the temporary folder that the play had to itself."""

    @property
    def executions(self) -> int:
        """How many modules ran on the node."""
        return self.output.count("Using module file")


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder with its size and time, the runner's own folders left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if "tmp" not in path.relative_to(folder).parts[0]:
            stat = path.lstat()
            found[str(path)] = (stat.st_size, stat.st_mtime_ns)
    return found
