# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules about the runs under a root have in common; module_utils/_run.py has the same as arguments."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  user:
    description: The account that runs belong to. Empty for the login user; for root, the account V(llmops).
    type: str
    default: ""
  root:
    description: Folder on the node that holds the runs. V(~) is the home of the account.
    type: str
    default: ~/llmops
  id:
    description: Id of one run; V(*) and V(?) stand for any letters. Empty for all.
    type: str
    default: ""
  name:
    description: Without O(id), only runs of this name. Empty for all.
    type: str
    default: ""
"""
