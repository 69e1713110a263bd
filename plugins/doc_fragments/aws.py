# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules that ask AWS have in common; module_utils/_ec2/client.py has the same as arguments."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
requirements:
  - boto3
options:
  region:
    description: Region of AWS.
    type: str
    required: true
  profile:
    description:
      - A profile of C(~/.aws/config). Empty for boto3's own choice.
      - Addresses and credentials are boto3's own too - C(AWS_PROFILE), C(AWS_ENDPOINT_URL) and so on.
    type: str
    default: ""
"""
