# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Callback for tests: one JSON line per task result into the file $RECORD_TO."""

from __future__ import annotations

DOCUMENTATION = """
name: record
type: notification
short_description: Results as JSON lines, for tests
description: Writes host, action, status and result of every task to the file named by E(RECORD_TO).
"""

import json
import os
import time
import typing as t

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "record"
    CALLBACK_NEEDS_ENABLED = True

    def v2_runner_on_ok(self, result: t.Any) -> None:
        self._write(result, "ok")

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False) -> None:
        self._write(result, "failed")

    def v2_runner_on_unreachable(self, result: t.Any) -> None:
        self._write(result, "unreachable")

    def _write(self, result: t.Any, status: str) -> None:
        task = getattr(result, "task", None) or result._task
        host = getattr(result, "host", None) or result._host
        answer = getattr(result, "result", None) or result._result
        line = {
            "host": host.get_name(),
            "action": task.action,
            "task": task.get_name(),
            "status": status,
            "time": time.time(),
            "result": answer,
        }
        with open(os.environ["RECORD_TO"], "a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")
