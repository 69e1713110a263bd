# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Leases: held by one process, refused to others with the holder's name, gone with the holder."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _engine
from ansible_collections.llmops.finetune.plugins.module_utils._engine import files, lease

HOLDER = {"run": "theirs-00000000", "user": "ada", "pid": 42}

_HOLD = """
import sys, pathlib, time
from _engine import lease
kept = lease.acquire(sys.argv[2:], {"run": "theirs-00000000", "user": "ada", "pid": 42}, pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(files, "lock", functools.partial(files.lock, patience=0.1))
    return tmp_path / "leases"


@pytest.fixture
def hold(place: Path) -> t.Iterator[t.Callable[..., subprocess.Popen[str]]]:
    """Start another process that holds leases."""
    started: list[subprocess.Popen[str]] = []

    def start(*keys: str) -> subprocess.Popen[str]:
        folder = Path(str(_engine.__file__)).parents[1]
        command = [sys.executable, "-c", _HOLD, str(place), *keys]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.parametrize(("key", "says"), [("cpu", "The CPUs of this node are held"), ("GPU-aa", "GPU-aa is held")])
def test_a_second_process_is_refused_and_the_holder_named(
    place: Path, hold: t.Callable[..., t.Any], key: str, says: str
) -> None:
    hold(key)
    with pytest.raises(lease.Held) as refusal:
        lease.acquire([key], {"run": "ours"}, place)
    assert str(refusal.value) == f"{says} by run theirs-00000000 (user ada, process 42)."
    assert (refusal.value.key, refusal.value.holder) == (key, HOLDER)
    assert lease.holders([key, "GPU-free"], place) == {key: HOLDER}


def test_a_lease_is_gone_with_its_killed_holder(place: Path, hold: t.Callable[..., subprocess.Popen[str]]) -> None:
    holder = hold("GPU-aa")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert lease.holders(["GPU-aa"], place) == {}
    close(lease.acquire(["GPU-aa"], {"run": "ours"}, place))


def test_all_or_none_are_taken(place: Path, hold: t.Callable[..., t.Any]) -> None:
    hold("GPU-bb")
    with pytest.raises(lease.Held, match="GPU-bb"):
        lease.acquire(["GPU-cc", "GPU-bb", "GPU-aa"], {"run": "ours"}, place)
    assert lease.holders(["GPU-aa", "GPU-bb", "GPU-cc"], place) == {"GPU-bb": HOLDER}


def test_different_gpus_are_held_side_by_side(place: Path, hold: t.Callable[..., t.Any]) -> None:
    hold("GPU-aa")
    mine = lease.acquire(["GPU-bb"], {"run": "ours"}, place)
    assert lease.holders(["GPU-aa", "GPU-bb"], place) == {"GPU-aa": HOLDER, "GPU-bb": {"run": "ours"}}
    close(mine)
    assert lease.holders(["GPU-bb"], place) == {}


def test_a_shorter_name_does_not_leave_the_rest_of_a_longer_one(place: Path) -> None:
    close(lease.acquire(["cpu"], {"run": "a" * 100}, place))
    mine = lease.acquire(["cpu"], {"run": "b"}, place)
    assert lease.holders(["cpu"], place) == {"cpu": {"run": "b"}}
    close(mine)


def test_the_place_is_for_every_user_of_the_host(place: Path) -> None:
    close(lease.acquire(["cpu"], HOLDER, place))
    assert place.stat().st_mode & 0o7777 == 0o1777
    assert (place / "cpu").stat().st_mode & 0o777 == 0o666


def test_all_users_are_given_the_same_place() -> None:
    assert lease.directory("/x") == Path("/x")
    assert lease.directory() in (Path("/run/lock/llmops"), Path("/tmp/llmops-leases"))


def test_a_look_at_a_free_lease_does_not_hinder_its_taker(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    looking = os.open(path, os.O_RDONLY)
    try:
        assert not files.locked(path)
        held = files.lock(path)
        assert held is not None
        assert files.locked(path)
        began = time.monotonic()
        assert files.lock(path, patience=0.1) is None
        assert time.monotonic() - began < 1
        os.close(held)
        assert not files.locked(path)
    finally:
        os.close(looking)
    assert not files.locked(tmp_path / "missing")
