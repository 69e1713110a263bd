# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory in a plan: what fits, what is refused, what was learned, and GPUs that nobody has yet."""

from __future__ import annotations

import json
import typing as t
from dataclasses import replace

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _assumed, _describe
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._gpu import catalogue
from ansible_collections.llmops.finetune.plugins.module_utils._vram import choose

from ..conftest import REPOSITORY
from ..vram import rows
from .plans import DATA, Variables, eth0, known, make, node

CONFIGS = rows.configs(REPOSITORY / "tests" / "vram" / "configs")
MODEL = "/srv/llama3"
FULL: Variables = {"train_recipe": "full_sft", "train_model": MODEL}
LORA: Variables = {"train_recipe": "lora_sft", "train_model": MODEL}


def host(gpu: str = "H100", gpus: int = 1, config: t.Any = "llama3-8b", taken: int = 0, **facts: t.Any) -> Variables:
    """A node with GPUs of the catalogue; taken: bytes of each that somebody has."""
    card = catalogue.find(gpu)
    assert card is not None
    memory = card.memory << 20
    told = CONFIGS[config] if isinstance(config, str) else config
    own = {"model": {"config": told}, "memory": 2**40, "compilers": ["c++", "nvcc"]}
    made = node(gpus, card.compute_capability, **own, **facts)
    for one in made["gpus"]:
        one |= {"name": card.name, "memory": memory, "memory_free": memory - taken}
    return made


def told(plan: t.Any, facts: dict[str, Variables]) -> str:
    return "\n".join(_describe.lines(plan, [DATA], facts))


def refused(facts: dict[str, Variables], **wish: t.Any) -> FinetuneError:
    with pytest.raises(FinetuneError) as refusal:
        make(facts, **wish)
    return refusal.value


def test_what_fits_is_told_in_two_lines() -> None:
    facts = {"a": host()}
    plan = make(facts, **LORA)
    first, second = plan.memory["told"]
    assert f"  {first}\n  {second}\n  node" in told(plan, facts)
    assert "GiB a rank, taken for at most" in first and "of 79.6 GiB on NVIDIA H100 80GB HBM3 of a" in first
    assert second == "        most in the loss, backward; replayed"
    estimate = plan.memory["estimate"]
    assert estimate["process"] < estimate["bound"] <= plan.memory["free"] == 81559 << 20


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    refusal = refused({"a": host()}, **FULL)
    assert "It does not fit: a rank needs" in refusal.what and "there is 79.6 GiB" in refusal.what
    assert refusal.where == "train_model, train_args, train_engine; NVIDIA H100 80GB HBM3 of a"
    for way in ("finetuning_type: lora", "as it is asked for, NVIDIA B200", "train_insist: [memory]"):
        assert way in refusal.change


def offered(refusal: FinetuneError) -> list[Variables]:
    """The ways that a refusal tells, as the variables that ask for them."""
    told = [line.strip().rpartition("  (")[0] for line in refusal.change.splitlines()[1:]]
    ways = [line.removeprefix("or, as it is asked for, ") for line in told if line and "or, as" not in line]
    found = []
    for way in ways:
        keys = dict(part.split(": ") for part in way.split(", "))
        engine = {"train_engine": keys.pop("train_engine")} if "train_engine" in keys else {}
        found.append({**engine, "train_set": " ".join(f"{key}={value}" for key, value in keys.items())})
    return found


ASKED: list[tuple[str, str, int, Variables]] = [
    ("galore", "H100", 8, {}),
    ("galore", "H100", 1, {"train_args": {"cutoff_len": 8192}}),
    ("apollo", "A100 40GB", 2, {}),
    ("muon", "H100", 2, {}),
    ("adam_mini", "H100", 2, {}),
    ("badam", "A100 40GB", 2, {"train_args": {"cutoff_len": 65536}}),
    ("full_sft", "H100", 1, {"train_args": {"optim": "adamw_8bit"}}),
    ("full_sft", "RTX 4090", 2, {"train_args": {"pure_bf16": True}}),
    ("dora", "RTX 4090", 1, {"train_args": {"cutoff_len": 8192}}),
    ("pissa", "RTX 4090", 2, {"train_args": {"cutoff_len": 8192}}),
    ("lora_sft", "RTX 4090", 2, {"train_global_batch_size": 64, "train_args": {choose.MICRO: 8}}),
    ("reward", "T4", 2, {}),
    ("freeze_sft", "RTX 4090", 2, {}),
]


