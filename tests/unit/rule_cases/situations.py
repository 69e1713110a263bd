# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the cases are made of, and what the rules say of one."""

from __future__ import annotations

import typing as t

from ansible_collections.llmops.finetune.plugins.module_utils import _model, _recipe, _rules, _sources
from ansible_collections.llmops.finetune.plugins.module_utils._parallel import ENGINES, Engine

SCHEMAS = _sources.schemas()
MAIN = SCHEMAS["main"]
BASE: dict[str, t.Any] = {"stage": "sft", "finetuning_type": "lora", "do_train": True, "report_to": "none"}
FULL = {"finetuning_type": "full"}
GALORE = {**FULL, "use_galore": True, "optim": "adamw_torch"}
APOLLO = {**FULL, "use_apollo": True, "optim": "adamw_torch"}
BADAM = {**FULL, "use_badam": True}
BITS = {"quantization_bit": 4}
STREAM = {"streaming": True, "max_steps": 9, "dataloader_num_workers": 1}
PPO = {"stage": "ppo", "reward_model": "/reward"}
DPO = {"stage": "dpo"}
HEAD, ADAPTER = frozenset(["value_head.safetensors"]), frozenset(["adapter_config.json"])
ON_TOP = {"adapter_name_or_path": "/a", "create_new_adapter": True}
HELD_OUT = {"eval_datasets": 1}
FREEZE = {"finetuning_type": "freeze"}
OFT = {"finetuning_type": "oft", "ddp_find_unused_parameters": False}
PRO = {**FREEZE, "use_llama_pro": True}
PACKED = {"neat_packing": True, "flash_attn": "fa2", "per_device_train_batch_size": 1}
BEST = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 500}
ZERO2 = {"engine": Engine(zero_stage=2)}
ZERO3 = {"engine": Engine(zero_stage=3)}
OFFLOAD = {"engine": Engine(zero_stage=2, offload=True)}
FSDP = {"engine": Engine(fsdp=True)}
MEGATRON = {"engine": ENGINES["megatron"], "gpus": True}
KTRANSFORMERS = {"engine": ENGINES["ktransformers"], "gpus": True}
WITH = "packages"
"""In a situation: packages besides those of the lock."""


def lies(**known: t.Any) -> dict[str, t.Any]:
    """A situation in which this is known of the model."""
    return {"weights": _model.Model(**known)}


GPTQ = lies(quantized="gptq")
READS_GPTQ = {**GPTQ, WITH: ["gptqmodel"]}
QWEN3 = lies(type="qwen3", layers=28, length=4096, first_length=4096)

Case = tuple[str, dict[str, t.Any], dict[str, t.Any], dict[str, t.Any], dict[str, t.Any]]
"""What the row says, breaking arguments and situation, repaired arguments and situation."""


def told(arguments: dict[str, t.Any], situation: dict[str, t.Any]) -> list[str]:
    """What the rules say of these arguments over BASE, in the environment of their stage."""
    return [problem.what for problem in problems(arguments, situation)]


def problems(arguments: dict[str, t.Any], situation: dict[str, t.Any]) -> list[t.Any]:
    situation = dict(situation)
    own = situation.get("engine", Engine()).environment
    schema = SCHEMAS[_recipe.environment({**BASE, **arguments}, own)]
    more, fewer = situation.pop(WITH, []), situation.pop("without", [])
    packages = {name: version for name, version in schema.packages.items() if name not in fewer}
    packages.update(more if isinstance(more, dict) else dict.fromkeys(more, "1"))
    schema = schema._replace(packages=packages)
    found = _rules.problems({**BASE, **arguments}, schema, _rules.Situation(**situation), arguments)
    assert all(problem.change for problem in found)
    return found
