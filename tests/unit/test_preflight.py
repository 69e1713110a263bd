# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is refused before anything is written."""

from __future__ import annotations

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _preflight
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError


@pytest.mark.parametrize(
    ("system", "machine", "libc", "says"),
    [
        ("Linux", "x86_64", "glibc 2.28", ""),
        ("Linux", "x86_64", "glibc 2.27", "need glibc 2.28"),
        ("Linux", "x86_64", "", "not glibc"),
        ("Linux", "aarch64", "glibc 2.39", "Linux on aarch64"),
        ("Darwin", "x86_64", "", "Darwin on x86_64"),
    ],
)
def test_check_platform(system: str, machine: str, libc: str, says: str) -> None:
    if not says:
        _preflight.check_platform(system, machine, libc, {"torch": "2.8.0"})
        return
    with pytest.raises(FinetuneError, match=says):
        _preflight.check_platform(system, machine, libc, {"torch": "2.8.0"})


@pytest.mark.parametrize(
    ("gib", "lock", "warm", "fits"),
    [
        (9, {"torch": "2"}, False, True),
        (8.9, {"torch": "2"}, False, False),
        (1, {"torch": "2"}, True, True),
        (1, {"six": "1"}, False, True),
        (0.4, {"six": "1"}, False, False),
        (0.4, {"torch": "2"}, True, False),
    ],
)
def test_check_space(gib: float, lock: dict[str, str], warm: bool, fits: bool) -> None:
    if fits:
        _preflight.check_space(int(gib * _preflight.GIB), lock, warm, "/srv")
        return
    with pytest.raises(FinetuneError, match=r"needs .* GiB") as caught:
        _preflight.check_space(int(gib * _preflight.GIB), lock, warm, "/srv")
    assert "uv_env_root" in caught.value.message()
