# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three hosts over ssh: one run, ranks by the order of the inventory, the same loss on any number of them.

The hosts are podman containers (machines.py); each builds its environment itself and shares nothing with the others.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import typing as t

import pytest

from .conftest import BASE, CONTROLLER_ONLY
from .machines import NAMES, ROOT, STEPS, Cluster, First, adapters, left, losses, ranks, read, sh
from .test_faults import wait_for


def test_ranks_are_the_order_of_the_inventory(first: First) -> None:
    assert first.done.plan["resolved"]["world_size"] == 3
    assert ranks(first.id) == [[0], [1], [2]]


def test_a_second_apply_changes_nothing(first: First) -> None:
    assert (first.again.rc, first.again.changed) == (0, []), first.again.text
    assert len(first.again.on_node) <= 4 * len(NAMES)


def test_a_first_apply_executes_at_most_eight_modules_on_a_host(first: First) -> None:
    tasks = [line for line in first.done.results if line["action"].rpartition(".")[2] not in CONTROLLER_ONLY]
    for host in NAMES:
        assert len([line for line in tasks if line["host"] == host]) <= 8
    assert "train_allreduce" not in first.done.on_node


def test_every_node_has_the_results(first: First) -> None:
    assert len(adapters(first.id)) == 1
    assert left() == []


def test_results_are_fetched_and_none_is_trusted_before_its_digest_is_right(cluster: Cluster, first: First) -> None:
    to = BASE / "fetched"
    shutil.rmtree(to, ignore_errors=True)
    asked = {"train_fetch_to": str(to)}
    predicted = cluster.play("llmops.finetune.fetch", "--check", name="three", asked=asked)
    assert not to.exists()
    path = f"{ROOT}/runs/{first.id}/output/adapter_model.safetensors"
    before = sh(NAMES[0], f"stat -c '%a %z' {path}")
    fetched = cluster.play("llmops.finetune.fetch", name="three", asked=asked)
    assert fetched.rc == 0, fetched.text
    assert sh(NAMES[0], f"stat -c '%a %z' {path}") == before, "the original is left as it is"
    assert sh(NAMES[0], "find /home/admin/.ansible /tmp -name '*.safetensors'") == ""
    assert fetched.changes == predicted.changes and len(fetched.changes) > 5
    adapter = to / first.id / "adapter_model.safetensors"
    assert adapters(first.id) == {f"{hashlib.sha256(adapter.read_bytes()).hexdigest()}  -"}
    assert cluster.play("llmops.finetune.fetch", name="three", asked=asked).changes == []
    adapter.unlink()
    sh(NAMES[0], f"cp {path} /var/kept; printf x | dd of={path} bs=1 seek=99 conv=notrunc 2> /dev/null")
    damaged = cluster.play("llmops.finetune.fetch", name="three", asked=asked)
    sh(NAMES[0], f"cp /var/kept {path}")
    assert damaged.rc != 0 and "adapter_model.safetensors is not what the run left" in damaged.message
    assert not adapter.exists()


def test_the_other_way_round_with_two_processes_and_a_host_left_out(cluster: Cluster) -> None:
    order = (NAMES[2], NAMES[0], NAMES[1])
    asked = {"train_processes_per_node": 2}
    limit = f"{NAMES[2]},{NAMES[0]}"
    short = {**STEPS, "max_steps": 2}
    done = cluster.play("train.yml", "--limit", limit, name="reversed", order=order, asked=asked, **short)
    assert done.rc == 0, done.text
    assert done.plan["resolved"]["world_size"] == 4
    assert ranks(str(done.plan["id"]), order[:2]) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_the_loss_does_not_depend_on_the_number_of_hosts(cluster: Cluster, engine: str) -> None:
    """The same data, seed and global batch on one host, two and three."""
    short: dict[str, t.Any] = {
        "max_steps": 20,
        "save_steps": 20,
        "logging_steps": 1,
        "max_samples": 240,
        "lora_dropout": 0.0,
    }
    short["per_device_train_batch_size"] = 1
    found = []
    for count in (1, 2, 3):
        asked = {"train_global_batch_size": 12, "train_engine": engine}
        done = cluster.play("train.yml", name=f"{engine}-on-{count}", order=NAMES[:count], asked=asked, **short)
        assert done.rc == 0, done.text
        found.append(losses(NAMES[0], str(done.plan["id"])))
        assert len(found[-1]) == 20
    furthest = max(abs(one - other) for one, *others in zip(*found, strict=True) for other in others)
    print(f"{engine}: largest difference of the loss over 20 steps: {furthest:.1e}", file=sys.stderr)
    assert furthest <= 1e-4


