# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What finished runs teach: how ranks measure, what is read of their records, and what estimates become."""

from __future__ import annotations

import os
import sys
import types
import typing as t
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._engine import memory
from ansible_collections.llmops.finetune.plugins.module_utils._vram import estimate, hardware, learned, options, shape
from ansible_collections.llmops.finetune.plugins.module_utils._vram.options import Situation

from ..conftest import REPOSITORY
from ..vram import rows

CONFIGS = rows.configs(REPOSITORY / "tests" / "vram" / "configs")
LLAMA = CONFIGS["llama3-8b"]
H100 = hardware.find("H100")
GIB = 1 << 30
KIND = learned.Kind(H100.name, "llama", "lora", "sft", "single")
Told = dict[str, t.Any]


def run(taken: float = 1.0, full: bool = False, steps: int = 9, size: int = 20, **other: t.Any) -> Told:
    """What a run with one rank keeps. taken: by its process, as a part of the prediction; size: GiB that were
    predicted, of which the context is one; other: changes in the prediction."""
    sizes = {"allocated": (size - 2) * GIB, "reserved": (size - 1) * GIB, "context": GIB}
    predicted = {"edition": learned.EDITION, **KIND._asdict(), "full": full, **sizes, "host": GIB, "tag": "replayed"}
    measured = {"rank": 0, "attempt": 1, "steps": steps, "rss": GIB, "gpu": KIND.gpu}
    reserved = (size * taken - 1) * GIB
    return {"predicted": {**predicted, **other}, "measured": [{**measured, "cuda_reserved": reserved}]}


def on(told: Told, **rank: t.Any) -> Told:
    """With changes in what the rank measured; None takes away."""
    changed = {**told["measured"][0], **rank}
    return {**told, "measured": [{key: value for key, value in changed.items() if value is not None}]}


def learn(*runs: Told, size: float = 20 * GIB, kind: learned.Kind = KIND) -> learned.Correction | None:
    seen = learned.read([{f"a-{index}": told for index, told in enumerate(runs)}])
    return learned.correction(seen, kind, size)


# What is believed

SHORT, FULL = run(0.7), run(0.93, full=True)
HIGH = run(1.03)


@pytest.mark.parametrize(
    ("runs", "factor", "count"),
    [
        ([], None, 0),
        ([run(1.0)], None, 0),
        ([HIGH], 1.03, 1),
        ([HIGH, run(1.01)], 1.03, 2),
        ([HIGH, SHORT, SHORT, SHORT], 1.03, 1),
        ([HIGH, FULL, FULL, FULL, FULL], 1.03, 1),
        ([run(1.03, steps=0)], 1.03, 1),
        ([SHORT, SHORT, SHORT, SHORT], None, 0),
        ([FULL, FULL], None, 0),
        ([FULL, FULL, SHORT], None, 0),
        ([FULL, FULL, FULL], 0.93, 3),
        ([FULL, FULL, run(0.95, full=True)], 0.95, 3),
        ([FULL, FULL, run(0.99, full=True)], None, 0),
        ([FULL, FULL, run(0.93, full=True, steps=1)], None, 0),
        ([run(0.4, full=True)] * 3, learned.LEAST, 3),
        ([run(3.0)], learned.MOST, 1),
        ([run(1.03, size=6), run(1.02, size=79)], 1.03, 2),
        ([run(1.03, size=4), run(1.02, size=81)], None, 0),
    ],
)
def test_more_always_counts_and_less_where_several_full_runs_say_so(
    runs: list[Told], factor: float | None, count: int
) -> None:
    found = learn(*runs)
    assert (found is None) == (factor is None)
    if found is not None:
        assert found.factor == pytest.approx(factor) and found.runs == count


@pytest.mark.parametrize("field", KIND._fields)
def test_only_runs_of_the_kind_count(field: str) -> None:
    assert learn(HIGH, kind=KIND._replace(**{field: "other"})) is None
    assert learn({**HIGH, "predicted": {**HIGH["predicted"], field: "other"}}) is None


