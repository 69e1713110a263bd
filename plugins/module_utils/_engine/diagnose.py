# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the traces of a failed attempt to what happened, whether it would repeat, and what to change.

A catalogue: the first row whose pattern occurs in the first failing rank's error (in the log's tail, where no rank left
an error) speaks.
"""

from __future__ import annotations

import re
import typing as t


class Diagnosis(t.NamedTuple):
    kind: str
    what: str
    change: str
    repeats: bool
    """The same attempt would fail the same way: restarting is useless."""


class _Row(t.NamedTuple):
    kind: str
    pattern: str
    what: str
    change: str
    repeats: bool


_PEER_LOST = (
    r"Connection reset by peer|Connection closed by peer|Broken pipe|DistBackendError|DistNetworkError|"
    r"Socket Timeout|Timed out after \d+ms|Connection refused|PeerLost"
)

_REFUSALS = (
    "ValueError|TypeError|KeyError|AttributeError|AssertionError|NotImplementedError|FileNotFoundError|PermissionError|"
    "IndexError"
)
"""Exceptions of Python with which trainers refuse their input: names that are looked for in what a rank left.

NotImplementedError is one: torch's answer to weights that a model lacks (meta tensors), LLaMA-Factory's to a task or an
attention that it does not have. The next attempt would end the same way, so none is made.
"""

_CATALOGUE = (
    _Row(
        "gpu-memory",
        r"CUDA out of memory|torch\.OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED",
        "A GPU ran out of memory.",
        "lower cutoff_len or per_device_train_batch_size, or set quantization_bit: 4, in train_args",
        True,
    ),
    _Row(
        "memory",
        r"DefaultCPUAllocator: can't allocate memory|MemoryError|Cannot allocate memory",
        "The node ran out of memory.",
        "lower cutoff_len or per_device_train_batch_size in train_args, or take a smaller model",
        True,
    ),
    _Row(
        "disk-full",
        r"No space left on device|Disk quota exceeded|PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+",
        "A file could not be written whole: the disk or a quota is full.",
        "free space under train_root or train_output_root, or lower save_total_limit in train_args",
        True,
    ),
    _Row(
        "lost-shards",
        r"LostShards",
        "Parts of every checkpoint were on a node that is gone.",
        "bring that node back, or start the run anew: train_state=absent, then apply",
        True,
    ),
    _Row(
        "storage",
        r"NotSeen|Stale file handle|Transport endpoint is not connected",
        "The storage of the results did not show what was written there.",
        "see that the storage of train_output_root is mounted and well on every host; the run resumes by itself",
        False,
    ),
    _Row(
        "dataset",
        r"DatasetGenerationError|ArrowInvalid|JSON parse error",
        "A dataset file cannot be read as a table.",
        "see the log for the file; module dataset_check names the record",
        True,
    ),
    _Row(
        "no-samples",
        r"Cannot find valid samples",
        "No record of the dataset survived LLaMA-Factory's checks.",
        "compare the records with `formatting` and `columns` in train_datasets",
        True,
    ),
    _Row(
        "hub",
        r"couldn't connect to|LocalEntryNotFoundError|Max retries exceeded|Cannot access gated repo|"
        r"is not a valid model identifier|Repository Not Found|OfflineModeIsEnabled|"
        r"HFValidationError",
        "A model or dataset could not be had from its hub.",
        "check the id in train_model or train_datasets, the node's way to the hub and, for gated ids, the token",
        True,
    ),
    _Row(
        "arguments",
        r"not used by the HfArgumentParser|Some specified arguments are not used",
        "LLaMA-Factory does not know one of the keys.",
        "correct the key named in the log in train_args or train_set",
        True,
    ),
    _Row(
        "port",
        r"EADDRINUSE|[Aa]ddress already in use",
        "The rendezvous port is in use.",
        "end what listens there, or set another train_port",
        False,
    ),
    _Row(
        "peer-lost",
        _PEER_LOST,
        "Another rank went away.",
        "look at the first failing rank; the run resumes by itself",
        False,
    ),
    _Row(
        "compiler",
        r"Error building extension|Unable to JIT load|MissingCUDAException|CUDA_HOME does not exist",
        "DeepSpeed could not build a part of itself.",
        "install g++ and Python's headers, with GPUs also the CUDA toolkit; or set train_engine to ddp or fsdp2",
        True,
    ),
    _Row(
        "package",
        r"ImportError|ModuleNotFoundError|requires \w+ to be installed",
        "A package is missing from the environment or does not fit.",
        "run the environment playbook; it names what differs from the lock",
        True,
    ),
    _Row(
        "error",
        rf"\b({_REFUSALS})\b",
        "The trainer refused its input.",
        "read the last lines of the log; correct the value in train_args or the record they name",
        True,
    ),
)

ENDED_ELSEWHERE = Diagnosis(
    "ended", "Another node had all ranks save and end.", "the run goes on when that node is back", False
)
NO_STORAGE = Diagnosis(
    "storage",
    "The folder of the results is not there: its storage is not mounted, or it was removed.",
    "mount what train_output_root is on, then the same command again",
    False,
)
NOTICE = "notice"
"""The kind of a diagnosis that is what EC2 said."""


def notice(sentence: str) -> Diagnosis:
    return Diagnosis(NOTICE, sentence, "the same command again, with the hosts that are there then", False)


_UNKNOWN = Diagnosis("unknown", "The trainer ended with an error.", "read the last lines of the log", False)


_KILLED = Diagnosis(
    "killed",
    "A rank was killed (SIGKILL).",
    "see what ended it: a person, a service, a guard of memory such as systemd-oomd; the run resumes by itself",
    False,
)
_KILLED_FOR_MEMORY = Diagnosis(
    "memory",
    "A rank was killed (SIGKILL), and the node's kernel ended processes for want of memory meanwhile.",
    "lower cutoff_len, per_device_train_batch_size or dataloader_num_workers in train_args, or see in the kernel log "
    "what else takes the node's memory",
    False,
)
"""Not said to repeat: what another process took may be free again, and the budget of attempts ends what is not."""


def diagnose(
    *, errors: t.Sequence[dict[str, t.Any]], tail: str, signal: int = 0, stalled: str = "", ended_by_kernel: int = 0
) -> Diagnosis:
    """errors: what failing ranks left, earliest first (`type`, `message`, `rank`). tail: the end of the log.

    signal: what killed a rank, 0 when none. stalled: why the supervisor ended the attempt itself. ended_by_kernel:
    processes of the node that its kernel ended for want of memory during the attempt.
    """
    if stalled:
        return Diagnosis("stalled", stalled, "look where the ranks hung in the log; the run resumes by itself", False)
    killed = signal or _signal_in(tail)
    own = [error for error in errors if not follows(error)]
    errors = own or errors  # what others fail of when a rank is gone tells nothing of its reason
    if killed == 9 and not own:  # before the tail: what a rank logged earlier did not end it
        return _KILLED_FOR_MEMORY if ended_by_kernel else _KILLED
    text = _text(errors[0]) if errors else tail
    for row in _CATALOGUE:
        if re.search(row.pattern, text):
            where = f" Rank {errors[0].get('rank')}: {_first_line(errors[0])}" if errors else ""
            return Diagnosis(row.kind, row.what + where, row.change, row.repeats)
    if errors:
        return _UNKNOWN._replace(what=f"Rank {errors[0].get('rank')}: {_first_line(errors[0])}")
    if killed:
        return Diagnosis("killed", f"A rank died of signal {killed}.", "read the last lines of the log", False)
    return _UNKNOWN


def follows(error: dict[str, t.Any]) -> bool:
    """Whether a rank failed only because another one was gone."""
    return bool(re.search(_PEER_LOST, _text(error)))


def _text(error: dict[str, t.Any]) -> str:
    return f"{error.get('type', '')}: {error.get('message', '')}"


def _first_line(error: dict[str, t.Any]) -> str:
    return _text(error).strip().splitlines()[0][:300]


def _signal_in(tail: str) -> int:
    """torchrun names the signal of the first failed rank: `exitcode  : -9 (pid: 12)`."""
    found = re.search(r"exitcode\s*:\s*-(\d+)", tail)
    return int(found.group(1)) if found else 0
