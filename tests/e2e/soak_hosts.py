# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make soak PART=hosts`: thirty faults in one run of three hosts over ssh. Root and podman needed; half an hour."""

from __future__ import annotations

import os
import time

from . import test_cluster_faults
from .machines import STEPS, Cluster
from .soak import REPORT

FAULTS = int(os.environ.get("FAULTS", "30"))
REPORT += ["| what | times | outcome | took |", "|---|---|---|---|"]


def test_faults_in_one_run(cluster: Cluster) -> None:
    began = time.monotonic()
    steps = {**STEPS, "max_steps": 64 * FAULTS}  # on the quickest of machines some seven a second
    quiet = cluster.play("train.yml", name="soak-hosts", **steps)
    assert quiet.rc == 0, quiet.text
    loss = test_cluster_faults.last_loss(str(quiet.plan["id"]))
    test_cluster_faults.befall(cluster, loss, FAULTS, steps)
    kinds = ", ".join(fault.__name__.replace("_", " ") for fault in test_cluster_faults.FAULTS)
    REPORT.append(
        f"| of each kind as many (seed {test_cluster_faults.SEED}): {kinds} | {FAULTS} | "
        "the last loss equals the quiet run's, nothing is left on any host | "
        f"{time.monotonic() - began:.0f} s |"
    )