@pytest.mark.parametrize("fit", ["asked", "fastest"])
@pytest.mark.parametrize(("recipe", "gpu", "gpus", "wish"), ASKED)
def test_every_way_that_is_offered_is_taken(recipe: str, gpu: str, gpus: int, wish: Variables, fit: str) -> None:
    """With another engine or other keys nothing else stands against it."""
    facts = {"a": host(gpu, gpus)}
    pairs = {"reward": [replace(DATA, dataset=replace(DATA.dataset, ranking=True))]}
    asked: Variables = {"train_recipe": recipe, "train_model": MODEL, "sources": pairs.get(recipe, [DATA]), **wish}
    try:
        make(facts, train_fit=fit, **asked)
    except FinetuneError as error:
        assert "It does not fit" in error.what
        for way in offered(error):
            make(facts, train_fit=fit, **{**asked, **way})
    else:
        assert fit == "fastest", "it is meant not to fit as asked"


def test_it_may_be_insisted_on() -> None:
    plan = make({"a": host()}, train_insist="memory", **FULL)
    assert any("does not fit" in notice and "train_insist has memory" in notice for notice in plan.notices)
    assert plan.id == make({"a": host("B200")}, **FULL).id
    assert not any(
        "does not fit" in notice for notice in make({"a": host("B200")}, train_insist="memory", **FULL).notices
    )


@pytest.mark.parametrize("wish", [{"train_state": "stopped"}, {"train_state": "absent"}], ids=str)
def test_what_would_not_start_is_not_refused(wish: dict[str, t.Any]) -> None:
    plan = make({"a": host()}, **FULL, **wish)
    assert plan.memory == {} and "memory" not in told(plan, {"a": host()})


@pytest.mark.parametrize(("state", "refuses"), [("finished", False), ("running", False), ("failed", True)])
def test_a_run_that_is_there_is_not_refused(state: str, refuses: bool) -> None:
    first = make({"a": host()}, train_insist="memory", **FULL)
    again = {"a": host(runs=known((first, state, 1.0))["runs"])}
    if refuses:
        assert "does not fit" in refused(again, train_retry=True, **FULL).what
    else:
        assert make(again, **FULL).memory == {}


def test_the_gpu_with_the_least_to_give_decides() -> None:
    """What others hold of it counts, but for what a run holds that has it."""
    taken = {"a": host(), "b": host(taken=70 << 30)}
    refusal = refused(taken, **LORA)
    assert "there is 9.6 GiB" in refusal.what and "HBM3 of b, of which others hold 70.0 GiB" in refusal.where
    taken["b"]["leases"] = {"GPU-a": {"run": "other-12345678"}}
    assert make(taken, **LORA).held, "a run has it, which is told so"
    chosen = {"a": host("A100", 2)}
    chosen["a"]["gpus"][1]["memory_free"] = 2**30
    assert "1.0 GiB" in refused(chosen, **LORA).what
    assert make(chosen, train_gpus="0,", **LORA).memory["estimate"]


@pytest.mark.parametrize(
    ("facts", "wish", "why"),
    [
        ({"config": {}}, {}, "config.json is not known"),
        ({"config": {"model_type": "llama"}}, {}, "has no hidden_size"),
        ({"config": {**CONFIGS["llama3-8b"], "num_attention_heads": 0}}, {}, "not estimated"),
        ({"config": {**CONFIGS["llama3-8b"], "hidden_size": "wide"}}, {}, "not estimated"),
        (
            {"config": {**CONFIGS["llama3-8b"], "quantization_config": {"quant_method": "aqlm"}}},
            {},
            "quantized already",
        ),
        ({"cpu_flags": ["avx512f"]}, {"train_recipe": "ktransformers"}, "engine ktransformers"),
        ({}, {"train_recipe": "megatron"}, "engine megatron"),
    ],
)
def test_where_nothing_is_known_nothing_is_refused(facts: dict[str, t.Any], wish: dict[str, t.Any], why: str) -> None:
    one = {"a": host(**facts)}
    plan = make(one, **{**LORA, **wish})
    assert plan.memory["estimate"] == {} and why in told(plan, one)


@pytest.mark.parametrize(
    ("facts", "wish", "why"),
    [
        ({"config": {**CONFIGS["llama3-8b"], "quantization_config": {"quant_method": "awq", "bits": 4}}}, {}, "(awq)"),
        ({}, {"train_recipe": "unsloth"}, "unsloth"),
        ({}, {"train_recipe": "fp8", "train_args": {"pure_bf16": True}}, "fp8"),
    ],
)
def test_what_nobody_measured_is_estimated_with_a_wider_bound(
    facts: dict[str, t.Any], wish: dict[str, t.Any], why: str
) -> None:
    one = {"a": host(**facts)}
    plan = make(one, train_insist="memory", **{**LORA, **wish})
    assert plan.memory["estimate"]["tag"] == "unverified" and why in told(plan, one)


# --- one run after the other ---

EARLIER: dict[str, t.Any] = {"id": "sft-1", "state": "finished", "created": 1.0}


