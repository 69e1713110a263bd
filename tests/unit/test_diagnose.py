# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Diagnoses: what happened, whether it would repeat, what to change - from errors of ranks and from logs."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _config
from ansible_collections.llmops.finetune.plugins.module_utils._engine.diagnose import _CATALOGUE, diagnose
from ansible_collections.llmops.finetune.plugins.plugin_utils import _recipes

ROWS = [
    # kind, repeats, type, message
    ("gpu-memory", True, "OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB."),
    ("gpu-memory", True, "RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    ("memory", True, "RuntimeError", "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ("memory", True, "MemoryError", ""),
    ("memory", True, "OSError", "[Errno 12] Cannot allocate memory"),
    ("disk-full", True, "OSError", "[Errno 28] No space left on device: 'x'"),
    ("disk-full", True, "OSError", "[Errno 122] Disk quota exceeded"),
    ("disk-full", True, "RuntimeError", "[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598"),
    ("disk-full", True, "RuntimeError", "PytorchStreamWriter failed writing file data/1: file write failed"),
    ("dataset", True, "DatasetGenerationError", "An error occurred while generating the dataset"),
    ("hub", True, "HFValidationError", "Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/no/such'."),
    ("package", True, "RuntimeError", "WandbCallback requires wandb to be installed. Run `pip install wandb`."),
    ("no-samples", True, "RuntimeError", "Cannot find valid samples, check `data/README.md` for the data format."),
    ("hub", True, "OSError", "We couldn't connect to 'the hub' to load the files"),
    ("hub", True, "LocalEntryNotFoundError", "Cannot find the requested files in the disk cache"),
    ("hub", True, "OSError", "org/x is not a local folder and is not a valid model identifier"),
    ("hub", True, "GatedRepoError", "Cannot access gated repo for url"),
    ("arguments", True, "ValueError", "Some specified arguments are not used by the HfArgumentParser: ['lora_rnk']"),
    ("port", False, "DistNetworkError", "The server socket has failed to listen: EADDRINUSE, address already in use"),
    ("port", False, "OSError", "[Errno 98] Address already in use"),
    ("peer-lost", False, "DistBackendError", "NCCL error: unhandled system error"),
    ("peer-lost", False, "RuntimeError", "[../gloo/transport/tcp/pair.cc] Connection closed by peer [10.0.0.2]:1234"),
    ("peer-lost", False, "RuntimeError", "Timed out after 1800000ms waiting for recv"),
    ("package", True, "ModuleNotFoundError", "No module named 'deepspeed'"),
    ("compiler", True, "RuntimeError", "Error building extension 'deepspeed_shm_comm'"),
    ("compiler", True, "MissingCUDAException", "CUDA_HOME does not exist, unable to compile CUDA op(s)"),
    ("error", True, "ValueError", "Unknown optimizer"),
    ("error", True, "AssertionError", ""),
    ("error", True, "NotImplementedError", "Cannot copy out of meta tensor; no data!"),
    ("error", True, "TypeError", "unsupported operand type(s) for +: 'int' and 'NoneType'"),
    ("error", True, "KeyError", "'messages'"),
    ("error", True, "AttributeError", "'NoneType' object has no attribute 'shape'"),
    ("error", True, "PermissionError", "[Errno 13] Permission denied: '/srv/model/config.json'"),
    ("error", True, "IndexError", "list index out of range"),
    ("error", True, "FileNotFoundError", "[Errno 2] No such file or directory: 'ds.json'"),
    ("lost-shards", True, "LostShards", "checkpoint-20/global_step20/zero_pp_rank_2_mp_rank_00_optim_states.pt"),
    ("storage", False, "NotSeen", "Within 150 s this node does not see what other nodes wrote of checkpoint-20."),
    ("storage", False, "OSError", "[Errno 116] Stale file handle: '/mnt/team/runs/x/checkpoint-20'"),
    ("peer-lost", False, "PeerLost", "Node 2 fell silent."),
    ("unknown", False, "RuntimeError", "something odd"),
]


@pytest.mark.parametrize(("kind", "repeats", "error", "message"), ROWS)
def test_the_error_of_a_rank(kind: str, repeats: bool, error: str, message: str) -> None:
    told = diagnose(errors=[{"type": error, "message": message, "rank": 3}], tail="")
    assert (told.kind, told.repeats) == (kind, repeats)
    assert f"Rank 3: {error}: {message}".rstrip(": ") in told.what
    assert told.change


@pytest.mark.parametrize(("kind", "repeats", "error", "message"), ROWS)
def test_the_same_words_in_the_log_where_no_rank_left_an_error(
    kind: str, repeats: bool, error: str, message: str
) -> None:
    told = diagnose(errors=[], tail=f"loading\nTraceback …\n{error}: {message}\n")
    assert (told.kind, told.repeats) == (kind, repeats)


def test_every_row_is_shown_to_work() -> None:
    assert {row.kind for row in _CATALOGUE} == {kind for kind, *_ in ROWS} - {"unknown"}


TORCHRUN = "E0101 failed (exitcode: -{number}) local_rank: 0\n  exitcode  : -{number} (pid: 123)\n"


def test_the_first_failing_rank_speaks() -> None:
    first, second = (
        {"type": "RuntimeError", "message": "CUDA out of memory", "rank": 2},
        {"type": "RuntimeError", "message": "Connection reset by peer", "rank": 0},
    )
    assert diagnose(errors=[first, second], tail="ValueError").kind == "gpu-memory"
    assert diagnose(errors=[second, second], tail="ValueError").kind == "peer-lost"


def test_what_others_fail_of_when_a_rank_is_gone_does_not_hide_its_own_error() -> None:
    follows = {"type": "PeerLost", "message": "Node 1 fell silent.", "rank": 0}
    own = {"type": "ValueError", "message": "no such template", "rank": 1}
    assert diagnose(errors=[follows, own], tail="").kind == "error"
    assert diagnose(errors=[follows], tail=TORCHRUN.format(number=9)).kind == "killed"


@pytest.mark.parametrize(
    ("tail", "signal", "says"),
    [
        (TORCHRUN.format(number=9), 0, "SIGKILL"),
        ("", 9, "SIGKILL"),
        (TORCHRUN.format(number=11), 0, "signal 11"),
        ("", 6, "signal 6"),
    ],
)
def test_a_killed_rank_may_start_again(tail: str, signal: int, says: str) -> None:
    told = diagnose(errors=[], tail=tail, signal=signal)
    assert (told.kind, told.repeats) == ("killed", False)
    assert says in told.what


@pytest.mark.parametrize(
    ("tail", "signal", "ended_by_kernel", "kind"),
    [
        ("", 9, 1, "memory"),
        (TORCHRUN.format(number=9), 0, 2, "memory"),
        ("", 9, 0, "killed"),
        (TORCHRUN.format(number=11), 0, 1, "killed"),
    ],
)
def test_a_rank_that_the_kernel_ended_for_memory_may_start_again(
    tail: str, signal: int, ended_by_kernel: int, kind: str
) -> None:
    told = diagnose(errors=[], tail=tail, signal=signal, ended_by_kernel=ended_by_kernel)
    assert (told.kind, told.repeats) == (kind, False)


@pytest.mark.parametrize("logged", ["ImportError: flash_attn is not there, going on", "ValueError: ignored"])
def test_a_warning_logged_before_a_kill_is_not_its_cause(logged: str) -> None:
    assert diagnose(errors=[], tail=f"{logged}\n{TORCHRUN.format(number=9)}").kind == "killed"
    unknown = diagnose(errors=[{"type": "RuntimeError", "message": "odd", "rank": 0}], tail=logged)
    assert (unknown.kind, unknown.repeats) == ("unknown", False)


def test_a_stall_says_so_whatever_the_log_holds() -> None:
    told = diagnose(errors=[{"type": "ValueError"}], tail="ValueError", stalled="No step for 301 s.")
    assert (told.kind, told.what, told.repeats) == ("stalled", "No step for 301 s.", False)


def test_nothing_known_may_start_again() -> None:
    told = diagnose(errors=[], tail="")
    assert (told.kind, told.repeats) == ("unknown", False)


@pytest.mark.parametrize("row", _CATALOGUE, ids=lambda row: row.kind)
def test_a_remedy_names_what_there_is(row: t.Any) -> None:
    known = {*_config.OWNED.values(), "train_args", "train_set", "train_port", "train_state=absent"}
    known |= {"train_root", "train_output_root"}
    assert {word.strip(",.;") for word in row.change.split() if word.startswith("train_")} <= known
    if "recipe" in row.change:
        assert any(name in row.change for name in _recipes.read())
