# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The chat template of a model: what the registry says, what it spells differently, and what it does not know."""

from __future__ import annotations

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _describe, _template
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

from .plans import DATA, DEFAULTS, RECIPES, SCHEMAS, Variables, known, lines, make, node, origins, recorded

MAIN = SCHEMAS["main"]

SPELT_DIFFERENTLY = {
    "meta-llama/Llama-3.1-8B-Instruct": "llama3",
    "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit": "llama3",
    "NousResearch/Meta-Llama-3-8B-Instruct": "llama3",
    "NousResearch/Llama-2-7b-chat-hf": "llama2",
    "casperhansen/llama-3-8b-instruct-awq": "llama3",
    "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4": "llama3",
    "RedHatAI/Meta-Llama-3.1-70B-Instruct-FP8-dynamic": "llama3",
    "nvidia/Llama-3.3-70B-Instruct-FP4": "llama3",
    "TheBloke/Mistral-7B-Instruct-v0.2-AWQ": "mistral",
    "unsloth/mistral-7b-instruct-v0.3-bnb-4bit": "mistral",
    "unsloth/gemma-2-9b-it-bnb-4bit": "gemma2",
    "unsloth/gemma-3-1b-it-unsloth-bnb-4bit": "gemma2",
    "unsloth/gemma-3-4b-it-unsloth-bnb-4bit": "gemma3",
    "google/gemma-3-27b-it-qat-q4_0-unquantized": "gemma3",
    "bartowski/google_gemma-3-12b-it-GGUF": "gemma3",
    "unsloth/Qwen3-4B": "qwen3",
    "Qwen/Qwen3-8B-FP8": "qwen3",
    "Qwen/Qwen3-30B-A3B-Thinking-2507-FP8": "qwen3",
    "Qwen/Qwen3-4B-Instruct-2507-FP8": "qwen3_nothink",
    "unsloth/Qwen3-4B-Instruct-2507-GGUF": "qwen3_nothink",
    "Qwen/Qwen3-Next-80B-A3B-Instruct-FP8": "qwen3_nothink",
    "Qwen/Qwen3-VL-8B-Thinking-FP8": "qwen3_vl",
    "Qwen/Qwen3-VL-8B-Instruct-FP8": "qwen3_vl_nothink",
    "Qwen/Qwen2.5-VL-32B-Instruct-AWQ": "qwen2_vl",
    "RedHatAI/Qwen2.5-7B-Instruct-quantized.w4a16": "qwen",
    "mlx-community/Qwen2.5-7B-Instruct-4bit": "qwen",
    "Qwen/Qwen3.6-27B": "qwen3_6",
    "Qwen/Qwen3.6-35B-A3B-FP8": "qwen3_6",
    "zai-org/GLM-4.5-Air-FP8": "glm4_moe",
    "zai-org/GLM-4.7": "glm4_7",
    "ibm-granite/granite-4.0-h-small": "granite4",
    "microsoft/Phi-4-mini-instruct": "phi4_mini",
    "unsloth/phi-4-unsloth-bnb-4bit": "phi4",
    "unsloth/gpt-oss-20b-BF16": "gpt_oss",
    "unsloth/DeepSeek-R1-Distill-Llama-8B-unsloth-bnb-4bit": "deepseekr1",
    "OpenGVLab/InternVL3_5-241B-A28B-HF": "intern_vl",
    "/data/models/Qwen3-4B-Instruct-2507": "qwen3_nothink",
    "file:Qwen3-4B-Instruct-2507": "qwen3_nothink",
    "/srv/cache/hub/models--Qwen--Qwen3-4B/snapshots/1cfa9a7208912126459214e8b04321603b3df60c": "qwen3",
    "/srv/llmops/models/Qwen--Qwen3-4B@1cfa9a7208912126459214e8b04321603b3df60c": "qwen3",
}
BASE = [
    *("Qwen/Qwen3-4B-Base", "unsloth/Qwen3-4B-Base", "unsloth/Meta-Llama-3.1-8B-bnb-4bit", "meta-llama/Llama-3.1-8B"),
    *("deepseek-ai/DeepSeek-V3-Base", "google/gemma-3-1b-pt", "openai-community/gpt2", "XiaomiMiMo/MiMo-V2-Flash-Base"),
]
NEAR_MISSES = [
    *("Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Reranker-4B", "Qwen/Qwen3Guard-Gen-8B", "Qwen/Qwen3.7-27B"),
    *("Qwen/Qwen3-Coder-30B-A3B-Instruct", "Qwen/Qwen2.5-Math-PRM-7B", "Qwen/Qwen1.5-7B-Chat", "zai-org/GLM-5"),
    *("NousResearch/Hermes-3-Llama-3.1-8B", "meta-llama/Llama-Guard-3-8B", "nvidia/Llama-3.1-Nemotron-70B-Instruct-HF"),
    *("microsoft/Phi-4-reasoning", "microsoft/Phi-4-multimodal-instruct", "HuggingFaceTB/SmolLM3-3B"),
    *("mistralai/Mistral-Small-Instruct-2409", "mistralai/Ministral-3-8B-Reasoning-2512", "google/gemma-4-12b-it"),
    *("deepseek-ai/DeepSeek-V3.1", "upstage/solar-pro-preview-instruct", "HuggingFaceH4/zephyr-7b-gemma-v0.1"),
    *("ibm-granite/granite-4.0-h-small-base", "moonshotai/Kimi-K2-Instruct", "org/m", "/srv/model"),
]


