# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded base model: made on the node from the demo text, so that a first run needs no hub.

`python -m engine.base_model --corpus FILE.jsonl --output DIR` trains a byte-level BPE tokenizer and a small Qwen3 model
on the text with LLaMA-Factory's `pt` stage, on the CPU and in float32. The same recipe, text, packages and kind of CPU
give the same bytes. One thread by default: more save little, and cost minutes where other programs want the cores.

The model learns prose only: questions and answers lie in separate texts, and it never sees a chat. Answering, and
ending after the answer, is left for fine-tuning to teach.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import typing as t
from pathlib import Path

RECIPE: dict[str, t.Any] = {
    "architecture": {  # transformers' Qwen3Config
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "tokenizer": {
        "vocab_size": 512,
        "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "special_tokens": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "chat_template": (
            "{% for message in messages %}"
            "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
            "{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
        ),
    },
    "text": {"records_per_document": 16},
    "seed": 1,
    "pre_training": {  # LLaMA-Factory's keys
        "stage": "pt",
        "do_train": True,
        "finetuning_type": "full",
        "cutoff_len": 128,
        "packing": True,
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "num_train_epochs": 12,
        "optim": "adamw_torch",
        "flash_attn": "sdpa",
        "disable_gradient_checkpointing": True,
        "logging_steps": 50,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    },
    "fine_tuning": {  # LLaMA-Factory's keys that a run on this model takes in place of its recipe's
        "template": "qwen3_nothink",
        "cutoff_len": 512,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "logging_steps": 5,
        "save_steps": 75,
    },
}

IN_ENVIRONMENT: dict[str, dict[str, t.Any]] = {
    "ppo": {"template": "chatml", "learning_rate": 1e-4, "max_new_tokens": 64},
}
"""What of `fine_tuning` is otherwise in an environment: LLaMA-Factory 0.9.3 has the same chat under another name, and
PPO wants smaller steps and answers that end."""

THREADS = 1
"""CPU threads, for making it and for training on it: more do not help a model this small, and harm on busy cores."""

_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",  # the same bytes with and without a GPU
    "FORCE_TORCHRUN": "0",
}


class Refusal(Exception):
    """What is wrong, and what to change: two lines for a person."""

    def __init__(self, what: str, change: str) -> None:
        super().__init__(f"{what}\n  change: {change}")


