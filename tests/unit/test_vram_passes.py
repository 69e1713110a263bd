# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pass that is run again is copied: what comes of it is what running it again would come to."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._vram import estimate, passes
from ansible_collections.llmops.finetune.plugins.module_utils._vram.tape import FULL, HALF, Meter, Tape, Tensor

from . import test_memory

CASES: list[dict[str, t.Any]] = [
    {"finetuning_type": "lora", "bf16": True},
    {"finetuning_type": "full", "fp16": True},  # autocast keeps copies of weights while a pass runs
    {"finetuning_type": "full", "pure_bf16": True, "deepspeed": "z3"},  # layers are gathered, and given back
]


@pytest.mark.parametrize("arguments", CASES, ids=lambda case: case["finetuning_type"])
@pytest.mark.parametrize("name", ["llama3.2-1b", "gemma2-2b", "phi3-mini"])
def test_an_estimate_of_kto_is_the_same_without(
    name: str, arguments: dict[str, t.Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"stage": "kto", "cutoff_len": 1024, **arguments}
    copied = estimate.estimate(test_memory.CONFIGS[name], wanted)
    monkeypatch.setattr(passes, "again", lambda tape, which, run: tape.without_grad(run))
    assert copied.as_dict() == estimate.estimate(test_memory.CONFIGS[name], wanted).as_dict()


def one_pass(tape: Tape, ran: list[str]) -> tuple[Tensor, ...]:
    ran.append("ran")
    inner = tape.empty(1000, FULL)
    tape.meter.within("inside")
    result = tape.empty(300, HALF)
    del inner
    return (result,)


def test_events_sizes_peaks_and_what_is_left_are_those_of_a_second_run() -> None:
    seen = []
    for copies in (True, False):
        meter, ran = Meter(), []  # type: tuple[Meter, list[str]]
        meter.moment("forward")
        tape = Tape(meter)
        held = tape.empty(77, FULL)
        for number in range(2):
            (result,) = passes.again(tape, "a" if copies else number, lambda: one_pass(tape, ran))  # noqa: B023
            assert (result.count, result.width) == (300, HALF)
            held = tape.empty(number + 1, FULL)
        assert len(ran) == (1 if copies else 2)
        del held, result
        meter.moment("done")
        assert meter.live == 0 and sorted(~event for event in meter.events if event < 0) == [*range(len(meter.sizes))]
        seen.append((meter.events, meter.sizes, meter.peaks))
    assert seen[0] == seen[1] and ("forward", "inside") in seen[0][2]


def test_what_outlives_a_pass_or_was_there_before_has_it_run_again() -> None:
    tape, kept, ran = Tape(Meter()), [], []  # type: Tape, list[Tensor], list[str]
    tape.meter.moment("forward")

    def keeps() -> tuple[Tensor, ...]:
        kept.append(tape.empty(10, FULL))
        return one_pass(tape, ran)

    def gives() -> tuple[Tensor, ...]:
        kept.pop()
        return one_pass(tape, ran)

    for which, run in (("keeps", keeps), ("keeps", keeps), ("gives", gives), ("gives", gives)):
        passes.again(tape, which, run)
    assert len(ran) == 4 and tape.meter.live == 0


def test_it_is_copied_in_the_same_moment_alone() -> None:
    tape, ran = Tape(Meter()), []  # type: Tape, list[str]
    for moment in ("forward", "evaluation", "forward"):
        tape.meter.moment(moment)
        passes.again(tape, "a", lambda: one_pass(tape, ran))
    assert len(ran) == 2
