# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What reaches a node and comes back from it: its deadline and its host keys."""

from __future__ import annotations

import http.server
import os
import subprocess
import threading
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

    expires = ""

    def do_PUT(self) -> None:
        self.answer(b"t0ken" if self.path == "/api/token" else b"")

    def do_GET(self) -> None:
        fits = (
            self.path == "/meta-data/tags/instance/llmops_expires"
            and self.headers["X-aws-ec2-metadata-token"] == "t0ken"
        )
        self.answer(self.expires.encode() if fits else b"")

    def answer(self, body: bytes) -> None:
        self.send_response(200 if body else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: t.Any) -> None:
        pass


@pytest.mark.parametrize(
    ("tag", "fallback", "ends"),
    [
        ("2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z", True),
        ("2999-01-01T00:00:00Z", "2020-01-01T00:00:00Z", False),
        ("", "2020-01-01T00:00:00Z", True),
        ("", "2999-01-01T00:00:00Z", False),
        ("never", "2020-01-01T00:00:00Z", False),
    ],
)
def test_a_node_ends_itself_in_time(tag: str, fallback: str, ends: bool, tmp_path: Path) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), type("Told", (Metadata,), {"expires": tag}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    script = tmp_path / "llmops-expire"
    script.write_text(deadline.script(fallback))
    (tmp_path / "systemctl").write_text('#!/bin/sh\necho "$@" >>"$(dirname "$0")/called"\n')
    for tool in (script, tmp_path / "systemctl"):
        tool.chmod(0o755)
    known = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LLMOPS_IMDS": f"http://127.0.0.1:{server.server_port}"}
    subprocess.run([script], env=known, check=False, capture_output=True)
    server.shutdown()
    assert (tmp_path / "called").exists() is ends
    if ends:
        assert (tmp_path / "called").read_text() == "poweroff\n"


def test_user_data_installs_the_timer_and_is_a_script() -> None:
    text = deadline.user_data("2026-11-24T11:00:00Z")
    assert text.startswith("#!/bin/sh\n") and "systemctl enable --now llmops-expire.timer" in text
    assert "expires=2026-11-24T11:00:00Z" in text and "@" not in text.replace("$@", "")
    assert len(text) < 16384, "EC2 takes no more"
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    assert deadline.user_data("") == ""
