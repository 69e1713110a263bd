# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who a run is: what changes its id, what does not, and how numbers travel. Nothing is trained here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from .conftest import BASE, Demo, World

STAGED = {"train_state": "staged"}


def test_one_value_changed_is_a_new_run_beside_the_old_one(world: World, demo: Demo) -> None:
    adapter = (demo.folder / "output" / "adapter_model.safetensors").read_bytes()
    new = world.play(variables={**STAGED, "train_args": {"lora_rank": 16}, "train_set": "learning_rate=1e-5"})
    assert new.rc == 0, new.text
    assert new.plan["id"] != demo.folder.name
    told = [line.strip() for line in new.plan["difference"]]
    assert told == [f"since   {demo.folder.name} (finished)", "learning_rate: 0.001 → 1e-05 (train_set)"]
    written = yaml.safe_load((world.folder(new) / "train.yaml").read_text())
    assert written["learning_rate"] == 1e-5 and written["lora_rank"] == 16
    assert (demo.folder / "output" / "adapter_model.safetensors").read_bytes() == adapter


def test_group_vars_survive_a_value_set_on_the_command_line(world: World, demo: Demo) -> None:
    """As typed, with the run in group_vars: -e 'train_set=…' leaves train_args alone."""
    record = BASE / "set.jsonl"
    extra = json.dumps({**world.variables, **STAGED})
    done = world.shell(
        ["ansible-playbook", "train.yml", "-i", "inventory", "-e", extra, "-e", 'train_set="learning_rate=1e-5"'],
        env=world.environment(record),
    )
    assert done.returncode == 0, done.stdout
    folder = next(path for path in (world.root / "runs").iterdir() if path.name in done.stdout and path != demo.folder)
    written = yaml.safe_load((folder / "train.yaml").read_text())
    assert (written["learning_rate"], written["lora_rank"]) == (1e-5, 16)


def test_a_renamed_host_is_the_same_run(world: World, demo: Demo) -> None:
    inventory = BASE / "renamed.yml"
    host = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    inventory.write_text(yaml.safe_dump({"trainers": {"hosts": {"other": {**host, "ansible_host": "127.0.0.9"}}}}))
    variables = {"train_name": "demo", "train_args": {"lora_rank": 16}}
    again = world.play("train.yml", inventory=inventory, variables=variables)
    assert again.rc == 0, again.text
    assert again.plan["id"] == demo.folder.name and again.changed == []


@pytest.mark.parametrize("written", ["1e-5", 0.00001])
def test_a_number_is_the_same_number_however_it_is_written(world: World, demo: Demo, written: object) -> None:
    plan = world.play("llmops.finetune.plan", variables={"train_args": {"learning_rate": written}}).plan
    node = plan["nodes"]["localhost"]
    rendered = [line for line in node["arguments"] if line["key"] == "learning_rate"]
    assert [line["value"] for line in rendered] == ["1.0e-05"]
    assert plan["request"]["args"] == {"learning_rate": 1e-5}


def test_from_the_built_tarball_in_a_foreign_folder_without_group_vars(world: World, demo: Demo) -> None:
    """Weights included: the base model is made again in a root of its own."""
    place = BASE / "foreign"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    environment = {**world.environment(BASE / "tarball.jsonl"), "ANSIBLE_COLLECTIONS_PATH": str(place / "collections")}
    galaxy = ["ansible-galaxy", "collection"]
    built = world.shell([*galaxy, "build", "--output-path", str(place)], env=environment)
    assert built.returncode == 0, built.stderr
    tarball = str(next(place.glob("*.tar.gz")))
    install = [*galaxy, "install", "--offline", "-p", str(place / "collections"), tarball]
    assert world.shell(install, env=environment).returncode == 0
    (place / "hosts.yml").write_text((world.clone / "inventories/local.yml").read_text())
    model = Path(demo.applied.plan["nodes"]["localhost"]["model"]["path"])
    shutil.rmtree(model)
    short = "max_steps=6 save_steps=3"
    play = ["ansible-playbook", "llmops.finetune.train", "-i", str(place / "hosts.yml")]
    done = world.shell([*play, "-e", json.dumps(world.variables), "-e", f'train_set="{short}"'], env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Run lora-sft-" in done.stdout and "is finished." in done.stdout
    assert (model / "model.safetensors").exists()
