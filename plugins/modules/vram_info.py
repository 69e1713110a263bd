#!/usr/bin/python
# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: documentation of an action plugin that runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vram_info
short_description: How much memory of a GPU a fine-tuning run needs, and whether it fits
version_added: 0.1.0
description:
  - Estimates for one rank what a LLaMA-Factory run needs of its GPU at each moment of a step, of the host and of the
    disk, from the C(config.json) of the model and LLaMA-Factory's arguments. With O(gpu) it says whether that fits.
  - Needs no GPU, no weights, no PyTorch and no other part of this collection. A training step is walked on tensors
    without content, as PyTorch, transformers, PEFT and LLaMA-Factory would run it.
  - Every estimate says how far it was checked. C(replayed) is within 1 % of the real classes on tensors without content
    and of measured allocations on a T4; C(formula) and C(unverified) are less sure, and are decided on with a wider
    bound. C(docs/vram.md) of the collection's repository has the figures and where they come from.
  - Runs on the controller only.
author: llmops.finetune contributors (@llmops-finetune)
options:
  config:
    description:
      - The model's C(config.json), as a dict, or the path of that file, or of the folder that it is in, or the model's
        id on a hub, such as V(Qwen/Qwen2.5-7B-Instruct).
      - Relative paths are looked for beside the inventory, beside the playbook, and in the current folder.
      - What is no file there, and looks like an id, is asked of Hugging Face, or with V(modelscope:) in front of
        ModelScope, from the controller. Of the environment there E(HF_ENDPOINT) and E(HF_TOKEN) count, or
        E(MODELSCOPE_ENDPOINT) and E(MODELSCOPE_API_TOKEN). Nothing is kept.
      - Where its C(quantization_config) says that the weights are quantized already, that is what is estimated.
    type: raw
    required: true
  revision:
    description: Branch, tag or commit of a model of a hub.
    type: str
    default: main
  args:
    description:
      - LLaMA-Factory's keys, as in C(train_args). What is left out has LLaMA-Factory's default. Sequences are taken to
        be C(cutoff_len) long.
      - Where it evaluates (C(do_eval), C(eval_strategy) or C(val_size)), that has a batch of its own,
        C(per_device_eval_batch_size), which is 8 unless it is set, and may need more than training.
      - Unknown keys, values of another type and numbers out of their range are refused.
    type: dict
    default: {}
  recipe:
    description: A recipe of this collection that O(args) go over, such as C(lora_sft).
    type: str
  gpu:
    description:
      - Name of the GPU, as people or C(nvidia-smi) write it, or its memory, such as V(24GiB). Blanks may be hyphens, or
        left out.
      - Without it there is no verdict.
    type: str
  used:
    description: What others hold of its memory, such as V(1.5GiB).
    type: str
  world_size:
    description: How many ranks there are.
    type: int
    default: 1
  engine:
    description:
      - How ranks share the work, with O(world_size) of them. V(auto) is V(ddp) for several.
      - V(zero1) and V(fsdp) are for runs of others; this collection starts V(zero2) and V(fsdp2) in their place.
    type: str
    choices: [auto, ddp, zero0, zero1, zero2, zero2_offload, zero3, zero3_offload, fsdp, fsdp2]
    default: auto
  padded:
    description: Whether batches are padded to the longest sequence. Not given, it follows from batch size and packing.
    type: bool
  torch:
    description:
      - Version of PyTorch, which decides LLaMA-Factory's default optimizer. Quoted, for YAML takes 2.10 for 2.1.
    type: str
    default: 2.8.0
  expandable_segments:
    description:
      - Whether C(PYTORCH_CUDA_ALLOC_CONF) has C(expandable_segments:True), as in runs of this collection.
      - Without it, and without packing, records of many lengths leave blocks behind that fit no other, and up to twice
        as much is reserved. That is estimated too.
    type: bool
    default: true
  quick:
    description:
      - Walk a few layers of each kind in place of all. Peaks of tensors are the same, what the allocator reserves is
        less exact.
    type: bool
    default: false
extends_documentation_fragment:
  - llmops.finetune.attributes
"""

EXAMPLES = r"""
- name: Does an adapter for this model fit on a card of 24 GB
  llmops.finetune.vram_info:
    config: /models/llama-3-8b/config.json
    args:
      bf16: true
      per_device_train_batch_size: 1
      cutoff_len: 4096
    gpu: RTX 4090

- name: What do all weights need on eight H100
  llmops.finetune.vram_info:
    config: config.json
    args: {finetuning_type: full, bf16: true, per_device_train_batch_size: 2}
    world_size: 8
    engine: zero3
    gpu: H100
  register: memory

- name: Go on only if it fits
  ansible.builtin.assert:
    that: memory.verdict.fits
    fail_msg: "{{ memory.verdict.why }}"
"""

RETURN = r"""
estimate:
  description: Of one rank, in bytes unless it says otherwise.
  returned: success
  type: dict
  contains:
    parameters:
      description: Weights of the model, adapters included, counted.
      type: int
    trainable:
      description: Those that are trained, counted.
      type: int
    resident:
      description: What lies on the GPU between steps.
      type: int
    moments:
      description: Peak of the tensors at each moment.
      type: dict
    binding:
      description: The moment that decides.
      type: str
    tensors:
      description: The peak of the tensors.
      type: int
    allocated:
      description: What PyTorch would tell as its peak of allocated memory.
      type: int
    reserved:
      description: And of reserved memory.
      type: int
    context:
      description: What CUDA and NCCL take besides.
      type: int
    process:
      description: What C(nvidia-smi) would tell of the process. Unbiased.
      type: int
    bound:
      description: What decisions take it for, RV(estimate.process) and as much more as it may be too low.
      type: int
    band:
      description: By which part of itself RV(estimate.bound) is higher.
      type: float
    host:
      description: Memory of the host.
      type: int
    checkpoint:
      description: Disk for one checkpoint of all ranks, with the states of the optimizer.
      type: int
    tag:
      description: V(replayed), V(formula) or V(unverified).
      type: str
    reasons:
      description: Why it is not V(replayed).
      type: list
      elements: str
    batch:
      description: Records of the micro-batch that it is for.
      type: int
    length:
      description: Tokens of the sequences that it is for.
      type: int
    evaluated:
      description: Records of a batch in evaluation; 0 where there is none.
      type: int
verdict:
  description: With O(gpu), whether it fits, what is left over in bytes, and why.
  returned: success
  type: dict
  contains:
    fits:
      description: Whether RV(estimate.bound) is within the memory.
      type: bool
    free:
      description: Left over, in bytes; negative where it does not fit.
      type: int
    why:
      description: In a sentence.
      type: str
told:
  description: What was printed.
  returned: success
  type: list
  elements: str
"""
