# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The quick look: what it passes, the long one passes too, and it passes what most records are like."""

from __future__ import annotations

import copy
import random
import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _dataset, _formats, _media, _records
from ansible_collections.llmops.finetune.plugins.module_utils._media import Media
from ansible_collections.llmops.finetune.plugins.module_utils._plain import plain

from .broken_records import (
    ANSWER,
    ASK,
    ASSISTANT,
    BROKEN,
    FINE,
    FORMS,
    MEDIA,
    MEDIA_BROKEN,
    MEDIA_FINE,
    SYSTEM,
    USER,
    alpaca,
    chat,
    talk,
)

ALL = {**FORMS, **MEDIA}
RECORDS = [
    *((form, record) for form, record, _says in [*BROKEN, *MEDIA_BROKEN]),
    *FINE,
    *MEDIA_FINE,
    *((name, form.good) for name, form in ALL.items()),
]
ODD: list[t.Any] = [None, "", " ", "x", 0, 1.5, True, [], ["x"], {}, {"x": "y"}, "gpt", "user", "<image>", [ASK], ASK]


def layout(form: str, media: Media = _media.UNKNOWN, **entry: t.Any) -> _formats.Layout:
    dataset = _dataset.parse({"file": "a.json", **ALL[form].entry, **entry}, "v")[0]
    return _records.layout(dataset, ALL[form].stage, media)


def altered(record: t.Any, chance: random.Random) -> t.Any:
    """The record with one thing in it put in place of another, or taken away."""
    made = copy.deepcopy(record)
    places: list[t.Any] = [made]
    for place in places:  # which grows
        values = place.values() if isinstance(place, dict) else place
        places += [value for value in values if isinstance(value, (dict, list))]
    place = chance.choice(places)
    if isinstance(place, dict):
        key = chance.choice([*place, *ALL["alpaca kto"].entry["columns"].values(), "system", "tools", "images"])
        place[key] = chance.choice(ODD)
        if chance.random() < 0.3:
            del place[key]
    elif place:
        place[chance.randrange(len(place))] = chance.choice([*ODD, *place])
    return made


def test_it_passes_nothing_that_the_long_look_does_not() -> None:
    chance = random.Random(3)
    records = list(RECORDS)
    records += [(form, altered(record, chance)) for form, record in RECORDS if record for _again in range(200)]
    passed = 0
    for form, record in records:
        for media in (Media(), Media(taken=True)):
            written = layout(form, media)
            if plain(written)(record):
                passed += 1
                assert _formats.fault(record, written) is None, (form, record)
                assert _formats.doubt(record, written) == "", (form, record)
    assert passed > 1000


@pytest.mark.parametrize(
    ("form", "record"),
    [
        *((name, form.good) for name, form in FORMS.items() if name != "sharegpt tools"),
        ("alpaca", alpaca(score=3, system=None, history=None)),
        ("sharegpt", talk(SYSTEM, ASK, ANSWER, ASK, ANSWER, tools="")),
        ("openai", chat({"role": "system", "content": "Be brief."}, USER, ASSISTANT)),
    ],
)
def test_it_passes_what_most_records_are_like(form: str, record: t.Any) -> None:
    assert plain(layout(form))(record)


def test_one_word_for_two_roles_is_left_to_the_long_look() -> None:
    """A call of a function must be JSON, whatever else its role is called."""
    assert not plain(layout("sharegpt", tags={"function_tag": "gpt"}))(talk(ASK, ANSWER))