@pytest.mark.parametrize("environment", sorted(SCHEMAS))
def test_what_the_registry_lists_has_what_it_says(environment: str) -> None:
    schema = SCHEMAS[environment]
    assert len(schema.models) > 500 and len(schema.others) > 200
    for model, template in schema.models.items():
        choice = _template.choose(model, schema)
        assert choice and (choice.template, choice.exact) == (template, True), model
    for model, group in schema.others.items():
        choice = _template.choose(model, schema)
        assert choice and choice.template in ("", group), model


@pytest.mark.parametrize("model", SPELT_DIFFERENTLY)
def test_what_it_spells_differently_or_lacks(model: str) -> None:
    choice = _template.choose(model, MAIN)
    assert choice and choice.template == SPELT_DIFFERENTLY[model] and choice.template in MAIN.templates
    assert choice.exact == (model in {**MAIN.models, **MAIN.others}) and choice.why


@pytest.mark.parametrize("model", BASE)
def test_base_models_have_none(model: str) -> None:
    choice = _template.choose(model, MAIN)
    assert choice and choice.template == ""


@pytest.mark.parametrize("model", NEAR_MISSES)
def test_a_name_that_is_only_near_has_none(model: str) -> None:
    assert _template.choose(model, MAIN) is None


def test_a_version_knows_its_own_templates_alone() -> None:
    assert _template.choose("Qwen/Qwen3.6-27B", SCHEMAS["ppo"]) is None
    choice = _template.choose("Qwen/Qwen3-4B", SCHEMAS["ppo"])
    assert choice and choice.template == "qwen3"


def test_it_is_chosen_told_and_recorded_and_the_id_stays_what_was_asked_for() -> None:
    plan = make({"a": node()}, train_model="unsloth/Qwen3-4B-GGUF")
    assert lines(plan)["template"] == plan.resolved["arguments"]["template"] == "qwen3"
    assert origins(plan)["template"] == "as Qwen/Qwen3-4B has it" and "template" not in plan.request["args"]
    assert "  chat    template qwen3, as Qwen/Qwen3-4B has it" in _describe.lines(plan, [DATA], {"a": node()})
    assert not any("template" in notice for notice in plan.notices)
    written = make({"a": node()}, train_model="unsloth/Qwen3-4B-GGUF", train_set="template=qwen3")
    assert "chat" not in "\n".join(_describe.lines(written, [DATA], {"a": node()})) and written.id != plan.id


def test_a_run_that_was_resolved_without_one_stays_without() -> None:
    before = make({"a": node()}, train_model="Qwen/Qwen3-4B")
    del before.resolved["arguments"]["template"]
    again = make({"a": recorded(before)}, train_model="Qwen/Qwen3-4B")
    assert again.id == before.id and again.recorded and "template" not in lines(again)
    assert any("resolved without" in notice for notice in again.notices)


