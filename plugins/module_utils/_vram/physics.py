# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a run trains, in the words of memory: precision, method, kernels. From LLaMA-Factory's keys: options.py."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from .packed import Packed
from .tape import FULL, HALF


@dataclass(frozen=True)
class Physics:
    """The defaults are those of a LLaMA-Factory run with `bf16: true` and `finetuning_type: lora`."""

    stage: str = "sft"
    method: str = "lora"
    """full, freeze, lora, oft."""
    half: str = "bf16"
    """What half precision is: bf16 or fp16."""
    autocast: bool = True
    trained_width: int = FULL
    """Bytes of a trained weight that is no adapter."""
    frozen_width: int = HALF
    """Of a frozen one. FULL after PEFT's k-bit preparation, which LLaMA-Factory does not call."""
    adapter_width: int = FULL
    rank: int = 8
    targets: t.FrozenSet[str] = field(default_factory=frozenset)
    """Names of the modules that get adapters; empty: all linear ones but the head."""
    dropout: float = 0.0
    dora: bool = False
    turned: int = 0
    """oft_block_size, where adapters turn inputs in blocks (OFT)."""
    sees: bool = False
    """The tower of a model that sees is trained too."""
    trains_ends: bool = False
    """Embedding and head are trained beside the adapters."""
    quantization: int = 0
    """Bits of a weight: 4 or 8 of bitsandbytes, or as a quantized model has them; 0 is none."""
    double_quantization: bool = False
    packed: Packed | None = None
    """The model is quantized already."""
    trained_layers: int | None = None
    """How many are trained, from the last one on; negative: from the first. None leaves it to the method."""
    checkpointing: str = "on"
    """on, off, or host, where the inputs of layers go to the memory of the host (unsloth)."""
    reentrant: bool = True
    """The form of checkpointing: LLaMA-Factory's, but with FSDP2; transformers 5 has the other one by itself."""
    attention: str = "sdpa"
    """sdpa, fa2 or eager."""
    fused: bool = False
    """Norm, rotary embedding and MLP are one kernel each, as Liger's are; about what torch.compile makes of them."""
    loss: str = "plain"
    """plain; liger, where head and loss are one; kept, where one kernel looks at logits in half and writes gradients
    over them (unsloth); parts, where it does so for some tokens at a time, whose logits are made apart (torchtune)."""
    padded: bool = False
    """Batches come with a mask."""
    biased: bool = False
    """Which is in half already, and one for all layers (neat_packing); else each layer makes a bias of it."""
    keeps_outputs: bool = False
    """The logits live while backward runs."""
    outputs_in_full: bool = True
    """accelerate casts outputs to fp32, logits among them."""
    layerwise: bool = False
    """The optimizer takes each gradient as it comes, none is kept."""
    anchored: bool = False
    """The loss looks at the logits of the reference too (ASFT)."""
    reference: bool = False
    """A second, frozen model lies beside the trained one."""

    def targets_module(self, name: str) -> bool:
        return name in self.targets if self.targets else name != "lm_head"

    def quantizes(self, name: str) -> bool:
        return bool(self.quantization) and name != "lm_head" and not (self.packed and name in self.packed.plain)
