# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tool of a driver, run with a limit in time: one that hangs is ended with its children, and never waited for."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import typing as t
from dataclasses import dataclass, field

from .._engine import processes

PLACES = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/opt/rocm/bin:/usr/lib/wsl/lib"
"""Where tools are besides PATH, which for a login without a shell may be short."""
MOST = 16 << 20
"""Bytes that are read of an answer."""


@dataclass(frozen=True)
class Answer:
    """What a tool said. code: None where it was ended, as its time was over. stuck: of its processes, those that did
    not even end then: they wait in the kernel."""

    code: int | None
    said: str = ""
    complained: str = ""
    stuck: list[int] = field(default_factory=list)

    @property
    def hung(self) -> bool:
        return self.code is None

    @property
    def text(self) -> str:
        """Both, as a person at a terminal would see them."""
        return f"{self.said}\n{self.complained}".strip()


def find(name: str) -> str:
    """The tool's path; empty where it is not."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{PLACES}") or ""


def ask(
    commands: t.Mapping[str, t.Sequence[str]], seconds: float, environment: t.Mapping[str, str] | None = None
) -> dict[str, Answer]:
    """The answers of commands that run beside each other, by their keys."""
    deadline = time.monotonic() + seconds
    running = {key: _Running(command, environment) for key, command in commands.items()}
    return {key: one.answer(deadline) for key, one in running.items()}


class _Running:
    """Its output goes to nameless files: a pipe would be held open by a process that cannot be ended."""

    def __init__(self, command: t.Sequence[str], environment: t.Mapping[str, str] | None) -> None:
        self._said, self._complained = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self._failed = ""
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._complained,
                env={**os.environ, "LC_ALL": "C"} if environment is None else dict(environment),
                start_new_session=True,
            )
        except OSError as error:
            self._failed = f"{command[0]}: {error.strerror}"

    def answer(self, deadline: float) -> Answer:
        if self._process is None:
            return Answer(127, "", self._failed)
        stuck: list[int] = []
        code: int | None
        try:
            code = self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            code, stuck = None, _end(self._process)
        return Answer(code, _read(self._said), _read(self._complained), stuck)


def _read(file: t.IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read(MOST).decode(errors="replace")


def _end(process: subprocess.Popen[bytes], patience: float = 1.0) -> list[int]:
    """Kill a process and all that it started; those that are left."""
    family = [process.pid, *(one.pid for one in processes.descendants(process.pid))]
    for pid in family:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + patience
    while True:
        process.poll()
        left = [pid for pid in family if _lives(pid)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False
