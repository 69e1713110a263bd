# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process in which Ansible does one task for one host, and which ends with it."""

from __future__ import annotations

import gc


def no_garbage() -> None:
    """Not to look for garbage: reading and packing a module of a hundred files would be 40 % of that."""
    gc.disable()
