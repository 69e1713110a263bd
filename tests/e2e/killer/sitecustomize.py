# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fault injection for tests, loaded through PYTHONPATH: a rank kills itself with SIGKILL at planned moments.

$KILLER_PLAN is a JSON list of [checkpoint, file]. The n-th attempt that gets there dies at the first thing it does
after `file` lies in `checkpoint`; the folder `$KILLER_PLAN.done` holds a file per death. When the list is used up
ranks live.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import typing as t


def arm(plan_path: str) -> None:
    with open(plan_path, encoding="utf-8") as file:
        plan = json.load(file)
    done = plan_path + ".done"
    deaths = len(os.listdir(done))
    if deaths >= len(plan):
        return
    checkpoint, name = plan[deaths]
    target = os.path.join(os.getcwd(), "output", checkpoint, name)
    busy = False

    def watch(event: str, arguments: tuple[t.Any, ...]) -> None:
        nonlocal busy
        if busy or event not in ("open", "os.rename", "os.mkdir", "os.listdir", "os.scandir", "torch.save"):
            return
        busy = True
        path = str(arguments[0]) if arguments else ""
        if not path.endswith(name) and os.path.exists(target) and os.path.getsize(target):
            with open(os.path.join(done, str(deaths)), "a", encoding="utf-8"):
                os.kill(os.getpid(), signal.SIGKILL)
        busy = False

    sys.addaudithook(watch)


if "RANK" in os.environ and "KILLER_PLAN" in os.environ:
    arm(os.environ["KILLER_PLAN"])
