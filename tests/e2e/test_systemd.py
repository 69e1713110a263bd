# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that boots systemd, over ssh, as an account that may use sudo: a run is a unit while it is live.

The host is a podman container (tests/hosts), for which `tests/hosts/hosts.sh setup` installs what is needed.
"""

from __future__ import annotations

import json
import re
import shlex
import typing as t
from dataclasses import dataclass

import pytest

from . import machines
from .conftest import KEEP, Demo, Outcome, World
from .machines import hosts
from .test_faults import wait_for

ROOT = "/data/llm ops"
UNITS = "/etc/systemd/system"
SECRET = "canary-77ab19"
ENDLESS: dict[str, t.Any] = {"max_steps": 1_000_000, "save_steps": 20, "save_total_limit": 2}


@dataclass
class Host:
    world: World
    offline: bool

    name = machines.NAMES[0]

    def sh(self, command: str, check: bool = True) -> str:
        return machines.sh(self.name, command, check)

    def play(
        self, playbook: str, *arguments: str, name: str, asked: dict[str, t.Any] | None = None, **short: t.Any
    ) -> Outcome:
        variables = {**machines.variables(name, ROOT, offline=self.offline), **(asked or {})}
        return self.world.play(playbook, *arguments, variables=variables, inventory=machines.INVENTORY, **short)

    def start(self, name: str, **asked: t.Any) -> Run:
        done = self.play("train.yml", name=name, asked={"train_wait": False, **asked}, **ENDLESS)
        assert done.rc == 0, done.text
        return Run(self, str(done.plan["id"]))

    def paths(self) -> set[str]:
        """Every path on its disks, but for what a login leaves."""
        logs = r"/(home/admin/\.ansible|var/log|var/lib/sudo)(/|$)"
        return {path for path in self.sh("find / /data -xdev").splitlines() if not re.match(logs, path)}


@dataclass
class Run:
    host: Host
    id: str

    @property
    def unit(self) -> str:
        return f"llmops-{self.id}.service"

    @property
    def files(self) -> list[str]:
        """The unit's file and its link: what there is of them."""
        names = f"{UNITS}/{self.unit} {UNITS}/multi-user.target.wants/{self.unit}"
        return self.host.sh(f"ls -d {names} 2>/dev/null", check=False).split()

    def show(self, key: str) -> str:
        return self.host.sh(f"systemctl show --property={key} --value {self.unit}")

    def read(self, name: str) -> dict[str, t.Any]:
        text = self.host.sh(f"cat '{ROOT}/runs/{self.id}/{name}'", check=False)
        return t.cast("dict[str, t.Any]", json.loads(text)) if text else {}

    def step(self) -> int:
        return int(self.read("progress.json").get("step", 0))

    def newest(self) -> int:
        """Step of the newest whole checkpoint."""
        marks = self.host.sh(f"ls -d '{ROOT}/runs/{self.id}'/output/checkpoint-*/complete.json", check=False)
        return max((int(step) for step in re.findall(r"checkpoint-(\d+)/", marks)), default=0)

    def saved_after(self, step: int) -> int:
        return int(wait_for(lambda: (now := self.newest()) > step and now))

    def attempt_runs(self, attempt: int) -> dict[str, t.Any]:
        """The state, once that attempt makes steps."""
        state = wait_for(lambda: (now := self.read("state.json")).get("attempt") == attempt and now)
        wait_for(lambda: self.step() > int(state["from_step"]))
        assert self.read("state.json") == state, "one attempt, not several"
        return t.cast("dict[str, t.Any]", state)

    def is_gone(self) -> bool:
        """Neither a unit nor a process, and systemd has forgotten it."""
        known = self.host.sh(f"systemctl list-units --all --plain --no-legend {self.unit}")
        return not self.files and not known and not self.processes()

    def processes(self) -> list[str]:
        return self.host.sh("pgrep -u llmops", check=False).split()


@pytest.fixture(scope="module")
def host(request: pytest.FixtureRequest) -> t.Iterator[Host]:
    """One host, with the packages of the demo's environment on its disk as the cache of uv."""
    world = machines.world(request)
    if not KEEP:
        hosts("down")
    up = hosts("up", "1")
    assert up.returncode == 0, up.stderr
    machines.give_packages(world, Host.name, ROOT)
    yield Host(world, offline=machines.same_python(world))
    if not KEEP:
        hosts("down")


