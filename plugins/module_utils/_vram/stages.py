# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One step of each stage, as transformers, trl and LLaMA-Factory run it: from tokens to gradients.

Measured: sft. dpo, kto and rm are checked against the real classes on tensors without content; ppo is read from code.
"""

from __future__ import annotations

import typing as t

from . import kernels, ops, passes
from .decoder import Step
from .model import Model
from .tape import FULL, HALF, LONG, Parameter, Storage, Tape, Tensor

PAIRED = ("rm", "dpo")
"""Stages whose records are two sequences."""
WITHOUT_REFERENCE = ("orpo", "simpo")


class Run(t.NamedTuple):
    """What a step is made of besides the model."""

    batch: int
    """Records of a rank's micro-batch."""
    length: int
    """Tokens of a sequence."""
    loss: str = "sigmoid"
    """pref_loss."""
    answer: int = 0
    """Tokens that ppo generates."""

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    def sequences(self, stage: str) -> int:
        return self.batch * (2 if stage in PAIRED else 1)


def micro_step(tape: Tape, model: Model, run: Run, reference: Model | None = None) -> Tensor | None:
    """Forward and backward of one micro-batch. Returns what the trainer still holds afterwards.

    reference: a copy of the model; without one its adapters are switched off for it.
    """
    stage = model.physics.stage
    length = run.length + (run.answer if stage == "ppo" else 0)
    run = run._replace(batch=run.sequences(stage), length=length)
    tokens = tape.empty(run.tokens, LONG)
    tape.meter.moment("forward")
    _held = Storage(tape.meter, model.gathered)  # until the step is over
    loss, outputs = _FORWARD[stage](tape, model, tokens, run, reference or model)
    if not model.physics.keeps_outputs:
        outputs = None
    tape.meter.moment("loss backward")
    tape.backward(loss, ops.like(tape, loss))
    tape.meter.moment("backward end")
    return outputs


def evaluation(tape: Tape, model: Model, run: Run) -> None:
    """A forward pass without a graph. LLaMA-Factory keeps no logits unless it is to count with them."""
    tokens = tape.empty(run.tokens, LONG)
    tape.meter.moment("evaluation")
    _held = Storage(tape.meter, model.gathered)
    tape.without_grad(lambda: _language(tape, model, tokens, run, model))


def _language(tape: Tape, model: Model, tokens: Tensor, run: Run, reference: Model) -> tuple[Tensor, Tensor | None]:
    """pt, sft."""
    if model.physics.anchored:
        return _anchored(tape, model, tokens, run, reference)

    def forward() -> tuple[Tensor, Tensor | None]:
        step = Step(run.batch, run.length)
        if model.physics.loss == "liger":
            x = model.hidden(tape, tokens, step)
            return kernels.fused_cross_entropy(tape, x, model.head, _shifted(tape, tokens)), None
        if model.physics.loss == "parts":
            return _in_parts(tape, model, model.hidden(tape, tokens, step), tokens), None
        logits, last = model.logits(tape, tokens, step)
        loss = _cross_entropy(tape, model, logits, tokens)
        del last
        return loss, logits

    loss, logits = tape.under_autocast(forward, model.physics.autocast)
    if logits is not None and model.physics.outputs_in_full:
        logits = ops.cast(tape, logits, FULL)
    return loss, logits


def _anchored(tape: Tape, model: Model, tokens: Tensor, run: Run, reference: Model) -> tuple[Tensor, Tensor]:
    """sft with the loss of ASFT: logits of the reference first, which wait in fp32, then those of the model. Of both a
    copy is made without the last token, and of each copy a softmax."""

    def of(one: Model) -> Tensor:
        def forward() -> Tensor:
            return one.logits(tape, tokens, Step(run.batch, run.length))[0]

        return ops.cast(tape, tape.under_autocast(forward, model.physics.autocast), FULL)

    anchor: Tensor = tape.without_grad(lambda: of(reference))
    logits = of(model)
    copied, other = ops.copy(tape, logits), ops.copy(tape, anchor)
    loss = kernels.cross_entropy(tape, copied, _shifted(tape, tokens))
    own, wanted = kernels.softmax(tape, copied), kernels.softmax(tape, other)
    apart = ops.mean(tape, ops.multiply(tape, own, wanted), 1)
    return ops.add(tape, loss, apart), logits


def _cross_entropy(tape: Tape, model: Model, logits: Tensor, tokens: Tensor) -> Tensor:
    if model.physics.loss == "kept":
        return kernels.kept_cross_entropy(tape, logits, _shifted(tape, tokens))
    logits = ops.cast(tape, logits, FULL)
    return kernels.cross_entropy(tape, logits, _shifted(tape, tokens))


