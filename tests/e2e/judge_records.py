# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""LLaMA-Factory's own converters and processors as the judge of records: which are dropped, which end the run.

Run with the Python of a node environment: judge_records.py MODEL PORT. Files come on standard input as path, stage
and their entry in dataset_info.json, template where it is another one, and media_dir where a template for media takes
them; the answer is the numbers of the bad records, or why a file is none.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import types
import typing as t
from pathlib import Path

from upstream import RANK


class Judge:
    def __init__(self, model: str, folder: Path) -> None:
        from llamafactory.data.template import get_template_and_fix_tokenizer
        from llamafactory.hparams import get_train_args
        from llamafactory.model import load_tokenizer

        given: dict[str, t.Any] = {
            "model_name_or_path": model,
            "template": "qwen3_nothink",
            "dataset": "x",
            "dataset_dir": str(folder),
        }
        given |= {"output_dir": str(folder / "output"), "stage": "sft", "do_train": True, "finetuning_type": "lora"}
        model_args, self.data_args, *_others = get_train_args({**given, "report_to": "none"})
        self.defaults = self.data_args
        self.tokenizer = load_tokenizer(model_args)["tokenizer"]
        self.template = get_template_and_fix_tokenizer(self.tokenizer, self.data_args)
        self.folder = folder

    def use(self, media_dir: str | None, name: str | None) -> None:
        """A template for texts, or one that sees, with the processors of a model that does."""
        from llamafactory.data.mm_plugin import get_mm_plugin
        from llamafactory.data.template import TEMPLATES
        from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

        self.data_args, self.processor = self.defaults, None
        self.seeing = dataclasses.replace(TEMPLATES[name], mm_plugin=self.template.mm_plugin) if name else self.template
        if media_dir:
            plugin = get_mm_plugin("qwen2_vl", image_token="<|image_pad|>", video_token="<|video_pad|>")
            self.data_args = dataclasses.replace(self.defaults, media_dir=media_dir)
            self.seeing = dataclasses.replace(self.template, mm_plugin=plugin)
            self.processor = types.SimpleNamespace(
                model_input_names=[],
                image_processor=Qwen2VLImageProcessor(),
                video_processor=Qwen2VLVideoProcessor(),
            )

    def bad_records(self, number: int, case: dict[str, t.Any]) -> list[int] | str:
        import datasets
        from llamafactory.data.converter import get_dataset_converter
        from llamafactory.data.loader import _get_dataset_processor
        from llamafactory.data.parser import get_dataset_list
        from llamafactory.extras.constants import FILEEXT2TYPE

        path = Path(case["path"])
        entry = {**case["info"], "file_name": str(path)}
        (self.folder / "dataset_info.json").write_text(json.dumps({"x": entry}), encoding="utf-8")
        (attributes,) = get_dataset_list(["x"], str(self.folder))
        stage = "rm" if case["stage"] == "dpo" else case["stage"]
        self.use(case.get("media_dir"), case.get("template"))
        processor = _get_dataset_processor(self.data_args, stage, self.seeing, self.tokenizer, self.processor)
        converter = get_dataset_converter(attributes.formatting, attributes, self.data_args)
        cache = str(self.folder / f"cache-{number}")
        try:
            loader = FILEEXT2TYPE[path.suffix[1:]]
            rows = list(datasets.load_dataset(loader, data_files=[str(path)], split="train", cache_dir=cache))
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:300]
        return [i for i, row in enumerate(rows, 1) if not self._is_trained_on(row, converter, processor)]

    def _is_trained_on(self, row: t.Any, converter: t.Any, processor: t.Any) -> bool:
        try:
            batch = {key: [value] for key, value in converter(row).items()}
            made = processor.preprocess_dataset(batch)
            if self.processor:  # as the collator does, when the record's turn has come
                media = [batch[key][0] or [] for key in ("_images", "_videos", "_audios")]
                self.seeing.mm_plugin.get_mm_inputs(*media, *([len(one)] for one in media), [[]], self.processor)
        except Exception:
            return False
        return any(len(values) for values in made.values())


def main() -> None:
    cases: list[dict[str, t.Any]] = json.load(sys.stdin)
    os.environ.update(RANK, MASTER_PORT=sys.argv[2], DS_ACCELERATOR="cpu", LLAMAFACTORY_VERBOSITY="ERROR")
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(sys.argv[1], Path(folder))
        json.dump([judge.bad_records(number, case) for number, case in enumerate(cases)], answers)
    answers.close()


if __name__ == "__main__":
    main()
