# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which network interfaces an instance gets, from what its type tells of its cards. No table of types. Pure.

AWS's present rule: card 0 has a plain interface, which has the address; cards that can have an `efa-only` one beside it
or alone. Such an interface needs no address of the subnet. The older rule, for images whose EFA software is older than
1.35: card 0 is `efa`, which has the address too.
"""

from __future__ import annotations

import typing as t

from .._errors import FinetuneError
from .types import GpuType

WISHES = ("auto", "on", "off")
LAYOUTS = ("current", "legacy")


class Interface(t.NamedTuple):
    card: int
    device: int
    kind: str


def wanted(kind: GpuType, wish: str, count: int) -> bool:
    """Whether the fleet gets EFA. A node alone has nobody to talk to."""
    if wish == "on" and not kind.efa:
        raise FinetuneError(
            f"Instance type {kind.name} has no EFA.",
            where="ec2_efa",
            change="say `auto` or `off`, or choose a larger type of the family",
        )
    return kind.efa > 0 and (wish == "on" or (wish == "auto" and count > 1))


def layout(kind: GpuType, efa: bool, style: str = "current") -> list[Interface]:
    plain = Interface(0, 0, "interface")
    if not efa:
        return [plain]
    cards = [card.number for card in kind.cards if card.efa][: kind.efa]
    if style == "legacy":
        first = Interface(0, 0, "efa") if 0 in cards else plain
        return [first, *(Interface(card, 1, "efa-only") for card in cards if card)]
    return [plain, *(Interface(card, 0 if card else 1, "efa-only") for card in cards)]