def identity(corpus_digest: str) -> str:
    """16 hex digits that name the model made by this recipe from the text with that sha256."""
    canonical = json.dumps({"corpus": corpus_digest, "recipe": RECIPE}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def texts(records: t.Sequence[t.Mapping[str, str]]) -> list[str]:
    """Prose to learn from: documents of several questions, and documents of several answers."""
    shuffled = list(records)
    random.Random(RECIPE["seed"]).shuffle(shuffled)
    size: int = RECIPE["text"]["records_per_document"]
    documents = []
    for start in range(0, len(shuffled), size):
        group = shuffled[start : start + size]
        documents.append(" ".join(record["output"] for record in group))
        documents.append(" ".join("\n".join(filter(None, (r["instruction"], r.get("input")))) for r in group))
    return documents


def read_corpus(path: Path) -> list[dict[str, str]]:
    """Alpaca records, one JSON object per line. Refused: no such file, no records, a line that is none."""
    remedy = "give --corpus a file with one record per line: instruction, input, output"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"The text cannot be read from {path}: {getattr(error, 'strerror', error)}.", remedy) from None
    records: list[dict[str, str]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not all(
            isinstance(record.get(key, ""), str) and (record.get(key) or key == "input")
            for key in ("instruction", "input", "output")
        ):
            raise Refusal(f"Line {number} of {path} is not a record.", remedy)
        records.append(record)
    if not records:
        raise Refusal(f"There is no record in {path}.", remedy)
    return records


def build(corpus: Path, output: Path, threads: int) -> None:
    """Make the model in a folder beside `output` and rename it when it is whole, manifest included."""
    output = output.absolute()
    records = read_corpus(corpus)
    digest = hashlib.sha256(corpus.read_bytes()).hexdigest()
    if output.exists():
        raise Refusal(f"{output} exists already.", "remove it, or name another --output")
    temporary = output.with_name(f"{output.name}.tmp-{os.getpid()}")
    try:
        _forget_dead(output)
        temporary.mkdir(parents=True)
        _make(records, temporary, threads)
        _seal(temporary, identity(digest))
        os.rename(temporary, output)
    except OSError as error:
        raise Refusal(
            f"The model cannot be written to {output}: {error.strerror or error}.",
            "name an --output whose folder you may write to and that has 100 MB free",
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make(records: t.Sequence[t.Mapping[str, str]], folder: Path, threads: int) -> None:
    """Fill `folder` with the model and its tokenizer. All scratch files are gone when it returns."""
    scratch = folder / "scratch"
    scratch.mkdir()
    os.environ.update(_OFFLINE, HF_HOME=str(scratch / "hub"), OMP_NUM_THREADS=str(threads))
    for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)

    import torch
    from llamafactory.train.tuner import run_exp
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    documents = texts(records)
    wanted = RECIPE["tokenizer"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_bpe(documents),
        eos_token=wanted["eos_token"],
        pad_token=wanted["pad_token"],
        model_max_length=RECIPE["architecture"]["max_position_embeddings"],
    )
    tokenizer.chat_template = wanted["chat_template"]
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(RECIPE["seed"])
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **RECIPE["architecture"],
    )
    start, trained = scratch / "start", scratch / "trained"
    Qwen3ForCausalLM(config).float().save_pretrained(start)
    tokenizer.save_pretrained(start)
    (scratch / "dataset_info.json").write_text(
        json.dumps({"text": {"file_name": "text.jsonl", "columns": {"prompt": "text"}}}), encoding="utf-8"
    )
    (scratch / "text.jsonl").write_text(
        "".join(json.dumps({"text": document}) + "\n" for document in documents), encoding="utf-8"
    )
    run_exp(
        {
            **RECIPE["pre_training"],
            "seed": RECIPE["seed"],
            "model_name_or_path": str(start),
            "dataset": "text",
            "dataset_dir": str(scratch),
            "output_dir": str(trained),
        }
    )
    for source in (start / "config.json", start / "generation_config.json", trained / "model.safetensors"):
        os.replace(source, folder / source.name)
    tokenizer.save_pretrained(folder)
    _name_tokenizer_class(folder / "tokenizer_config.json")
    shutil.rmtree(scratch)


def _bpe(documents: t.Sequence[str]) -> t.Any:
    """A byte-level BPE tokenizer trained on the documents; every text can be written with it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=RECIPE["tokenizer"]["vocab_size"],
        special_tokens=RECIPE["tokenizer"]["special_tokens"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def _name_tokenizer_class(path: Path) -> None:
    """transformers 5 writes a class that 4 does not know; both read this one."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _seal(folder: Path, name: str) -> None:
    """Write manifest.json (identity, sha256 per file) and make everything durable."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    manifest = json.dumps({"identity": name, "files": digests}, indent=1, sort_keys=True) + "\n"
    (folder / "manifest.json").write_text(manifest, encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        path.chmod(0o755 if path.is_dir() else 0o644)
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _forget_dead(output: Path) -> None:
    """Remove what builds of the same model left when they were killed."""
    for leftover in output.parent.glob(f"{output.name}.tmp-*"):
        pid = leftover.name.rpartition("-")[2]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(leftover, ignore_errors=True)


def main(arguments: t.Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="engine.base_model", description="Make the embedded base model.")
    parser.add_argument("--corpus", type=Path, required=True, help="alpaca records, one JSON object per line")
    parser.add_argument("--output", type=Path, required=True, help="folder to make; must not exist")
    parser.add_argument("--threads", type=int, default=THREADS, help="CPU threads")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs the clean-up
    try:
        if given.threads < 1:
            raise Refusal(f"--threads is {given.threads}.", "use a whole number from 1")
        build(given.corpus, given.output, given.threads)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
