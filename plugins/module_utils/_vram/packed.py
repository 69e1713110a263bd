# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights that a model brings quantized already: what lies on the GPU of them, by its `quantization_config`.

Read from the formats of bitsandbytes, GPTQModel and AutoAWQ, and measured by nobody under LLaMA-Factory of today.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from .._errors import FinetuneError
from .fields import Fields
from .tape import FULL, HALF

BNB, GPTQ, AWQ = "bitsandbytes", "gptq", "awq"
BLOCK = 64
"""Weights that share a scale in 4 bits of bitsandbytes."""
BLOCK_OF_SCALES = 256
"""Scales that share one, with double quantization."""
WHERE = "config.json, quantization_config"
WHOLE_ROW = -1
"""As a group's size."""
UNPACKED = ("fp8", "mxfp4")
"""LLaMA-Factory makes 16 bits of these while it loads them (model/model_utils/quantization.py)."""
UNPACKING = 7
"""Bytes a weight while GPTQModel's torch kernel unpacks a matrix: shifted integers, scales and zeros of each weight,
their difference, and the result, which autograd keeps."""


@dataclass(frozen=True)
class Packed:
    method: str
    bits: int = 0
    """0 where they are unpacked."""
    double: bool = False
    """Scales of bitsandbytes are quantized too."""
    group: int = 0
    """Weights of a row that share a scale; 0 is the whole row."""
    plain: t.FrozenSet[str] = field(default_factory=frozenset)
    """Names of modules that are left as they were."""
    elsewhere: int = 0
    """Modules that are left so in single layers, which are not looked at."""

    def sizes(self, rows: int, columns: int) -> list[float]:
        """Of a matrix of GPTQ or AWQ: values, scales in half, zeros, and GPTQ's group of each column."""
        groups = -(-columns // self.group) if self.group else 1
        found = [rows * columns * self.bits / 8, groups * rows * HALF, groups * rows * self.bits / 8]
        return [*found, columns * FULL] if self.method == GPTQ else found

    def words(self) -> str:
        told = f"weights that are quantized already ({self.method})"
        return told + (f", but {self.elsewhere} modules, which are not looked at" if self.elsewhere else "")


def bitsandbytes(count: int, bits: int, double: bool, share: float) -> list[float]:
    """Values, their scales in blocks, and the tables to read them with. share: of the values, which ranks may share."""
    scales = -(-count // BLOCK)
    if bits == 8:
        return [count * share, count**0.5 * FULL]
    if double:
        return [count / 2 * share, scales, -(-scales // BLOCK_OF_SCALES) * FULL, 256 * FULL, FULL, 16 * FULL]
    return [count / 2 * share, scales * FULL, 16 * FULL]


def read(config: t.Mapping[str, t.Any]) -> Packed | None:
    """None where nothing is quantized."""
    given = config.get("quantization_config")
    if not isinstance(given, t.Mapping) or not given:
        return None
    method = str(given.get("quant_method") or (BNB if "load_in_4bit" in given else ""))
    if method in UNPACKED:
        return Packed(method)
    number = Fields({key: value for key, value in given.items() if value != WHOLE_ROW}, WHERE).maybe
    bits = number("bits", "w_bit", most=16)
    if method == BNB:
        bits = 4 if given.get("load_in_4bit") else 8 if given.get("load_in_8bit") else 0
    if not bits or method not in (BNB, GPTQ, AWQ):
        raise FinetuneError(
            f"The model's weights are quantized already ({method or 'how is not told'}), and what they take is not "
            "known here.",
            where=WHERE,
            change=f"take a model of {BNB}, {GPTQ}, {AWQ} or {' or '.join(UNPACKED)}, or one that is not quantized",
        )
    left = given.get("llm_int8_skip_modules") or given.get("modules_to_not_convert") or ()
    names = [str(name).split(".") for name in left] if isinstance(left, (list, tuple)) else []
    single = [name for name in names if any(word.isdigit() for word in name)]
    return Packed(
        method,
        bits,
        bool(given.get("bnb_4bit_use_double_quant")),
        number("group_size", "q_group_size"),
        frozenset(name[-1] for name in names if name not in single),
        len(single),
    )
