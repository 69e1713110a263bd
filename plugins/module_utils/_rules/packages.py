# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages that a key needs."""

from __future__ import annotations

import typing as t

from .._engine import hub_modelscope
from .rule import Rule, View, remove

_PARSER = "hparams/parser.py _check_extra_dependencies"
_QUANTIZATION = "model/model_utils/quantization.py"


def _package(name: str, key: str, uses: t.Callable[[View], t.Any], source: str = _PARSER) -> Rule:
    """A key that needs a package which the environment's lock does not install."""
    return Rule(
        (key,),
        lambda c: uses(c) and name not in c.schema.packages,
        f"it needs the package {name}, which the environment does not have",
        remove(key),
        source,
    )


def _quantizes_with(method: str) -> t.Callable[[View], bool]:
    return lambda c: c.quantized and c["quantization_method"] == method


RULES: t.Tuple[Rule, ...] = (
    _package("unsloth", "use_unsloth", lambda c: c["use_unsloth"]),
    _package("liger-kernel", "enable_liger_kernel", lambda c: c["enable_liger_kernel"]),
    _package("mixture-of-depth", "mixture_of_depths", lambda c: c["mixture_of_depths"] is not None),
    _package("galore-torch", "use_galore", lambda c: c["use_galore"]),
    _package("apollo-torch", "use_apollo", lambda c: c["use_apollo"]),
    _package("badam", "use_badam", lambda c: c["use_badam"]),
    _package("adam-mini", "use_adam_mini", lambda c: c["use_adam_mini"]),
    _package("swanlab", "use_swanlab", lambda c: c["use_swanlab"]),
    _package("matplotlib", "plot_loss", lambda c: c["plot_loss"]),
    _package("rouge-chinese", "predict_with_generate", lambda c: c["predict_with_generate"]),
    _package("bitsandbytes", "quantization_bit", lambda c: c.quantized and c["quantization_method"] == "bnb"),
    *(_package(name, "quantization_method", _quantizes_with(name), _QUANTIZATION) for name in ("hqq", "eetq")),
    _package("hyper-parallel", "use_hyper_parallel", lambda c: c["use_hyper_parallel"], "train/tuner.py"),
    Rule(
        ("train_model",),
        lambda c: c.now.model.startswith(hub_modelscope.PREFIX) and "modelscope" not in c.schema.packages,
        "it is fetched with the package modelscope, which the environment does not have",
        "take the model from another hub, or copy it to the nodes and name its full path",
        "modelscope",
    ),
    _package("torchao", "fp8", lambda c: c["fp8"] and c["fp8_backend"] != "te", "train/fp8_utils.py"),
    _package("transformer-engine", "fp8", lambda c: c["fp8"] and c["fp8_backend"] == "te", "train/fp8_utils.py"),
)
