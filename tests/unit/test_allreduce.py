# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of an all-reduce over all nodes, and a node's part of it with a torchrun that is a small script."""

from __future__ import annotations

import json
import shutil
import sys
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _allreduce, _engine, _place
from ansible_collections.llmops.finetune.plugins.module_utils._engine import allreduce, files, state

NODES = {
    host: {
        "interface": "eth0",
        "speed": 10_000,
        "launch": {"address": f"10.0.0.1{number}", "master_addr": "10.0.0.10"},
    }
    for number, host in enumerate(("a", "b", "c"))
}
MEASURED = {"nodes": 3, "ranks": 3, "backend": "gloo", "bytes": 8 << 20, "seconds": 0.0125}
WELL = {"ok": True, **MEASURED, **allreduce.bandwidth(8 << 20, 0.0125, 3)}
CLOSED = (
    "torch.distributed.DistNetworkError: Failed to recv, got 0 bytes. Connection was likely closed. Did the remote?"
)
ALONE = "torch.distributed.DistStoreError: Timed out after 11 seconds waiting for clients. 2/3 clients joined."
AWAY = (
    "torch.distributed.DistNetworkError: The client socket has timed out after 10000ms while trying to connect to "
    "(10.0.0.10, 41000)."
)
TAKEN = (
    "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. port: "
    "41000, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use"
)
NO_INTERFACE = "RuntimeError: [enforce fail at device.cc:84] ifa != nullptr. Unable to find address for: eth0"
NO_LIBRARY = "ImportError: libshm.so: cannot open shared object file: No such file or directory"
LARGE = "1 MiB from a did not come within 20 s, though small packets do"


def failed(error: str, phase: str = "connecting") -> dict[str, t.Any]:
    return {"ok": False, "phase": phase, "error": error}


# What three hosts left when it was provoked, and who is told of with what.
CASES: list[tuple[str, list[dict[str, t.Any]], list[tuple[str, str, str]]]] = [
    ("all well", [WELL, WELL, WELL], []),
    ("not tried", [{}, {}, {}], []),
    (
        "large packets from a to b are lost",
        [
            failed("Elsewhere: node 1 failed"),
            failed("Silent: 1 MiB from node 0 did not come within 20 s"),
            failed("Elsewhere: node 1 failed"),
        ],
        [("b", LARGE, "MTU")],
    ),
    (
        "b and c cannot connect",
        [
            failed("Late: node 1, 2 did not come within 25 s"),
            failed("Hung: connecting did not end"),
            failed("Hung: connecting did not end"),
        ],
        [(host, "gloo cannot connect to all others over eth0", "all TCP ports") for host in "bc"],
    ),
    (
        "c does not get through to the rendezvous",
        [failed(ALONE), failed(CLOSED), failed(AWAY)],
        [("c", "does not get through to a (10.0.0.10):41000", "all TCP ports")],
    ),
    (
        "torch of a cannot be loaded, so nobody gets through to it",
        [failed(NO_LIBRARY), failed(AWAY), failed(AWAY)],
        [("a", f"torch cannot be loaded there: {NO_LIBRARY}", "environment playbook")],
    ),
    ("the port was taken", [failed(TAKEN), failed(CLOSED), failed(CLOSED)], [("a", "port 41000, which", "again")]),
    ("an interface", [failed(ALONE), failed(NO_INTERFACE), failed(ALONE)], [("b", "cannot use eth0", "train_address")]),
    (
        "NCCL hangs",
        [failed("Hung: adding up did not end", "adding up"), failed(CLOSED), failed(CLOSED)],
        [("a", "adding up did not end, over eth0", "all TCP ports")],
    ),
    (
        "no room",
        [failed(CLOSED), failed("OSError: [Errno 28] No space left on device", "loading torch"), failed(CLOSED)],
        [("b", "loading torch: OSError: [Errno 28] No space left on device", "allreduce.log")],
    ),
    (
        "a wrong sum",
        [WELL, failed("WrongSum: the sum over all ranks is 7, it ought to be 6"), failed("Elsewhere: node 1 failed")],
        [("b", "is 7, it ought to be 6", "kernel log")],
    ),
    (
        "killed without a word",
        [failed(CLOSED), failed("", "adding up"), failed(CLOSED)],
        [("b", "adding up: it died", "allreduce.log")],
    ),
    (
        "something new",
        [failed(CLOSED), failed("RuntimeError: NCCL error: unhandled cuda error", "adding up"), failed(CLOSED)],
        [("b", "adding up: RuntimeError: NCCL error: unhandled cuda error", "allreduce.log")],
    ),
    (
        "nobody knows why",
        [failed(CLOSED), failed(CLOSED), WELL],
        [(host, "the others went away, or did not come", "allreduce.log") for host in "ab"],
    ),
]


