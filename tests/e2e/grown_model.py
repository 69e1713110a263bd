# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model with a new layer after each of its layers, which adds nothing yet, as LLaMA-Pro begins: run with the Python
of a node environment, grown_model.py BASE FOLDER."""

from __future__ import annotations

import copy
import sys


def main(base: str, folder: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    layers = torch.nn.ModuleList()
    for layer in model.model.layers:
        new = copy.deepcopy(layer)
        torch.nn.init.zeros_(new.self_attn.o_proj.weight)
        torch.nn.init.zeros_(new.mlp.down_proj.weight)
        layers.extend((layer, new))
    model.model.layers = layers
    model.config.num_hidden_layers = len(layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [kind for each in model.config.layer_types for kind in (each, each)]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