PARTS = 8
"""torchtune's, by default."""


def _in_parts(tape: Tape, model: Model, x: Tensor, tokens: Tensor) -> Tensor:
    """All logits are there before the loss of the first part; each has a gradient for the head's weight."""
    rows = x.count // model.shape.hidden // PARTS * model.shape.hidden
    logits = [ops.linear(tape, ops.split(tape, x, rows), model.head, model.head_bias) for _part in range(PARTS)]
    labels = _shifted(tape, tokens)
    loss = tape.empty(1, FULL)
    while logits:
        loss = ops.add(tape, loss, kernels.kept_cross_entropy(tape, logits.pop(0), labels))
    return loss


def _shifted(tape: Tape, tokens: Tensor) -> Tensor:
    padded = ops.like(tape, tokens)
    return ops.like(tape, padded)


def _log_probabilities(tape: Tape, model: Model, tokens: Tensor, run: Run) -> tuple[Tensor, Tensor]:
    """Of each sequence, and the logits in fp32, which metrics want."""

    def forward() -> Tensor:
        return model.logits(tape, tokens, Step(run.batch, run.length))[0]

    logits: Tensor = tape.under_autocast(forward, model.physics.autocast)
    logits = ops.cast(tape, logits, FULL)
    labels = ops.like(tape, tokens)
    return kernels.cross_entropy(tape, logits, labels), logits


def _preference(tape: Tape, model: Model, tokens: Tensor, run: Run, reference: Model) -> tuple[Tensor, Tensor]:
    """dpo: the policy, then the reference without a graph, while the policy's logits wait for the metrics."""
    loss, logits = _log_probabilities(tape, model, tokens, run)
    if run.loss not in WITHOUT_REFERENCE:
        tape.without_grad(lambda: _log_probabilities(tape, reference, tokens, run))
    return loss, logits


def _kto(tape: Tape, model: Model, tokens: Tensor, run: Run, reference: Model) -> tuple[Tensor, Tensor]:
    """The policy, its KL estimate on other answers, and the reference on both.

    Logits of good and of bad answers are copied out of those of all, once the estimate is there.
    """

    def unrecorded(one: Model) -> tuple[Tensor, ...]:
        return passes.again(tape, (id(one), run), lambda: _log_probabilities(tape, one, tokens, run))

    loss, logits = _log_probabilities(tape, model, tokens, run)
    unrecorded(model)
    logits = ops.copy(tape, logits)
    _loss, kept = unrecorded(reference)
    unrecorded(reference)
    tape.without_grad(lambda: ops.copy(tape, kept))
    return loss, logits


VALUE_DROPOUT = 0.1
"""trl's, in front of the value head."""


def _reward(tape: Tape, model: Model, tokens: Tensor, run: Run, _reference: Model) -> tuple[Tensor, None]:
    """trl's value head: logits are made and cast, and nobody uses them."""

    def forward() -> tuple[Tensor, Tensor]:
        states: list[Tensor] = []  # asked for, and held until it returns
        logits, last = model.logits(tape, tokens, Step(run.batch, run.length), states)
        last = ops.cast(tape, ops.dropout(tape, last, VALUE_DROPOUT), FULL)
        value = ops.linear(tape, last, t.cast(Parameter, model.value))
        return ops.cast(tape, logits, FULL), value

    _logits, value = tape.under_autocast(forward, model.physics.autocast)
    return ops.mean(tape, ops.cast(tape, value, FULL), 1), None


def _policy(tape: Tape, model: Model, tokens: Tensor, run: Run, reference: Model) -> tuple[Tensor, Tensor]:
    """ppo: a pass over prompts and answers with logits in fp32, beside those of the reference; before that, answers are
    made with a cache of keys and values."""
    shape = model.shape
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * HALF * run.tokens
    tape.meter.moment("generation")
    tape.meter.scratch(cache + run.batch * shape.vocab * FULL * 2)
    tape.meter.moment("forward")
    tape.without_grad(lambda: _log_probabilities(tape, reference, tokens, run))
    return _log_probabilities(tape, model, tokens, run)


_FORWARD: dict[str, t.Callable[[Tape, Model, Tensor, Run, Model], tuple[Tensor, Tensor | None]]] = {
    "pt": _language,
    "sft": _language,
    "rm": _reward,
    "ppo": _policy,
    "dpo": _preference,
    "kto": _kto,
}
