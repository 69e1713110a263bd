# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Peaks of memory without a GPU: the real classes of transformers and PEFT, on tensors that have no content.

Run by the Python of a node's environment, for versions are what it is about:

    ENVIRONMENT/bin/python -m tests.vram.fake tests/vram/configs tests/vram/truth.csv [MODEL:METHOD …]

Every case trains two steps under FakeTensorMode on device cpu; a dispatch mode counts what is live, rounded up to 512
bytes, and the second step is read. Where CPU and CUDA differ in what they keep, CUDA's way is put in place of it
(`like_cuda`). 4-bit weights are stood in for by packed bytes and their scales; kernels that are no operators, such as
FlashAttention's own package and Liger, cannot be run so.
"""

from __future__ import annotations

import contextlib
import csv
import gc
import json
import sys
import types
import typing as t
from functools import partial
from pathlib import Path

import peft
import torch
import transformers
import trl
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils import checkpoint as checkpointing

from .live import DEVICE, HALF, Live, Packed, autocast, like_cuda, packed_forward

FIELDS = [
    "kind",
    "model",
    "method",
    "precision",
    "quant",
    "lora_rank",
    "lora_dropout",
    "grad_ckpt",
    "attn",
    "micro_batch",
    "seq_len",
    "optimizer",
    "static_bytes",
    "peak_fwd",
    "peak_bwd",
    "peak_opt",
    "peak_bytes",
    "peak_gib",
    "measured_gib",
    "fake_vs_measured_pct",
    "note",
]


class Case(t.NamedTuple):
    model: str
    method: str = "lora"
    """full, freeze (two layers), lora, qlora, lora+dora, oft; full or lora with dpo, kto or rm before it."""
    batch: int = 1
    length: int = 2048
    autocast: bool = True
    checkpoints: bool = True
    attention: str = "sdpa"
    optimizer: str = "adamw_fused"
    rank: int = 8
    dropout: float = 0.0
    accumulation: int = 1
    double_quantization: bool = True


CASES = [
    *(
        Case("qwen2.5-0.5b", "full", autocast=autocast, checkpoints=on)
        for autocast in (False, True)
        for on in (True, False)
    ),
    Case("qwen2.5-0.5b", checkpoints=False),
    Case("qwen2.5-0.5b"),
    Case("qwen2.5-0.5b", "full", length=512, autocast=False, optimizer="adamw_foreach"),
    Case("qwen2.5-0.5b", "full", autocast=False, accumulation=2),
    Case("llama3.2-1b", "full", 8, 1024),
    Case("llama3.2-1b", "full", 2, 1024, checkpoints=False),
    Case("llama3.2-1b", "full", 4, 1024, accumulation=2),
    Case("llama3-8b"),
    Case("llama3-8b", checkpoints=False),
    Case("llama3-8b", batch=4),
    Case("llama3-8b", length=8192),
    Case("llama3-8b", rank=64, length=1024, checkpoints=False),
    Case("llama3-8b", dropout=0.1, length=1024, checkpoints=False),
    Case("llama3-8b", attention="eager", length=1024, checkpoints=False),
    Case("llama3-8b", attention="eager", batch=2, length=1024, checkpoints=False),
    Case("llama3-8b", "full"),
    Case("llama3-8b", "full", autocast=False),
    Case("llama3-8b", "full", autocast=False, length=8192),
    Case("llama3-8b", "full", 4),
    Case("llama3-8b", "freeze"),
    Case("llama3-8b", "freeze", checkpoints=False),
    Case("llama3-8b", "qlora"),
    Case("llama3-8b", "qlora", checkpoints=False),
    Case("llama3-8b", "qlora", length=512, double_quantization=False),
    Case("llama3-8b", "dpo lora", length=1024),
    Case("qwen2.5-0.5b", "dpo full", length=1024),
    Case("llama3-8b", "kto lora", batch=2, length=1024),
    Case("llama3-8b", "rm lora", length=1024),
    Case("llama3-8b", "rm lora", length=1024, checkpoints=False),
    Case("qwen2.5-0.5b", "rm full", length=1024),
    *(
        Case("llama3.2-1b", method, length=1024, checkpoints=on)
        for method in ("lora+dora", "oft")
        for on in (True, False)
    ),
    Case("llama2-7b", length=4096),
    Case("qwen2.5-7b"),
    Case("qwen2.5-7b", "full"),
    Case("qwen3-4b", "full", 2, autocast=False),
    Case("qwen3-4b", "full", 1, checkpoints=False),
    Case("qwen3-8b", batch=2),
    Case("qwen3-8b", checkpoints=False, length=1024),
    Case("mistral-7b", length=4096),
    Case("gemma-2b"),
    Case("gemma-2b", "full", checkpoints=False, length=1024),
    Case("gemma2-2b", attention="eager", length=1024),
    Case("gemma3-1b", checkpoints=False, length=1024),
    Case("phi-2", checkpoints=False, length=1024),
    Case("phi-2", "full", length=1024),
    Case("phi3-mini", checkpoints=False, length=1024),
    Case("phi3-mini", "full", length=1024),
    Case("glm4-9b", checkpoints=False, length=1024),
]


# One case


def adapts(case: Case) -> bool:
    return "lora" in case.method or case.method == "oft"


def build(case: Case, config: dict[str, t.Any]) -> t.Any:
    """The model on device meta, with adapters; trained weights in fp32 unless it is all in half."""
    given = {key: value for key, value in config.items() if key not in ("architectures", "torch_dtype", "model_type")}
    described = transformers.AutoConfig.for_model(config["model_type"], use_cache=False, **given)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(described, attn_implementation=case.attention, dtype=HALF)
    if adapts(case):
        names = {name.split(".")[-1] for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
        common: dict[str, t.Any] = {"target_modules": sorted(names - {"lm_head"}), "task_type": "CAUSAL_LM"}
        wanted: t.Any = peft.LoraConfig(
            r=case.rank,
            lora_alpha=2 * case.rank,
            lora_dropout=case.dropout,
            use_dora="dora" in case.method,
            **common,
        )
        if case.method == "oft":
            wanted = peft.OFTConfig(r=0, oft_block_size=32, **common)
        with torch.device("meta"):
            model = peft.get_peft_model(model, wanted, low_cpu_mem_usage=True)
        model.base_model.model.tie_weights()
    if case.method == "qlora":
        for one in list(model.modules()):
            if isinstance(one, peft.tuners.lora.layer.Linear):
                base = one.base_layer
                one.base_layer = Packed(base.out_features, base.in_features, base.bias, case.double_quantization)
                one.forward = types.MethodType(packed_forward, one)
    if case.method == "freeze":
        layers = described.num_hidden_layers
        for name, weight in model.named_parameters():
            weight.requires_grad_(any(f".{layers - 1 - index}." in name for index in range(2)))
    return model


def without_content(model: t.Any, trained: torch.dtype) -> None:
    """Weights and buffers as tensors of the device; what is tied stays so."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None and id(weight) not in made:
                kind = trained if weight.requires_grad else weight.dtype
                empty = torch.empty(weight.shape, dtype=kind, device=DEVICE)
                made[id(weight)] = torch.nn.Parameter(empty, requires_grad=weight.requires_grad)
                made[id(made[id(weight)])] = made[id(weight)]
            if weight is not None:
                module._parameters[name] = made[id(weight)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=DEVICE)


