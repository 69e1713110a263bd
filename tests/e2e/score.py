# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a reward model says of answers: its scores as a JSON list, and on which versions.

Run with the Python of a node's environment: score.py <base model> <output of a reward run>. Tokenizer, adapter and
value head are read from that output as any reader would, without LLaMA-Factory.
"""

from __future__ import annotations

import json
import os
import sys

CHATS = (
    ("How do I train?", "Run the playbook train."),
    ("How do I train?", "I do not know."),
    ("How do I see my runs?", "Run the playbook status."),
)


def main() -> None:
    os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    import peft
    import torch
    import transformers
    from safetensors.torch import load_file

    base, reward = sys.argv[1:]
    tokenizer = transformers.AutoTokenizer.from_pretrained(reward)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, torch_dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, reward).eval()
    head = load_file(f"{reward}/value_head.safetensors")
    tokens, scores = [], []
    for question, answer in CHATS:
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            last = model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        tokens.append(ids[0].tolist())
        scores.append(float(last @ head["v_head.summary.weight"][0] + head["v_head.summary.bias"][0]))
    print(
        json.dumps(
            {"tokens": tokens, "scores": scores, "peft": peft.__version__, "transformers": transformers.__version__}
        )
    )


if __name__ == "__main__":
    main()