@dataclass
class First:
    predicted: Outcome
    touched: set[str]
    applied: Outcome
    run: Run


@pytest.fixture(scope="module")
def first(host: Host) -> First:
    """The first apply on a fresh host, and what check mode had said."""
    asked = {"train_wait": False, "train_secrets": {"HF_TOKEN": SECRET}}
    before = host.paths()
    predicted = host.play("train.yml", "--check", name="first", asked=asked, **ENDLESS)
    touched = before ^ host.paths()
    applied = host.play("train.yml", name="first", asked=asked, **ENDLESS)
    assert applied.rc == 0, applied.text
    return First(predicted, touched, applied, Run(host, str(applied.plan["id"])))


def test_check_mode_tells_what_an_apply_does_and_leaves_no_path(first: First) -> None:
    assert first.predicted.rc == 0, first.predicted.text
    assert first.touched == set()
    assert first.predicted.changes == first.applied.changes
    assert first.predicted.changed == first.applied.changed
    assert "Make the account" in str(first.applied.changed)


def test_a_live_run_is_an_enabled_unit_of_its_account(host: Host, first: First) -> None:
    run = first.run
    assert len(run.files) == 2
    assert host.sh(f"systemctl is-enabled {run.unit}; systemctl is-active {run.unit}").split() == ["enabled", "active"]
    process = run.show("MainPID")
    assert host.sh(f"ps -o user= -p {process}") == "llmops"
    assert "engine.supervisor" in host.sh(f"tr '\\0' ' ' < /proc/{process}/cmdline")
    assert str(run.read("state.json")["pid"]) == process
    assert "active (running)" in host.sh(f"systemctl status --no-pager {run.unit}")
    assert host.sh(f"systemd-analyze verify {UNITS}/{run.unit} 2>&1") == ""
    assert host.sh(f"find '{ROOT}'/runs '{ROOT}'/secrets -not -user llmops") == ""


def test_a_secret_is_in_its_file_and_in_the_ranks_only(host: Host, first: First) -> None:
    wait_for(first.run.step)
    kept = f"{ROOT}/secrets/{first.run.id}.json"
    places = f"/etc /home /var /tmp /run/systemd '{ROOT}/runs' '{ROOT}/secrets'"
    assert host.sh(f"grep -rlsaF {SECRET} {places}", check=False).splitlines() == [kept]
    assert host.sh(f"stat -c '%a %U' '{kept}' '{ROOT}/secrets'").splitlines() == ["600 llmops", "700 llmops"]
    assert SECRET not in host.sh(f"systemctl show {first.run.unit}; journalctl --no-pager; cat /proc/[0-9]*/cmdline")
    assert host.sh(f"find '{ROOT}'/runs '{ROOT}'/secrets -perm -o+w -type d") == ""


def test_a_second_apply_changes_nothing(host: Host, first: First) -> None:
    asked = {"train_wait": False, "train_secrets": {"HF_TOKEN": SECRET}}
    again = host.play("train.yml", name="first", asked=asked, **ENDLESS)
    assert (again.rc, again.changed) == (0, []), again.text
    assert first.run.read("state.json")["attempt"] == 1


def test_power_loss_the_host_goes_on_by_itself_from_the_newest_whole_checkpoint(host: Host, first: First) -> None:
    run = first.run
    before, attempt = run.saved_after(run.newest()), int(run.read("state.json")["attempt"])
    assert hosts("kill", Host.name).returncode == 0
    on = hosts("start", Host.name)
    assert on.returncode == 0, on.stderr
    state = run.attempt_runs(attempt + 1)
    assert state["state"] == "running" and state["from_step"] >= before
    assert state["from_step"] % 20 == 0, "no checkpoint was saved at the end"
    assert run.show("MainPID") == str(state["pid"])


def test_a_reboot_saves_a_checkpoint_first_and_goes_on(host: Host, first: First) -> None:
    run = first.run
    attempt = int(run.read("state.json")["attempt"])
    before = run.saved_after(run.newest())
    boot = host.sh("cat /proc/sys/kernel/random/boot_id")
    wait_for(lambda: run.step() % 20)
    step = run.step()
    host.sh("systemctl reboot", check=False)
    wait_for(lambda: host.sh("cat /proc/sys/kernel/random/boot_id", check=False) not in ("", boot))
    state = run.attempt_runs(attempt + 1)
    assert state["from_step"] >= step >= before
    journal = host.sh(f"journalctl --no-pager -o cat -b -1 -u {run.unit}", check=False)
    assert "timed out" not in journal and "SIGKILL" not in journal


