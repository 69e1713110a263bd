# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Optimizers that keep objects in their state: torch reads them back only from classes that it was told of."""

from __future__ import annotations

import importlib
import typing as t

_PROJECTORS = {
    "use_galore": (("galore_torch.galore_projector", "GaLoreProjector"),),
    "use_apollo": (
        ("apollo_torch.random_projector", "GradientProjector"),
        ("apollo_torch.svd_projector", "GaLoreProjector"),
    ),
}
"""By key of LLaMA-Factory: module and class of what projects gradients."""


def trust(arguments: t.Mapping[str, t.Any]) -> None:
    """Have torch read back the checkpoints of these arguments; a run reads none but its own."""
    import torch

    for key, places in _PROJECTORS.items():
        if arguments.get(key):
            torch.serialization.add_safe_globals(
                [getattr(importlib.import_module(module), name) for module, name in places]
            )
