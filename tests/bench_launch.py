# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long it takes from Enter until the last rank is there, on hosts over ssh, beside a launch typed by hand.

The hosts are podman containers on this machine (tests/hosts), so all their processes are seen here, and all share its
cores: what torchrun needs to load, it needs on both sides. All is in place before: environment, model, records. By hand
is what people do who know ssh well: connections that are kept open, all hosts at once, the file copied, torchrun in the
background.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]
COUNTS = [int(count) for count in os.environ.get("HOSTS", "1 3 8 16").split()]
TIMES = 3
SETTLE = 3.0
"""Seconds from the end of one launch to the next: the kernel takes back what killed ranks had, on all cores."""
ROOT = "/data/llmops"
PORT = 29500
TITLE = ("hosts", "ours", "by hand", "ratio", "difference", "of ours, preflight")
RANKS = (b"engine.rank", b"llamafactory/launcher.py")


class Hosts:
    """Podman hosts, and what they are asked."""

    def __init__(self, base: Path, count: int) -> None:
        self.state = base / "hosts"
        self.settings = {
            **os.environ,
            "HOSTS_STATE": str(self.state),
            "HOSTS_PREFIX": "bench",
            "HOSTS_SUBNET": "10.213.14.0/24",
        }
        self.record = base / "record.jsonl"
        """What each task of the last play came to, and when."""
        self.call("up", str(count))
        self.inventory = self.state / "inventory.yml"
        known = yaml.safe_load(self.inventory.read_text(encoding="utf-8"))["trainers"]
        self.addresses = {name: host["ansible_host"] for name, host in known["hosts"].items()}
        self.options = [
            *("-i", known["vars"]["ansible_ssh_private_key_file"]),
            *shlex.split(known["vars"]["ansible_ssh_common_args"]),
            *("-o", "ControlMaster=auto", "-o", "ControlPersist=600", "-o", f"ControlPath={base}/mux-%h"),
        ]

    def call(self, *arguments: str) -> None:
        told = subprocess.run(
            ["bash", REPOSITORY / "tests/hosts/hosts.sh", *arguments],
            env=self.settings,
            capture_output=True,
            text=True,
            check=False,
        )
        if told.returncode:
            raise SystemExit(told.stderr)

    def play(self, playbook: str, count: int, **asked: t.Any) -> None:
        variables = {
            "train_user": "llmops",
            "train_root": ROOT,
            "train_wait": False,
            "uv_env_offline": True,
            "train_args": {"max_steps": 100_000, "save_steps": 100_000},
            **asked,
        }
        limit = ",".join(list(self.addresses)[:count])
        self.record.unlink(missing_ok=True)
        told = subprocess.run(
            ["ansible-playbook", playbook, "-i", self.inventory, "--limit", limit, "-e", json.dumps(variables)],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "ANSIBLE_CALLBACK_PLUGINS": str(REPOSITORY / "tests/e2e/callbacks"),
                "ANSIBLE_CALLBACKS_ENABLED": "record",
                "RECORD_TO": str(self.record),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if told.returncode:
            raise SystemExit(f"{told.stdout}\n{told.stderr}")

    def took(self, task: str) -> float:
        """Seconds from the end of what was before a task of the last play until its last host was done."""
        lines = [json.loads(line) for line in self.record.read_text(encoding="utf-8").splitlines()]
        at = [number for number, line in enumerate(lines) if line["action"].endswith(task)]
        return float(lines[at[-1]]["time"] - lines[at[0] - 1]["time"])

    def ssh(self, name: str, command: str, given: bytes = b"") -> bytes:
        return subprocess.run(
            ["ssh", *self.options, f"admin@{self.addresses[name]}", command],
            input=given,
            capture_output=True,
            check=True,
        ).stdout

    def at_once(self, count: int, what: t.Callable[[int, str], object]) -> None:
        names = list(self.addresses)[:count]
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(what, range(count), names))


def rows(base: Path, cache: Path) -> list[list[str]]:
    """cache: of uv, with the packages of the environment. The hosts need no index then."""
    hosts = Hosts(base, max(COUNTS))
    try:
        _furnish(hosts, cache)
        return [_row(hosts, count) for count in COUNTS]
    finally:
        hosts.call("down")


