# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans to test: the facts of nodes, some data, and a plan from both."""

from __future__ import annotations

import json
import typing as t
from dataclasses import replace
from pathlib import Path

import yaml
from ansible_collections.llmops.finetune.plugins.module_utils import _dataset, _identity, _plan, _sources, _wish
from ansible_collections.llmops.finetune.plugins.module_utils._engine import base_model
from ansible_collections.llmops.finetune.plugins.module_utils._wish.imported import Imported
from ansible_collections.llmops.finetune.plugins.plugin_utils import _recipes

DEFAULTS: dict[str, t.Any] = {
    **yaml.safe_load((Path(__file__).parents[2] / "roles/train/defaults/main.yml").read_text(encoding="utf-8")),
    "train_eval_datasets": [],
    "train_name": "",
}
SCHEMAS = _sources.schemas()
RECIPES = _recipes.read()
CORPUS = "c" * 64
COMMIT = "0" * 39 + "1"
LOCK = {"lock": "node-main", "digest": "0123456789abcdef"}
DATA = _dataset.Source(
    _dataset.parse({"file": "a.json"}, "v")[0], "d" * 64, ".json", ("instruction", "output"), "/controller/a.json"
)
HELD_OUT = _dataset.Source(
    _dataset.parse({"file": "h.jsonl"}, "v")[0], "e" * 64, ".jsonl", (), "/controller/h.jsonl", True
)
TABLE = replace(
    _dataset.Source(_dataset.parse({"path": "/srv/t.parquet"}, "v")[0], "f" * 64, ".parquet"), unread="a: no pyarrow"
)
HUB = _dataset.Source(_dataset.parse({"hub": "org/data"}, "v")[0], "")

Variables = dict[str, t.Any]
DEMO_ARGUMENTS = base_model.RECIPE["fine_tuning"]


def eth0(address: str) -> list[dict[str, t.Any]]:
    return [{"name": "eth0", "address": address, "prefix": 24, "speed": 0, "default": True}]


def node(gpus: int = 0, capability: float = 9.0, **facts: t.Any) -> dict[str, t.Any]:
    return {
        "user": "me",
        "account_exists": True,
        "environment_whole": True,
        "root": "/home/me/llmops",
        "interfaces": eth0("10.0.0.1"),
        "cpus": 8,
        "compilers": ["c++"],
        "cpu_flags": ["avx2", "avx512f"],
        "gpus": [
            {"index": i, "uuid": f"GPU-{'abcdefgh'[i]}", "name": "H200", "compute_capability": capability}
            | {"memory": 143771 << 20}
            for i in range(gpus)
        ],
        "systemd": False,
        "folders": {},
        "runs": {},
        "datasets": [],
        "media": [],
        "models": [],
        "lease_dir": "",
        "disk_free": 10**12,
        "hub": {"revision": COMMIT, "bytes": 3 * 2**30},
        "leases": {},
        "output_root": {"why": "", "runs": []},
        "before": {},
        "peaks": {},
        **facts,
    }


def make(
    facts: dict[str, dict[str, t.Any]],
    sources: t.Sequence[_dataset.Source] = (DATA,),
    lock: t.Any = None,
    addresses: dict[str, str] | None = None,
    imported: Imported | None = None,
    **wish: t.Any,
) -> _plan.Plan:
    read = _wish.read({**DEFAULTS, "train_datasets": [{"file": "a.json"}], **wish}, SCHEMAS, RECIPES, imported)
    return _plan.make(
        _identity.find(read, sources, facts, corpus_digest=CORPUS),
        sources,
        facts,
        environment=lock or LOCK,
        schema=SCHEMAS[read.environment],
        addresses=addresses,
    )


def lines(plan: _plan.Plan, host: str = "a") -> dict[str, t.Any]:
    """train.yaml of a host as LLaMA-Factory reads it."""
    return {line["key"]: yaml.safe_load(line["value"]) for line in plan.nodes[host]["arguments"]}


def origins(plan: _plan.Plan) -> dict[str, str]:
    return {line["key"]: line["origin"] for line in plan.nodes["a"]["arguments"]}


def recorded(plan: _plan.Plan, **facts: t.Any) -> dict[str, t.Any]:
    """The facts of a node where this plan was applied: run.json sorts its keys."""
    stored = json.loads(json.dumps({"request": plan.request, "resolved": plan.resolved}, sort_keys=True))
    return node(**facts, runs={plan.id: {"id": plan.id, "state": "finished", "created": 1.0, **stored}})


def known(*runs: tuple[_plan.Plan, str, float]) -> dict[str, t.Any]:
    """The facts of a node that records these runs."""
    return node(
        runs={
            plan.id: {
                "id": plan.id,
                "state": now,
                "request": plan.request,
                "resolved": plan.resolved,
                "created": created,
            }
            for plan, now, created in runs
        }
    )
