# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The data of a run as tokens, made by what its ranks would make them with, LLaMA-Factory's own loader.

`python -m engine.tokens ARGUMENTS`, a file of LLaMA-Factory's keys in JSON, whose `tokenized_path` is the folder to
write. One process, no model, no GPU; `preprocessing_num_workers` of the keys are its own processes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from . import files
from .rank import die_with_parent

LOADED_AS = {"dpo": "rm"}
"""By stage: the one whose data it loads, where that is another."""


def main(path: str) -> None:
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    model_args, data_args, training_args, finetuning_args, _generating = get_train_args(files.read_json(Path(path)))
    tokenizer = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(tokenizer["tokenizer"], data_args)
    stage = LOADED_AS.get(finetuning_args.stage, finetuning_args.stage)
    get_dataset(template, model_args, data_args, training_args, stage=stage, **tokenizer)


if __name__ == "__main__":
    die_with_parent()
    os.register_at_fork(after_in_child=die_with_parent)  # workers
    main(sys.argv[1])
