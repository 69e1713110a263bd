# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What reaches a node and comes back from it: its deadline and its host keys."""

from __future__ import annotations

import fcntl
import http.server
import os
import subprocess
import threading
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._ec2 import deadline, host_keys

from .ec2_facts import console, key


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (console(f"{key('a')} root@ip-10"), [key("a")]),
        (console(key("a"), key("b"), prefix=""), [key("a"), key("b")]),
        (console(key("a")) + console(key("b")), [key("b")]),
        (console(key("a")).partition("-----END")[0], []),
        (console(key("a")[:-9]), []),
        (f"{key('a')}\n", []),
        ("", []),
    ],
)
def test_host_keys_on_a_console(text: str, found: list[str]) -> None:
    assert host_keys.printed(text) == found


def test_known_hosts_are_read_as_written() -> None:
    keys = {("demo-000", "i-1"): [key("a"), key("b")], ("demo-001", "i-2"): [key("c")]}
    assert host_keys.known(host_keys.written(keys)) == keys
    assert host_keys.written(keys).splitlines()[0] == f"demo-000 {key('a')} i-1"
    assert host_keys.known("somebody else's\n") == {}


class Metadata(http.server.BaseHTTPRequestHandler):
    """Version 2 of the metadata service: no answer without a token."""

    tags: t.ClassVar[dict[str, str]] = {}

    def do_PUT(self) -> None:
        self.answer(b"t0ken" if self.path == "/api/token" else None)

    def do_GET(self) -> None:
        folder, _slash, tag = self.path.rpartition("/")
        fits = folder == "/meta-data/tags/instance" and self.headers["X-aws-ec2-metadata-token"] == "t0ken"
        self.answer(self.tags[tag].encode() if fits and tag in self.tags else None)

    def answer(self, body: bytes | None) -> None:
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *args: t.Any) -> None:
        pass


def ends(tags: dict[str, str], script: str, place: Path) -> bool:
    """Whether the script of the timer shuts its node down. place: has what the node has."""
    server = http.server.HTTPServer(("127.0.0.1", 0), type("Told", (Metadata,), {"tags": tags}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (place / "llmops-expire").write_text(script)
    (place / "systemctl").write_text('#!/bin/sh\necho "$@" >>"$(dirname "$0")/called"\n')
    for tool in ("llmops-expire", "systemctl"):
        (place / tool).chmod(0o755)
    known = {
        "PATH": f"{place}:{os.environ['PATH']}",
        "LLMOPS_IMDS": f"http://127.0.0.1:{server.server_port}",
        "LLMOPS_LEASES": str(place / "leases"),
    }
    subprocess.run([place / "llmops-expire"], env=known, check=False, capture_output=True)
    server.shutdown()
    called = place / "called"
    assert not called.exists() or called.read_text() == "poweroff\n"
    return called.exists()


@pytest.mark.parametrize(
    ("tags", "fallback", "is_"),
    [
        ({"llmops_expires": "2020-01-01T00:00:00Z"}, "2999-01-01T00:00:00Z", True),
        ({"llmops_expires": "2999-01-01T00:00:00Z"}, "2020-01-01T00:00:00Z", False),
        ({}, "2020-01-01T00:00:00Z", True),
        ({}, "2999-01-01T00:00:00Z", False),
        ({}, "", False),
        ({"llmops_expires": "never"}, "2020-01-01T00:00:00Z", False),
        ({"llmops_expires": ""}, "2020-01-01T00:00:00Z", False),
    ],
)
def test_a_node_ends_itself_in_time(tags: dict[str, str], fallback: str, is_: bool, tmp_path: Path) -> None:
    assert ends(tags, deadline.script(fallback, 0), tmp_path) is is_


@pytest.mark.parametrize(
    ("tags", "fallback", "leases", "is_"),
    [
        ({"llmops_idle": "30"}, 0, {"cpu": 40}, True),
        ({"llmops_idle": "30"}, 0, {"cpu": 20}, False),
        ({"llmops_idle": "30"}, 0, {"GPU-1": 90, "GPU-2": 20}, False),
        ({"llmops_idle": "30"}, 0, {"GPU-1": 90, "GPU-2": -90}, False),
        ({"llmops_idle": "30"}, 0, {"cpu": -40}, False),
        ({"llmops_idle": "30"}, 0, {}, False),
        ({"llmops_idle": "0"}, 30, {"cpu": 40}, False),
        ({"llmops_idle": "never"}, 30, {"cpu": 40}, False),
        ({}, 30, {"cpu": 40}, True),
        ({}, 0, {"cpu": 40}, False),
    ],
)
def test_a_node_ends_itself_some_time_after_its_last_run(
    tags: dict[str, str], fallback: int, leases: dict[str, int], is_: bool, tmp_path: Path
) -> None:
    """leases: how many minutes ago a lease was last seen held; below zero, it is held now."""
    (tmp_path / "leases").mkdir()
    held = []
    for name, minutes in leases.items():
        lease = tmp_path / "leases" / name
        lease.touch()
        os.utime(lease, (time.time() - abs(minutes) * 60,) * 2)
        if minutes < 0:
            held.append(lease)
    files = [open(lease, "rb") for lease in held]  # noqa: SIM115 - held until the end
    for file in files:
        fcntl.flock(file, fcntl.LOCK_EX)
    assert ends(tags, deadline.script("2999-01-01T00:00:00Z", fallback), tmp_path) is is_
    if tags.get("llmops_idle") == "30":
        assert all(time.time() - lease.stat().st_mtime < 60 for lease in held), "its time goes on"
    for file in files:
        file.close()


def test_a_node_without_a_run_stays(tmp_path: Path) -> None:
    assert not ends({"llmops_idle": "1"}, deadline.script("", 0), tmp_path)
    assert not (tmp_path / "leases").exists()


def test_user_data_installs_the_timer_and_is_a_script() -> None:
    text = deadline.user_data("2026-11-24T11:00:00Z", 45)
    assert text.startswith("#!/bin/sh\n") and "systemctl enable --now llmops-expire.timer" in text
    assert "llmops_expires 2026-11-24T11:00:00Z)" in text and "llmops_idle 45)" in text
    assert "@" not in text.replace("$@", "")
    assert len(text) < 16384, "EC2 takes no more"
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    assert "llmops_expires never)" in deadline.user_data("", 0), "a time that is given later counts"
