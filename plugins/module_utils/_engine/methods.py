# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What single methods lack between LLaMA-Factory and its packages."""

from __future__ import annotations

import importlib
import inspect
import os
import typing as t

_PROJECTORS = {
    "use_galore": (("galore_torch.galore_projector", "GaLoreProjector"),),
    "use_apollo": (
        ("apollo_torch.random_projector", "GradientProjector"),
        ("apollo_torch.svd_projector", "GaLoreProjector"),
    ),
}
"""By key of LLaMA-Factory: module and class of what projects gradients."""


def amend(arguments: t.Mapping[str, t.Any]) -> None:
    """Make good what the methods that these arguments ask for lack."""
    for key, places in _PROJECTORS.items():
        if arguments.get(key):
            _read_back(places)
    if arguments.get("stage") == "dpo" and arguments.get("pref_loss") in ("hinge", "ipo"):
        _prefer_as_asked()
    if arguments.get("finetuning_type") in ("lora", "oft") and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        _read_back_sharded_adapter()


def _read_back(places: t.Iterable[tuple[str, str]]) -> None:
    """These optimizers keep objects in their state, and torch reads a checkpoint only with the classes that it was told
    of; a run reads none but its own."""
    import torch

    torch.serialization.add_safe_globals([getattr(importlib.import_module(module), name) for module, name in places])


def _prefer_as_asked() -> None:
    """trl takes the loss as an argument that LLaMA-Factory leaves out: it would be sigmoid, whatever pref_loss says."""
    from llamafactory.train.dpo.trainer import CustomDPOTrainer

    loss = CustomDPOTrainer.dpo_loss
    if "loss_type" not in inspect.signature(loss).parameters:
        return

    def dpo_loss(self: t.Any, *logps: t.Any) -> t.Any:
        return loss(self, *logps, loss_type=self.loss_type)

    CustomDPOTrainer.dpo_loss = dpo_loss


def _read_back_sharded_adapter() -> None:
    """accelerate restores of an adapter under FSDP2 only the part of the first rank, and the others begin anew. The
    checkpoint has the whole adapter besides: each rank takes its own part of it."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from torch.distributed.tensor import DTensor, distribute_tensor
    from transformers import trainer

    load = trainer.load_fsdp_model

    def load_fsdp_model(plugin: t.Any, accelerator: t.Any, model: t.Any, folder: str, **options: t.Any) -> t.Any:
        if not isinstance(model, PeftModel):
            return load(plugin, accelerator, model, folder, **options)
        whole = load_file(os.path.join(folder, "adapter_model.safetensors"))
        for name, weight in model.named_parameters():
            saved = whole.pop(name.replace(f".{model.active_adapter}.", ".").replace(".modules_to_save.", "."), None)
            if saved is not None:
                sharded = isinstance(weight, DTensor)
                part = distribute_tensor(saved, weight.device_mesh, weight.placements) if sharded else saved
                with torch.no_grad():
                    weight.copy_(part)
        if whole:
            raise RuntimeError(f"The checkpoint has weights that the adapter lacks: {', '.join(sorted(whole)[:3])}.")
        return None

    trainer.load_fsdp_model = load_fsdp_model
