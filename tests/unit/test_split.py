# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of a dataset. The counts are those that datasets 3.6.0 and 4.0.0 made of a file of 160 records."""

from __future__ import annotations

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _split


@pytest.mark.parametrize(
    ("split", "records"),
    [
        ("train", 160),
        ("train[:]", 160),
        ("train[10:20]", 10),
        ("train[-10:]", 10),
        ("train[:-10]", 150),
        ("train[-20:-5]", 15),
        ("train[-200:]", 160),
        ("train[:200]", 160),
        ("train[:1_0]", 10),
        ("train[:10%]", 16),
        ("train[10%:20%]", 16),
        ("train[:1%]", 2),
        ("train[99%:]", 2),
        ("train[0%:50]", 80),
        ("train[-100%:]", 160),
        ("train[:10%](closest)", 16),
        ("train[:10%](pct1_dropremainder)", 10),
        ("train[:10]+train[20:30]", 20),
        ("train[:10] +train[:4]", 14),
        ("train[:0]", 0),
        ("train[900:]", 0),
        ("train[5:3]", 0),
        ("train[:-200]", 0),
    ],
)
def test_a_split_takes_as_many_records_as_datasets_does(split: str, records: int) -> None:
    assert _split.parse(split)
    assert _split.count(split, 160) == records


@pytest.mark.parametrize(
    "split",
    [
        *("", "train[x:]", "train[1,2]", "train[5]", "train[::2]", "train[ 5:9 ]", "train [:5]", "train[:3shard]"),
        *("train[:200%]", "train[:10](closest)", "train[:10] + train[20:30]", "a/b", "train[:5]+", "train[:1__0]"),
        "train[:9%](pct1_dropremainder)+train[:9%]",
    ],
)
def test_what_datasets_does_not_read_is_no_split(split: str) -> None:
    assert _split.parse(split) == []


def test_a_hundred_records_are_the_least_for_whole_hundreds() -> None:
    assert [_split.count("train[:50%](pct1_dropremainder)", records) for records in (99, 100, 199)] == [0, 50, 50]


def test_a_stream_has_a_split_as_it_is() -> None:
    parts = ["train", "test.en", "train[:]", "train[:5]", "train+test"]
    assert [_split.sliced(split) for split in parts] == [False, False, True, True, True]
    assert [part.name for part in _split.parse("train+test.en[:5]")] == ["train", "test.en"]
