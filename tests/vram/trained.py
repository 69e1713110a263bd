# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One configuration, trained for a few steps by LLaMA-Factory itself, and what it took. Started by measure.py.

Nothing of LLaMA-Factory is replaced: it loads a model from a folder, whose weights are a hole in a file, and which are
filled with random numbers once they are where they belong. What is read is the last steps; the first ones are for the
states of the optimizer and for the allocator to settle.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import time
import traceback
import typing as t
from importlib import metadata
from pathlib import Path

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DISABLE_VERSION_CHECK": "1",  # of LLaMA-Factory: a machine may have what it has
}
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "llamafactory", "bitsandbytes", "liger-kernel")
WORD = "a"
MEMORY_WORDS = ("out of memory", "can't allocate memory")

Case = t.Mapping[str, t.Any]


class Done(Exception):
    """The steps that were wanted are over; LLaMA-Factory would go on and save the model."""


class Meter:
    """Peaks of memory by the moment of a step. Without a GPU there is nothing to read, and moments are only counted."""

    def __init__(self, torch: t.Any) -> None:
        self.torch, self.cuda = torch, torch.cuda if torch.cuda.is_available() else None
        self.moment, self.peaks, self.reserved = "load", {"load": 0}, 0
        self.batch: list[int] = []

    def begin(self, moment: str) -> None:
        if self.cuda is not None:
            self.peaks[self.moment] = max(self.peaks[self.moment], self.cuda.max_memory_allocated())
            self.reserved = max(self.reserved, self.cuda.max_memory_reserved())
            self.cuda.reset_peak_memory_stats()
        self.moment = moment
        self.peaks.setdefault(moment, 0)

    def forget(self) -> None:
        """What was before, but for what is reserved, which stays."""
        self.begin(self.moment)
        self.peaks = {self.moment: 0}

    def now(self) -> float:
        if self.cuda is not None:
            self.cuda.synchronize()
        return time.monotonic()


# A model and its data


def lay_out(case: Case, folder: Path) -> None:
    """A model as LLaMA-Factory loads one, and records that are as long as they may be."""
    model = folder / "model"
    model.mkdir()
    _tokenizer(model)
    config = {**case["config"], "torch_dtype": case["dtype"], "use_cache": False}
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _hole(model, case["dtype"])
    length, pairs = int(case["arguments"]["cutoff_len"]), case["arguments"].get("stage") == "dpo"
    count = case["steps"] * case["arguments"]["per_device_train_batch_size"] * case["accumulation"]
    records = []
    for index in range(count):
        words = length if not (case["padded"] and index % 2) else length // 3
        text = " ".join([WORD] * words)
        answers = {"chosen": text, "rejected": text} if pairs else {"output": text}
        records.append({"instruction": text, **answers})
    (folder / "records.json").write_text(json.dumps(records), encoding="utf-8")
    columns = {"prompt": "instruction"}
    columns |= {"chosen": "chosen", "rejected": "rejected"} if pairs else {"response": "output"}
    described = {"file_name": "records.json", "ranking": pairs, "columns": columns}
    (folder / "dataset_info.json").write_text(json.dumps({"records": described}), encoding="utf-8")


def _tokenizer(model: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2, WORD: 3}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    whole = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=1 << 24
    )
    whole.save_pretrained(model)


_WIDTHS = {"bfloat16": ("BF16", 2), "float16": ("F16", 2), "float32": ("F32", 4)}


