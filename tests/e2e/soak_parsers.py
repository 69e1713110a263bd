# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make soak PART=parsers`: thousands of random configurations, refused alike by LLaMA-Factory's parser and by us."""

from __future__ import annotations

import os
import time

import pytest

from .conftest import Demo, World
from .soak import REPORT
from .test_agreement import combinations, compare

SEED = int(os.environ.get("SOAK_SEED", "1"))
COUNT = int(os.environ.get("SOAK_CONFIGURATIONS", "2000"))
REPORT += ["| environment | configurations | refused | outcome | took |", "|---|---|---|---|---|"]


@pytest.mark.parametrize("environment", ["main", "ppo"])
def test_the_parser_refuses_what_we_refuse(world: World, demo: Demo, environment: str) -> None:
    began = time.monotonic()
    lock = {"uv_env_lock": str(world.clone / f"requirements/node-{environment}.txt")}
    made = world.play("llmops.finetune.environment", variables=lock)
    assert made.rc == 0, made.text
    (python,) = {line["result"]["python"] for line in made.results if "python" in line["result"]}
    wrong, refused = compare(python, combinations(environment, COUNT, SEED))
    assert wrong == []
    REPORT.append(
        f"| node-{environment} | {COUNT} random ones (seed {SEED}) | {refused} | both refuse the same, but what fails "
        f"only later | {time.monotonic() - began:.0f} s |"
    )
