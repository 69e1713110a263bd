# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The check of a file on a node, by this Python or by that of an environment, which has pyarrow."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
import tempfile
import typing as t
from dataclasses import asdict
from pathlib import Path

from . import _dataset, _records, _tables
from ._media import Media

PARTS = (
    "_checker",
    "_config",
    "_dataset",
    "_errors",
    "_fields",
    "_formats",
    "_json",
    "_kinds",
    "_media",
    "_plain",
    "_readers",
    "_records",
    "_split",
    "_tables",
    "_times",
    "_tools",
    "_torn",
)
"""What the check is made of: this module and all that it imports."""
_NONE = "no environment with pyarrow is there yet"

Answer = dict[str, t.Any]


def sources() -> dict[str, str]:
    """The parts as text. Read by the login user, who alone may look into what Ansible brought to the node."""
    modules = {name: importlib.import_module(f"{__package__}.{name}") for name in PARTS}
    return {f"{name}.py": inspect.getsource(module) for name, module in modules.items()}


def check(
    path: Path, dataset: _dataset.Dataset, stage: str, media: Media, root: Path, parts: t.Mapping[str, str]
) -> Answer:
    """The report on a file as JSON has it, or `unread`: why no Python here can read it.

    root: where environments are. parts: what `sources` gave.
    """
    if not _tables.unreadable(path):
        return _records.check(path, dataset, stage, media=media).as_dict()
    asked = json.dumps([str(path), asdict(dataset), stage, media])
    answer: Answer = {"unread": _NONE}
    for mark in sorted(root.glob("envs/*/environment.json")):
        answer = _ask(mark.with_name("bin") / "python", asked, parts)
        if not answer.get("unread"):
            break
    return answer


def _ask(python: Path, asked: str, parts: t.Mapping[str, str]) -> Answer:
    """What another Python finds. Its environment variables are its own: ours lead to Ansible's modules."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "checker"
        package.mkdir()
        for name, text in {"__init__.py": "", **parts}.items():
            (package / name).write_text(text, encoding="utf-8")
        command = [str(python), "-B", "-m", "checker._checker"]
        try:
            done = subprocess.run(command, cwd=folder, env={}, input=asked, capture_output=True, text=True, check=False)
        except OSError as error:
            return {"unread": f"{python}: {error.strerror}"}
    if done.returncode != 0:
        return {"unread": f"{python}: {(done.stderr.strip().splitlines() or ['it was killed'])[-1]}"}
    return t.cast("Answer", json.loads(done.stdout))


def main() -> None:
    """The other Python's side: the question on standard input, the answer on standard output."""
    path, dataset, stage, media = json.load(sys.stdin)
    report = _records.check(Path(path), _dataset.Dataset(**dataset), stage, media=Media(*media))
    json.dump(report.as_dict(), sys.stdout)


if __name__ == "__main__":
    main()
