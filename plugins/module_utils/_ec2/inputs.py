# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module ec2_gpu_fleet takes; its documentation describes each."""

from __future__ import annotations

import typing as t

from . import client

_NAMES = {"type": "list", "elements": "str", "default": []}
_TEXT = {"type": "str", "default": ""}
OPTIONS: dict[str, dict[str, t.Any]] = {
    **client.OPTIONS,
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "planned", "absent"], "default": "present"},
    "count": {"type": "int", "default": 1},
    "allow_scale_down": {"type": "bool", "default": False},
    "instance_type": {"type": "str"},
    "market": {"type": "str", "choices": ["on-demand", "spot", "capacity-block"], "default": "on-demand"},
    "spot_max_usd": {"type": "float", "default": 0},
    "capacity_reservation_id": _TEXT,
    "zones": _NAMES,
    "cidr": {"type": "str", "default": "10.64.0.0/16"},
    "subnet_ids": _NAMES,
    "security_group_ids": _NAMES,
    "ssh_cidrs": _NAMES,
    "image_id": _TEXT,
    "image_parameter": {
        "type": "str",
        "default": "/aws/service/deeplearning/ami/{architecture}/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id",
    },
    "key_name": {"type": "str", "default": "", "no_log": False},
    "public_key": {"type": "str", "default": "", "no_log": False},
    "instance_profile": _TEXT,
    "placement_group": {"type": "str", "default": "auto"},
    "efa": {"type": "str", "choices": ["auto", "on", "off"], "default": "auto"},
    "efa_layout": {"type": "str", "choices": ["current", "legacy"], "default": "current"},
    "public_ip": {"type": "bool", "default": False},
    "root_gib": {"type": "int", "default": 200},
    "root_iops": {"type": "int", "default": 0},
    "root_throughput": {"type": "int", "default": 0},
    "kms_key_id": {"type": "str", "default": "", "no_log": False},
    "metadata_hops": {"type": "int", "default": 1},
    "tags": {"type": "dict", "default": {}},
    "ttl_hours": {"type": "float", "default": 24},
    "extend": {"type": "bool", "default": False},
    "idle_minutes": {"type": "int", "default": 0},
    "on_shutdown": {"type": "str", "choices": ["terminate", "stop"], "default": "terminate"},
    "max_nodes": {"type": "int", "default": 8},
    "max_hourly_usd": {"type": "float"},
    "price_usd": {"type": "float", "default": 0},
    "bucket": _TEXT,
    "known_hosts": {"type": "path", "default": ""},
    "timeout": {"type": "float", "default": 900},
}
