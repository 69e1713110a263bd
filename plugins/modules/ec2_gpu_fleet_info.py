#!/usr/bin/python
# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: everything on AWS that is of a fleet."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ec2_gpu_fleet_info
short_description: Everything on AWS that is of a fleet
version_added: 0.1.0
description:
  - Lists what carries the fleet's tag, as the Describe calls of EC2 and IAM tell it, and instances of others in its
    network. Nothing listed means that nothing is left.
  - Lists by tag and bills name what was deleted for a while; they are not asked.
author: llmops.finetune contributors (@llmops-finetune)
options:
  name:
    description: Name of the fleet.
    type: str
    required: true
  bucket:
    description: A bucket, which is told in C(found.buckets) where it was made for the fleet.
    type: str
    default: ""
extends_documentation_fragment:
  - llmops.finetune.aws
  - llmops.finetune.attributes
"""

EXAMPLES = r"""
- name: Is anything left?
  llmops.finetune.ec2_gpu_fleet_info:
    name: demo
    region: us-east-1
  register: demo_left
  failed_when: demo_left.left | length > 0
"""

RETURN = r"""
found:
  description: By kind (C(instances), C(volumes), C(vpcs), …) lists of dicts with C(id) and what deleting it takes.
  returned: success
  type: dict
left:
  description: The same for people, a line for each kind that there is anything of.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

from ..module_utils._ec2 import belongings, client, naming  # noqa: E402
from ..module_utils._errors import FinetuneError  # noqa: E402


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **client.OPTIONS,
            "name": {"type": "str", "required": True},
            "bucket": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        aws = client.Aws(given["region"], given["profile"])
        found = belongings.find(aws, naming.checked(given["name"]), given["bucket"])
    except FinetuneError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, found=found, left=belongings.left(found))


if __name__ == "__main__":
    main()
