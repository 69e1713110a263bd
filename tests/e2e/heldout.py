# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Has the adapter learned? Mean loss per token, in nats, on held-out answers; printed as JSON.

Run with the Python of the node's environment. Three models see the same tokens, the answer and the token that ends it:
the base model untouched, the base model with the adapter, and a unigram model of the training answers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import typing as t
from collections import Counter
from pathlib import Path

Sample = tuple[list[int], list[int]]
"""Token ids of the prompt, and of the answer with its end."""


def read(path: Path) -> list[dict[str, str]]:
    """Alpaca records, one JSON object per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def samples(tokenizer: t.Any, records: t.Iterable[t.Mapping[str, str]]) -> list[Sample]:
    """The records in the chat template of the tokenizer; what follows the end token is left out."""
    found = []
    for record in records:
        question = "\n".join(filter(None, (record["instruction"], record.get("input"))))
        chat = [{"role": "user", "content": question}]
        prompt: str = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        chat.append({"role": "assistant", "content": record["output"]})
        whole: str = tokenizer.apply_chat_template(chat, tokenize=False)
        if not whole.startswith(prompt):
            raise ValueError("the chat template does not continue its own prompt")
        answer = whole[len(prompt) :].rstrip("\n")
        found.append(
            (
                tokenizer(prompt, add_special_tokens=False)["input_ids"],
                tokenizer(answer, add_special_tokens=False)["input_ids"],
            )
        )
    return found


def unigram_loss(train: t.Iterable[Sample], heldout: t.Iterable[Sample], vocabulary: int) -> float:
    """Loss of the frequencies of the training answers' tokens, each counted once more than it was seen."""
    counts = Counter(token for _, answer in train for token in answer)
    total = sum(counts.values()) + vocabulary
    losses = [-math.log((counts[token] + 1) / total) for _, answer in heldout for token in answer]
    return math.fsum(losses) / len(losses)


def model_loss(model: t.Any, heldout: t.Iterable[Sample]) -> float:
    """Loss of a causal language model on the answers, given their prompts."""
    import torch

    model.eval()
    loss, tokens = 0.0, 0
    with torch.no_grad():
        for prompt, answer in heldout:
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
            loss += torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum").item()
            tokens += len(answer)
    return loss / tokens


def measure(model: Path, adapter: Path, train: Path, heldout: Path) -> dict[str, float]:
    """Nats per token: base, adapter, unigram; and how many tokens and records they were measured on."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    measured = samples(tokenizer, read(heldout))
    unigram = unigram_loss(samples(tokenizer, read(train)), measured, len(tokenizer))
    network = AutoModelForCausalLM.from_pretrained(model).float()
    base = model_loss(network, measured)
    return {
        "base": base,
        "adapter": model_loss(PeftModel.from_pretrained(network, str(adapter)), measured),
        "unigram": unigram,
        "tokens": sum(len(answer) for _, answer in measured),
        "records": len(measured),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Loss on held-out answers, in nats per token.")
    for name in ("model", "adapter", "train", "heldout"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    print(json.dumps(measure(given.model, given.adapter, given.train, given.heldout), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
