# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fastest run that fits: what is chosen, what its author wrote, and what is told where nothing fits."""

from __future__ import annotations

import dataclasses
import itertools
import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._vram import advise, choose, estimate, hardware, speed
from ansible_collections.llmops.finetune.plugins.module_utils._vram.choose import FUSED, MICRO, OPEN, PLAIN, Option
from ansible_collections.llmops.finetune.plugins.module_utils._vram.options import Situation

from ..conftest import REPOSITORY
from ..vram import rows

CONFIGS = rows.configs(REPOSITORY / "tests" / "vram" / "configs")
RECIPE = {"bf16": True, MICRO: 1, "gradient_accumulation_steps": 16}
FULL = {**RECIPE, "finetuning_type": "full"}
QLORA = {**RECIPE, "quantization_bit": 4}


def run(
    model: str = "llama3-8b",
    arguments: dict[str, t.Any] | None = None,
    gpu: str = "H100",
    *,
    world: int = 1,
    engine: str = "auto",
    per_rank: int = 16,
    opened: t.Iterable[str] = OPEN,
) -> choose.Run:
    card = hardware.find(gpu)
    return choose.Run(
        CONFIGS[model],
        RECIPE if arguments is None else arguments,
        Situation(world=world, engine=engine, gpu=card),
        card.memory,
        per_rank,
        frozenset(opened),
        speed.card(gpu),
    )


def best(*args: t.Any, **kwargs: t.Any) -> choose.Tried:
    chosen = choose.choose(run(*args, **kwargs)).chosen
    assert chosen is not None
    return chosen


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (run(), "4 × 4, ddp, no checkpointing, Liger"),
        (run("qwen2.5-0.5b", FULL), "16 × 1, ddp, no checkpointing, Liger"),
        (run("qwen2.5-7b", QLORA), "4 × 4, ddp, no checkpointing, Liger, 4 bits"),
        (run(arguments=FULL, world=8), "16 × 1, zero2, checkpointing, Liger"),
        (run("qwen2.5-7b", FULL, "A100 40GB", world=8), "16 × 1, zero3, checkpointing, Liger"),
        (run(arguments=FULL), "4 × 4, zero2_offload, no checkpointing, Liger"),
        (run("phi-2"), "4 × 4, ddp, no checkpointing"),  # Liger has no kernels for it
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_fastest_that_fits(asked: choose.Run, words: str) -> None:
    chosen = choose.choose(asked).chosen
    assert chosen is not None and chosen.option.words() == words
    assert chosen.estimate.bound <= asked.memory


@pytest.mark.parametrize("gpu", ["L4", "RTX 4090", "A100", "H200"])
@pytest.mark.parametrize("model", ["llama3.2-1b", "llama3-8b"])
def test_nothing_faster_fits(model: str, gpu: str) -> None:
    """What was ruled out without a look at it does not fit either."""
    asked = run(model, gpu=gpu)
    found = choose.choose(asked)
    assert found.chosen is not None

    def cost(option: Option) -> float:
        need = found.tried[-1].estimate
        return choose.predicted(asked, option, need.parameters, need.trainable) * choose.SIMPLER.get(option.engine, 1)

    looked_at = {tried.option for tried in found.tried}
    faster = [option for option in choose.possible(asked) if cost(option) < cost(found.chosen.option)]
    for option in set(faster) - looked_at:
        assert choose.needed(asked, option).bound > asked.memory, option.words()


def test_what_is_written_stays() -> None:
    written = {**RECIPE, PLAIN: False, FUSED: False}
    chosen = best(arguments=written, engine="zero3", opened=[MICRO]).option
    assert (chosen.engine, chosen.plain, chosen.fused) == ("zero3", False, False)
    assert best(opened=[PLAIN, FUSED]).option.micro == 1
    nothing = choose.possible(run(engine="zero2", opened=[]))
    assert nothing == [Option("zero2", 1, 16, False, False, 0)]


@pytest.mark.parametrize("per_rank", [1, 2, 3, 7, 12, 16, 50, 512])
def test_the_batch_of_a_step_stays(per_rank: int) -> None:
    for option in choose.possible(run(per_rank=per_rank)):
        assert option.micro * option.accumulation == per_rank and option.micro <= choose.LARGEST


def test_weights_are_quantized_only_if_that_may_be() -> None:
    assert {option.bits for option in choose.possible(run(gpu="T4"))} == {0}
    assert choose.choose(run(gpu="T4", engine="ddp")).chosen is None
    assert best(gpu="T4", engine="ddp", opened=[*OPEN, choose.BITS]).option.bits == 4
    allowed = choose.possible(run(gpu="T4", opened=[*OPEN, choose.BITS]))
    quantized = {option.engine for option in allowed if option.bits}
    assert not {engine for engine in quantized if engine.startswith("zero3")}


def test_of_stages_with_other_losses_liger_is_not_chosen() -> None:
    assert not best(arguments={**RECIPE, "stage": "dpo"}).option.fused


def seconds(model: str, arguments: dict[str, t.Any], option: Option, **kwargs: t.Any) -> float:
    asked = run(model, arguments, **kwargs)
    need = choose.needed(asked, option)
    return choose.predicted(asked, option, need.parameters, need.trainable)


BASE = Option("ddp", 4, 4, True, True, 0)