@pytest.mark.parametrize(
    ("told", "ratio"),
    [
        (on(HIGH, cuda_reserved=19 * GIB, driver_process=20.5 * GIB, cuda_reserved_now=18 * GIB), 21.5 / 20),
        (on(HIGH, driver_process=8 * GIB, cuda_reserved_now=8 * GIB), 1.03),
        (on(HIGH, driver_used=70 * GIB), 1.03),
        (on(HIGH, gpu="H100"), 1.03),
        (on(HIGH, gpu="NVIDIA L4"), None),
        (on(HIGH, gpu=None, cuda_reserved=None), None),
        (on(HIGH, gpu=7), None),
        (on(HIGH, cuda_reserved=None), None),
        (on(HIGH, cuda_reserved="much"), None),
        (on(HIGH, cuda_reserved=float("nan")), None),
        (on(run(1.03, full=True), steps=None), None),
        (run(1.03, edition=learned.EDITION + 1), None),
        (run(1.03, reserved=0, context=0), None),
        (run(1.03, reserved="x"), None),
        ({**HIGH, "measured": []}, None),
        ({**HIGH, "measured": {"a": 1}}, None),
        ({**HIGH, "predicted": {}}, None),
        ({**HIGH, "predicted": None}, None),
        ({}, None),
        ([], None),
        (None, None),
    ],
)
def test_what_the_driver_says_goes_over_the_context_and_odd_records_are_left_out(told: t.Any, ratio: t.Any) -> None:
    seen = learned.read([{"a": told}])
    assert [one.ratio for one in seen] == ([pytest.approx(ratio)] if ratio else [])


def test_a_run_on_several_nodes_and_ranks_counts_once_with_the_largest() -> None:
    two = {**run(1.0), "measured": [run(0.9)["measured"][0], run(1.02)["measured"][0]]}
    seen = learned.read([{"a": two, "b": run(1.01)}, {"a": run(1.05)}, {"a": run(1.01)}])
    assert sorted(one.ratio for one in seen) == [pytest.approx(1.01), pytest.approx(1.05)]


def test_a_person_reads_of_which_runs_it_is() -> None:
    several, one = learn(HIGH, run(1.018)), learn(HIGH)
    assert several and one
    where = "on NVIDIA H100 80GB HBM3 (llama, lora, sft, single)"
    assert several.words() == f"corrected by +3.0 % from 2 runs {where}, 1.2 % apart"
    assert one.words() == f"corrected by +3.0 % from 1 run {where}"


# What estimates become

LORA = {"bf16": True, "per_device_train_batch_size": 1}


def situation(*runs: Told) -> Situation:
    return Situation(gpu=H100, seen=learned.read([{f"a-{index}": told for index, told in enumerate(runs)}]))


def test_estimate_and_bound_are_corrected_and_nothing_else_of_it() -> None:
    plain = estimate.estimate(LLAMA, LORA, situation())
    more = estimate.estimate(LLAMA, LORA, situation(HIGH))
    assert (more.process, more.bound) == (round(plain.process * 1.03), round(plain.bound * 1.03))
    assert replace(more, process=plain.process, bound=plain.bound) == plain
    assert estimate.estimate(LLAMA, LORA, Situation(seen=situation(HIGH).seen)).tag, "without a GPU nothing is learned"
    assert estimate.estimate(LLAMA, {**LORA, "stage": "dpo"}, situation(HIGH)) == estimate.estimate(
        LLAMA, {**LORA, "stage": "dpo"}, situation()
    )


