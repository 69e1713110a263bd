# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A play that is refused: nothing is touched, and a person reads what to change."""

from __future__ import annotations

import json
import os
import typing as t
from pathlib import Path

import pytest

from .conftest import Demo, World, tree

BROKEN = {"instruction": "Why?"}
"""A record without an answer."""


@pytest.mark.parametrize(
    ("variables", "where", "change"),
    [
        ({"train_set": "quantization_bit=3"}, "train_set, key quantization_bit", "change quantization_bit"),
        ({"train_nodes": 2}, "train_nodes of localhost", "llmops.finetune.provision"),
        ({"train_datasets": [{"file": "{}/a.jsonl"}]}, "record 2", "output"),
    ],
)
def test_a_refused_play_touches_nothing_and_names_variable_and_remedy(
    world: World, demo: Demo, tmp_path: Path, variables: dict[str, t.Any], where: str, change: str
) -> None:
    record = {"instruction": "Why?", "output": "So."}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(record)}\n{json.dumps(BROKEN)}\n", encoding="utf-8")
    given = json.loads(json.dumps(variables).replace("{}", str(tmp_path)))
    watched = [path for path in world.clone.iterdir() if path.name not in (".venv", ".git")]
    watched += [world.root, world.leases]  # what is the machine's, another worker may touch meanwhile
    before = tree(*watched)
    refused = world.play("train.yml", variables=given)
    assert tree(*watched) == before
    assert refused.rc == 2 and refused.changed == []
    assert where in refused.message.partition("where: ")[2]
    assert change in refused.message.partition("change: ")[2]
    assert "Traceback" not in refused.text


def test_an_engine_without_a_lock_is_planned_for_assumed_gpus_alone(world: World, demo: Demo, tmp_path: Path) -> None:
    """On a node that says it has two GPUs."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nfor i in 0 1; do echo $i, GPU-$i, H100, 81559, 9.0, 570.1; done\n", encoding="utf-8")
    tool.chmod(0o755)
    there = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    asked: dict[str, t.Any] = {"train_recipe": "full_sft", "train_engine": "megatron", "train_state": "staged"}
    assumed = {**asked, "train_assume_gpus": "2xH100"}
    checked = world.play("train.yml", "--check", variables=assumed, environment=there, tensor_model_parallel_size=2)
    assert checked.rc == 0 and "Engine megatron is unproved" in checked.text, checked.text
    assert ("create", f"{world.folder(checked)}/train.yaml") in checked.changes
    assert checked.plan["nodes"]["localhost"]["launch"]["environment"]["USE_MCA"] == "1"
    for mode in (["--check"], []):
        refused = world.play("train.yml", *mode, variables=asked, environment=there, tensor_model_parallel_size=2)
        assert refused.rc == 2 and refused.changed == [] and not world.folder(checked).exists()
        assert "where:  train_lock" in refused.message and "mcore-adapter" in refused.message


def test_a_host_that_ends_before_it_has_read_the_module_is_told_with_its_reason(
    world: World, demo: Demo, tmp_path: Path
) -> None:
    """Whether ssh or its pipe ends first is chance. This ssh, which stands for the real one, always ends later."""
    ssh = tmp_path / "ssh"
    script = "#!/bin/sh\nexec <&-\nsleep 1\necho '/bin/sh: 1: /opt/no/python3: not found' >&2\nexit 127\n"
    ssh.write_text(script, encoding="utf-8")
    ssh.chmod(0o755)
    far = {
        "ansible_host": "127.0.0.1",
        "ansible_connection": "ssh",
        "ansible_ssh_executable": str(ssh),
        "ansible_python_interpreter": "/opt/no/python3",
    }
    inventory = tmp_path / "far.yml"
    inventory.write_text(json.dumps({"trainers": {"hosts": {"far": far}}}), encoding="utf-8")
    refused = world.play("llmops.finetune.plan", inventory=inventory)
    assert refused.rc == 2 and "There is no Python on far" in refused.message, refused.text
    ssh.write_text(script.replace("python3: not found", "what: odd"), encoding="utf-8")
    unknown = world.play("llmops.finetune.plan", inventory=inventory)
    assert unknown.rc == 4 and "could not be sent" in unknown.message, "what is not understood is left as it is"
