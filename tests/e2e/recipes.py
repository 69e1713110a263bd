# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Short runs of recipes on the CPU, through the playbook, on the embedded model or one that is made for them: what each
is given, and what must be there when it is finished."""

from __future__ import annotations

import json
import math
import subprocess
import typing as t
from pathlib import Path

from ansible_collections.llmops.finetune.plugins.plugin_utils import _recipes

from .conftest import BASE, REPOSITORY, Demo, Outcome, World

RECIPES = _recipes.read()
HERE = BASE / "recipes"
STEPS: dict[str, t.Any] = {"max_steps": 16, "save_steps": 4, "logging_steps": 2, "learning_rate": 1e-3}
ADAPTER, MODEL, HEAD = "adapter_model.safetensors", "model.safetensors", "value_head.safetensors"
_BOOKS = (("train", "train"), ("see my runs", "status"), ("end a run", "stop"), ("plan", "plan")) * 6
_QUESTIONS = [(f"How do I {what}?", f"Run the playbook {book}.") for what, book in _BOOKS]
_WORSE = "I do not know."
_COLUMNS = {"prompt": "instruction", "query": "input"}


class Run(t.NamedTuple):
    """A short run of a recipe."""

    left: tuple[str, ...] = (ADAPTER,)
    """Results."""
    says: str = ""
    """A line of LLaMA-Factory's that tells that the method is at work."""
    config: dict[str, t.Any] = {}  # noqa: RUF012 - never changed
    """What adapter_config.json has."""
    first: tuple[float, float] = (0.0, 100.0)
    """Between what the first loss is: another method begins elsewhere."""
    falls: bool = True
    """Whether the loss must. That of PPO is no measure, nor one that weighs tokens by how likely they are: it moves."""
    arguments: dict[str, t.Any] = {}  # noqa: RUF012
    ranks: int = 1


WHOLE = Run((MODEL,))
RUNS: dict[str, Run] = {
    "adam_mini": WHOLE._replace(says="Using Adam-mini optimizer"),
    "apollo": WHOLE._replace(says="Using APOLLO optimizer", arguments={"learning_rate": 1e-4}),
    "asft": WHOLE._replace(first=(0, 1), falls=False),
    "badam": WHOLE._replace(says="Using BAdam optimizer"),
    "dft": WHOLE._replace(first=(0, 1), falls=False),
    "dora": Run(says="Fine-tuning method: DoRA", config={"use_dora": True}),
    "dpo": Run(first=(0.6, 0.8)),
    "eaft": WHOLE._replace(first=(1, 2.2)),
    "freeze_sft": WHOLE._replace(says="Fine-tuning method: Freeze"),
    "fsdp_qlora": Run(says="Quantizing model to 4 bit with bitsandbytes", ranks=2),
    "full_sft": WHOLE._replace(says="Fine-tuning method: Full"),
    "galore": WHOLE._replace(says="Using GaLore optimizer"),
    "ipo": Run(first=(15, 26)),
    "kto": Run(first=(0.4, 0.6)),
    "llama_pro": WHOLE._replace(says="Fine-tuning method: Freeze", arguments={"freeze_trainable_layers": 2}),
    "lora_plus": Run(says="Using LoRA+ optimizer"),
    "lora_sft": Run(config={"peft_type": "LORA", "r": 8}),
    "multimodal_sft": Run(arguments={"template": "qwen2_vl"}),
    "muon": WHOLE._replace(says="Using Muon optimizer"),
    "neat_packing": Run(),
    "oft_sft": Run(config={"peft_type": "OFT", "oft_block_size": 32}),
    "orpo": Run(),
    "pissa": Run((ADAPTER, f"pissa_converted/{ADAPTER}"), says="Using PiSSA initialization with FSVD steps 16"),
    "ppo": Run((ADAPTER, HEAD), falls=False, arguments={"learning_rate": 1e-4, "max_new_tokens": 48}),
    "pretrain": Run(arguments={"cutoff_len": 128}),  # texts are filled up to it, and there are few
    "qlora_sft": Run(says="Quantizing model to 4 bit with bitsandbytes"),
    "qoft_sft": Run(says="Quantizing model to 4 bit with bitsandbytes", config={"peft_type": "OFT"}),
    "reward": Run((ADAPTER, HEAD)),
    "rslora": Run(config={"use_rslora": True, "r": 64}),
    "simpo": Run(),
}


