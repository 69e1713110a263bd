# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GPUs that a plan takes each host to have (train_assume_gpus), whether there are any or not. Pure."""

from __future__ import annotations

import typing as t

from ._errors import FinetuneError
from ._gpu import catalogue

VARIABLE = "train_assume_gpus"
MOST = 64
"""GPUs of a host; the largest that are sold have 16."""
HELD = FinetuneError(
    "This plan is for GPUs that are assumed, so that nothing is staged or started.",
    where=VARIABLE,
    change="leave it out to train on what there is; --check and the playbook llmops.finetune.plan take it",
)

Assumed = t.Tuple[int, catalogue.Known]


def read(text: str) -> Assumed | None:
    """How many of which; None for what there is."""
    if not text:
        return None
    found = catalogue.assumed(text)
    if found is None or found[0] > MOST:
        raise FinetuneError(
            f"{text!r} are no GPUs that are known here.",
            where=VARIABLE,
            change=f"write it without blanks, as 8xH100, with up to {MOST} of " + ", ".join(catalogue.names()),
        )
    return found


def over(assumed: Assumed | None, facts: t.Mapping[str, dict[str, t.Any]]) -> dict[str, dict[str, t.Any]]:
    """The facts of hosts, with these GPUs in the place of theirs; free, and with what a host for GPUs has besides."""
    if assumed is None:
        return dict(facts)
    count, known = assumed
    memory = known.memory << 20
    gpus = [
        {
            "index": index,
            "uuid": f"assumed-{index}",
            "name": known.name,
            "memory": memory,
            "memory_free": memory,
            "compute_capability": known.compute_capability,
            "driver": "",
        }
        for index in range(count)
    ]
    own = {"gpus": gpus, "gpu_links": [], "gpu_problems": [], "leases": {}, "compilers": ["c++", "nvcc"], "memory": 0}
    return {host: {**node, **own} for host, node in facts.items()}


def notices(assumed: Assumed | None) -> list[str]:
    if assumed is None:
        return []
    count, known = assumed
    return [f"Each host is taken to have {count} × {known.name} ({VARIABLE}), with compilers and memory enough."]