@pytest.mark.parametrize(
    ("faster", "slower", "world"),
    [
        (BASE, BASE._replace(plain=False), 1),
        (BASE, BASE._replace(fused=False), 1),
        (BASE, BASE._replace(bits=4), 1),
        (BASE, BASE._replace(micro=1, accumulation=16), 1),
        (BASE, BASE._replace(engine="zero3"), 8),
        (BASE._replace(engine="zero2"), BASE._replace(engine="zero2_offload"), 8),
        (BASE._replace(engine="zero3"), BASE._replace(engine="zero3_offload"), 8),
    ],
)
def test_what_costs_time(faster: Option, slower: Option, world: int) -> None:
    assert seconds("llama3-8b", RECIPE, faster, world=world) < seconds("llama3-8b", RECIPE, slower, world=world)


def test_a_step_of_all_weights_takes_the_time_that_the_card_needs_for_its_operations() -> None:
    """6 operations a weight and token: 16 × 2048 tokens of 8.03 B weights at 0.45 of 989 TFLOPS, then Adam."""
    told = seconds("llama3-8b", FULL, Option("ddp", 16, 1, True, False, 0))
    tokens = 16 * 2048
    computing = 6 * 8.03e9 * tokens / (989e12 * 0.45 * tokens / (tokens + 1024))
    assert told == pytest.approx(computing + 28 * 8.03e9 / 3350e9, rel=0.01)


# What does not fit


def refusal(*args: t.Any, **kwargs: t.Any) -> str:
    asked = run(*args, opened=[], **kwargs)
    need = estimate.estimate(asked.config, asked.arguments, asked.situation)
    assert need.bound > asked.memory
    return str(advise.refusal(asked, need, "train_args"))


def test_the_nearest_that_fit_and_the_smallest_hardware() -> None:
    told = refusal(arguments={**RECIPE, MICRO: 2}, gpu="RTX 4090")
    assert "a rank needs 23.9 GiB, up to " in told and "in the loss, backward, and there is 24.0 GiB" in told
    lines = [line.strip() for line in told.split("one of\n")[1].splitlines()]
    assert [line.split("  (")[0] for line in lines[:3]] == [
        "per_device_train_batch_size: 1, gradient_accumulation_steps: 16",
        "enable_liger_kernel: true",
        "train_engine: zero3_offload",
    ]
    assert lines[3].startswith("or, as it is asked for, NVIDIA GeForce RTX 5090")


def test_what_is_not_taken_is_not_told() -> None:
    """Neither as a way nor with the hardware."""

    def taken(keys: t.Mapping[str, t.Any], engine: str) -> bool:
        return not engine and FUSED not in keys

    asked = run(arguments={**RECIPE, MICRO: 2}, gpu="RTX 4090", opened=[])
    words = [change.words for way in advise.nearest(asked, taken) for change in way.changes]
    assert words and not [word for word in words if "train_engine" in word or FUSED in word]
    long = run(arguments={**FULL, "cutoff_len": 65536}, gpu="H100")
    assert advise.smallest(long).endswith("with zero3") and advise.smallest(long, taken) == ""


def test_of_an_evaluation_that_decides_the_batch_is_the_first_to_go() -> None:
    asked = run(arguments={**RECIPE, "do_eval": True, "cutoff_len": 4096}, gpu="RTX 4090", opened=[])
    assert advise.changes(asked)[0].words == "per_device_eval_batch_size: 1"
    assert "evaluation" in refusal(arguments=dict(asked.arguments), gpu="RTX 4090")
    assert "per_device_eval_batch_size" not in refusal(arguments={**RECIPE, MICRO: 2}, gpu="RTX 4090")


@pytest.mark.parametrize(
    ("asked", "hardware_"),
    [
        (run(arguments=FULL), "NVIDIA B200"),
        (run(arguments=FULL, gpu="A100 40GB", world=8), "8 × NVIDIA B300"),
        (run(arguments=QLORA, gpu="T4"), "NVIDIA A10"),
        (run(arguments={**FULL, "cutoff_len": 65536}, gpu="H100"), "2 × NVIDIA B300 SXM6 AC (268.6 GiB) with zero3"),
    ],
    ids=["all weights", "on eight", "quantized", "long"],
)
def test_the_smallest_hardware_that_takes_it_as_asked(asked: choose.Run, hardware_: str) -> None:
    assert advise.smallest(asked).startswith(hardware_)


@pytest.mark.parametrize(
    ("model", "arguments", "gpu", "world"),
    [
        ("llama3-8b", FULL, "A100 40GB", 8),
        ("qwen2.5-7b", {**QLORA, "cutoff_len": 16384}, "RTX 4090", 1),
        ("glm4-9b", FULL, "L4", 2),
    ],
)
def test_each_way_fits_and_none_has_a_change_too_many(
    model: str, arguments: dict[str, t.Any], gpu: str, world: int
) -> None:
    asked = run(model, arguments, gpu, world=world, opened=[])
    ways = advise.nearest(asked)
    assert 1 <= len(ways) <= advise.NEAREST
    for way in ways:
        assert advise.needed(asked, way.changes) == way.estimate and way.estimate.bound <= asked.memory
        for fewer in itertools.combinations(way.changes, len(way.changes) - 1):
            need = advise.needed(asked, fewer)
            assert need is None or need.bound > asked.memory, way.words()


def test_what_a_model_or_unsloth_has_of_its_own_is_not_chosen() -> None:
    opened = (*OPEN, choose.BITS)
    packed = dataclasses.replace(
        run(opened=opened), config={**CONFIGS["llama3-8b"], "quantization_config": {"quant_method": "awq", "bits": 4}}
    )
    assert {option.bits for option in choose.possible(run(opened=opened))} == {0, 4}
    assert {option.bits for option in choose.possible(packed)} == {0}
    assert not any(choose.BITS in change.keys or change.engine for change in advise.changes(packed))
    of_its_own = choose.possible(run(arguments={**RECIPE, "use_unsloth": True}, opened=opened))
    assert not any(option.plain or option.fused for option in of_its_own)
