# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model that sees, small and untrained: run with the Python of a node environment, vision_model.py BASE FOLDER.

Its tokenizer is that of the model in BASE, with the tokens that stand for pictures.
"""

from __future__ import annotations

import sys

SIZE = 64


def main(base: str, folder: str) -> None:
    from transformers import (
        Qwen2TokenizerFast,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = Qwen2TokenizerFast.from_pretrained(base)
    words = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": words})
    start, end, image, video = tokenizer.convert_tokens_to_ids(words)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": SIZE,
        "intermediate_size": 2 * SIZE,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    seeing = {"depth": 2, "embed_dim": SIZE, "hidden_size": SIZE, "num_heads": 2}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=seeing,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor()).save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