def with_checkpoints(model: t.Any) -> None:
    """As LLaMA-Factory sets them (model/model_utils/checkpointing.py)."""
    run = partial(checkpointing.checkpoint, use_reentrant=True, preserve_rng_state=False)

    def wrapped(func: t.Any, *args: t.Any, **more: t.Any) -> t.Any:
        inner: t.Any = func.func if isinstance(func, partial) else func
        if not any(weight.requires_grad for weight in inner.__self__.parameters()):
            return func(*args, **more)
        for one in args:
            if torch.is_tensor(one) and torch.is_floating_point(one):
                one.requires_grad_(True)
                break
        return run(func, *args, **more)

    model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=wrapped)


def log_probabilities(model: t.Any, ids: torch.Tensor, amp: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """As LLaMA-Factory's dpo takes them from all logits, in fp32."""
    with autocast(amp):
        logits = model(input_ids=ids, use_cache=False).logits
    logits = logits.float()
    labels = ids[:, 1:].clone()
    found = torch.gather(logits[:, :-1].log_softmax(-1), 2, labels.unsqueeze(2)).squeeze(2)
    return found.sum(-1), logits


def tokens(case: Case, each: int = 1) -> torch.Tensor:
    return torch.zeros(each * case.batch, case.length, dtype=torch.long, device=DEVICE)


def forward(case: Case, model: t.Any, reference: t.Any) -> torch.Tensor:
    stage = case.method.split()[0] if " " in case.method else "sft"
    return STAGES[stage](case, model, reference)


def _answers(case: Case, model: t.Any, _reference: t.Any) -> torch.Tensor:
    ids = tokens(case)
    with autocast(case.autocast):
        out = model(input_ids=ids, labels=ids, use_cache=False)
    if case.autocast:  # accelerate casts what a model returns
        out["logits"] = out["logits"].float()
    loss: torch.Tensor = out["loss"]
    return loss


def _pairs(case: Case, model: t.Any, reference: t.Any) -> torch.Tensor:
    """dpo: the logits wait for the metrics."""
    ids = tokens(case, 2)
    policy, logits = log_probabilities(model, ids, case.autocast)
    with torch.no_grad(), without_adapters(model, reference) as other:
        known, others = log_probabilities(other, ids, case.autocast)
    del logits, others
    return functional.logsigmoid(policy - known).mean()


def _marked(case: Case, model: t.Any, reference: t.Any) -> torch.Tensor:
    """kto, half of the answers good."""
    ids, half = tokens(case), case.batch // 2

    def both(of: t.Any) -> t.Any:
        known, logits = log_probabilities(of, ids, case.autocast)
        with torch.no_grad():
            estimate, _logits = log_probabilities(of, ids, case.autocast)
        del _logits
        return known, estimate, logits[:half].clone(), logits[half:].clone()

    policy, estimate, good, bad = both(model)
    with torch.no_grad(), without_adapters(model, reference) as other:
        known, others, _good, _bad = both(other)
    del good, bad, _good, _bad
    return torch.sigmoid(policy - known - (estimate - others).mean()).mean()


def _scores(case: Case, model: t.Any, _reference: t.Any) -> torch.Tensor:
    """rm, with trl's value head."""
    with autocast(case.autocast):
        _logits, _loss, values = model(input_ids=tokens(case, 2), use_cache=False)
    values = values.float()
    return -functional.logsigmoid(values[: case.batch, -1] - values[case.batch :, -1]).mean()


STAGES = {"sft": _answers, "dpo": _pairs, "kto": _marked, "rm": _scores}


@contextlib.contextmanager
def without_adapters(model: t.Any, reference: t.Any) -> t.Iterator[t.Any]:
    if reference is not None:
        yield reference
    else:
        with model.disable_adapter():
            yield model


def run(case: Case, config: dict[str, t.Any]) -> dict[str, int]:
    """Bytes: load, forward, backward, optimizer."""
    model, reference = build(case, config), None
    inner = model.base_model.model if adapts(case) else model
    source = sys.modules[type(inner).__module__]
    if case.method == "dpo full":
        reference = build(case, config).requires_grad_(False)
    if case.method.startswith("rm"):
        with torch.device("meta"):
            model = trl.AutoModelForCausalLMWithValueHead(model)
        model.is_peft_model = inner is not model.pretrained_model
    live = Live()
    with like_cuda(source, masked=case.attention == "eager"), FakeTensorMode(allow_non_fake_inputs=True), live:
        without_content(model, torch.float32 if case.autocast else HALF)
        if reference is not None:
            without_content(reference, HALF)
        model.train()
        if case.checkpoints:
            with_checkpoints(inner)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        fused = case.optimizer == "adamw_fused"
        optimizer = torch.optim.AdamW(weights, fused=fused, foreach=not fused)
        gc.collect()
        static = live.live
        for _step in range(2):
            live.peaks = {}
            for _micro in range(case.accumulation):
                live.begin("forward")
                loss = forward(case, model, reference)
                live.begin("backward")
                loss.backward()
                del loss
            live.begin("clip")
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            live.begin("optimizer")
            optimizer.step()
            live.begin("zero")
            optimizer.zero_grad(set_to_none=True)
    return {"load": static, **live.peaks}


def record(case: Case, found: dict[str, int]) -> dict[str, t.Any]:
    peak = max(found[phase] for phase in ("forward", "backward", "optimizer"))
    versions = (
        f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, peft {peft.__version__}"
    )
    more = [versions] + [f"accumulation {case.accumulation}"] * (case.accumulation > 1)
    quantized = "nf4+dq" if case.double_quantization else "nf4"
    return {
        "kind": "fake run, LLaMA-Factory profile",
        "model": case.model,
        "method": case.method,
        "precision": "amp_bf16" if case.autocast else "pure_bf16",
        "quant": quantized if case.method == "qlora" else "none",
        "lora_rank": case.rank if "lora" in case.method else "",
        "lora_dropout": case.dropout,
        "grad_ckpt": case.checkpoints,
        "attn": case.attention,
        "micro_batch": case.batch,
        "seq_len": case.length,
        "optimizer": case.optimizer,
        "static_bytes": found["load"],
        "peak_fwd": found["forward"],
        "peak_bwd": found["backward"],
        "peak_opt": found["optimizer"],
        "peak_bytes": peak,
        "peak_gib": round(peak / 2**30, 4),
        "note": "; ".join(more),
    }


def main(folder: Path, written: Path, wanted: t.Container[str] = ()) -> None:
    with written.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        for case in CASES:
            if not wanted or f"{case.model}:{case.method}" in wanted:
                config = json.loads((folder / f"{case.model}.json").read_text(encoding="utf-8"))
                writer.writerow(record(case, run(case, config)))
                file.flush()
                print(case, flush=True)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
