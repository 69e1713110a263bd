# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""train_config: a LLaMA-Factory file taken over with its lines, and what a managed run owns left out."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.llmops.finetune.plugins.module_utils import _sources, _wish
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._wish.imported import Imported
from ansible_collections.llmops.finetune.plugins.plugin_utils import _import, _recipes

SCHEMAS = _sources.schemas()
RECIPES = _recipes.read()
DEFAULTS: dict[str, t.Any] = {
    **yaml.safe_load((Path(__file__).parents[2] / "roles/train/defaults/main.yml").read_text(encoding="utf-8")),
    "train_eval_datasets": ["demo_heldout"],
    "train_name": "",
}
FILE = """### model
model_name_or_path: org/model
trust_remote_code: true

stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
dataset: mine,agent_instruct
output_dir: saves/x
overwrite_output_dir: true
ddp_timeout: 180000000
learning_rate: 1e-4
eval_strategy: no
"""


def read(text: str) -> Imported:
    return _import.read(text, "my.yaml", SCHEMAS)


def test_a_file_is_arguments_with_their_lines_model_and_data() -> None:
    found = read(FILE)
    assert (found.model, found.datasets) == ("org/model", ["mine", "agent_instruct"])
    assert found.arguments["learning_rate"] == 1e-4 and found.arguments["eval_strategy"] == "no"
    assert found.origins["lora_rank"] == "my.yaml, line 8"
    assert found.arguments["gradient_accumulation_steps"] == 1
    assert found.origins["gradient_accumulation_steps"] == "LLaMA-Factory's default"
    assert not found.arguments.keys() & {"output_dir", "overwrite_output_dir", "ddp_timeout", "dataset"}


def test_what_a_managed_run_owns_is_left_out_with_a_notice() -> None:
    notices = read(FILE).notices
    assert [notice.partition(":")[0] for notice in notices] == [f"my.yaml, line {line}" for line in (10, 11, 12)]
    assert "start the run again from step 0" in notices[1]


def test_the_stage_tells_which_version_reads_a_file() -> None:
    assert read("stage: ppo\ndo_train: true\nuse_cache: false\n").arguments["use_cache"] is False
    with pytest.raises(FinetuneError, match=r"LLaMA-Factory 0\.9\.3 has no key oft_rank"):
        read("stage: ppo\noft_rank: 8\n")
    with pytest.raises(FinetuneError, match=r"LLaMA-Factory 0\.9\.5 has no key use_cache"):
        read("stage: sft\nuse_cache: false\n")


