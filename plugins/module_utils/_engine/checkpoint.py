# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which checkpoints are whole, and what must go before an attempt begins.

A checkpoint counts once `complete.json` lies in it: written last, after every other file is on disk, with their
sizes. LLaMA-Factory itself would take the highest number, whole or not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import time
import typing as t
from pathlib import Path

from . import files

MARK = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match.group(1)) if match else -1


def found(output: Path) -> list[Path]:
    """All checkpoints in an output folder, oldest first, whole or not."""
    if not output.is_dir():
        return []
    return sorted((path for path in output.iterdir() if path.is_dir() and step_of(path) >= 0), key=step_of)


def mark(checkpoint: Path, nodes: t.Sequence[dict[str, int]] = (), save: int = 0) -> None:
    """Make every file of the checkpoint durable, then say that it is whole.

    nodes: what each node wrote, where there are several and each has a folder of its own; bytes by file name.
    save: which saving of the step it is, the same on all nodes; 0 is a new one.
    """
    sync(checkpoint)
    told: dict[str, t.Any] = {"nodes": list(nodes)} if nodes else {}
    told |= {"step": step_of(checkpoint), "save": save or next_save(checkpoint.parent), "files": sizes(checkpoint)}
    files.write_json(checkpoint / MARK, told)


def next_save(output: Path) -> int:
    """A number for the next saving: milliseconds, and more than that of any before it, whatever clocks say."""
    before = (int(read_mark(path).get("save", 0)) for path in found(output))
    return max(int(time.time() * 1000), 1 + max(before, default=0))


def sync(place: Path) -> None:
    """Make every file of a checkpoint durable, or of the whole output."""
    for path in _members(place):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    for folder in {path.parent for path in _members(place)} | {place}:
        files.sync_directory(folder)


def sizes(checkpoint: Path) -> dict[str, int]:
    """Bytes by name of every file in a checkpoint, the mark aside."""
    return {str(path.relative_to(checkpoint)): path.stat().st_size for path in _members(checkpoint)}


def read_mark(checkpoint: Path) -> dict[str, t.Any]:
    return files.read_json(checkpoint / MARK)


def is_complete(checkpoint: Path) -> bool:
    """Marked, and every file still has the size it was marked with."""
    told = read_mark(checkpoint).get("files")
    if not isinstance(told, dict) or "trainer_state.json" not in told:
        return False
    try:
        return all(
            stat.S_ISREG((now := os.stat(checkpoint / name)).st_mode) and now.st_size == told[name] for name in told
        )
    except OSError:  # not there, or another node that shares the storage is removing it
        return False


def newest_complete(output: Path) -> Path | None:
    return next((path for path in reversed(found(output)) if is_complete(path)), None)


def prune(output: Path, keep: int) -> None:
    """Remove the oldest whole checkpoints beyond `keep`; called after the newest one is marked."""
    for path in [path for path in found(output) if is_complete(path)][:-keep]:
        remove(path)


def remove(checkpoint: Path) -> None:
    """Unmark first: a removal cut short leaves an incomplete checkpoint, not one that looks whole."""
    (checkpoint / MARK).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def prepare(output: Path, *, resumes: bool = True) -> Path | None:
    """Bring an output folder to the state of its newest whole checkpoint, which is returned (None: from the start).

    Torn checkpoints, results of an end that was cut short and log lines past the checkpoint go. resumes: False for a
    stage that cannot go on from a checkpoint, and begins again.
    """
    output.mkdir(exist_ok=True)
    start = newest_complete(output) if resumes else None
    for path in sorted(output.iterdir()):
        if path.name == "trainer_log.jsonl" or (start and step_of(path) >= 0 and is_complete(path)):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    _truncate_log(output / "trainer_log.jsonl", step_of(start) if start else 0)
    return start


def rewind(output: Path, step: int) -> None:
    """Go back to the checkpoint of that step: newer ones, which cannot be used, and log lines past it go."""
    for path in found(output):
        if step_of(path) > step:
            remove(path)
    _truncate_log(output / "trainer_log.jsonl", step)


def _truncate_log(log: Path, last_step: int) -> None:
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            if int(json.loads(line)["current_steps"]) <= last_step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    log.write_text("".join(kept), encoding="utf-8")


def _members(checkpoint: Path) -> list[Path]:
    return [path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARK]