@pytest.mark.parametrize(("answers", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_host_that_failed_is_told_and_not_those_that_failed_with_it(
    answers: list[dict[str, t.Any]], expected: list[tuple[str, str, str]]
) -> None:
    found = _allreduce.rows(dict(zip(NODES, answers, strict=True)), NODES)
    for row, (host, what, change) in zip(found, expected, strict=True):
        assert (row.host, row.field) == (host, "all-reduce")
        assert what in row.what and change in row.change


def test_one_line_tells_the_bandwidth_as_nccl_tests_does() -> None:
    """8 MiB in 12.5 ms are 0.67 GB/s, of which each byte goes 4/3 times over the bus of three ranks."""
    assert _allreduce.line(WELL, NODES) == (
        "All-reduce over 3 nodes (3 ranks, gloo, 8 MiB): bus bandwidth 0.89 GB/s, algorithm bandwidth 0.67 GB/s; "
        "72% of the slowest link's 1.25 GB/s"
    )
    unknown = {**NODES, "b": {**NODES["b"], "speed": 0}}
    assert _allreduce.line(WELL, unknown).endswith("algorithm bandwidth 0.67 GB/s")


LOG = f"""Traceback (most recent call last):
  File "run.py", line 1, in <module>
    raise Error
{ALONE}
"""
OUTCOMES: list[tuple[str, list[dict[str, t.Any]], str, dict[str, t.Any]]] = [
    ("all ranks", [{"rank": rank, "ok": True, "phase": "", **MEASURED} for rank in (0, 1)], "", WELL),
    (
        "one rank of two has an error",
        [{"rank": 0, "phase": "adding up"}, {"rank": 1, "phase": "connecting", "error": "E: e"}],
        LOG,
        failed("E: e"),
    ),
    ("torchrun failed", [], LOG, failed(ALONE, "starting torchrun")),
    ("a rank died", [{"rank": 0, "phase": "adding up"}], "Killed", failed("", "adding up")),
    ("one rank never began", [{"rank": 0, "ok": True, **MEASURED}], "", failed("", "starting torchrun")),
]


@pytest.mark.parametrize(("told", "log", "expected"), [one[1:] for one in OUTCOMES], ids=[one[0] for one in OUTCOMES])
def test_what_came_of_it_on_a_node(told: list[dict[str, t.Any]], log: str, expected: dict[str, t.Any]) -> None:
    assert allreduce.outcome(told, 2, log) == expected


SHELL = """#!/bin/sh
test "$2" = torch.distributed.run && { echo "$@" > argv; DOES; }
exec "PYTHON" "$@"
"""


@pytest.fixture
def begun(tmp_path: Path) -> t.Iterator[t.Callable[[str], state.Run]]:
    """A node's part whose torchrun does what a line of shell says."""
    run = state.Run(tmp_path / "runs" / "x-00000000")
    run.logs.mkdir(parents=True)
    shutil.copytree(Path(str(_engine.__file__)).parent, run.path / "engine")
    python = tmp_path / "python"
    launch = {"python": str(python), "nnodes": 2, "node_rank": 1, "nproc_per_node": 1, "master_addr": "10.0.0.10"}
    run.launch.write_text(json.dumps(launch), encoding="utf-8")

    def begin(does: str) -> state.Run:
        python.write_text(SHELL.replace("DOES", does).replace("PYTHON", sys.executable), encoding="utf-8")
        python.chmod(0o755)
        _place.begin_allreduce(run, {"launch": {**launch, "environment": {}}}, 41000)
        return run

    yield begin
    _place.release(run)


def test_a_node_begins_its_part_and_says_what_came_of_it(begun: t.Callable[[str], state.Run]) -> None:
    told = json.dumps({"rank": 0, "ok": True, **MEASURED, "ranks": 2})
    run = begun(f"echo '{told}' > logs/allreduce-rank0.json; exit 0")
    answer = _place.end_of_allreduce(run)
    assert answer["ok"] and answer["bus_bandwidth"] == answer["algorithm_bandwidth"] > 0
    argv = (run.path / "argv").read_text(encoding="utf-8")
    assert "--master-addr=10.0.0.10 --master-port=41000 --rdzv-conf=timeout=40 " in argv
    assert argv.endswith("-m engine.allreduce_rank 40\n")


def test_what_an_apply_before_left_is_not_taken_for_an_answer(begun: t.Callable[[str], state.Run]) -> None:
    told = json.dumps({"rank": 0, "ok": True, **MEASURED})
    assert _place.end_of_allreduce(begun(f"echo '{told}' > logs/allreduce-rank0.json; exit 0"))["ok"]
    answer = _place.end_of_allreduce(begun("echo 'ImportError: no torch' >&2; exit 1"))
    assert not answer["ok"] and answer["error"] == "ImportError: no torch"


def test_nothing_of_it_outlives_the_place_that_is_given_up(begun: t.Callable[[str], state.Run]) -> None:
    run = begun("""sleep 60 & printf '{"pid": %s}' $! > child; wait""")
    deadline = time.monotonic() + 20
    while not files.read_json(run.path / "child") and time.monotonic() < deadline:
        time.sleep(0.05)
    child = Path("/proc") / str(files.read_json(run.path / "child")["pid"])
    assert child.exists()
    _place.release(run)
    assert not child.exists()
    assert _place.end_of_allreduce(run) == failed("", "starting torchrun")
