# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read of variables alone, whatever the others say."""

from __future__ import annotations

import typing as t

from .. import _assumed, _store
from .._errors import FinetuneError
from . import values
from .wish import ASKED, FASTEST

_STATES = ("finished", "staged", "stopped", "absent")

Variables = t.Mapping[str, t.Any]

FIELDS: dict[str, t.Callable[[Variables], t.Any]] = {
    "lock": lambda given: str(given.get("train_lock") or ""),
    "gpus": lambda given: values.gpus(given.get("train_gpus", "all")),
    "global_batch_size": lambda given: values.count(given, "train_global_batch_size"),
    "processes_per_node": lambda given: values.count(given, "train_processes_per_node"),
    "port": lambda given: values.port(given, "train_port"),
    "user": lambda given: str(given.get("train_user") or ""),
    "root": lambda given: values.root(str(given.get("train_root") or "")),
    "output_root": lambda given: values.output_root(str(given.get("train_output_root") or "")),
    "store": lambda given: _store.read(str(given.get("train_store") or "")),
    "spot_notices": lambda given: values.some_of(given, "train_spot_notices", _store.NOTICES),
    "state": lambda given: values.one_of(given, "train_state", _STATES),
    "retry": lambda given: values.switch(given, "train_retry"),
    "refresh": lambda given: values.one_of(given, "train_resolve", ("record", "refresh")) == "refresh",
    "max_restarts": lambda given: values.number(given, "train_max_restarts"),
    "tokenized": lambda given: values.switch(given, "train_tokenized"),
    "assumed": lambda given: _assumed.read(str(given.get("train_assume_gpus") or "")),
}
"""By field of a Wish: how it is read of one variable alone."""
CHECKS: tuple[t.Callable[[Variables], t.Any], ...] = (
    lambda given: values.switch(given, "train_wait"),
    lambda given: values.one_of(given, "train_preflight", ("quick", "full")),
    lambda given: values.seconds(given, "train_watch_interval"),
)
"""Of variables that are no part of a wish."""


def insisted(variables: Variables) -> dict[str, t.Any]:
    """By field of a Wish: what its author means although it looks wrong."""
    words = values.some_of(variables, "train_insist", ("template", "mixed_gpus", "memory"))
    return {"insists": "template" in words, "mixes": "mixed_gpus" in words, "risks": "memory" in words}


def fit(variables: Variables) -> dict[str, t.Any]:
    """By field of a Wish: whether something is chosen, and of what."""
    wanted = values.one_of(variables, "train_fit", (ASKED, FASTEST))
    quantizes = values.switch(variables, "train_fit_quantize")
    if quantizes and wanted == ASKED:
        raise FinetuneError(
            "train_fit_quantize allows a choice, and nothing is chosen.",
            where="train_fit_quantize, train_fit",
            change="set train_fit: fastest; or quantization_bit: 4 in train_args, to have it so",
        )
    return {"fit": wanted, "quantizes": quantizes}
