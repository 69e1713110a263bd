# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The answer of `nvml_ask`, as values. Pure."""

from __future__ import annotations

import json

from .card import Gpu, Slice
from .smi import Smi, address


def parse(text: str) -> Smi | None:
    """None where that is no such answer."""
    try:
        told = json.loads(text)
        gpus = [
            Gpu(
                **{key: value for key, value in one.items() if key not in ("pci", "slices")},
                pci=address(one.get("pci", "")),
                slices=[Slice(**part) for part in one.get("slices", [])],
            )
            for one in told["gpus"]
        ]
        return Smi(str(told["driver"]), str(told["cuda"]), gpus, [])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
