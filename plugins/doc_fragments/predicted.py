# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules promise that make something so."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Predicts RV(changes), refuses what an apply refuses up front, and creates nothing.
    support: full
  diff_mode:
    description: Shows RV(changes), one a line.
    support: partial
  idempotent:
    description: A second call changes nothing.
    support: full
"""
