# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Arguments: numbers as their author meant them, refusals, the batch, and YAML that every loader reads alike."""

from __future__ import annotations

import itertools
import math
import re
import typing as t

import pytest
import yaml
from ansible_collections.llmops.finetune.plugins.module_utils import _config
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

MICRO, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"


# --- numbers ---


def test_a_float_is_written_so_that_every_reader_takes_it_for_one() -> None:
    text = f"learning_rate: {_config.to_yaml(1e-5)}"
    assert text == "learning_rate: 1.0e-05"
    assert yaml.safe_load(text) == {"learning_rate": 1e-5}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8),
        ("-3", -3),
        ("+4", 4),
        (" 8 ", 8),
        ("0.1", 0.1),
        (".5", 0.5),
        ("1.", 1.0),
        ("1E+3", 1000.0),
        ("2e5", 200000.0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("1e", "1e"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("1.2.3", "1.2.3"),
        ("yes", "yes"),
        ("", ""),
        ("q_proj,v_proj", "q_proj,v_proj"),
        (True, True),
        ({"a": ["1e-5", {"b": "2"}], 3: ("x",)}, {"a": [1e-5, {"b": 2}], "3": ["x"]}),
    ],
)
def test_text_that_means_a_value_becomes_it(text: t.Any, value: t.Any) -> None:
    made = _config.scalar(text)
    assert made == value
    assert type(made) is type(value)


# --- train_set ---


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", {}),
        ("  lora_rank=16   learning_rate=1e-5 ", {"lora_rank": "16", "learning_rate": "1e-5"}),
        ("bf16=true report_to=none", {"bf16": "true", "report_to": "none"}),
        ("run_note='two words'", {"run_note": "two words"}),
        ("note=a=b", {"note": "a=b"}),
        ("note=", {"note": ""}),
        ("""lora_target='["q_proj", "1e-5"]'""", {"lora_target": ["q_proj", "1e-5"]}),
        ("report_to=[wandb,tensorboard]", {"report_to": ["wandb", "tensorboard"]}),
        ('report_to=["wandb","tensorboard"]', {"report_to": ["wandb", "tensorboard"]}),
        ("report_to=[wandb]", {"report_to": ["wandb"]}),
        ("interleave_probs='[0.5, 0.5]'", {"interleave_probs": [0.5, 0.5]}),
        ("""extra='{"a": 1}'""", {"extra": {"a": 1}}),
    ],
)
def test_train_set_is_read(text: str, arguments: dict[str, t.Any]) -> None:
    assert _config.parse_set(text) == arguments


@pytest.mark.parametrize(
    ("text", "what", "change"),
    [
        ("lora_rank", "'lora_rank' is not key=value", "learning_rate=1e-5"),
        ("lora_rank =16", "'lora_rank' is not key=value", "learning_rate=1e-5"),
        ("=16", "'=16' is not key=value", "learning_rate=1e-5"),
        ("Lora_Rank=16", "'Lora_Rank=16' is not key=value", "learning_rate=1e-5"),
        ("--lora_rank=16", "'--lora_rank=16' is not key=value", "learning_rate=1e-5"),
        ("note='open", "cannot be read", "close the quote"),
        ("lora_target=[q_proj", "'[q_proj' is not JSON", "brackets"),
        ("report_to=[wandb, tensorboard]", "'[wandb,' is not JSON", "without blanks"),
        ("lora_target=[q_proj,]", "'[q_proj,]' is not JSON", "brackets"),
    ],
)
def test_train_set_that_cannot_be_read_is_refused(text: str, what: str, change: str) -> None:
    with pytest.raises(FinetuneError) as refusal:
        _config.parse_set(text)
    assert what in refusal.value.what
    assert "train_set" in refusal.value.where
    assert change in refusal.value.change


@pytest.mark.parametrize("nothing", [None, "", {}])
def test_no_train_args_are_no_arguments(nothing: t.Any) -> None:
    assert _config.parse_args(nothing) == {}


@pytest.mark.parametrize("value", ["lora_rank=8", ["lora_rank"], 3, {"Lora": 1}, {"lora rank": 1}, {1: 2}, {"": 1}])
def test_train_args_that_are_no_dict_of_keys_are_refused(value: t.Any) -> None:
    with pytest.raises(FinetuneError) as refusal:
        _config.parse_args(value)
    assert refusal.value.where == "train_args"
    assert refusal.value.change
    assert not isinstance(value, list) or refusal.value.what.startswith("train_args is a list, not a dict")


# --- keys that are not the author's ---


