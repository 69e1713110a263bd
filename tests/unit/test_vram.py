# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory: the tape, the allocator, and a walk against peaks of the real classes on tensors without content."""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._vram import (
    engines,
    estimate,
    kernels,
    ops,
    optimizers,
    options,
    shape,
    walk,
)
from ansible_collections.llmops.finetune.plugins.module_utils._vram.allocator import MIB, Allocator
from ansible_collections.llmops.finetune.plugins.module_utils._vram.physics import Physics
from ansible_collections.llmops.finetune.plugins.module_utils._vram.stages import Run
from ansible_collections.llmops.finetune.plugins.module_utils._vram.tape import (
    FULL,
    HALF,
    Meter,
    Node,
    Parameter,
    Storage,
    Tape,
    Tensor,
)

from ..conftest import REPOSITORY
from ..vram import rows

FOLDER = REPOSITORY / "tests" / "vram"
CONFIGS = rows.configs(FOLDER / "configs")
TRUTH = [rows.truth(record, CONFIGS) for record in rows.records(FOLDER / "truth.csv")]
LLAMA = shape.read(CONFIGS["llama3.2-1b"])
FUSED = optimizers.OPTIMIZERS["adamw_torch_fused"]


# The tape


def test_a_storage_lives_as_long_as_somebody_refers_to_it() -> None:
    meter = Meter()
    meter.moment("a")
    first = Storage(meter, 1)
    second = Storage(meter, 513)
    assert meter.live == 512 + 1024
    del first
    meter.moment("b")
    del second
    meter.moment("c")
    assert meter.live == 0
    assert meter.peaks == {("a", ""): 1536, ("b", ""): 1024}
    assert meter.events == [0, 1, ~0, ~1]


def test_a_frozen_weight_needs_no_input_and_a_trained_one_keeps_it() -> None:
    for trained, kept in ((False, 0), (True, 1)):
        meter = Meter()
        tape = Tape(meter)
        weight = Parameter(tape, 1024, 1024, HALF, trained)
        before = Parameter(tape, 1024, 1024, HALF, True)
        hidden = ops.linear(tape, tape.empty(2**20, HALF), before)
        start = meter.live
        out = ops.linear(tape, hidden, weight)
        del hidden
        assert meter.live - start == (2 + 0) * 2**20 - (0 if kept else 2 * 2**20)
        tape.backward(out, ops.like(tape, out))
        assert (weight.grad is not None) is trained and before.grad is not None


def test_backward_gives_back_all_but_the_gradients() -> None:
    meter = Meter()
    tape = Tape(meter)
    weights = [Parameter(tape, 512, 512, FULL, True) for _each in range(3)]
    start = meter.live

    def step() -> None:
        x = tape.empty(512 * 512, FULL)
        for weight in weights:
            x = ops.activate(tape, ops.linear(tape, x, weight))
        tape.backward(x, ops.like(tape, x))

    step()
    assert meter.live == start + 3 * 512 * 512 * FULL
    step()  # further gradients are added in place
    assert meter.live == start + 3 * 512 * 512 * FULL


def test_a_checkpoint_keeps_its_input_alone() -> None:
    for keeps, reentrant in ((False, True), (True, True), (True, False)):
        meter = Meter()
        tape = Tape(meter)
        weight = Parameter(tape, 512, 512, HALF, True)

        def run(x: t.Any, tape: Tape = tape, weight: Parameter = weight) -> t.Any:
            for _each in range(4):
                x = ops.activate(tape, ops.linear(tape, x, weight))
            return x

        x = tape.empty(512 * 512, HALF)
        start = meter.live
        out = kernels.checkpoint(tape, x, run, reentrant) if keeps else run(x)
        size = 512 * 512 * HALF
        assert meter.live - start == (1 if keeps else 8) * size
        tape.backward(out, ops.like(tape, out))
        assert weight.grad is not None


@pytest.mark.parametrize(("held", "more"), [(False, 0), (True, 1)])
def test_a_gradient_that_others_hold_is_not_added_to_in_place(held: bool, more: int) -> None:
    meter = Meter()
    tape = Tape(meter)
    x = ops.linear(tape, tape.empty(512 * 512, HALF), Parameter(tape, 512, 512, HALF, True))
    other = ops.scale(tape, x)
    out = ops.add(tape, x, other)
    hand = [ops.like(tape, out)]
    start = meter.live
    meter.moment("backward")
    tape.backward(out, hand[0] if held else hand.pop())  # held as by the backward of a checkpoint
    meter.moment("after")
    size = 512 * 512 * HALF
    assert meter.peaks["backward", ""] - start == (1 + more) * size