def after(left: dict[str, t.Any], kind: str = "lora", **wish: t.Any) -> tuple[t.Any, str]:
    """A plan that begins with run sft-1, on a node of which the run's own model is all that is known."""
    resolved = {"arguments": {"stage": "sft", "finetuning_type": kind}, "model": {"name": MODEL, "revision": ""}}
    one = {"a": host(config={}, before={"sft-1": {**EARLIER, "resolved": resolved, "left": left}})}
    plan = make(one, train_from="sft", **wish)
    return plan, told(plan, one)


def test_a_run_on_an_earlier_one_takes_that_ones_model() -> None:
    plan, text = after({"config": CONFIGS["llama3-8b"], "adapter": {}}, "full", train_recipe="lora_sft")
    assert plan.memory["estimate"]["tensors"] == make({"a": host()}, **LORA).memory["estimate"]["tensors"], text
    assert "config.json is not known" in after({}, "full", train_recipe="lora_sft")[1]


def test_an_adapter_that_goes_on_is_as_large_as_it_was_made() -> None:
    adapter = {"finetuning_type": "lora", "lora_rank": 64, "lora_target": "q_proj,v_proj", "use_dora": False}
    left = {"config": CONFIGS["llama3-8b"], "adapter": adapter}
    plan, text = after(left, train_recipe="lora_sft", train_args={"lora_rank": 8})
    made = make({"a": host()}, **LORA, train_args={"lora_rank": 64, "lora_target": "q_proj,v_proj"})
    assert plan.memory["estimate"]["trainable"] == made.memory["estimate"]["trainable"] and "replayed" in text
    assert plan.left == {"config": CONFIGS["llama3-8b"], "adapter": {**plan.left["adapter"], **adapter}}
    fresh, _text = after(left, train_recipe="lora_sft", train_set="create_new_adapter=true lora_rank=8")
    assert fresh.memory["estimate"]["trainable"] == make({"a": host()}, **LORA).memory["estimate"]["trainable"]


def test_an_adapter_of_which_nothing_is_known_is_told() -> None:
    _plan, text = after({"config": CONFIGS["llama3-8b"]}, train_recipe="lora_sft")
    assert "unverified: adapter_name_or_path, which is not looked at" in text


def test_a_gpu_of_unknown_memory_is_not_judged() -> None:
    one = {"a": host()}
    one["a"]["gpus"][0] |= {"memory": 0, "memory_free": 0}
    assert "the memory of NVIDIA H100 80GB HBM3 is not known" in told(make(one, **FULL), one)


def test_of_a_hub_the_config_comes_with_the_commit() -> None:
    facts = host(config={})
    facts["hub"]["config"] = CONFIGS["llama3-8b"]
    assert "does not fit" in refused({"a": facts}, **{**FULL, "train_model": "org/m"}).what


def test_the_demo_is_known() -> None:
    one = {"a": host(config={})}
    assert 0 < make(one).memory["estimate"]["parameters"] < 2_000_000


def test_on_cpus_nothing_is_told() -> None:
    one = {"a": node(model={"config": CONFIGS["llama3-8b"]})}
    plan = make(one, **FULL)
    assert plan.memory == {"told": [], "notices": [], "estimate": {}, "free": 0, "predicted": {}}
    assert "memory" not in told(plan, one)


# --- what finished runs took ---


def peaks(plan: t.Any, part: float, steps: int = 9) -> dict[str, t.Any]:
    """What a run that was planned so keeps, whose rank took that part of what was predicted; as JSON has it."""
    predicted = plan.memory["predicted"]
    reserved = part * (predicted["reserved"] + predicted["context"]) - predicted["context"]
    measured = [{"rank": 0, "steps": steps, "gpu": "NVIDIA H100 80GB HBM3", "cuda_reserved": reserved}]
    return t.cast("dict[str, t.Any]", json.loads(json.dumps({"predicted": predicted, "measured": measured})))


def test_what_runs_of_the_kind_took_corrects_the_plan_which_says_so() -> None:
    first = make({"a": host()}, **LORA)
    taught = {"a": host(peaks={"x-1": peaks(first, 1.03), "y-2": peaks(first, 1.01)})}
    plan = make(taught, train_set="learning_rate=2e-5", **LORA)
    words = "corrected by +3.0 % from 2 runs on NVIDIA H100 80GB HBM3 (llama, lora, sft, single), 2.0 % apart"
    assert plan.memory["told"][-1] == f"        {words}" and f"  {plan.memory['told'][-1]}\n  node" in told(
        plan, taught
    )
    for size in ("process", "bound"):
        assert plan.memory["estimate"][size] == pytest.approx(1.03 * first.memory["estimate"][size])
    kept = plan.nodes["a"]["predicted"]
    assert kept == first.memory["predicted"] != {}, "else corrections would be corrected"
    other = {"a": host("A100 80GB", peaks=taught["a"]["peaks"])}
    assert "corrected" not in told(make(other, **LORA), other)
    small = {"a": host(config="llama3.2-1b", peaks=taught["a"]["peaks"])}
    plan = make(small, train_set="cutoff_len=256", **LORA)
    assert "corrected" not in told(plan, small), "of the kind, and of another size"


