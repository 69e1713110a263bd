# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Peaks of memory without a GPU: the real classes of transformers and PEFT, on tensors that have no content.

Run by the Python of a node's environment, for versions are what it is about:

    ENVIRONMENT/bin/python tests/vram/fake.py tests/vram/configs tests/vram/truth.csv [MODEL:METHOD …]

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
import weakref
from functools import partial
from pathlib import Path

import peft
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils import checkpoint as checkpointing
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE, HALF = "cpu", torch.bfloat16
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
    """full, freeze (two layers), lora, qlora, dpo lora."""
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


class Live(TorchDispatchMode):
    """Counts live bytes, and their peak in each phase."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.phase = "load"
        self.peaks: dict[str, int] = {}
        self.known: dict[int, t.Any] = {}

    def begin(self, phase: str) -> None:
        self.phase = phase
        self.peaks[phase] = max(self.peaks.get(phase, 0), self.live)

    def see(self, tensor: t.Any, counts: bool = True) -> None:
        if not isinstance(tensor, torch.Tensor) or tensor.device.type != DEVICE:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // 512) * 512
        if key in self.known:
            return
        self.known[key] = weakref.ref(storage, partial(self._gone, key, size))
        self.live += size
        if counts:
            self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.live)

    def _gone(self, key: int, size: int, _reference: t.Any) -> None:
        if self.known.pop(key, None) is not None:
            self.live -= size

    def scratch(self, size: int) -> None:
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.live + size)

    def __torch_dispatch__(self, func: t.Any, types: t.Any, args: t.Any = (), kwargs: t.Any = None) -> t.Any:
        out = func(*args, **(kwargs or {}))
        name = str(func)
        summed = name == "aten.add.Tensor" and self.phase == "backward" and _same(args[0], args[1], out)
        for tensor in tree_leaves(out):  # gradients are summed in place, but for tensors of a subclass
            self.see(tensor, counts=not (summed and not torch.is_grad_enabled()))
        if name == "aten._softmax_backward_data.default":  # the kernel writes grad × output first
            self.scratch(args[0].numel() * args[0].element_size())
        if "_scaled_dot_product_flash_attention_backward" in name:
            self.scratch(_flash_scratch(args[1], args[2]))
        return out


def _same(a: t.Any, b: t.Any, out: t.Any) -> bool:
    return isinstance(b, torch.Tensor) and a.shape == b.shape == out.shape and a.dtype == b.dtype


def _flash_scratch(query: torch.Tensor, key: torch.Tensor) -> int:
    """dq in fp32 of rounded lengths, a sum for each row, dk and dv of all heads where they are fewer."""
    batch, heads, length, dim = query.shape
    rows = batch * heads * -(-length // 128) * 128
    spread = 2 * query.numel() * query.element_size() if key.shape[1] != heads else 0
    return int(rows * -(-dim // 32) * 32 * 4 + rows * 4 + spread)


# CUDA's ways


@contextlib.contextmanager
def like_cuda(module: types.ModuleType, masked: bool) -> t.Iterator[None]:
    """What differs on the CPU, put right. module: of the model; masked: it makes a mask of its own."""
    old_autocast, old_attention = torch.is_autocast_enabled, functional.scaled_dot_product_attention
    old_device, old_dropout = checkpointing._infer_device_type, functional.dropout
    old_pow, old_norm = torch.pow, functional.layer_norm

    def norm(x: t.Any, shape: t.Any, weight: t.Any = None, bias: t.Any = None, eps: float = 1e-5) -> t.Any:
        if torch.is_autocast_enabled(DEVICE):  # CUDA's autocast has it in fp32
            x, weight, bias = (one if one is None else one.float() for one in (x, weight, bias))
        return old_norm(x, shape, weight, bias, eps)

    def power(x: t.Any, exponent: t.Any) -> t.Any:  # in fp32 under CUDA's autocast
        return old_pow(x.float() if torch.is_autocast_enabled(DEVICE) else x, exponent)

    def dropout(x: t.Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> t.Any:
        return torch.native_dropout(x, p, training)[0] if p and training else x  # its mask has a byte per element

    def enabled(device: str | None = None) -> bool:  # PEFT asks for CUDA's, which is without a name
        return bool(old_autocast(device or DEVICE))

    def attention(
        query: t.Any, key: t.Any, value: t.Any, attn_mask: t.Any = None, dropout_p: float = 0.0, **more: t.Any
    ) -> t.Any:
        if torch.is_autocast_enabled(DEVICE):
            query, key, value = (one.to(HALF) for one in (query, key, value))
        scale = more.get("scale")
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, more.get("is_causal", False), False, scale=scale)[0]

    changed: dict[str, t.Any] = {}
    names = ("create_causal_mask", "create_sliding_window_causal_mask") if not masked else ()
    for name in names:  # a batch without padding has none, which cannot be seen without content
        if hasattr(module, name):
            changed[name] = getattr(module, name)
            setattr(module, name, lambda *_args, **_more: None)
    torch.is_autocast_enabled = enabled  # type: ignore[assignment]
    functional.scaled_dot_product_attention, functional.dropout = attention, dropout
    torch.pow, functional.layer_norm = power, norm
    checkpointing._infer_device_type = lambda *_args: DEVICE
    checkpointing.DefaultDeviceType.set_device_type(DEVICE)
    try:
        yield
    finally:
        torch.is_autocast_enabled, functional.scaled_dot_product_attention = old_autocast, old_attention
        checkpointing._infer_device_type, functional.dropout = old_device, old_dropout
        torch.pow, functional.layer_norm = old_pow, old_norm
        for name, old in changed.items():
            setattr(module, name, old)


@contextlib.contextmanager
def autocast(on: bool) -> t.Iterator[None]:
    with torch.autocast(DEVICE, HALF, enabled=on):
        yield


class Packed(torch.nn.Module):
    """A linear module of bitsandbytes: half a byte for a weight, a scale for 64, and the whole matrix while it runs."""

    def __init__(self, rows: int, columns: int, bias: torch.nn.Parameter | None, double: bool) -> None:
        super().__init__()
        self.rows, self.columns, self.double, self.bias = rows, columns, double, bias
        count = rows * columns
        self.register_buffer("packed", torch.empty(count // 2, dtype=torch.uint8, device="meta"))
        scales = -(-count // 64)
        sizes = [(scales, torch.uint8), (-(-scales // 256), torch.float32), (256, torch.float32), (1, torch.float32)]
        for index, (size, kind) in enumerate(sizes if double else [(scales, torch.float32)]):
            self.register_buffer(f"scales{index}", torch.empty(size, dtype=kind, device="meta"))
        self.register_buffer("code", torch.empty(16, dtype=torch.float32, device="meta"))

    def matrix(self) -> torch.Tensor:
        whole = torch.empty(self.rows, self.columns, dtype=HALF, device=DEVICE)
        if self.double:
            torch.empty(-(-self.rows * self.columns // 64), dtype=torch.float32, device=DEVICE)
        return whole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _Product.apply(x.to(HALF), self)
        return (out if self.bias is None else out + self.bias).to(x.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: t.Any, x: torch.Tensor, module: Packed) -> torch.Tensor:
        ctx.module = module
        return functional.linear(x, module.matrix())

    @staticmethod
    def backward(ctx: t.Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad @ ctx.module.matrix(), None


def _packed_forward(self: t.Any, x: torch.Tensor) -> torch.Tensor:
    """Of PEFT's layer for bitsandbytes: autocast is left to cast the input."""
    result = self.base_layer(x)
    low, high = self.lora_A["default"], self.lora_B["default"]
    plain = not torch.is_autocast_enabled(DEVICE)
    x = x.to(low.weight.dtype) if plain else x
    update = high(low(self.lora_dropout["default"](x))) * self.scaling["default"]
    return result + (update.to(result.dtype) if plain else update)


