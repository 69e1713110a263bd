# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node has staged, in values that can be held against those of the other nodes."""

from __future__ import annotations

import hashlib
import os
import shutil
import typing as t
from pathlib import Path

from . import _digests, _env, _sealed
from ._engine import files
from ._engine.state import Run

SEEN = "cache/digests"
"""Below train_root: what was read of models that lie elsewhere."""
_SAVED = {"full": 6.0, "freeze": 4.0}
"""Bytes of a checkpoint per byte of 16-bit weights: the weights, and what AdamW keeps of each in 32 bits."""
_ADAPTER = 0.2
"""The same for adapters, generously."""
FLOOR = 1 << 30


def proof(spec: dict[str, t.Any], *, full: bool = False) -> dict[str, t.Any]:
    """By field; all but disk_free and disk_needed (bytes) must be the same on every node. full: read models again."""
    environment = Path(spec["launch"]["python"]).parents[1]
    mark = files.read_json(environment / _env.MARK)
    model = Path(spec["model"]["path"])
    told = {f"dataset {dataset['name']}": dataset["digest"] for dataset in spec["datasets"]}
    runs = Path(spec["root"]) / "runs"
    told |= {f"run {run_id}": left(Run(runs / run_id)) for run_id in spec["before"]}
    if model.is_dir() and runs not in model.parents:
        told["model"] = fingerprint(model, Path(spec["root"]) / SEEN, full=full)
    return {
        "environment": str(mark.get("digest", "")),
        "python": ".".join(str(mark.get("python_version", "")).split(".")[:2]),
        **told,
        **_where_results_go(spec, needed(spec["resolved"]["arguments"], weights(model))),
    }


def _where_results_go(spec: dict[str, t.Any], size: int) -> dict[str, t.Any]:
    """Room for the checkpoints, on every node or once; who shares storage of a network is known there by number."""
    disk = {"disk_free": shutil.disk_usage(spec["launch"].get("shared") or spec["folder"]).free, "disk_needed": size}
    if not spec["launch"].get("shared"):
        return disk
    return {"account": os.geteuid(), **(disk if spec["launch"]["node_rank"] == 0 else {})}


def fingerprint(folder: Path, memory: Path, *, full: bool) -> str:
    """Digest over the names and contents of a folder's files; its manifest has times of this node. memory: folder for
    what was read of them; one that was not touched since is read again with `full` alone."""
    kept = (path for path in folder.rglob("*") if not path.name.startswith(".") and path.name != "manifest.json")
    paths = sorted(path for path in kept if path.is_file())
    known = {} if full else _sealed.untouched(folder)
    names = {path: path.relative_to(folder).as_posix() for path in paths}
    unknown = [str(path) for path in paths if names[path] not in known]
    read = dict(zip(unknown, _digests.sha256(unknown, _digests.within(memory, str(folder)), again=full)))
    whole = [f"{known.get(names[path]) or read[str(path)]} {names[path]}\n" for path in paths]
    return hashlib.sha256("".join(whole).encode()).hexdigest()


def left(run: Run) -> str:
    """Digest over the weights that a finished run says it left: its logs are of one node alone."""
    recorded = files.read_json(run.artefacts)
    kept = {name: one["sha256"] for name, one in sorted(recorded.items()) if name.endswith(".safetensors")}
    return hashlib.sha256(repr(kept).encode()).hexdigest()


def weights(model: Path) -> int:
    """Bytes of a model's weights; 0 where they are not on the node."""
    return sum(path.stat().st_size for kind in ("*.safetensors", "*.bin") for path in model.glob(kind))


def needed(arguments: t.Mapping[str, t.Any], size: int) -> int:
    """Bytes of disk for the checkpoints that are kept, and one more while it is written."""
    kept = int(arguments.get("save_total_limit") or 3) + 1
    return max(FLOOR, int(size * _SAVED.get(str(arguments.get("finetuning_type")), _ADAPTER) * kept))
