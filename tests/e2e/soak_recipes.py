# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make soak PART=recipes`: every recipe that can run here trains, once undisturbed and once with a rank that dies when
the optimizer of its first checkpoint is written. About half an hour."""

from __future__ import annotations

import json
import time

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _parallel, _recipe

from .conftest import BASE, Demo, World, weights
from .recipes import RECIPES, RUNS, apply, finished
from .soak import REPORT
from .test_agreement import judged, upstream
from .test_faults import killer, write_plan

REPORT += [
    "| recipe | loss, first and last | results | a rank died, and the run | took |",
    "|---|---|---|---|---|",
]
_OTHER_STATE = {
    "badam": "global_step8/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "fsdp_qlora": "optimizer.bin",
    "ppo": "adapter_model.safetensors",
}
"""What a checkpoint has the optimizer's state in, where it is not optimizer.pt; PPO keeps none."""


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_recipe_trains_and_goes_on_after_a_death(world: World, demo: Demo, name: str) -> None:
    began = time.monotonic()
    run, own = RUNS[name], name.replace("_", "-")
    whole = apply(world, demo, name, f"whole-{own}")
    losses = finished(world, whole, name)
    plan = BASE / f"killer-{own}.json"
    write_plan(plan, [["checkpoint-8", _OTHER_STATE.get(name, "optimizer.pt")]])
    killed = apply(world, demo, name, f"killed-{own}", killer(plan))
    assert finished(world, killed, name) == pytest.approx(losses, abs=1e-4)
    folder = world.folder(killed)
    resumes = json.loads((folder / "launch.json").read_text())["resumes"]
    assert (killed.run["attempt"], killed.run["from_step"]) == (2, 4 if resumes else 0)
    for file in run.left:
        assert weights(folder, file) == weights(world.folder(whole), file), file
    went = "went on from its checkpoint" if resumes else "began again"
    REPORT.append(
        f"| {name} | {losses[0]:.3f}, {losses[-1]:.3f} | {', '.join(run.left)} | {went}, to the same bytes | "
        f"{time.monotonic() - began:.0f} s |"
    )


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - RUNS.keys() - {"megatron"}))
def test_the_parser_of_its_environment_takes_what_cannot_run_here(world: World, demo: Demo, name: str) -> None:
    """All but Megatron's, which no index has."""
    began = time.monotonic()
    recipe = RECIPES[name]
    own = _parallel.ENGINES.get(recipe.engine, _parallel.Engine())
    environment = _recipe.environment(recipe.arguments, own.environment)
    lock = str(world.clone / f"requirements/node-{environment}.txt")
    imports = {"uv_env_imports": ["torch", "transformers"]}  # unsloth and KTransformers look for a GPU at once
    made = world.play("llmops.finetune.environment", variables={"uv_env_lock": lock, **imports})
    assert made.rc == 0, made.text
    (python,) = {line["result"]["python"] for line in made.results if "python" in line["result"]}
    assert judged(python, [upstream({**recipe.arguments, **own.arguments}, {})]) == [None]
    took = time.monotonic() - began
    REPORT.append(f"| {name} | not run: {recipe.unproved} | parser of node-{environment} takes it | | {took:.0f} s |")


def test_every_recipe_is_run_here_or_says_why_not() -> None:
    assert RUNS.keys() == {name for name, recipe in RECIPES.items() if not recipe.unproved}
