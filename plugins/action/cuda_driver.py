# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""cuda_driver on the controller: says which host that is, so that it is not rebooted under the play."""

from __future__ import annotations

import typing as t
from pathlib import Path

from ansible.plugins.action import ActionBase

BOOT = Path("/proc/sys/kernel/random/boot_id")


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        super().run(tmp, task_vars)
        arguments = {**self._task.args, "controller": boot()}
        return t.cast("dict[str, t.Any]", self._execute_module(module_args=arguments, task_vars=task_vars))


def boot() -> str:
    """The kernel's name for this boot, whatever connection leads here; empty on controllers without one."""
    return BOOT.read_text(encoding="ascii").strip() if BOOT.exists() else ""
