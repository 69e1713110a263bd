# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is live of tensors that have no content, and CUDA's ways where the CPU has others."""

from __future__ import annotations

import contextlib
import types
import typing as t
import weakref
from functools import partial

import torch
from torch.nn import functional
from torch.utils import checkpoint as checkpointing
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE, HALF = "cpu", torch.bfloat16


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


def packed_forward(self: t.Any, x: torch.Tensor) -> torch.Tensor:
    """Of PEFT's layer for bitsandbytes: autocast is left to cast the input."""
    result = self.base_layer(x)
    low, high = self.lora_A["default"], self.lora_B["default"]
    plain = not torch.is_autocast_enabled(DEVICE)
    x = x.to(low.weight.dtype) if plain else x
    update = high(low(self.lora_dropout["default"](x))) * self.scaling["default"]
    return result + (update.to(result.dtype) if plain else update)
