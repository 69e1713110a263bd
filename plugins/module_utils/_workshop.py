# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Something large is made on a node by the Python of a run's environment: by one apply at a time, beside its place."""

from __future__ import annotations

import os
import shutil
import subprocess
import typing as t
from pathlib import Path

from ._engine import files
from ._errors import FinetuneError


def alone(folder: Path, what: str, patience: float, work: t.Callable[[int], None]) -> None:
    """Do it while no other apply does. The work gets the lock, for a process of its own that outlives this one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f".{folder.name}.lock")
    held = files.lock(lock, patience=patience)
    if held is None:
        raise FinetuneError(
            f"Another apply has been at work on {what} for {patience / 60:.0f} minutes.",
            where=str(folder),
            change="see what it does, or wait for it and run again",
        )
    try:
        work(held)
    finally:
        lock.unlink(missing_ok=True)
        os.close(held)


class Workshop:
    """A folder beside the place with the sources of the engine, for as long as it takes."""

    def __init__(self, folder: Path, spec: t.Mapping[str, t.Any]) -> None:
        self.path = folder.with_name(f".{folder.name}.{os.getpid()}")
        self.sources = {f"engine/{name}": text for name, text in spec["engine"].items()}

    def __enter__(self) -> Path:
        files.write_texts(self.path, self.sources)
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def run(
    spec: t.Mapping[str, t.Any],
    workshop: Path,
    module: str,
    arguments: list[str],
    variables: t.Mapping[str, t.Any],
    *kept: int,
    python: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a module of the engine to its end. kept: descriptors that it holds too. python: another than the ranks'."""
    given = {**os.environ, **spec["launch"]["environment"], **variables}
    return subprocess.run(
        [python or spec["launch"]["python"], "-m", f"engine.{module}", *arguments],
        cwd=workshop,
        env={name: str(value) for name, value in given.items()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        pass_fds=kept,
    )


def last(done: subprocess.CompletedProcess[str]) -> str:
    last = "\n          ".join((done.stdout + done.stderr).strip().splitlines()[-5:])
    return last or f"exit status {done.returncode}"
