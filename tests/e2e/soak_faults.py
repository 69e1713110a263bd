# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make soak PART=faults`: a death after every single file of the first and of a later checkpoint and right before the
end, and random kills; a rank of every engine that dies; longer forms of what `make test` has. Half an hour or more."""

from __future__ import annotations

import os
import random
import signal
import time
import typing as t
from pathlib import Path

import pytest

from . import test_chain, test_explained
from .conftest import BASE, Demo, World, processes, weights
from .soak import REPORT
from .test_engines import MODEL, PARTS, killed, losses, whole
from .test_explained import UNSAVED, Begun, fill, follow, once
from .test_faults import deaths_of, killer, rank_process, read, start, wait_for, write_plan

SEED = int(os.environ.get("SOAK_SEED", "1"))
KILLS = int(os.environ.get("SOAK_KILLS", "20"))
begun = test_explained.begun  # a fixture
REPORT += ["| what | times | outcome | took |", "|---|---|---|---|"]
LONGER: dict[str, t.Any] = {"max_steps": 2600, "save_steps": 25}
"""Long enough for several kills."""
_FILES = [
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
]


@pytest.fixture(scope="session")
def quiet(world: World, demo: Demo) -> str:
    done = world.play(variables={"train_name": "quiet"})
    assert done.rc == 0, done.text
    return weights(world.folder(done))


@pytest.mark.parametrize("checkpoint", ["checkpoint-8", "checkpoint-16"], ids=["first save", "later save"])
def test_a_death_after_every_single_file_of_a_checkpoint(world: World, quiet: str, checkpoint: str) -> None:
    plan = BASE / f"soak-{checkpoint}.json"
    deaths = [*([checkpoint, name] for name in _FILES), ["checkpoint-24", "complete.json"]]
    write_plan(plan, deaths)
    began = time.monotonic()
    variables = {"train_name": f"soak-{checkpoint}", "train_max_restarts": len(deaths)}
    done = world.play(variables=variables, environment=killer(plan))
    assert done.rc == 0, done.text
    assert len(list(deaths_of(plan).iterdir())) == len(deaths) == done.run["attempt"] - 1
    assert weights(world.folder(done)) == quiet
    REPORT.append(
        f"| a rank dies after each single file of {checkpoint}, and when the last save is whole | {len(deaths)} | "
        "weights equal the quiet run's | "
        f"{time.monotonic() - began:.0f} s |"
    )


def test_random_kills_of_trainer_and_supervisor(world: World, demo: Demo) -> None:
    """Each kill is at a random moment; every apply goes on, and the weights come out the same."""
    undisturbed = world.play(variables={"train_name": "soak-quiet"}, **LONGER)
    assert undisturbed.rc == 0, undisturbed.text
    quiet = weights(world.folder(undisturbed))
    dice = random.Random(SEED)
    began = time.monotonic()
    for _ in range(KILLS):
        _, folder = start(world, "soak-random", **LONGER)
        if dice.random() < 0.8:  # in the middle of steps and saves, else while it loads
            wait_for(lambda: "step" in read(folder / "progress.json"))  # noqa: B023 - called at once
        time.sleep(dice.uniform(0, 4))
        victim = dice.choice(processes(folder.name))
        supervisor = read(folder / "state.json").get("pid")
        os.kill(victim, signal.SIGKILL)
        if victim == supervisor:
            wait_for(lambda: not processes(folder.name), 15)  # noqa: B023
        else:
            time.sleep(1)  # for the supervisor to see it
    done = world.play(variables={"train_name": "soak-random", "train_max_restarts": KILLS}, **LONGER)
    assert done.rc == 0, done.text
    assert weights(world.folder(done)) == quiet and processes(world.folder(done).name) == []
    REPORT.append(
        f"| random kills of ranks, torchrun and supervisor (seed {SEED}) | {KILLS} | weights equal the quiet run's, "
        f"no orphan | {time.monotonic() - began:.0f} s |"
    )


def test_a_rank_of_two_that_train_an_adapter_dies(world: World, demo: Demo) -> None:
    """Distributed ranks restore their state on the CPU, and end at the same step when they are asked to."""
    began = time.monotonic()
    variables = {"train_name": "pair", "train_processes_per_node": 2}
    undisturbed = world.play(variables=variables)
    assert undisturbed.rc == 0, undisturbed.text
    plan = BASE / "killer-pair.json"
    write_plan(plan, [["checkpoint-8", "complete.json"]])
    done = world.play(variables={**variables, "train_name": "pair-killed"}, environment=killer(plan))
    assert done.rc == 0, done.text
    assert done.run["attempt"] == 2
    assert weights(world.folder(done)) == weights(world.folder(undisturbed))
    REPORT.append(
        "| two ranks that train an adapter: one dies after a save | 1 | weights equal the quiet run's | "
        f"{time.monotonic() - began:.0f} s |"
    )


@pytest.fixture(scope="session")
def ddp(world: World, demo: Demo) -> Path:
    return whole(world, "ddp")


@pytest.mark.parametrize("engine", PARTS)
def test_a_rank_of_every_engine_dies(world: World, ddp: Path, engine: str) -> None:
    began = time.monotonic()
    folder = whole(world, engine)
    learned = max(abs(one - other) for one, other in zip(losses(folder), losses(ddp), strict=True))
    assert learned <= 1e-4
    same = weights(killed(world, engine), MODEL) == weights(folder, MODEL)
    assert same or engine.endswith("_offload"), "README says that offload does not come out the same"
    compared = f"weights {'equal' if same else 'DIFFER from'} the quiet run's, losses are ddp's to {learned:.1g}"
    REPORT.append(
        f"| engine {engine}, two ranks: one dies in a save | 1 | {compared} | {time.monotonic() - began:.0f} s |"
    )


def test_a_full_disk_at_the_last_file_of_a_save(world: World, begun: Begun) -> None:
    began = time.monotonic()
    fill(world, begun, "trainer_state.json")
    REPORT.append(f"| the disk is full at the end of a save | 1 | told as that | {time.monotonic() - began:.0f} s |")


def test_a_killed_rank_is_told(world: World, begun: Begun) -> None:
    began = time.monotonic()
    os.kill(rank_process(begun("struck", **UNSAVED)), signal.SIGKILL)
    done = follow(world, "struck", **UNSAVED)
    assert "A rank was killed (SIGKILL)." in done.message and "see what ended it" in done.message
    told = world.play("llmops.finetune.explain", variables={"train_run_id": "struck-*"})
    assert "A rank was killed (SIGKILL)." in told.text, "of yesterday's run"
    REPORT.append(f"| a rank is killed before its first save | 1 | told as that | {time.monotonic() - began:.0f} s |")


def test_data_that_no_hub_gives_are_told(world: World, demo: Demo) -> None:
    began = time.monotonic()
    once(world, "far", "could not be had from its hub", {"train_datasets": [{"hub": "no-one/no-such-set"}]})
    REPORT.append(f"| a hub that does not answer | 1 | told as that | {time.monotonic() - began:.0f} s |")


def test_a_chain_whose_middle_is_changed(world: World, demo: Demo) -> None:
    began = time.monotonic()
    first = test_chain.play(world)
    assert first.rc == 0, first.text
    test_chain.changed_alone(test_chain.play(world, learning_rate=5e-4), first)
    back = test_chain.play(world)
    assert back.changed == [] and test_chain.ids(back) == test_chain.ids(first), "taken up, though it is not the newest"
    REPORT.append(
        "| the middle of a chain is changed, and changed back | 2 | it and what follows are trained; then nothing is | "
        f"{time.monotonic() - began:.0f} s |"
    )