@pytest.mark.parametrize(("model", "why"), [("org/m", "none is known"), ("Qwen/Qwen3-4B-Base", "it is a base model")])
def test_where_there_is_none_the_plan_says_so(model: str, why: str) -> None:
    plan = make({"a": node()}, train_model=model)
    assert "template" not in lines(plan)
    assert f"No `template` is given ({why})" in "\n".join(plan.notices)
    assert make({"a": node()}, train_model=model, train_set="template=default").nodes


def test_a_folder_that_says_what_it_was_has_its_template() -> None:
    facts = {"a": node(model={"name": "Qwen/Qwen3-4B-Instruct-2507", "type": "qwen3"})}
    assert lines(make(facts, train_model="/srv/mine"))["template"] == "qwen3_nothink"
    assert "template" not in lines(make({"a": node(model={"type": "qwen3"})}, train_model="/srv/mine"))


REFUSED = [
    ("Qwen/Qwen3-4B-Instruct-2507", "qwen3", "qwen3_nothink"),
    ("Qwen/Qwen3-4B-Thinking-2507", "qwen3_nothink", "qwen3"),
    ("Qwen/Qwen3-4B", "qwen", "qwen3"),
    ("meta-llama/Llama-3.2-1B-Instruct", "llama2", "llama3"),
    ("Qwen/Qwen3-VL-8B-Instruct", "qwen3_nothink", "qwen3_vl_nothink"),
]


@pytest.mark.parametrize(("model", "given", "right"), REFUSED)
def test_another_one_than_the_registrys_is_refused_with_the_right_name(model: str, given: str, right: str) -> None:
    asked: Variables = {"train_model": model, "train_set": f"template={given}"}
    with pytest.raises(FinetuneError, match="another template for this very model") as refusal:
        make({"a": node()}, **asked)
    assert refusal.value.where == "train_set, key template" and f"use {right}, or" in refusal.value.change


@pytest.mark.parametrize(
    ("given", "change"),
    [("qwen33", "use qwen3"), ("/tmp/x.jinja", "remove template to have that of the model"), ("", "such as empty")],
)
def test_a_template_that_there_is_not_has_near_ones_or_is_left_out(given: str, change: str) -> None:
    with pytest.raises(FinetuneError, match="no such template") as refusal:
        make({"a": node()}, train_model="org/m", train_args={"template": given})
    assert change in refusal.value.change


def test_the_author_may_insist() -> None:
    asked: Variables = {"train_model": "Qwen/Qwen3-4B", "train_set": "template=qwen"}
    plan = make({"a": node()}, train_insist="template", **asked)
    assert lines(plan)["template"] == "qwen"
    assert any("`template` is qwen; that of the model is qwen3" in notice for notice in plan.notices)
    assert make({"a": known((plan, "finished", 1.0))}, **asked).id == plan.id, "who insists is not part of the run"
    with pytest.raises(FinetuneError, match="'engine'") as refusal:
        make({"a": node()}, train_insist=["engine"], **asked)
    assert refusal.value.where == "train_insist"


@pytest.mark.parametrize(
    ("model", "settings", "noted"),
    [
        ("Qwen/Qwen3-4B", "template=qwen3_nothink", False),
        ("google/paligemma-3b-mix-224", "template=paligemma_chat", False),
        ("Qwen/Qwen3-4B-Instruct-2507", "template=qwen3 enable_thinking=null", True),
        ("unsloth/Qwen3-4B-bnb-4bit", "template=qwen", True),
        ("org/m", "template=qwen", False),
        ("/srv/Qwen3-4B-Thinking-2507", "template=qwen3_nothink", True),
        ("/srv/Qwen3-4B", "template=qwen3_nothink", False),
    ],
)
def test_a_twin_is_taken_and_of_copies_a_difference_is_told(model: str, settings: str, noted: bool) -> None:
    plan = make({"a": node()}, train_model=model, train_set=settings)
    assert any("that of the model is" in notice for notice in plan.notices) is noted


def test_media_are_counted_as_the_template_of_the_model_takes_them() -> None:
    from ansible_collections.llmops.finetune.plugins.module_utils import _wish

    for model, taken in (("Qwen/Qwen2.5-VL-7B-Instruct", True), ("Qwen/Qwen3-4B", False), ("demo", False)):
        assert _wish.read({**DEFAULTS, "train_model": model}, SCHEMAS, RECIPES).media.taken is taken
