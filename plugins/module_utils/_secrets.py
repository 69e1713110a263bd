# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""train_secrets: environment variables of the ranks, checked before anything is touched. Pure.

No message has a value in it, nor a name that could be one.
"""

from __future__ import annotations

import re
import typing as t

from ._errors import FinetuneError, together

VARIABLE = "train_secrets"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOCK = "have packages in the environment by train_lock"
_ENGINE = "choose it by train_engine"
_RANKS = "inventory, train_gpus and train_processes_per_node say how many ranks there are, and where"
_OWN = "the run has its own"

_DECIDED: tuple[tuple[str, str], ...] = (
    (r"PATH|LD_\w*|PYTHON\w*|GCONV_PATH|GLIBC_TUNABLES|BASH_ENV|ENV|IFS|SHELL|VIRTUAL_ENV", _LOCK),
    (r"HOME|USER|LOGNAME", "choose the account by train_user"),
    (r"(CUDA|NVIDIA|HIP|ROCR|ASCEND_RT)_VISIBLE_DEVICES|CUDA_DEVICE_ORDER", "choose GPUs by train_gpus"),
    (r"MASTER_ADDR|MASTER_PORT", "set train_address or train_port"),
    (r"RANK|WORLD_SIZE|(LOCAL|NODE|GROUP|ROLE|CROSS)_(RANK|WORLD_SIZE)|ROLE_NAME|NNODES|NPROC_PER_NODE", _RANKS),
    (r"(PET|TORCHELASTIC)_\w*", _RANKS),
    (r"(ACCELERATE|FSDP)_\w*|USE_(RAY|MCA|KT|V1)|FORCE_TORCHRUN|DS_ACCELERATOR", _ENGINE),
    (r"LLMOPS_\w*|TMPDIR|TORCH_EXTENSIONS_DIR", _OWN),
)
"""Variables by which a run decides what its ranks are, and what to do in their place."""
_PATTERNS = tuple((re.compile(pattern), change) for pattern, change in _DECIDED)


def read(given: t.Any) -> dict[str, str]:
    """Values by name; all that is wrong is told at once."""
    if given is None:
        return {}
    if not isinstance(given, t.Mapping):
        raise FinetuneError(
            "train_secrets is no dict.", where=VARIABLE, change="write names with their values below it, or {} for none"
        )
    wrong = [row for place, (name, value) in enumerate(given.items()) if (row := _wrong(place + 1, name, value))]
    if wrong:
        raise together([FinetuneError(f"{what}.", where=where, change=change) for where, what, change in wrong])
    return {str(name): str(value) for name, value in given.items()}


def _wrong(place: int, name: t.Any, value: t.Any) -> tuple[str, str, str] | None:
    """Where, what and the remedy."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return (f"{VARIABLE}, entry {place}", "Its name is none of an environment variable", "use one such as HF_TOKEN")
    where = f"{VARIABLE}, {name}"
    for pattern, change in _PATTERNS:
        if pattern.fullmatch(name):
            return where, f"{name} decides what the ranks are, which the run does itself", f"remove it; {change}"
    if value is None or value == "":
        return where, f"{name} is empty", "give it a value, or leave it out"
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return where, f"The value of {name} is no text", "write it in quotes"
    if "\0" in str(value):
        return where, f"The value of {name} has a character that no variable can hold", "remove the NUL"
    return None