def _furnish(hosts: Hosts, cache: Path) -> None:
    """The first host builds its environment; the others, whose disks are folders here, get links to its files."""
    first, *others = (hosts.state / "disks" / name / "llmops" for name in hosts.addresses)
    (first / "cache").mkdir(parents=True)
    subprocess.run(["cp", "-al", cache, first / "cache" / "uv"], check=True)
    subprocess.run(["chmod", "-R", "a+rwX", first], check=True)
    hosts.play("train.yml", 1, train_name="first", train_state="staged")
    for other in others:
        subprocess.run(["cp", "-al", first, other], check=True)
    hosts.play("train.yml", max(COUNTS), train_name="warm", train_state="staged")


def _row(hosts: Hosts, count: int) -> list[str]:
    taken, preflights = zip(*(_ours(hosts, count, number) for number in range(TIMES)), strict=True)
    ours, preflight = statistics.median(taken), statistics.median(preflights)
    theirs = statistics.median(_by_hand(hosts, count) for again in range(TIMES))
    line = [str(count), f"{ours:.1f} s", f"{theirs:.1f} s", f"{ours / theirs:.2f}", f"{ours - theirs:+.1f} s"]
    line.append(f"{preflight:.1f} s" if count > 1 else "none")
    print(" | ".join(line), flush=True)
    return line


def _ours(hosts: Hosts, count: int, number: int) -> tuple[float, float]:
    """A new run each time: until its last rank is there, and how long the preflight took of that."""
    name = f"launch-{count}-{number}"
    began = time.clock_gettime(time.CLOCK_BOOTTIME)
    hosts.play("train.yml", count, train_name=name)
    taken, preflight = _last_rank(count) - began, hosts.took("train_preflight")
    hosts.play("train.yml", count, train_name=name, train_state="absent")
    _gone()
    return taken, preflight


def _by_hand(hosts: Hosts, count: int) -> float:
    """What was rendered for the run that waits, without what this collection adds: our callbacks and resume."""
    names = list(hosts.addresses)
    folder = hosts.ssh(names[0], f"sudo sh -c 'echo {ROOT}/runs/warm-*'").decode().strip()
    config = hosts.ssh(names[0], f"sudo cat {folder}/train.yaml").replace(f"{folder}/output".encode(), b"output")
    launch = json.loads(hosts.ssh(names[0], f"sudo cat {folder}/launch.json"))
    exports = " ".join(f"{key}={shlex.quote(value)}" for key, value in launch["environment"].items())
    launcher = f"$(ls -d {ROOT}/envs/*/lib/python3*/site-packages)/llamafactory/launcher.py"

    def start(node_rank: int, name: str) -> None:
        torchrun = (
            f"{launch['python']} -m torch.distributed.run --nnodes={count} --node-rank={node_rank} --nproc-per-node=1 "
            f"--master-addr={hosts.addresses[names[0]]} --master-port={PORT} {launcher} train.yaml"
        )
        command = f"env {exports} setsid nohup {torchrun} > log 2>&1 < /dev/null &"
        hosts.ssh(name, f"mkdir -p hand && cd hand && cat > train.yaml && {{ {command} }}", config)

    hosts.at_once(count, lambda node_rank, name: hosts.ssh(name, "true"))  # Ansible has its connections open too
    began = time.clock_gettime(time.CLOCK_BOOTTIME)
    hosts.at_once(count, start)
    taken = _last_rank(count) - began
    hosts.at_once(count, lambda node_rank, name: hosts.ssh(name, "pkill -9 -u admin python; rm -rf hand"))
    _gone()
    return taken


def _ranks() -> list[float]:
    """When each rank began, in seconds of the boot clock: processes of a run that are not torchrun."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                command = Path(f"/proc/{entry}/cmdline").read_bytes()
                if any(word in command for word in RANKS) and b"torch.distributed.run" not in command:
                    fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                    found.append(int(fields[19]) / os.sysconf("SC_CLK_TCK"))
            except OSError:
                continue
    return found


def _last_rank(count: int) -> float:
    deadline = time.monotonic() + 300
    while len(began := _ranks()) < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"{len(began)} of {count} ranks came")
        time.sleep(0.05)
    return max(began)


def _gone() -> None:
    while _ranks():
        time.sleep(0.2)
    time.sleep(SETTLE)