@pytest.mark.parametrize(("key", "variable"), sorted(_config.OWNED.items()))
def test_a_key_that_a_variable_decides_is_refused_with_the_variable(key: str, variable: str) -> None:
    with pytest.raises(FinetuneError) as refusal:
        _config.check({"lora_rank": 8, key: "x"}, "train_args")
    assert f"{key} is not set in train_args" in refusal.value.what
    assert refusal.value.change == f"set {variable}, remove {key}"


@pytest.mark.parametrize(
    "key", ["output_dir", "overwrite_output_dir", "resume_from_checkpoint", "ddp_timeout", "save_on_each_node"]
)
def test_a_reserved_key_is_refused_with_the_reason(key: str) -> None:
    with pytest.raises(FinetuneError) as refusal:
        _config.check({key: True}, "train_set")
    assert _config.RESERVED[key] in refusal.value.what
    assert (refusal.value.where, refusal.value.change) == ("train_set", f"remove {key}")


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("hf_hub_token", "train_secrets, as HF_TOKEN"),
        ("ms_hub_token", "train_secrets, as MODELSCOPE_API_TOKEN"),
        ("hub_token", "train_secrets, as HF_TOKEN"),
        ("om_hub_token", "train_secrets"),
        ("swanlab_api_key", "train_secrets, as SWANLAB_API_KEY"),
        ("swanlab_lark_secret", "from its arguments alone"),
    ],
)
def test_a_secret_is_refused_and_sent_to_train_secrets(key: str, told: str) -> None:
    with pytest.raises(FinetuneError, match="is a secret") as refusal:
        _config.check({key: "s3cret"}, "train_args")
    assert told in refusal.value.change
    assert "s3cret" not in str(refusal.value)


def test_ordinary_keys_pass() -> None:
    _config.check({"lora_rank": 8, "add_tokens": "a,b", "num_train_epochs": 1, "token_loss": 1}, "train_args")


# --- batch ---


@pytest.mark.parametrize(
    ("user", "micro", "accumulation", "world", "wanted", "answer"),
    [
        ("", 4, 8, 2, None, (4, 8)),  # nobody asks: the recipe's
        ("m", 4, 8, 2, None, (4, 8)),
        ("", 4, 8, 2, 64, (4, 8)),
        ("", 4, 8, 2, 32, (4, 4)),  # accumulation gives way first
        ("", 4, 8, 2, 4, (2, 1)),  # then the micro-batch
        ("", 4, 8, 3, 9, (3, 1)),
        ("", 4, 8, 1, 6, (3, 2)),
        ("", 8, 1, 4, 28, (7, 1)),
        ("", 8, 1, 1, 11, (1, 11)),  # a prime above what fits
        ("", 1, 8, 8, 8, (1, 1)),
        ("m", 4, 8, 2, 24, (4, 3)),
        ("m", 4, 8, 1, 4, (4, 1)),
        ("a", 4, 8, 2, 48, (3, 8)),
        ("a", 4, 1, 2, 64, (32, 1)),
        ("ma", 4, 8, 2, 64, (4, 8)),
    ],
)
def test_a_global_batch_is_split(
    user: str, micro: int, accumulation: int, world: int, wanted: int | None, answer: tuple[int, int]
) -> None:
    assert _split(user, micro, accumulation, world, wanted) == answer


@pytest.mark.parametrize(
    ("user", "micro", "accumulation", "world", "wanted", "change"),
    [
        ("", 4, 8, 4, 10, "use 8 or 12"),
        ("", 4, 8, 4, 3, "use 4,"),  # below one sample per rank there is nothing
        ("m", 4, 8, 2, 20, "use 16 or 24"),
        ("a", 4, 8, 2, 20, "use 16 or 32"),
        ("ma", 4, 8, 2, 32, "use 64, or leave one of the three out"),
    ],
)
def test_a_global_batch_that_does_not_fit_is_refused_with_the_nearest(
    user: str, micro: int, accumulation: int, world: int, wanted: int, change: str
) -> None:
    with pytest.raises(FinetuneError) as refusal:
        _split(user, micro, accumulation, world, wanted)
    assert "train_global_batch_size" in refusal.value.where
    assert str(wanted) in refusal.value.what
    assert change in refusal.value.change