@pytest.mark.parametrize(
    ("text", "where", "change"),
    [
        ("lora_rnak: 8\n", "my.yaml, line 1, key lora_rnak", "lora_rank"),
        ("stage: sft\nevaluation_strategy: steps\n", "line 2", "use eval_strategy"),
        ("lora_rank: many\n", "line 1", "a whole number"),
        ("deepspeed: x.json\n", "line 1", "train_engine"),
        ("hf_hub_token: abc\n", "line 1", "train_secrets"),
        ("skip_special_token: true\n", "line 1", "use skip_special_tokens"),
        ("model: org/x\n", "my.yaml, line 1", "model_name_or_path"),
        ("stage: sft\nmoe_grouped_gemm: true\n", "my.yaml, line 2", "remove moe_grouped_gemm"),
        ("stage: sft\ntensor_model_parallel_size: two\n", "my.yaml, line 2", "a whole number"),
        ("a: [1\n", "my.yaml, line 2", "correct that line"),
        ("stage: sft\nstage: pt\n", "my.yaml, line 2, and my.yaml, line 1", "keep one"),
        ("<|token|>: what it means\n", "my.yaml", "another file"),
        ("compute_environment: LOCAL_MACHINE\n", "my.yaml, line 1", "the file that it launches"),
        ("stage: sft\nray_num_workers: 4\n", "my.yaml, line 2", "keys of Ray"),
        ("model_name_or_path: a\ntemplate: qwen3\n", "train_config, my.yaml", "do_train: true"),
        ("model_name_or_path: a\nexport_dir: b\n", "train_config, my.yaml", "a file for training"),
        ("stage: sft\ndo_predict: true\neval_dataset: a\n", "train_config, my.yaml", "do_train: true"),
        ("stage: sft\ndo_train: false\n", "train_config, my.yaml", "do_train: true"),
        ("- a\n", "my.yaml", "key: value"),
        ("stage: sft\nnull: 1\n", "my.yaml, line 2", "a key of LLaMA-Factory"),
        ("stage: sft\n<<: {seed: 1}\n", "my.yaml, line 2", "a key of LLaMA-Factory"),
        ("stage: sft\n? [a]\n: 1\n", "my.yaml, line 2", "a key of LLaMA-Factory"),
        ("stage: sft\nrun_name: a\0b\n", "my.yaml, line 2", "correct that line"),
        ("[" * 5000, "my.yaml", "key: value"),
        ("stage: sft\nlora_target: &x [*x]\n", "my.yaml", "key: value"),
        ("stage: sft\nrun_name: 2024-01-01\n", "my.yaml, line 2", "put it in quotes"),
        ("stage: sft\nrun_name: 2024-13-01\n", "my.yaml, line 2", "put it in quotes"),
        ("stage: sft\nlora_target:\n- 2024-01-01\n", "my.yaml, line 3", "put it in quotes"),
        ("stage: sft\nseed: !!int x\n", "my.yaml, line 2", "without a tag"),
        ("stage: sft\nseed: !!python/x 1\n", "my.yaml, line 2", "correct that line"),
        ("stage: sft\ndataset: 5\n", "my.yaml, line 2, key dataset", "write names"),
        ("stage: sft\neval_dataset: 7\n", "my.yaml, line 2, key eval_dataset", "write names"),
        ("stage: sft\ndataset: [demo, {a: 1}]\n", "my.yaml, line 2, key dataset", "write names"),
        ("stage: sft\ndataset_dir: [a]\n", "my.yaml, line 2, key dataset_dir", "write text"),
        ("stage: sft\nmodel_name_or_path: [a]\n", "my.yaml, line 2, key model_name_or_path", "write text"),
        ("", "my.yaml", "key: value"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(text: str, where: str, change: str) -> None:
    with pytest.raises(FinetuneError) as refusal:
        read(text)
    assert where in refusal.value.where and change in refusal.value.change
    assert "abc" not in str(refusal.value), "a secret is not shown"


def test_a_wish_takes_the_file_for_its_recipe_and_variables_go_over_it() -> None:
    wish = _wish.read({**DEFAULTS, "train_set": "lora_rank=16"}, SCHEMAS, RECIPES, read(FILE))
    assert (wish.recipe, wish.name, wish.base, wish.model) == ("config", "config", {}, "org/model")
    assert (wish.args["lora_rank"], wish.origins["lora_rank"]) == (16, "train_set")
    assert wish.origins["learning_rate"] == "my.yaml, line 13"
    assert [dataset.name for dataset in wish.datasets] == ["mine", "agent_instruct"]
    assert wish.eval_datasets == [], "the demo's held-out records are not this file's"
    other = {**DEFAULTS, "train_model": "/srv/m", "train_datasets": [{"file": "a.json"}], "train_eval_datasets": []}
    wish = _wish.read(other, SCHEMAS, RECIPES, read(FILE))
    assert (wish.model, [dataset.name for dataset in wish.datasets]) == ("/srv/m", ["a"])


def test_a_line_of_the_file_that_a_variable_goes_over_is_told() -> None:
    over = {"train_args": {"lora_rank": 16, "seed": 3}, "train_set": "stage=sft learning_rate=2e-4 lora_rank=32"}
    first = len(read(FILE).notices)
    assert _wish.read({**DEFAULTS, **over}, SCHEMAS, RECIPES, read(FILE)).notices[first:] == [
        "my.yaml, line 8: lora_rank 8 is overruled by train_set: 32.",
        "my.yaml, line 13: learning_rate 0.0001 is overruled by train_set: 0.0002.",
    ], "one per key, the last one counts, and the same value is none"
    over = {"train_args": {"lora_rank": 16, "gradient_accumulation_steps": 4}}
    assert _wish.read({**DEFAULTS, **over}, SCHEMAS, RECIPES, read(FILE)).notices[first:] == [
        "my.yaml, line 8: lora_rank 8 is overruled by train_args: 16."
    ], "what the file leaves out has no line"


@pytest.mark.parametrize(
    ("key", "variable", "value"),
    [("model_name_or_path", "train_model", "org/other"), ("dataset", "train_datasets", [{"file": "a.json"}])],
)
def test_a_file_without_model_or_data_does_not_train_the_demo(key: str, variable: str, value: t.Any) -> None:
    text = "".join(line for line in FILE.splitlines(keepends=True) if not line.startswith(f"{key}:"))
    with pytest.raises(FinetuneError, match=rf"my\.yaml has no {key}") as refusal:
        _wish.read(DEFAULTS, SCHEMAS, RECIPES, read(text))
    assert refusal.value.where == "train_config, my.yaml"
    assert refusal.value.change == f"add {key} to the file, or set {variable}"
    assert _wish.read({**DEFAULTS, variable: value}, SCHEMAS, RECIPES, read(text)).recipe == "config"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "my").mkdir()
    for wanted, folders in (("my", [tmp_path]), (f"{tmp_path}/my", [])):
        with pytest.raises(FinetuneError, match=f"There is a folder {tmp_path}/my, and a file is due"):
            _import.find(wanted, folders, SCHEMAS)
    with pytest.raises(FinetuneError) as refusal:
        _import.find("/none/my.yaml", [tmp_path], SCHEMAS)
    assert refusal.value.where == "train_config"


def test_a_folder_with_the_name_of_the_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(FILE, encoding="utf-8")
    assert not any("org/model" in notice for notice in _import.find("my.yaml", [tmp_path], SCHEMAS).notices)
    (tmp_path / "org/model").mkdir(parents=True)
    (told,) = [notice for notice in _import.find("my.yaml", [tmp_path], SCHEMAS).notices if "org/model" in notice]
    assert f"a model of a hub, and not the folder {tmp_path}/org/model" in told and "write the full path" in told
