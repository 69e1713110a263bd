# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make soak PART=nodes`: one run over three nodes of this machine, and every kind of fault in it. Some minutes."""

from __future__ import annotations

import random
import shutil
import time

from .conftest import BASE, Demo, World
from .soak import REPORT
from .test_nodes import FAULTS, SEED, STEPS, Nodes, befall, made

REPORT += ["| what | times | outcome | took |", "|---|---|---|---|"]


def test_every_kind_of_fault_in_one_run(world: World, demo: Demo) -> None:
    """Each once, in an order and to nodes that the seed picks."""
    began = time.monotonic()
    nodes = Nodes(world, ("n1", "n2", "n3"), {**STEPS, "max_steps": 20 * len(FAULTS)})
    made(world, nodes.names)
    try:
        quiet = nodes.play(name="quiet")
        assert quiet.rc == 0, quiet.text
        befall(nodes, quiet, random.Random(SEED).sample(FAULTS, len(FAULTS)))
    finally:
        shutil.rmtree(BASE / "nodes")
    kinds = ", ".join(fault.__name__.replace("_", " ") for fault in FAULTS)
    REPORT.append(
        f"| three nodes, one of each kind (seed {SEED}): {kinds} | {len(FAULTS)} | the last loss equals the quiet "
        f"run's, adapters are equal on all nodes | {time.monotonic() - began:.0f} s |"
    )
