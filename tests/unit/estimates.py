# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Estimates as tests ask for them."""

from __future__ import annotations

import typing as t

from ansible_collections.llmops.finetune.plugins.module_utils._vram import estimate
from ansible_collections.llmops.finetune.plugins.module_utils._vram.options import Situation

from ..conftest import REPOSITORY
from ..vram import rows

CONFIGS = rows.configs(REPOSITORY / "tests" / "vram" / "configs")
LLAMA = CONFIGS["llama3-8b"]
ONE = {"bf16": True, "per_device_train_batch_size": 1}
GIB = 1 << 30


def found(arguments: dict[str, t.Any] | None = None, config: t.Any = LLAMA, **situation: t.Any) -> estimate.Estimate:
    return estimate.estimate(config, {**ONE, **(arguments or {})}, Situation(**situation))