LATE = """#!/bin/sh
# What Ansible sends to Python: the module that starts the run is late.
sent=$(mktemp)
cat > "$sent"
if grep -aq train_run "$sent" && grep -aq '"state": *"started"' "$sent"; then sleep %d; fi
/usr/bin/python3 "$@" < "$sent"
"""
DELAYS = (0, 20, 60)
"""Seconds until the first, the second and the last host starts."""


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 0, 2)], ids=["rank 0 last", "rank 2 last"])
def test_hosts_start_in_any_order_and_one_is_late(cluster: Cluster, order: tuple[int, int, int]) -> None:
    """Also where it is the one with rank 0, which all others look for. Nobody gives up and begins again."""
    starting = [NAMES[rank] for rank in order]
    for host, delay in zip(starting, DELAYS, strict=True):
        sh(host, f"cat > /usr/local/bin/late-python <<'END'\n{LATE % delay}END\nchmod 0755 /usr/local/bin/late-python")
    of = {host: {"ansible_python_interpreter": "/usr/local/bin/late-python"} for host in NAMES}
    done = cluster.play("train.yml", name=f"late-{order[-1]}", of=of, **{**STEPS, "max_steps": 2})
    assert done.rc == 0, done.text
    run_id = str(done.plan["id"])
    born = [int(sh(host, f"stat -c %W {ROOT}/runs/{run_id}/logs/supervisor.log")) for host in starting]
    assert born == sorted(born) and born[2] - born[1] >= 30, "when the supervisors' logs came to be"
    assert ranks(run_id) == [[0], [1], [2]]
    assert [read(host, run_id, "state.json")["attempt"] for host in NAMES] == [1, 1, 1]


CANARY = "c4n4ry-8d1f53"


def test_a_secret_is_on_the_hosts_only_in_its_file(cluster: Cluster, first: First) -> None:
    """Looked for while the run is live, in the command lines of all processes too."""
    asked = {"train_secrets": {"HF_TOKEN": CANARY}, "train_wait": False}
    done = cluster.play("train.yml", name="secret", asked=asked, **STEPS)
    assert done.rc == 0, done.text
    run_id = str(done.plan["id"])
    places = f"/etc /home /root /run/systemd /tmp /usr/local /var/log /var/tmp {ROOT}/runs {ROOT}/secrets"
    look = f"grep -rlsaF {CANARY} {places}; journalctl --no-pager | grep -cF {CANARY}"
    for host in NAMES:
        wait_for(lambda: read(host, run_id, "progress.json").get("step"))  # noqa: B023 - called at once
        kept, *journal = sh(host, look, check=False).splitlines()
        assert (kept, journal) == (f"{ROOT}/secrets/{run_id}.json", ["0"])
        assert sh(host, f"stat -c '%a %U' {kept}") == "600 llmops"
        lines = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"
        assert "engine.rank" in (seen := sh(host, lines)) and CANARY not in seen
    assert CANARY not in done.text and CANARY not in json.dumps(done.results)
    gone = cluster.play("train.yml", name="secret", asked={"train_state": "absent"}, **STEPS)
    assert gone.rc == 0 and left() == [], gone.text
    for host in NAMES:
        assert sh(host, look, check=False).splitlines() == ["0"]
