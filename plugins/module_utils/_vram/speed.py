# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a step takes, for an order among configurations of one run on the same GPUs: not a promise of seconds.

Work is counted in floating-point operations and bytes, and divided by what the data sheet says. What is a judgement and
not a count says so below; nothing here was measured by this project.
"""

from __future__ import annotations

from dataclasses import dataclass

from .._gpu import catalogue
from .options import Reading
from .tape import FULL, HALF

GIGA, TERA = 1e9, 1e12
ACHIEVED = 0.45
"""Part of the peak that large matrices get in training; a judgement, from published utilisations of 0.35 to 0.55."""
FILLED = 1024
"""Tokens at which a GPU does half of that; a judgement."""
LAUNCH = 0.5e-3
"""Seconds that Python takes to start the kernels of a layer, once, all weights or quantized; a judgement."""
ADAPTED = 1.7
"""Times that with adapters, which have two more matrices for each; a judgement."""
DEQUANTIZED = 1.25
"""Work with 4-bit weights beside 16-bit ones: each is unpacked for each product; a judgement."""
EAGER = 1.3
"""Work of a layer with attention as plain products; a judgement."""
FUSED = 0.93
"""Work with Liger's kernels; a judgement, its authors claim 0.8."""
PCIE = 20 * GIGA
"""Bytes a second to the host's memory, and between GPUs without NVLink: PCIe 4 x16 as it is achieved."""
HOST_ADAM = 3 * GIGA
"""Elements a second that DeepSpeed's Adam on CPUs updates: 28 bytes each through 80 GB/s; a judgement."""


@dataclass(frozen=True)
class Card:
    """peak: operations a second of 16-bit tensors; bandwidth: bytes a second of its memory; link: bytes a second
    between ranks."""

    peak: float = 150 * TERA
    bandwidth: float = 1000 * GIGA
    link: float = PCIE


def card(name: str, link: float = PCIE) -> Card:
    """What the catalogue has of a GPU by its name; a middling one where it has none."""
    known = catalogue.find(name)
    return Card(known.peak * TERA, known.bandwidth * GIGA, link) if known else Card(link=link)


def seconds(reading: Reading, parameters: float, trained: float, card_: Card) -> float:
    """One optimizer step of all micro-batches. parameters, trained: elements that a token meets, and that learn."""
    job = reading.job
    tokens = job.run.tokens
    passes = _passes(reading, parameters, trained)
    work = passes * 2 * parameters * tokens * _slower(reading)
    filled = tokens / (tokens + FILLED)
    computing = work / (card_.peak * ACHIEVED * filled)
    starting = job.shape.layers * LAUNCH * passes * (ADAPTED if job.physics.rank or job.physics.turned else 1)
    sending, once = _sending(reading, parameters, trained, card_)
    return job.accumulation * (max(computing, starting) + sending) + once + _optimizer(reading, trained, card_)


def _passes(reading: Reading, parameters: float, trained: float) -> float:
    """Through all weights: forward, backward for inputs, backward for weights that learn, forward once more."""
    again = reading.job.physics.checkpointing != "off"
    return 2 + min(1.0, trained / parameters) + again


def _slower(reading: Reading) -> float:
    physics = reading.job.physics
    factor = DEQUANTIZED if physics.quantization else 1.0
    factor *= EAGER if physics.attention == "eager" else 1.0
    return factor * (FUSED if physics.fused else 1.0)


def _sending(reading: Reading, parameters: float, trained: float, card_: Card) -> tuple[float, float]:
    """Seconds for each micro-batch, and for each step. Rings send each byte twice to add up, once to gather; a half of
    it hides behind computing, a judgement."""
    engine = reading.job.engine
    each = once = 0.0
    if engine.world > 1:
        if engine.sharded_weights:  # gathered for forward and backward, gradients added up to their owners
            each = (2 * parameters + trained) * HALF / card_.link
        elif engine.sharded_gradients:
            each, once = trained * HALF / card_.link, trained * HALF / card_.link
        else:
            once = 2 * trained * FULL / card_.link
    if engine.weights_on_host:
        each += 2 * parameters * HALF / engine.world / PCIE
    if engine.states_on_host:
        once += 2 * trained * HALF / engine.world / PCIE
    return each / 2, once / 2


def _optimizer(reading: Reading, trained: float, card_: Card) -> float:
    """Reads and writes weights, gradients and states: 28 bytes an element with Adam."""
    engine = reading.job.engine
    mine = trained / engine.world if engine.sharded_states else trained
    return mine / HOST_ADAM if engine.states_on_host else 28 * mine / card_.bandwidth
