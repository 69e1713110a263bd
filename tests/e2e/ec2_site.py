# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A controller that types playbooks, and the stand-in of AWS that they ask."""

from __future__ import annotations

import json
import subprocess
import typing as t
from dataclasses import dataclass
from pathlib import Path

from ..aws import Endpoint
from ..unit.ec2_facts import key
from .conftest import REPOSITORY, SYSTEM_PATH, Outcome, read_record

REGION = "us-east-1"
FLEET: dict[str, t.Any] = {
    "ec2_name": "demo",
    "ec2_region": REGION,
    "ec2_instance_type": "p4d.24xlarge",
    "ec2_count": 3,
    "ec2_zones": [f"{REGION}b", f"{REGION}a"],
    "ec2_max_nodes": 4,
    "ec2_max_hourly_usd": 80,
    "ec2_price_usd": 21.958,
    "ec2_ssh_cidrs": ["203.0.113.7/32"],
    "ec2_ssh_public_key": key("user"),
    "ec2_bucket": "records-of-demo",
    "ec2_bucket_create": True,
    "ec2_teardown_retries": 1,
}


@dataclass
class Site:
    """A controller with a home of its own, and the account it asks."""

    endpoint: Endpoint
    home: Path
    count: int = 0

    def play(
        self, playbook: str, *arguments: str, inventory: str = "inventories/local.yml", **variables: t.Any
    ) -> Outcome:
        self.count += 1
        record = self.home / f"record-{self.count}.jsonl"
        record.touch()
        done = self.run(
            [
                "ansible-playbook",
                playbook,
                "-i",
                inventory,
                "-e",
                json.dumps({**FLEET, **self.variables, **variables}),
                *arguments,
            ],
            ANSIBLE_CALLBACK_PLUGINS=str(REPOSITORY / "tests/e2e/callbacks"),
            ANSIBLE_CALLBACKS_ENABLED="record",
            RECORD_TO=str(record),
        )
        results = [
            {**line, "task": line["task"].removeprefix("llmops.finetune.ec2 : ")} for line in read_record(record)
        ]
        return Outcome(done.returncode, done.stdout + done.stderr, results)

    def run(self, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
        known = {
            "PATH": f"{REPOSITORY}/.venv/bin:{SYSTEM_PATH}",
            "HOME": str(self.home),
            "LC_ALL": "C.UTF-8",
            "AWS_REGION": REGION,
            **self.endpoint.environment(),
        }
        return subprocess.run(
            command, cwd=REPOSITORY, env={**known, **environment}, capture_output=True, text=True, check=False
        )

    @property
    def variables(self) -> dict[str, t.Any]:
        return {"ec2_known_hosts": str(self.home / "known_hosts")}

    def trainers(self) -> subprocess.CompletedProcess[str]:
        return self.run(["ansible", "trainers", "-i", "inventories/ec2.aws_ec2.yml", "--list-hosts"])

    def inventory(self) -> dict[str, t.Any]:
        done = self.run(["ansible-inventory", "-i", "inventories/ec2.aws_ec2.yml", "--list"])
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))