@pytest.mark.parametrize("uses", [1, 2])
def test_of_a_gradient_that_is_not_kept_all_is_there_until_all_uses_of_its_weight_have_come(uses: int) -> None:
    """As of a head that is the embedding too."""
    tape = Tape(Meter())
    end, seen = Parameter(tape, 512, 512, HALF, True, kept=0), []

    def look(_tape: Tape, _node: Node, grad: Tensor) -> tuple[Tensor]:
        seen.append(end.partial is not None)
        return (grad,)

    x = tape.empty(512 * 512, HALF)
    x = ops.linear(tape, x, end if uses == 2 else Parameter(tape, 512, 512, HALF, True))
    x = tape.record(ops.view(x), look, (x,), ())
    x = ops.linear(tape, x, end)
    tape.backward(x, ops.like(tape, x))
    assert seen == [uses == 2]
    assert (end.partial, end.grad, end.waits) == (None, None, 0)


def test_losses_that_look_at_parts_of_logits() -> None:
    """Those of Llama-3.2-1B, whose head is its embedding and frozen here, beside a loss in fp32."""
    size, inputs = 2048 * 128256 * HALF, 16 * 2048 * 2048 * HALF
    known: dict[str, t.Any] = {"autocast": False, "outputs_in_full": False, "adapter_width": HALF, "fused": True}
    peaks = {}
    for loss in ("plain", "kept", "parts"):
        found = walk.walk(walk.Job(LLAMA, Physics(loss=loss, **known), FUSED, Run(1, 2048)))
        peak = max(found.moments[name] for name in ("loss forward", "loss backward"))
        peaks[loss] = peak - found.resident - inputs
    assert peaks["kept"] == pytest.approx(size, rel=0.05), "gradients lie over the logits"
    assert peaks["parts"] == pytest.approx(size, rel=0.05), "so they do part by part"
    assert peaks["plain"] > 5 * size


def test_flash_attention_takes_dq_in_fp32_and_all_heads_in_its_backward() -> None:
    meter = Meter()
    tape = Tape(meter)
    heads, groups, dim, length = 8, 2, 64, 256
    q, k, v = (
        ops.linear(tape, tape.empty(length * 64, HALF), Parameter(tape, count * dim, 64, HALF, True))
        for count in (heads, groups, groups)
    )
    out = kernels.flash(tape, q, k, v, heads, dim, (1, length))
    grad = ops.like(tape, out)
    start = meter.live
    meter.moment("backward")
    tape.backward(out, grad)
    meter.moment("after")
    gradients = (heads + 2 * groups) * dim * length * HALF
    scratch = heads * length * dim * FULL + heads * length * FULL + 2 * heads * dim * length * HALF
    assert meter.peaks["backward", ""] - start == gradients + scratch


# The allocator


def replayed(*events: tuple[int, int], expandable: bool = False) -> Allocator:
    """(key, MiB) takes, (key, 0) gives back."""
    made = Allocator(expandable)
    for key, size in events:
        if size:
            made.take(key, int(size * MIB))
        else:
            made.give(key)
    return made


@pytest.mark.parametrize(
    ("what", "events", "expandable", "allocated", "reserved"),
    [
        ("small ones share 2 MiB", [(0, 0.5), (1, 0.5)], False, 1, 2),
        ("middle ones share 20 MiB", [(0, 5), (1, 5)], False, 10, 20),
        ("large ones have their own, in steps of 2 MiB", [(0, 11)], False, 11 + 1, 12),
        ("a rest of more than 1 MiB is split off", [(0, 14), (0, 0), (1, 12)], False, 14, 14),
        ("a rest of less is not, and counts", [(0, 14), (0, 0), (1, 13.5)], False, 14, 14),
        ("neighbours are joined", [(0, 8), (1, 8), (0, 0), (1, 0), (2, 20)], False, 20, 20),
        ("a hole is too small", [(0, 40), (1, 10), (0, 0), (2, 44)], False, 54, 94),
        ("one segment grows", [(0, 40), (1, 10), (0, 0), (2, 44)], True, 54, 100),
        ("and what is free at its end is part of it", [(0, 40), (1, 30), (1, 0), (2, 50)], True, 90, 100),
    ],
)
def test_the_allocator(
    what: str, events: list[tuple[int, int]], expandable: bool, allocated: float, reserved: float
) -> None:
    made = replayed(*events, expandable=expandable)
    assert (made.peak / MIB, made.reserved / MIB) == (allocated, reserved), what


# Against the real classes


@pytest.mark.parametrize("row", TRUTH, ids=lambda row: f"{row.name}-{row.group}")
def test_a_walk_has_the_peak_of_the_real_classes(row: rows.Made) -> None:
    assert isinstance(row, rows.Row)
    assert walk.walk(row.job).peak == pytest.approx(row.allocated, rel=0.01)