def test_runs_on_any_node_count_and_a_node_of_an_earlier_release_tells_none() -> None:
    first = make({"a": host()}, **LORA)
    other = host(interfaces=eth0("10.0.0.2"), peaks={"x-1": peaks(first, 1.5)})
    two: dict[str, Variables] = {"a": host(), "b": other}
    del two["a"]["peaks"]
    plan = make(two, **LORA)
    assert "corrected" not in told(plan, two), "ranks that share are of another kind"
    other["peaks"] = {"x-1": peaks(plan, 1.1)}
    assert "corrected by +10.0 % from 1 run" in told(make(two, **LORA), two)


def test_what_took_more_is_refused_where_it_would_not_fit_then() -> None:
    """But for what runs: it goes on as it began."""
    first = make({"a": host("A10G")}, **LORA)
    taken = peaks(first, 1.3)
    taken["measured"][0]["gpu"] = "NVIDIA A10G"
    taught: Variables = {"peaks": {"x-1": taken}}
    assert "It does not fit" in refused({"a": host("A10G", **taught)}, **LORA).what
    assert make({"a": host("A10G", **taught)}, train_insist="memory", **LORA).memory["estimate"]
    for state in ("interrupted", "stopped"):
        facts = {"a": host("A10G", **taught, runs=known((first, state, 1.0))["runs"])}
        assert "corrected" not in told(make(facts, train_retry=True, **LORA), facts)
    failed = {"a": host("A10G", **taught, runs=known((first, "failed", 1.0))["runs"])}
    assert "It does not fit" in refused(failed, train_retry=True, **LORA).what


def test_packed_runs_that_agree_let_a_run_in() -> None:
    packed = {**LORA, "train_args": {"packing": True}}
    first = make({"a": host()}, **packed)
    tight = host()
    tight["gpus"][0]["memory_free"] = round(first.memory["estimate"]["bound"] * 0.99)
    assert "It does not fit" in refused({"a": tight}, **packed).what
    for count, fits in ((2, False), (3, True)):
        tight["peaks"] = {f"x-{number}": peaks(first, 0.95) for number in range(count)}
        if not fits:
            assert "It does not fit" in refused({"a": tight}, **packed).what
        else:
            assert "corrected by -5.0 % from 3 runs" in told(make({"a": tight}, **packed), {"a": tight})


# --- GPUs that nobody has yet ---


def assumed(gpus: str, hosts: int = 1, **wish: t.Any) -> tuple[t.Any, dict[str, Variables]]:
    """A plan as train_plan makes it for hosts without GPUs."""
    wanted = _assumed.read(gpus)
    laptop = node(model={"config": CONFIGS["llama3-8b"]})
    facts = {name: {**laptop, "interfaces": eth0(f"10.0.0.{i + 1}")} for i, name in enumerate("abcd"[:hosts])}
    facts = _assumed.over(wanted, facts)
    return make(facts, train_assume_gpus=gpus, **wish), facts


def test_gpus_may_be_assumed() -> None:
    plan, facts = assumed("8xH100", train_engine="zero3", **FULL)
    assert (plan.resolved["world_size"], plan.resolved["arguments"]["bf16"]) == (8, True)
    assert "unverified: engine zero3 on 8 ranks" in told(plan, facts)
    assert plan.memory["free"] == 81559 << 20 and "node 0  a: 8 × NVIDIA H100 80GB HBM3" in told(plan, facts)
    assert any("taken to have 8 × NVIDIA H100" in notice for notice in plan.notices)
    cluster, facts = assumed("4 x A10G", 2, **{**FULL, "train_insist": "memory"})
    assert cluster.resolved["world_size"] == 8
    with pytest.raises(FinetuneError, match="It does not fit"):
        assumed("T4", **LORA)


def test_what_is_assumed_is_never_applied_and_is_not_who_the_run_is() -> None:
    plan, _facts = assumed("H100", **LORA)
    assert "is for GPUs that are assumed" in plan.held and "train_assume_gpus" in plan.held
    assert not make({"a": host()}, **LORA).held and plan.id == make({"a": host()}, **LORA).id


@pytest.mark.parametrize("wrong", ["8xH101", "0xH100", "H100x8", "65xH100", "x", "8", "99999999999xL4"])
def test_unknown_gpus_are_refused_with_those_that_are_known(wrong: str) -> None:
    refusal = refused({"a": node()}, train_assume_gpus=wrong)
    assert refusal.where == "train_assume_gpus" and "H100" in refusal.change and "8xH100" in refusal.change
