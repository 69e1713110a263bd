# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Senders and fetchers of checkpoints, and fetchers of results, are killed at random moments, 30 times each: a torn one
is never taken for whole, and none that was whole is lost."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._engine import state

from .stored import S3, URL, Node

KILLS = 30
FORKS = """
import json, os, signal, sys, time
from engine import bucket, restore, results, upload

os.fsync = lambda descriptor: None
os.nice = lambda amount: 0
bucket.Bucket("s3://any/where")  # what clients are made of is read once
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(asked["folder"])
        sys.argv = ["", *asked["arguments"]]
        sys.stdout = sys.stderr
        os._exit({"upload": upload, "restore": restore, "results": results}[asked["module"]].main())
    began = time.monotonic()
    if asked["after"] is not None:
        time.sleep(asked["after"])
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    print(json.dumps([os.WIFSIGNALED(status), time.monotonic() - began]), flush=True)
"""
"""Each in a process of its own, which need not import boto3 first."""


class Forks:
    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKS],
            cwd=folder,
            env={**variables, "AWS_MAX_ATTEMPTS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, module: str, node: Node, after: float | None = None) -> tuple[bool, float]:
        """Whether it was killed before its end, and the seconds it had. after: when it is killed."""
        arguments = {"upload": ["--end", "0"], "results": [URL, str(node.run.path)]}.get(module, [])
        asked = {"module": module, "folder": str(node.run.path), "arguments": arguments, "after": after}
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        killed, seconds = json.loads(self.process.stdout.readline())
        return killed, seconds


@pytest.fixture
def s3() -> t.Iterator[S3]:
    served = S3()
    yield served
    served.close()


@pytest.fixture
def nodes(tmp_path: Path) -> list[Node]:
    return [Node(tmp_path / f"old{rank}", rank, 2, keep=2) for rank in range(2)]


@pytest.fixture
def forks(s3: S3, nodes: list[Node]) -> t.Iterator[Forks]:
    made = Forks(nodes[0].run.path, s3.variables)
    yield made
    made.process.kill()
    made.process.wait()


def save(nodes: list[Node], step: int) -> None:
    for node in nodes:
        node.save(step, save=step)


def typical(forks: Forks, module: str, node: Node) -> float:
    killed, seconds = forks.run(module, node)
    assert not killed
    return seconds


def test_senders_that_are_killed_leave_nothing_torn_and_lose_nothing(
    s3: S3, nodes: list[Node], forks: Forks, tmp_path: Path
) -> None:
    numbers = random.Random(7)
    save(nodes, 1)
    seconds = [typical(forks, "upload", node) for node in nodes]
    step, hits, halves = 1, 0, 0
    after = s3.whole(2)
    while hits < KILLS or halves <= KILLS // 4:  # until enough came in the middle
        before = after
        if numbers.random() < 0.5:  # training goes on meanwhile
            step += 1
            save(nodes, step)
        node = numbers.choice(nodes)
        killed, _seconds = forks.run("upload", node, numbers.uniform(0, 1.1) * seconds[node.node])
        hits += killed
        after = s3.whole(2)
        newest = sorted({*before, *after})[-2:]
        assert set(after) >= set(newest), "what was whole, and is among the newest two, is still there"
        halves += len(s3.names("checkpoints/")) > 6 * len(after)
    for node in nodes:
        assert not forks.run("upload", node)[0]
    assert s3.whole(2)[-1].step == step
    assert not forks.run("upload", nodes[0])[0]
    save(nodes, step + 1)
    for node in (*nodes[::-1], nodes[0]):
        forks.run("upload", node)
    assert len(s3.names("checkpoints/")) == 6 * len(s3.whole(2)), "what kills left behind is gone in the end"
    fresh = Node(tmp_path / "fresh", 1, 2)
    assert not forks.run("restore", fresh)[0] and fresh.content(step + 1) == nodes[1].content(step + 1)


def test_fetchers_that_are_killed_take_nothing_torn(s3: S3, nodes: list[Node], forks: Forks, tmp_path: Path) -> None:
    """While newer ones come and older ones go."""
    numbers = random.Random(8)
    save(nodes, 1)
    for node in nodes:
        forks.run("upload", node)
    seconds = typical(forks, "restore", Node(tmp_path / "first", 1, 2))
    step, hits, hosts, wholes = 1, 0, 0, 0
    fresh = Node(tmp_path / "new0", 1, 2)
    while hits < KILLS or not wholes:  # until some came to their end, in several goes
        killed, _seconds = forks.run("restore", fresh, numbers.uniform(0, 1.1) * seconds)
        hits += killed
        seconds *= 1.02 if killed else 1  # a machine that has become busy
        for found in fresh.steps():
            assert fresh.content(found) == nodes[1].content(found), "what counts here is what was saved"
        if fresh.steps():
            wholes += 1
            hosts += 1
            fresh = Node(tmp_path / f"new{hosts}", 1, 2)
        if numbers.random() < 0.2:
            step += 1
            save(nodes, step)
            for node in nodes:
                forks.run("upload", node)
    assert not forks.run("restore", fresh)[0] and fresh.content(step) == nodes[1].content(step)
    names = sorted(path.name for path in fresh.run.output.iterdir() if not path.name.startswith(".checkpoint"))
    assert names[0] == f"checkpoint-{step}" and set(names[1:]) <= {"trainer_log.jsonl"}


def test_killed_fetchers_of_results_leave_no_run(s3: S3, nodes: list[Node], forks: Forks, tmp_path: Path) -> None:
    numbers = random.Random(9)
    one = nodes[0]
    for number in range(6):
        (one.run.output / f"model-{number}.safetensors").write_bytes(numbers.randbytes(200_000))
    one.finish()
    s3.put("run.json", one.run.record.read_bytes())
    assert not forks.run("upload", one)[0]
    left = {path.name: path.read_bytes() for path in state.results(one.run)}

    def fresh(number: int) -> Node:
        made = Node(tmp_path / f"later{number}")
        made.run.record.unlink()
        return made

    seconds = typical(forks, "results", fresh(0))
    hits, hosts, wholes, begun = 0, 1, 0, 0
    here = fresh(hosts)
    while hits < KILLS or not wholes:
        killed, _seconds = forks.run("results", here, numbers.uniform(0, 1.1) * seconds)
        hits += killed
        seconds *= 1.02 if killed else 1
        begun += killed and bool(state.results(here.run))
        if state.observe(here.run) == "absent":
            continue
        assert state.observe(here.run) == "finished" and state.damaged(here.run, full=True) == []
        assert {path.name: path.read_bytes() for path in state.results(here.run)} == left
        wholes, hosts = wholes + 1, hosts + 1
        here = fresh(hosts)
    assert begun > KILLS // 4, "enough came in the middle"
