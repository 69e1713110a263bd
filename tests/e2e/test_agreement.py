# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our reading of arguments beside LLaMA-Factory's own parser, which runs for real in the environment of the demo; that
of PPO is asked in test_ppo.py."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import typing as t
from pathlib import Path

from ansible_collections.llmops.finetune.plugins.module_utils import _config, _recipe, _rules, _schema
from ansible_collections.llmops.finetune.plugins.module_utils._parallel import Engine

from ..unit.rule_cases import cases, situations
from .conftest import REPOSITORY, Demo

MAIN = situations.MAIN
LATE = (
    "MoD/",
    "data/",
    "model/",
    "train/",
    "accelerate ",
    "datasets ",
    "liger-kernel",
    "peft ",
    "transformers integrations",
    "transformers modeling_utils.py",
    "transformers trainer.py",
    "swanlab ",
    "wandb ",
)
"""Where LLaMA-Factory fails, or does otherwise, later with what its parser takes: our kinds of being stricter."""

Configuration = tuple[dict[str, t.Any], dict[str, t.Any]]
"""Arguments over those of situations.BASE, and the situation they are in."""


def python(demo: Demo) -> str:
    return str(json.loads((demo.folder / "launch.json").read_text())["python"])


def upstream(arguments: dict[str, t.Any], situation: dict[str, t.Any]) -> dict[str, t.Any]:
    """The configuration as LLaMA-Factory would get it."""
    names = {key: [f"{key}{i}" for i in range(situation.get(f"{key}s", count))] for key, count in COUNTS}
    given = {**situations.BASE, "model_name_or_path": situation.get("model", "/m"), **arguments}
    given |= {key: ",".join(found) for key, found in names.items() if found}
    if "engine" in situation:
        given["deepspeed"] = {"zero_optimization": {"stage": situation["engine"].zero_stage}}
    return given


COUNTS = (("dataset", 1), ("eval_dataset", 0))
EXPRESSIBLE = {"datasets", "eval_datasets", "model", "engine"}
"""What of a situation can be written into a configuration; other packages and GPUs cannot."""


def twins(environment: str) -> list[Configuration]:
    """What breaks each row of the rules, and its repair; of the stages that run in an environment."""
    pairs = [pair for case in cases.CASES for pair in ((case[1], case[2]), (case[3], case[4]))]
    return [
        (arguments, situation)
        for arguments, situation in pairs
        if situation.keys() <= EXPRESSIBLE
        and situation.get("engine") not in (situations.OFFLOAD["engine"], situations.FSDP["engine"])
        and _recipe.environment(arguments, situation.get("engine", Engine()).environment) == environment
    ]


def combinations(environment: str, number: int, seed: int) -> list[Configuration]:
    """Random ones of one to three keys with values that are not their defaults."""
    dice = random.Random(seed)
    over = situations.PPO if environment == "ppo" else {}
    pool = [
        found for found in settings(environment) if _recipe.environment({found[0]: found[1], **over}) == environment
    ]
    found: list[Configuration] = []
    while len(found) < number:
        arguments = dict(dice.sample(pool, dice.choice((1, 2, 2, 3))))
        situation: dict[str, t.Any] = {"eval_datasets": dice.choice((0, 1))}
        found.append(({**arguments, **over}, situation))
    return found


def settings(environment: str) -> t.Iterator[tuple[str, t.Any]]:
    ours = {*_config.OWNED, *_config.RESERVED, "local_rank"}
    for name, key in situations.SCHEMAS[environment].keys.items():
        if name in ours or name.endswith(("_token", "_api_key")):
            continue
        if key.choices:
            yield from ((name, choice) for choice in key.choices if choice != key.default)
        elif "boolean" in key.types:
            yield name, not key.default
        elif "integer" in key.types:
            yield from ((name, value) for value in (0, -1, 3))
        elif "number" in key.types:
            yield from ((name, value) for value in (0.25, -1.0, 2.5))


def judged(python: str, configurations: list[dict[str, t.Any]]) -> list[str | None]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    judge = REPOSITORY / "tests" / "e2e" / "upstream.py"
    text = json.dumps(configurations)
    done = subprocess.run([python, judge, port], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers: list[str | None] = json.loads(done.stdout)
    return answers


def compare(python: str, configurations: list[Configuration]) -> tuple[list[str], int]:
    """What we and LLaMA-Factory see differently, and how many it refuses."""
    theirs = judged(python, [upstream(*configuration) for configuration in configurations])
    lateness = {rule.what: rule.source.startswith(LATE) for rule in _rules.RULES}
    wrong = []
    for (arguments, situation), refusal in zip(configurations, theirs, strict=True):
        ours = situations.told(arguments, situation)
        if refusal and not ours:
            wrong.append(f"only theirs: {arguments} {situation}: {refusal}")
        if not refusal and any(not lateness[what] for what in ours):
            wrong.append(f"only ours: {arguments} {situation}: {ours}")
    return wrong, sum(bool(refusal) for refusal in theirs)


def test_what_llamafactory_refuses_is_refused_and_nothing_else_but_what_fails_later(demo: Demo) -> None:
    """All rows of the rules, and random configurations; `make soak PART=parsers` has more of them."""
    configurations = [*twins("main"), *combinations("main", 400, seed=20261124)]
    wrong, refused = compare(python(demo), configurations)
    assert wrong == []
    assert len(configurations) > 500 and 100 < refused < len(configurations) - 100


def test_a_key_or_choice_that_we_refuse_is_refused_there_or_fails_in_training(demo: Demo) -> None:
    wrong = {"lora_rnak": 8, "stage": "ppp", "finetuning_type": "qlora", "optim": "adam"}
    refusals = judged(python(demo), [upstream({key: value}, {}) for key, value in wrong.items()])
    for (key, value), refusal in zip(wrong.items(), refusals, strict=True):
        assert _schema.read(key, value, MAIN)[1]
        assert refusal or key == "stage", "an unknown stage is told when training begins"


def extracted(python: str, folder: Path) -> dict[str, bool]:
    """By file of the schema that the installed LLaMA-Factory gives: is it the stored one?"""
    subprocess.run([python, REPOSITORY / "scripts/schema.py", folder], check=True, capture_output=True)
    stored = REPOSITORY / "roles/train/files"
    return {
        str(path.relative_to(folder)): path.read_bytes() == (stored / path.relative_to(folder)).read_bytes()
        for path in folder.rglob("*.json")
    }


def test_the_stored_schema_is_what_the_installed_llamafactory_says(demo: Demo, tmp_path: Path) -> None:
    found = extracted(python(demo), tmp_path)
    assert found == {"llamafactory-0.9.5/keys.json": True, "llamafactory-0.9.5/templates.json": True}