def _hole(model: Path, dtype: str) -> None:
    """model.safetensors with names and sizes, and nothing behind them: the file system reads zeros there."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    kind, width = _WIDTHS[dtype]
    header: dict[str, t.Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, weight in made.named_parameters():  # what is tied comes once
        begin, end = end, end + weight.numel() * width
        header[name] = {"dtype": kind, "shape": list(weight.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(model / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def fill(model: t.Any) -> None:
    """Random numbers in place, also in packed weights and their scales: zeros would cost a GPU less power."""
    import torch

    for weight in model.parameters():
        state = getattr(weight, "quant_state", None)
        if state is None and weight.data.is_floating_point():
            weight.data.normal_(0, 0.02)
            continue
        _scatter(weight.data, torch)
        if state is not None and state.nested:
            _scatter(state.absmax, torch)
            state.state2.absmax.fill_(0.02)
        elif state is not None:
            state.absmax.fill_(0.02)


def _scatter(data: t.Any, torch: t.Any) -> None:
    """Any bytes."""
    data.view(torch.uint8).random_(0, 256)


# Steps


def train(case: Case, folder: Path) -> dict[str, t.Any]:
    import torch
    from accelerate import Accelerator
    from llamafactory.train.tuner import run_exp
    from transformers import Trainer, TrainerCallback

    meter, seconds = Meter(torch), []
    trains, goes_back = Trainer.training_step, Accelerator.backward
    measured = case["steps"] - case["settles"]

    def training_step(self: t.Any, model: t.Any, inputs: t.Any, *args: t.Any, **more: t.Any) -> t.Any:
        meter.batch = next(list(one.shape) for name, one in inputs.items() if name.endswith("input_ids"))
        meter.begin("forward")
        try:
            return trains(self, model, inputs, *args, **more)
        finally:
            meter.begin("between")

    def backward(self: t.Any, loss: t.Any, **more: t.Any) -> None:
        meter.begin("backward")
        goes_back(self, loss, **more)

    class Watch(TrainerCallback):  # type: ignore[misc]
        began = 0.0

        def on_train_begin(self, args: t.Any, state: t.Any, control: t.Any, **more: t.Any) -> None:
            with torch.no_grad():
                fill(more["model"])
            meter.begin("between")
            self.trained = sum(one.numel() for one in more["model"].parameters() if one.requires_grad)

        def on_step_begin(self, args: t.Any, state: t.Any, control: t.Any, **more: t.Any) -> None:
            if state.global_step == case["settles"]:
                if case["history"] and meter.cuda is not None:
                    meter.cuda.memory._record_memory_history(max_entries=1_000_000)
                meter.forget()
            self.began = meter.now()

        def on_pre_optimizer_step(self, args: t.Any, state: t.Any, control: t.Any, **more: t.Any) -> None:
            meter.begin("optimizer")

        def on_optimizer_step(self, args: t.Any, state: t.Any, control: t.Any, **more: t.Any) -> None:
            meter.begin("between")

        def on_step_end(self, args: t.Any, state: t.Any, control: t.Any, **more: t.Any) -> None:
            seconds.append(meter.now() - self.began)
            if state.global_step >= case["steps"]:
                meter.begin("between")
                raise Done

    arguments = {
        **case["arguments"],
        "model_name_or_path": str(folder / "model"),
        "dataset_dir": str(folder),
        "dataset": "records",
        "output_dir": str(folder / "output"),
        "template": "empty",
        "do_train": True,
        "max_steps": case["steps"],
        "disable_shuffling": True,
        "save_strategy": "no",
        "logging_steps": 1000,  # what is logged is waited for
        "report_to": "none",
        "overwrite_cache": True,
        "disable_tqdm": True,
    }
    watch = Watch()
    Trainer.training_step, Accelerator.backward = training_step, backward
    with contextlib.suppress(Done):
        run_exp(arguments, callbacks=[watch])
    found = {
        "outcome": "",
        "peaks": meter.peaks,
        "reserved": meter.reserved,
        "seconds": sorted(seconds[-measured:])[measured // 2],
        "batch": meter.batch,
        "trained": watch.trained,
    }
    if meter.cuda is not None:
        free, total = meter.cuda.mem_get_info()
        found |= {"used": total - free, "retries": meter.cuda.memory_stats().get("num_alloc_retries", 0)}
        if case["history"]:
            meter.cuda.memory._dump_snapshot(case["history"])
    return found


def context(_case: Case, _folder: Path) -> dict[str, t.Any]:
    """What is there before any model: CUDA's context, and cuBLAS' workspaces in the threads of forward and backward."""
    import torch

    meter = Meter(torch)
    device = "cuda" if meter.cuda is not None else "cpu"
    kind = torch.bfloat16 if meter.cuda is not None else torch.float32
    one = torch.ones(256, 256, device=device, dtype=kind, requires_grad=True)
    meter.begin("workspace")
    (one @ one).sum().backward()
    meter.now()
    meter.begin("between")
    found = {"outcome": "", "peaks": meter.peaks, "reserved": meter.reserved, "batch": [], "trained": 0, "seconds": 0}
    if meter.cuda is not None:
        free, total = meter.cuda.mem_get_info()
        found |= {"used": total - free, "retries": 0}
    return found


def _first(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main(asked: Path, written: Path) -> None:
    """Reads a case, writes what it took, and then waits to be looked at: the driver knows a process while it lives."""
    case = json.loads(asked.read_text(encoding="utf-8"))
    os.environ.update(OFFLINE)
    try:
        if case["config"]:
            lay_out(case, asked.parent)
        found = (train if case["config"] else context)(case, asked.parent)
    except Exception as error:
        traceback.print_exc()
        full = any(words in str(error).lower() for words in MEMORY_WORDS)
        found = {"outcome": "out of memory" if full else f"{type(error).__name__}: {_first(error)}"}
    found["versions"] = versions()
    partial = written.with_suffix(".part")
    partial.write_text(json.dumps(found), encoding="utf-8")
    partial.rename(written)
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
