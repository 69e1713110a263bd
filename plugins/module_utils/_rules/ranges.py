# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers out of their range: LLaMA-Factory fails with them later, or takes those below it for none."""

from __future__ import annotations

import typing as t

from .rule import Rule, View

_TRAINER = "transformers trainer.py"
_PPO = "train/ppo/trainer.py"
_LORA = "peft LoraConfig"
_TUNER = "train/trainer_utils.py"

RANK = 2**16
"""The largest rank of an adapter: more than the width of any model there is."""
_NO_END = float("inf")

When = t.Callable[[View], t.Any]


def _always(_c: View) -> bool:
    return True


def _on(key: str) -> When:
    return lambda c: c[key]


def _in(stage: str) -> When:
    return lambda c: c["stage"] == stage


class Range(t.NamedTuple):
    """Of a key, where it counts. above: the lowest is none of it."""

    key: str
    lowest: float
    source: str
    highest: float = _NO_END
    none: str = ""
    """What stands for none."""
    when: When = _always
    above: bool = False

    def broken(self, c: View) -> bool:
        value = c[self.key]
        if value is None or not self.when(c):
            return False
        stands_for_none = str(value) == self.none
        inside = self.lowest <= value <= self.highest and not (self.above and value == self.lowest)
        return not (inside or stands_for_none)

    def change(self) -> str:
        least = f"above {self.lowest:g}" if self.above else f"from {self.lowest:g}"
        most = "" if self.highest == _NO_END else f" to {self.highest:g}"
        none = f", or {self.none} for none" * bool(self.none)
        if self.none == f"{self.lowest:g}":
            none = f"; {self.none} is none"
        return f"use a number {least}{most}{none}"


RANGES = (
    Range("max_steps", 1, _TRAINER, none="-1"),
    Range("save_total_limit", 1, _TRAINER, none="null"),
    Range("max_grad_norm", 0, _TRAINER, none="0"),
    Range("neftune_noise_alpha", 0, _TRAINER, none="null"),
    Range("label_smoothing_factor", 0, _TRAINER, 1, none="0"),
    Range("adam_epsilon", 0, _TRAINER),
    Range("per_device_eval_batch_size", 1, _TRAINER),
    Range("eval_accumulation_steps", 1, _TRAINER, none="null"),
    Range("eval_delay", 0, _TRAINER, none="0"),
    Range("eval_steps", 0, _TRAINER, when=lambda c: c["eval_strategy"] == "steps"),
    Range("logging_steps", 0, _TRAINER, when=lambda c: c["logging_strategy"] == "steps"),
    Range("early_stopping_steps", 1, "train/tuner.py", none="null"),
    Range("lora_rank", 1, _LORA, RANK, when=lambda c: c.lora),
    Range("lora_alpha", 1, _LORA, none="null", when=lambda c: c.lora),
    Range("loraplus_lr_ratio", 0, _TUNER, none="null", above=True),
    Range("pissa_iter", 0, "model/adapter.py", none="-1", when=_on("pissa_init")),
    Range("module_dropout", 0, "peft OFTConfig", 1, when=lambda c: c["finetuning_type"] == "oft"),
    Range("oft_rank", 0, "peft OFTConfig", when=lambda c: c["finetuning_type"] == "oft"),
    Range("oft_block_size", 0, "peft OFTConfig", when=lambda c: c["finetuning_type"] == "oft"),
    Range("galore_rank", 1, _TUNER, when=_on("use_galore")),
    Range("galore_update_interval", 1, _TUNER, when=_on("use_galore")),
    Range("apollo_rank", 1, _TUNER, when=_on("use_apollo")),
    Range("apollo_update_interval", 1, _TUNER, when=_on("use_apollo")),
    Range("badam_switch_interval", 1, _TUNER, none="null", when=_on("use_badam")),
    Range("buffer_size", 1, "data/data_utils.py", when=_on("streaming")),
    Range("dpo_label_smoothing", 0, "train/dpo/trainer.py", 0.5, when=_in("dpo")),
    Range("pref_beta", 0, "train/dpo/trainer.py, train/kto/trainer.py", when=lambda c: c["stage"] in ("dpo", "kto")),
    Range("pref_ftx", 0, "train/dpo/trainer.py, train/kto/trainer.py", when=lambda c: c["stage"] in ("dpo", "kto")),
    Range("ppo_buffer_size", 1, _PPO, when=_in("ppo")),
    Range("ppo_epochs", 1, _PPO, when=_in("ppo")),
    Range(
        "max_new_tokens",
        1,
        f"{_PPO}, train/sft/workflow.py",
        when=lambda c: c["stage"] == "ppo" or c["predict_with_generate"],
    ),
    Range("temperature", 0, _PPO, above=True, when=_in("ppo")),
    Range("top_k", 0, _PPO, none="0", when=_in("ppo")),
    Range("top_p", 0, _PPO, 1, when=_in("ppo")),
)

SIZES = (
    Range("cutoff_len", 1, "data/processor"),
    Range("per_device_train_batch_size", 1, _TRAINER),
    Range("gradient_accumulation_steps", 1, _TRAINER),
)
"""A plan holds them against more than a range; an estimate of memory has none but this."""


def _rules(ranges: t.Iterable[Range]) -> t.Tuple[Rule, ...]:
    return tuple(
        Rule((one.key,), one.broken, f"{one.key} is out of its range", one.change(), one.source) for one in ranges
    )


RULES = _rules(RANGES)
ESTIMATED = _rules((*SIZES, *RANGES))
"""What a run must keep to whose memory is estimated, wherever it is to run."""