def test_every_small_batch_is_split_exactly_or_refused_with_values_that_work() -> None:
    for user, micro, accumulation, world, wanted in itertools.product(
        ("", "m", "a", "ma"), (1, 2, 3, 4), (1, 2, 8), (1, 2, 3, 4), range(1, 33)
    ):
        kept = {key: value for key, value in (("m", micro), ("a", accumulation)) if key in user}
        possible = wanted % (world * math.prod(kept.values())) == 0 and (
            len(kept) < 2 or wanted == world * micro * accumulation
        )
        try:
            made = _split(user, micro, accumulation, world, wanted)
        except FinetuneError as refusal:
            assert not possible, (user, micro, accumulation, world, wanted)
            near = re.match(r"use (\d+)(?: or (\d+))?", refusal.change)
            for value in map(int, filter(None, near.groups() if near else ())):
                again = _split(user, micro, accumulation, world, value)
                assert math.prod(again) * world == value
        else:
            assert possible, (user, micro, accumulation, world, wanted)
            assert math.prod(made) * world == wanted
            assert all(made["ma".index(key)] == value for key, value in kept.items())
            assert user or made[0] <= micro  # the recipe's micro-batch fits in memory, a larger one may not


@pytest.mark.parametrize(
    "arguments", [{"auto_find_batch_size": True}, {"accelerator_config": {"split_batches": True}}], ids=str
)
def test_what_makes_ranks_take_other_batches_does_not_go_with_a_global_one(arguments: dict[str, t.Any]) -> None:
    (key,) = arguments
    given = {MICRO: 1, ACCUMULATION: 8, **arguments}
    with pytest.raises(FinetuneError, match="no step would have") as refusal:
        _config.batch(given, {key: "train_set"}, 2, 16)
    assert refusal.value.where == f"train_set, key {key}"
    assert _config.batch(given, {}, 2, None) == (1, 8)
    assert _config.batch({**given, key: {} if key == "accelerator_config" else False}, {}, 2, 16) == (1, 8)


@pytest.mark.parametrize("key", [MICRO, ACCUMULATION])
@pytest.mark.parametrize("value", [0, -1, 1.5, "4", True, None])
def test_a_batch_that_is_no_count_is_refused(key: str, value: t.Any) -> None:
    with pytest.raises(FinetuneError) as refusal:
        _config.batch({MICRO: 1, ACCUMULATION: 1, key: value}, {key: "train_set"}, 1, None)
    assert refusal.value.where == f"train_set, key {key}"


def _split(user: str, micro: int, accumulation: int, world: int, wanted: int | None) -> tuple[int, int]:
    written = {key: "train_args" for word, key in (("m", MICRO), ("a", ACCUMULATION)) if word in user}
    return _config.batch({MICRO: micro, ACCUMULATION: accumulation}, written, world, wanted)


# --- YAML ---

VALUES: list[t.Any] = [
    *(True, False, None, 0, -7, 10**20),
    *(1e-5, 1e-05, 1.5e-7, 1e16, 1e22, -1e-9, 0.1, 3.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf),
    *("lora", "all", "none", "q_proj,v_proj", "/srv/a b/model", "/srv/model", "Qwen/Qwen3-0.6B", "a@b", "./x"),
    *("yes", "No", "on", "OFF", "y", "N", "true", "Null", "~", "1e-5", "8", "1.0", ".5", ".1_0", "._", ".inf", ".NaN"),
    *(
        "",
        " ",
        "a: b",
        "a #b",
        "- a",
        "{a}",
        "[a]",
        "'",
        '"',
        "\\",
        "*a",
        "&a",
        "!a",
        "%a",
        "@a",
        "`a",
        "|",
        ">",
        "...",
    ),
    *(
        "---",
        "=",
        "<<",
        "?",
        "0o7",
        "1:30",
        "12:30:45",
        "2024-01-01",
        "0x1F",
        "1_000",
        "e5",
        "a\nb",
        "\t",
        "\x7f",
        "\x85",
    ),
    *("\u2028", "\ufeffa", "ü", "模型", "😀", "a\x00b"),
    *([], {}, [1e-5, "no", [None]], {"a b": 1e-5, "c": {"d": [True, "x, y"]}}, {"lr": "1e-5"}),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_rendered_value_is_read_back_as_the_same_value(value: t.Any) -> None:
    text = _config.to_yaml(value)
    assert "\n" not in text
    read = yaml.safe_load(f"before: 1\nkey: {text}  # origin\nafter: 2\n")
    assert read == {"before": 1, "key": value, "after": 2}
    assert type(read["key"]) is type(value)


def test_not_a_number_is_read_back_as_such() -> None:
    assert math.isnan(yaml.safe_load(_config.to_yaml(math.nan)))


def test_plain_words_are_not_quoted() -> None:
    assert [_config.to_yaml(word) for word in ("lora", "/srv/x", "yes", "8")] == ["lora", "/srv/x", '"yes"', '"8"']