def test_a_killed_supervisor_leaves_no_process_and_the_next_apply_goes_on(host: Host, first: First) -> None:
    run = first.run
    attempt, before = int(run.read("state.json")["attempt"]), run.saved_after(run.newest())
    host.sh(f"kill -9 {run.show('MainPID')}")
    wait_for(lambda: run.show("ActiveState") == "failed", 20)
    assert run.processes() == [] and len(run.files) == 2
    status = host.play("llmops.finetune.status", name="first")
    assert f"{run.id}  interrupted" in status.text
    host.start("first", train_secrets={"HF_TOKEN": SECRET})
    state = run.attempt_runs(attempt + 1)
    assert state["from_step"] >= before


def test_stop_saves_a_checkpoint_and_takes_the_unit_away(host: Host, first: First) -> None:
    run = first.run
    before = run.saved_after(run.newest())
    predicted = host.play("llmops.finetune.stop", "--check", name="first")
    assert run.show("ActiveState") == "active"
    stopped = host.play("llmops.finetune.stop", name="first")
    assert stopped.rc == 0, stopped.text
    assert predicted.changes == stopped.changes == [("stop", f"{ROOT}/runs/{run.id}")]
    assert run.is_gone()
    assert run.read("state.json")["state"] == "stopped" and run.newest() >= run.step() > before
    assert host.play("llmops.finetune.stop", name="first").changed == []
    assert "changed on disk" not in host.sh("systemctl status 2>&1")


def test_stop_keeps_an_interrupted_run_from_starting_with_the_host(host: Host) -> None:
    run = host.start("parted")
    wait_for(run.step)
    host.sh(f"kill -9 {run.show('MainPID')}")
    wait_for(lambda: run.show("ActiveState") == "failed", 20)
    predicted = host.play("llmops.finetune.stop", "--check", name="parted")
    assert len(run.files) == 2
    stopped = host.play("llmops.finetune.stop", name="parted")
    assert predicted.changes == stopped.changes == [("remove", f"{UNITS}/{run.unit}")]
    assert run.is_gone()
    assert host.play("llmops.finetune.stop", name="parted").changed == []


def test_a_finished_run_leaves_no_unit_and_a_second_apply_changes_nothing(host: Host) -> None:
    done = host.play("train.yml", name="whole")
    assert done.rc == 0 and done.run["state"] == "finished", done.text
    run = Run(host, str(done.plan["id"]))
    wait_for(run.is_gone, 10)
    assert "deactivated successfully" in host.sh(f"journalctl --no-pager -o cat -u {run.unit}").lower()
    again = host.play("train.yml", name="whole")
    assert (again.rc, again.changed) == (0, []), again.text


def test_a_failed_run_leaves_no_unit(host: Host) -> None:
    failed = host.play("train.yml", name="broken", lr_scheduler_kwargs={"no_such": 1})
    assert failed.rc != 0
    run = Run(host, str(failed.plan["id"]))
    assert run.read("state.json")["state"] == "failed", failed.text
    wait_for(run.is_gone, 10)


def test_an_account_that_is_not_there_and_not_ours_to_make_is_refused(host: Host) -> None:
    refused = host.play("train.yml", name="whole", asked={"train_user": "alice"})
    assert refused.rc != 0 and "'alice'" in refused.message and "train_user" in refused.message


def test_power_loss_in_the_moment_a_run_ends_is_mended_at_boot(host: Host, demo: Demo) -> None:
    """A unit that outlived its run, as when the power went before it was taken away, goes at the next boot."""
    run = host.start("late")
    wait_for(run.step)
    unit = host.sh(f"cat {UNITS}/{run.unit}")
    assert host.play("llmops.finetune.stop", name="late").rc == 0
    host.sh(
        f"printf '%s\\n' {shlex.quote(unit)} > {UNITS}/{run.unit}; systemctl daemon-reload; systemctl enable {run.unit}"
    )
    assert hosts("kill", Host.name).returncode == 0
    assert hosts("start", Host.name).returncode == 0
    wait_for(run.is_gone, 30)
    assert run.read("state.json")["state"] == "stopped"
