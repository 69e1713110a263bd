# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What EC2 says of the end of the instance that this is: the spot interruption notice, two minutes before, and the
recommendation to rebalance, which may come earlier or never. Both are asked for at the instance's metadata (IMDSv2).
"""

from __future__ import annotations

import contextlib
import json
import threading
import typing as t
import urllib.error
import urllib.request
from pathlib import Path

ENDPOINT, DISABLED = "AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_EC2_METADATA_DISABLED"
"""AWS's own variables for where the metadata is, and for asking nobody."""
LINK_LOCAL = "http://169.254.169.254"
POLL_SECONDS = 5.0
PATIENCE_SECONDS = 2.0
PATHS = {"interruption": "spot/instance-action", "rebalance": "events/recommendations/rebalance"}
"""By what a notice is called in train_spot_notices."""
_ACTIONS = {"terminate": "terminates", "stop": "stops", "hibernate": "hibernates"}


def address(variables: t.Mapping[str, str], sys: Path = Path("/sys")) -> str:
    """Where the metadata is; empty on what is no instance of EC2. sys: where the kernel tells of the machine."""
    if variables.get(DISABLED, "").lower() == "true":
        return ""
    if variables.get(ENDPOINT):
        return variables[ENDPOINT].rstrip("/")
    vendor, hypervisor = _text(sys / "class/dmi/id/sys_vendor"), _text(sys / "hypervisor/uuid")
    return LINK_LOCAL if vendor == "Amazon EC2" or hypervisor.startswith("ec2") else ""


def sentence(kind: str, told: t.Mapping[str, t.Any]) -> str:
    """A notice for people."""
    if kind == "interruption":
        does = _ACTIONS.get(str(told.get("action")), "takes back")
        return f"EC2 {does} this spot instance at {told.get('time')}."
    return f"EC2 recommends since {told.get('noticeTime')} to leave this spot instance (rebalance recommendation)."


class Metadata:
    """A client of IMDSv2. It never goes through a proxy."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.token = ""
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def notice(self, kind: str) -> dict[str, t.Any]:
        """Empty where there is none, or the metadata does not answer."""
        with contextlib.suppress(OSError, ValueError):
            for _attempt in range(2):
                if not self.token:
                    self.token = self._ask("PUT", "api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "21600"})
                try:
                    told = self._ask("GET", f"meta-data/{PATHS[kind]}", {"X-aws-ec2-metadata-token": self.token})
                    return dict(json.loads(told))
                except urllib.error.HTTPError as error:
                    if error.code != 401:
                        return {}  # 404: there is none
                    self.token = ""
        return {}

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(f"{self.where}/latest/{path}", method=method, headers=headers)
        with self.opener.open(request, timeout=PATIENCE_SECONDS) as answer:
            return str(answer.read().decode())


def watch(where: str, kinds: t.Sequence[str], known: str, found: t.Callable[[str], None]) -> None:
    """Call `found` with the first notice of these kinds, from a thread. known: one that was obeyed before; who starts
    again after it means it."""
    if not where or not kinds:
        return

    def work() -> None:
        metadata, over = Metadata(where), threading.Event()
        while True:
            for kind in kinds:
                told = metadata.notice(kind)
                if told and sentence(kind, told) != known:
                    return found(sentence(kind, told))
            over.wait(POLL_SECONDS)

    threading.Thread(target=work, daemon=True).start()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
