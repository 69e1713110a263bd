# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where in a stream a trainer goes on. That the weights come out the same is seen in tests/e2e/test_streams.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._engine import streams


@pytest.mark.parametrize("accumulation", [1, 3, 8])
@pytest.mark.parametrize("max_steps", [7, 24, 100_000])
def test_the_state_of_a_checkpoint_tells_pass_and_step(max_steps: int, accumulation: int) -> None:
    state = SimpleNamespace(epoch=0.0)
    length = streams.PassLength(max_steps, SimpleNamespace(state=state))
    for passes in (0, 1, 2, 999):
        for steps in (1, 2, max_steps // 2, max_steps - 1):
            batches = steps * accumulation
            state.epoch = passes + batches / (
                max_steps * accumulation
            )  # as transformers counts where no length is known
            assert (4711 // length, 4711 % length) == (passes, steps)
    assert length == max_steps and length + 1 == max_steps + 1


def test_what_is_left_of_a_pass_and_that_nothing_is() -> None:
    told: list[str] = []
    assert list(streams.Rest([1, 2], lambda: told.append("nothing"))) == [1, 2] and told == []
    assert list(streams.Rest([], lambda: told.append("nothing"))) == [] and told == ["nothing"]