# One case


def build(case: Case, config: dict[str, t.Any]) -> t.Any:
    """The model on device meta, with adapters; trained weights in fp32 unless it is all in half."""
    given = {key: value for key, value in config.items() if key not in ("architectures", "torch_dtype", "model_type")}
    described = transformers.AutoConfig.for_model(config["model_type"], use_cache=False, **given)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(described, attn_implementation=case.attention, dtype=HALF)
    if "lora" in case.method:
        names = {name.split(".")[-1] for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
        wanted = peft.LoraConfig(
            r=case.rank,
            lora_alpha=2 * case.rank,
            lora_dropout=case.dropout,
            target_modules=sorted(names - {"lm_head"}),
            task_type="CAUSAL_LM",
        )
        with torch.device("meta"):
            model = peft.get_peft_model(model, wanted, low_cpu_mem_usage=True)
        model.base_model.model.tie_weights()
    if case.method == "qlora":
        for one in list(model.modules()):
            if isinstance(one, peft.tuners.lora.layer.Linear):
                base = one.base_layer
                one.base_layer = Packed(base.out_features, base.in_features, base.bias, case.double_quantization)
                one.forward = types.MethodType(_packed_forward, one)
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

    base = model.base_model.model if isinstance(model, peft.PeftModel) else model
    base._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=wrapped)


def log_probabilities(model: t.Any, ids: torch.Tensor, amp: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """As LLaMA-Factory's dpo takes them from all logits, in fp32."""
    with autocast(amp):
        logits = model(input_ids=ids, use_cache=False).logits
    logits = logits.float()
    labels = ids[:, 1:].clone()
    found = torch.gather(logits[:, :-1].log_softmax(-1), 2, labels.unsqueeze(2)).squeeze(2)
    return found.sum(-1), logits


def forward(case: Case, model: t.Any) -> torch.Tensor:
    if case.method == "dpo lora":
        ids = torch.zeros(2 * case.batch, case.length, dtype=torch.long, device=DEVICE)
        policy, logits = log_probabilities(model, ids, case.autocast)
        with torch.no_grad(), model.disable_adapter():
            reference, others = log_probabilities(model, ids, case.autocast)
        del logits, others
        return functional.logsigmoid(policy - reference).mean()
    ids = torch.zeros(case.batch, case.length, dtype=torch.long, device=DEVICE)
    with autocast(case.autocast):
        out = model(input_ids=ids, labels=ids, use_cache=False)
    if case.autocast:  # accelerate casts what a model returns
        out["logits"] = out["logits"].float()
    loss: torch.Tensor = out["loss"]
    return loss


def run(case: Case, config: dict[str, t.Any]) -> dict[str, int]:
    """Bytes: load, forward, backward, optimizer."""
    model = build(case, config)
    source = sys.modules[type(model.base_model.model if "lora" in case.method else model).__module__]
    live = Live()
    with like_cuda(source, masked=case.attention == "eager"), FakeTensorMode(allow_non_fake_inputs=True), live:
        without_content(model, torch.float32 if case.autocast else HALF)
        model.train()
        if case.checkpoints:
            with_checkpoints(model)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        fused = case.optimizer == "adamw_fused"
        optimizer = torch.optim.AdamW(weights, fused=fused, foreach=not fused)
        gc.collect()
        static = live.live
        for _step in range(2):
            live.peaks = {}
            for _micro in range(case.accumulation):
                live.begin("forward")
                loss = forward(case, model)
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
