# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is damaged behind Ansible's back is named or repaired."""

from __future__ import annotations

import shutil
import typing as t
from pathlib import Path

import pytest

from .conftest import Demo, Outcome, World


@pytest.fixture(scope="module")
def finished(world: World, demo: Demo) -> Outcome:
    done = world.play(variables={"train_name": "tampered"})
    assert done.rc == 0, done.text
    return done


def again(world: World, *arguments: str, **variables: t.Any) -> Outcome:
    return world.play("train.yml", *arguments, variables={"train_name": "tampered", **variables})


def test_damaged_results_are_named_and_restored_on_demand(world: World, finished: Outcome) -> None:
    """One is gone, in another one a byte is flipped."""
    output = world.folder(finished) / "output"
    config, adapter = output / "adapter_config.json", output / "adapter_model.safetensors"
    good = adapter.read_bytes()
    config.unlink()
    flipped = bytearray(good)
    flipped[len(flipped) // 2] ^= 1
    adapter.write_bytes(flipped)
    refused = again(world)
    assert refused.rc != 0
    assert "output/adapter_config.json" in refused.message and "output/adapter_model.safetensors" in refused.message
    assert "train_retry=true" in refused.message and "Traceback" not in refused.text
    restored = again(world, train_retry=True)
    assert restored.rc == 0, restored.text
    assert adapter.read_bytes() == good and config.is_file()
    assert again(world).changed == []


def test_an_edited_train_yaml_is_put_back(world: World, finished: Outcome) -> None:
    config = world.folder(finished) / "train.yaml"
    good = config.read_text()
    config.write_text(good.replace("lora_rank: 8", "lora_rank: 9"))
    repaired = again(world)
    assert repaired.changes == [("update", str(config))]
    assert config.read_text() == good


def test_a_truncated_dataset_is_stored_again(world: World, finished: Outcome) -> None:
    stored = finished.plan["nodes"]["localhost"]["datasets"][0]
    path = Path(stored["file"])
    good = path.read_bytes()
    path.write_bytes(good[:1000])
    repaired = again(world)
    assert repaired.rc == 0, repaired.text
    assert ("update", stored["folder"]) in repaired.changes
    assert path.read_bytes() == good


def test_a_package_removed_from_the_environment_comes_back(world: World, finished: Outcome) -> None:
    environment = Path(finished.plan["nodes"]["localhost"]["launch"]["python"]).parents[1]
    packages = next(environment.glob("lib/python3.*/site-packages"))
    shutil.rmtree(packages / "fire")
    shutil.rmtree(next(packages.glob("fire-*.dist-info")))
    predicted = again(world, "--check")
    repaired = again(world)
    assert repaired.rc == 0, repaired.text
    assert predicted.changes == repaired.changes and any("fire" in path for _, path in repaired.changes)
    assert (packages / "fire" / "__init__.py").exists()
    assert again(world).changed == []


def test_an_environment_is_looked_at_once_where_it_is_whole(world: World, finished: Outcome) -> None:
    calm, deep = again(world), again(world, uv_env_verify="full")
    assert calm.rc == deep.rc == 0 and calm.changed == deep.changed == []
    assert "uv_env" not in calm.on_node and "uv_env" in deep.on_node