@pytest.mark.parametrize(
    ("keys", "method", "full"),
    [
        ({}, "lora", False),
        ({"packing": True}, "lora", True),
        ({"packing": True, "skip_memory_metrics": False}, "lora", False),
        ({"stage": "pt"}, "lora", True),
        ({"quantization_bit": 4}, "lora in 4 bits", False),
        ({"finetuning_type": "full", "use_galore": True}, "full with galore", False),
        ({"optim": "adamw_8bit"}, "lora with adamw_8bit", False),
    ],
)
def test_a_run_keeps_its_kind_and_the_estimate_before_corrections(keys: Told, method: str, full: bool) -> None:
    reading = options.read(shape.read(LLAMA), {**LORA, **keys}, situation())
    plain = estimate.estimate(LLAMA, {**LORA, **keys}, situation())
    kept = learned.prediction(reading, H100.name, estimate.estimate(LLAMA, {**LORA, **keys}, situation(HIGH)))
    assert (kept["gpu"], kept["family"], kept["engine"]) == (H100.name, "llama", "single")
    assert (kept["method"], kept["full"]) == (method, full)
    assert kept["reserved"] + kept["context"] == plain.process
    back = learned.read([{"a": {"predicted": kept, "measured": HIGH["measured"]}}])
    assert [one.kind for one in back] == [learned.kind_of(reading, H100.name)]


PINNED = {
    2: {
        ("llama3-8b", "lora", 1, 2048): 21_592_670_208,
        ("qwen2.5-0.5b", "full", 4, 2048): 25_449_504_768,
        ("qwen3-4b", "full", 1, 4096): 69_282_612_736,
    },
    3: {
        ("llama3-8b", "lora", 1, 2048): 21_588_541_440,
        ("qwen2.5-0.5b", "full", 4, 2048): 25_324_341_248,
        ("qwen3-4b", "full", 1, 4096): 68_835_162_112,
    },
}
"""Bytes of a process by edition of the estimator."""


@pytest.mark.parametrize("case", PINNED[learned.EDITION], ids=str)
def test_another_estimate_is_another_edition(case: tuple[str, str, int, int]) -> None:
    """Where this fails for a good reason, raise learned.EDITION and write the new numbers down below it."""
    model, method, batch, length = case
    keys = {**LORA, "finetuning_type": method, "per_device_train_batch_size": batch, "cutoff_len": length}
    now = estimate.estimate(CONFIGS[model], keys, Situation(gpu=H100)).process
    assert now == pytest.approx(PINNED[learned.EDITION][case], rel=0.005)


# How ranks measure


class Cuda(types.ModuleType):
    """torch, as far as it tells of a GPU."""

    def __init__(self, there: bool = True, answers: bool = True) -> None:
        super().__init__("torch")

        def info() -> tuple[int, int]:
            if not answers:
                raise RuntimeError("no answer")
            return 3, 10

        self.cuda = types.SimpleNamespace(
            is_available=lambda: there,
            get_device_name=lambda: "NVIDIA L4",
            max_memory_allocated=lambda: 5,
            max_memory_reserved=lambda: 6,
            memory_reserved=lambda: 4,
            mem_get_info=info,
        )


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> t.Callable[[str], None]:
    """Has nvidia-smi answer so."""

    def answer(text: str) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f'#!/bin/sh\n[ "$1" = --query-compute-apps=pid,used_memory ] || exit 1\n{text}\n')
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return answer


GPU = {
    "gpu": "NVIDIA L4",
    "cuda_allocated": 5,
    "cuda_reserved": 6,
    "cuda_reserved_now": 4,
    "driver_used": 7,
}


@pytest.mark.parametrize(
    ("torch", "answer", "expected"),
    [
        (Cuda(), f"echo '1, 70'; echo '{os.getpid()}, 2'", {**GPU, "driver_process": 2 << 20}),
        (Cuda(), "echo '1, 70'", GPU),
        (Cuda(), f"echo '{os.getpid()}, [N/A]'", GPU),
        (Cuda(), "exit 9", GPU),
        (Cuda(answers=False), "exit 9", {key: value for key, value in GPU.items() if key != "driver_used"}),
        (Cuda(there=False), f"echo '{os.getpid()}, 2'", {}),
    ],
    ids=["told", "pids of a container", "not told", "no driver", "no memory told", "no GPU"],
)
def test_a_rank_tells_what_torch_and_the_driver_tell(
    monkeypatch: pytest.MonkeyPatch, driver: t.Callable[[str], None], torch: Cuda, answer: str, expected: Told
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)
    driver(answer)
    told = memory.peak(3, 2, 9)
    assert told.pop("rss") > 1 << 20
    assert told == {"rank": 3, "attempt": 2, "steps": 9, **expected}
