# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""train_secrets in a plan: what is taken, what is refused, and that no message holds a value."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _secrets
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

SECRET = "canary-77"


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (None, {}),
        ({}, {}),
        ({"HF_TOKEN": SECRET, "_a1": "x"}, {"HF_TOKEN": SECRET, "_a1": "x"}),
        ({"HF_HUB_DOWNLOAD_TIMEOUT": 30}, {"HF_HUB_DOWNLOAD_TIMEOUT": "30"}),
        (
            {"NCCL_DEBUG": "INFO", "https_proxy": "http://p", "KEY": "a\nb"},
            {"NCCL_DEBUG": "INFO", "https_proxy": "http://p", "KEY": "a\nb"},
        ),
    ],
)
def test_what_is_taken(given: t.Any, taken: dict[str, str]) -> None:
    assert _secrets.read(given) == taken


@pytest.mark.parametrize(
    ("given", "where", "said"),
    [
        (SECRET, "train_secrets", "is no dict"),
        ([f"HF_TOKEN={SECRET}"], "train_secrets", "is no dict"),
        ("", "train_secrets", "is no dict"),
        ({f"HF_TOKEN={SECRET}": "x"}, "train_secrets, entry 1", "none of an environment variable"),
        ({"A": "x", f"{SECRET} ": "x"}, "train_secrets, entry 2", "none of an environment variable"),
        ({"1A": SECRET}, "train_secrets, entry 1", "none of an environment variable"),
        ({5: SECRET}, "train_secrets, entry 1", "none of an environment variable"),
        ({"HF_TOKEN": ""}, "train_secrets, HF_TOKEN", "is empty"),
        ({"HF_TOKEN": None}, "train_secrets, HF_TOKEN", "is empty"),
        ({"HF_TOKEN": [SECRET]}, "train_secrets, HF_TOKEN", "is no text"),
        ({"HF_TOKEN": {"a": SECRET}}, "train_secrets, HF_TOKEN", "is no text"),
        ({"HF_TOKEN": {}}, "train_secrets, HF_TOKEN", "is no text"),
        ({"HF_TOKEN": []}, "train_secrets, HF_TOKEN", "is no text"),
        ({"FLAG": True}, "train_secrets, FLAG", "is no text"),
        ({"FLAG": 1.5}, "train_secrets, FLAG", "is no text"),
        ({"HF_TOKEN": f"{SECRET}\0"}, "train_secrets, HF_TOKEN", "no variable can hold"),
    ],
)
def test_what_is_refused(given: t.Any, where: str, said: str) -> None:
    with pytest.raises(FinetuneError, match=said) as refusal:
        _secrets.read(given)
    assert refusal.value.where == where and refusal.value.change and SECRET not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        *(
            (name, "train_lock")
            for name in ("PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "ENV")
        ),
        *((name, "train_user") for name in ("HOME", "USER")),
        ("CUDA_VISIBLE_DEVICES", "train_gpus"),
        *((name, "train_address") for name in ("MASTER_ADDR", "MASTER_PORT")),
        *((name, "train_gpus") for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PET_NNODES", "TORCHELASTIC_RUN_ID")),
        *((name, "train_engine") for name in ("USE_MCA", "ACCELERATE_USE_FSDP", "FSDP_VERSION", "DS_ACCELERATOR")),
        *((name, "the run has its own") for name in ("LLMOPS_RESUME", "TMPDIR", "TORCH_EXTENSIONS_DIR")),
    ],
)
def test_what_decides_the_ranks_is_no_secret(name: str, instead: str) -> None:
    with pytest.raises(FinetuneError, match="decides what the ranks are") as refusal:
        _secrets.read({name: SECRET})
    assert instead in refusal.value.change and SECRET not in str(refusal.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(FinetuneError, match="3 things are wrong") as refusal:
        _secrets.read({"PATH": SECRET, "OK": SECRET, "HF_TOKEN": [SECRET], SECRET: "x"})
    for said in ("PATH decides", "value of HF_TOKEN", "entry 4"):
        assert said in refusal.value.where
    assert SECRET not in str(refusal.value)
