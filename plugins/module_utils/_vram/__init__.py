# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much memory a fine-tuning run needs: a training step, walked on tensors without content.

tape, ops, kernels: what PyTorch keeps and frees. layers, decoder, model, stages: what a model and a trainer do.
allocator: what is reserved for it. shape, options: from config.json and LLaMA-Factory's keys. engines, optimizers,
hardware: tables. estimate: the answer. Pure, without torch and numpy. Accuracy and sources: docs/vram.md.
"""
