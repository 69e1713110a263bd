# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sender of a node (engine.upload) as its supervisor has it: beside the ranks, and once more when they are gone."""

from __future__ import annotations

import os
import subprocess
import time
import typing as t

from . import files, rank
from .state import Run

END_SECONDS, RESULTS_SECONDS = 60.0, 600.0
"""For how long nothing may go through before what is left stays unsent: a checkpoint, which goes when the run goes on;
results, after which nobody would."""


class Uploads:
    """Nothing happens where the run has no store, or another node sends what all share."""

    def __init__(self, run: Run, launch: t.Mapping[str, t.Any]) -> None:
        elsewhere = launch.get("shared") and launch["node_rank"]
        self.run = run
        self.python = "" if elsewhere else str(launch.get("store", {}).get("python", ""))

    def begin(self) -> None:
        """It goes with the attempt, and is begun again with the next one."""
        if self.python:
            self._start()

    def end(self, patience: float = END_SECONDS, cut: t.Callable[[], bool] = lambda: False) -> None:
        """Wait until what is left is sent, or it gives up, or `cut`."""
        if not self.python:
            return
        child = self._start("--end", str(patience))
        while child and child.poll() is None:
            if cut():
                child.kill()
            time.sleep(0.1)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes] | None:
        """What goes wrong with it is told, and ends no run."""
        try:
            return self._spawn(*arguments)
        except OSError as error:
            told = {"error": f"the sender cannot be started: {error}", "time": time.time()}
            files.write_json(self.run.stored, {**files.read_json(self.run.stored), **told})
            return None

    def _spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        secrets = {name: str(value) for name, value in files.read_json(self.run.secrets).items()}
        with open(self.run.logs / "store.log", "ab") as log:
            return subprocess.Popen(
                [self.python, "-m", "engine.upload", *arguments],
                cwd=self.run.path,
                env={**os.environ, **secrets},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=rank.die_with_parent,
            )
