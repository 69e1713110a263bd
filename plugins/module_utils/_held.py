# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said where another run has what this one needs."""

from __future__ import annotations

import typing as t

from ._engine import lease
from ._errors import FinetuneError


def refusal(key: str, holder: dict[str, t.Any], user: str, where: str) -> FinetuneError:
    """A lease that another run has. user: the account this run would belong to."""
    ways = ["wait for it"]
    if holder.get("run"):
        theirs = "" if holder.get("user") == user else f" -e train_user={holder.get('user')}"
        ways.append(f"stop it (playbook llmops.finetune.stop, -e train_run_id={holder['run']}{theirs})")
    if key != lease.CPU:
        ways.append("choose other GPUs with train_gpus")
    return FinetuneError(lease.describe(key, holder), where=where, change=", or ".join(ways))