def apply(world: World, demo: Demo, name: str, run_name: str, environment: dict[str, str] | None = None) -> Outcome:
    """Train with a recipe."""
    run = RUNS[name]
    asked: dict[str, t.Any] = {"train_name": run_name, "train_recipe": name, **data(RECIPES[name].arguments["stage"])}
    if run.ranks > 1:
        asked["train_processes_per_node"] = run.ranks
    if name in _BESIDES:
        asked |= _BESIDES[name](world, demo)
    return world.play(variables=asked, environment=environment, **{**STEPS, **run.arguments})


def finished(world: World, done: Outcome, name: str) -> list[float]:
    """What must be there; the losses."""
    assert done.rc == 0, done.text
    run, output = RUNS[name], world.folder(done) / "output"
    for file in run.left:
        assert (output / file).stat().st_size > 500, file
    if ADAPTER in run.left:
        config = json.loads((output / "adapter_config.json").read_text())
        assert config.items() >= run.config.items(), config
    logs = "".join(path.read_text(encoding="utf-8") for path in (world.folder(done) / "logs").glob("attempt-*.log"))
    assert run.says in logs
    log = [json.loads(line) for line in (output / "trainer_log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert len(losses) == 8 and (sum(losses[-3:]) < sum(losses[:3]) or not run.falls), losses
    assert len(set(losses)) > 1 and all(map(math.isfinite, losses)), losses
    assert run.first[0] < losses[0] < run.first[1], losses
    return losses


def data(stage: str) -> dict[str, t.Any]:
    """Datasets for a stage; that of the role where answers are due."""
    HERE.mkdir(parents=True, exist_ok=True)
    if stage in ("rm", "dpo"):
        rows = [{"instruction": ask, "input": "", "chosen": good, "rejected": _WORSE} for ask, good in _QUESTIONS]
        columns = {**_COLUMNS, "chosen": "chosen", "rejected": "rejected"}
        return _dataset("pairs", rows, ranking=True, columns=columns)
    if stage == "kto":
        marked: list[dict[str, t.Any]] = [
            {"instruction": ask, "input": "", "output": answer, "liked": answer == good}
            for ask, good in _QUESTIONS
            for answer in (good, _WORSE)
        ]
        return _dataset("liked", marked, columns={**_COLUMNS, "response": "output", "kto_tag": "liked"})
    if stage == "pt":
        return _dataset("text", [{"text": f"{ask} {good}"} for ask, good in _QUESTIONS], columns={"prompt": "text"})
    return {}


def _dataset(name: str, rows: list[dict[str, t.Any]], **described: t.Any) -> dict[str, t.Any]:
    path = HERE / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"train_datasets": [{"name": name, "file": str(path), **described}], "train_eval_datasets": []}


def made(demo: Demo, script: str) -> Path:
    """A model that a script of this folder makes from the embedded one, once."""
    folder = HERE / Path(script).stem
    if not (folder / "config.json").exists():
        launch = json.loads((demo.folder / "launch.json").read_text())
        base = demo.applied.plan["nodes"]["localhost"]["model"]["path"]
        command = [launch["python"], REPOSITORY / "tests/e2e" / script, base, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        for path in (HERE, folder, *folder.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)  # runs may belong to another account
    return folder


def _seeing(world: World, demo: Demo) -> dict[str, t.Any]:
    rows = []
    for number in range(8):
        (HERE / f"{number}.ppm").write_bytes(b"P6 56 56 255\n" + bytes([32 * number, 0, 255 - 32 * number]) * 56 * 56)
        colour = "blue" if number < 4 else "red"
        rows.append({"instruction": "<image>Which colour?", "output": f"It is {colour}.", "images": [f"{number}.ppm"]})
    return {"train_model": str(made(demo, "vision_model.py")), **_dataset("colours", rows)}


def _grown(world: World, demo: Demo) -> dict[str, t.Any]:
    return {"train_model": str(made(demo, "grown_model.py"))}


def _judged(world: World, demo: Demo) -> dict[str, t.Any]:
    """The reward model of a run that is made once."""
    judge = apply(world, demo, "reward", "whole-reward")
    assert judge.rc == 0, judge.text
    return {"train_set": f"reward_model={world.folder(judge)}/output"}


_BESIDES: dict[str, t.Callable[[World, Demo], dict[str, t.Any]]] = {
    "asft": lambda _world, _demo: {"train_eval_datasets": []},
    "llama_pro": _grown,
    "multimodal_sft": _seeing,
    "ppo": _judged,
}
"""What recipes are given besides: a model of another kind, a reward model, or nothing to evaluate on."""
