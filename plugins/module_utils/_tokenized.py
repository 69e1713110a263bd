# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tokens of a run's data in their place on the node. Runs share them; they take their place when they are whole."""

from __future__ import annotations

import os
import shutil
import typing as t
from pathlib import Path

from . import _sealed, _workshop
from ._changes import Changes
from ._engine import diagnose, files
from ._errors import FinetuneError

MAKING_SECONDS = 24 * 3600.0
"""How long an apply waits for another one that makes the same tokens."""

Spec = dict[str, t.Any]


def stage(spec: Spec, changes: Changes, secrets: t.Mapping[str, t.Any]) -> None:
    """secrets: environment variables for data of a hub."""
    folder = Path(spec["tokens"]["folder"])
    if not _sealed.intact(folder) and changes.add("update" if folder.exists() else "build", folder):
        _workshop.alone(folder, "the tokens", MAKING_SECONDS, lambda lock: _make(spec, folder, secrets, lock))


def _make(spec: Spec, folder: Path, secrets: t.Mapping[str, t.Any], lock: int) -> None:
    if _sealed.intact(folder):
        return  # another apply made them meanwhile
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    with _workshop.Workshop(folder, spec) as workshop:
        (workshop / "dataset_info.json").write_text(spec["files"]["dataset_info.json"], encoding="utf-8")
        places = {
            "dataset_dir": str(workshop),
            "output_dir": str(workshop / "output"),
            "tokenized_path": str(partial),
        }
        files.write_json(workshop / "arguments.json", {**spec["tokens"]["arguments"], **places})
        made = _workshop.run(
            spec, workshop, "tokens", ["arguments.json"], {**spec["tokens"]["variables"], **secrets}, lock
        )
    names = sorted(str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file())
    if made.returncode != 0 or not names:
        shutil.rmtree(partial, ignore_errors=True)
        known = diagnose.diagnose(errors=[], tail=made.stderr)
        raise FinetuneError("The data could not be tokenized.", where=_workshop.last(made), change=known.change)
    _sealed.seal(partial, names)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