@pytest.mark.parametrize("row", TRUTH, ids=lambda row: f"{row.name}-{row.group}")
def test_so_it_has_in_each_phase(row: rows.Made) -> None:
    assert isinstance(row, rows.Row)
    moments = walk.walk(row.job).moments
    for word, told in zip(("forward", "backward", "optimizer"), row.phases, strict=True):
        assert max(size for name, size in moments.items() if word in name) == pytest.approx(told, rel=0.004), word


def test_on_average_it_is_closer_still() -> None:
    found = [abs(walk.walk(row.job).peak / row.allocated - 1) for row in TRUTH if isinstance(row, rows.Row)]
    assert len(found) == len(TRUTH) >= 40
    assert statistics.mean(found) < 0.005


WHOLE_KTO = {"stage": "kto", "finetuning_type": "full", "bf16": True}
JOBS: dict[str, walk.Job] = {
    "full": walk.Job(LLAMA, Physics(method="full", rank=0), FUSED, Run(2, 512)),
    "lora": walk.Job(LLAMA, Physics(), FUSED, Run(1, 512)),
    "no checkpoints": walk.Job(LLAMA, Physics(checkpointing="off"), FUSED, Run(1, 512)),
    "freeze": walk.Job(LLAMA, Physics(method="freeze", rank=0, trained_layers=2), FUSED, Run(1, 512)),
    "freeze from below": walk.Job(LLAMA, Physics(method="freeze", rank=0, trained_layers=-2), FUSED, Run(1, 512)),
    "zero3": walk.Job(LLAMA, Physics(method="full", rank=0), FUSED, Run(1, 512), engines.find("zero3", 4)),
    "dpo": walk.Job(LLAMA, Physics(stage="dpo"), FUSED, Run(1, 512)),
    "kept": walk.Job(LLAMA, Physics(keeps_outputs=True, reentrant=False), FUSED, Run(1, 512), accumulation=2),
    # loading is most with the casts of all layers, not of few, whose embedding weighs more
    "many words": walk.Job(shape.read(CONFIGS["gemma2-2b"]), Physics(method="full", rank=0), FUSED, Run(1, 512)),
    # and so are passes beside that of the step
    "two models": options.read(shape.read(CONFIGS["phi3-mini"]), WHOLE_KTO, options.Situation()).job,
}


@pytest.mark.parametrize("name", JOBS)
def test_a_few_layers_tell_of_all(name: str) -> None:
    few, all_ = walk.walk(JOBS[name]), walk.walk(JOBS[name], thorough=True)
    assert few.moments == all_.moments
    assert (few.resident, few.trained, few.elements) == (all_.resident, all_.trained, all_.elements)
    assert few.cached == pytest.approx(all_.cached, abs=0.12 * all_.peak)


def test_lengths_that_vary_cost_memory_without_expandable_segments() -> None:
    fixed = walk.Job(LLAMA, Physics(), FUSED, Run(1, 2048), expandable=False)
    varied = dataclasses.replace(fixed, varied=True)
    grows = dataclasses.replace(varied, expandable=True)
    steady, many, one = (walk.walk(job) for job in (fixed, varied, grows))
    assert steady.moments == many.moments == one.moments
    assert many.cached > 1.5 * steady.cached
    assert one.cached < 1.1 * steady.cached


def test_an_estimate_is_as_quick_for_more_layers_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """In what is taken and given back; how long that takes is in docs/bench.md."""
    taken = 0
    real = Allocator.replay

    def counting(allocator: Allocator, events: t.Sequence[int], sizes: t.Sequence[int]) -> None:
        nonlocal taken
        taken += len(events)
        real(allocator, events, sizes)

    monkeypatch.setattr(Allocator, "replay", counting)
    monkeypatch.setattr(estimate, "walk", walk.walk)  # which other tests remember

    def count(layers: int, accumulation: int) -> int:
        nonlocal taken
        taken = 0
        config = {**CONFIGS["llama3-8b"], "num_hidden_layers": layers}
        estimate.estimate(config, {"bf16": True, "gradient_accumulation_steps": accumulation})
        return taken

    assert count(126, 2) == count(32, 2) == count(32, 64) > 0


def test_nothing_imports_torch_or_numpy() -> None:
    code = (
        "import sys; from ansible_collections.llmops.finetune.plugins.module_utils._vram import report; "
        "print(sorted({'torch', 'numpy', 'yaml', 'ansible'} & {name.split('.')[0] for name in sys.modules}))"
    )
    path = str(Path(REPOSITORY) / "collections")
    told = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert told.stdout.strip() == "[]", told.stderr
