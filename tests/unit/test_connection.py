# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a host cannot be worked on. The words are those of OpenSSH 9, sudo 1.9, dash and ansible-core."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.plugin_utils import _connection

SAID = [
    ("admin@192.0.2.1: Permission denied (publickey).", "does not let admin in"),
    ("ssh: connect to host 192.0.2.1 port 22: Connection timed out", "does not answer at 192.0.2.1"),
    ("ssh: connect to host 192.0.2.1 port 22: No route to host", "does not answer at 192.0.2.1"),
    ("ssh: connect to host 192.0.2.1 port 22: Connection refused", "nothing listens for ssh"),
    ("ssh: Could not resolve hostname node9: Name or service not known", "no name that this controller can resolve"),
    ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "another host key"),
    ("sudo: a password is required", "may not become root"),
    ("Missing sudo password", "may not become root"),
    ("admin is not in the sudoers file.", "may not become root"),
    ("/bin/sh: 1: /usr/bin/python3: not found", "no Python on node1"),
    ("/bin/sh: 1: python3: not found", "no Python on node1"),
    ("No python interpreters found for host 'node1'", "no Python on node1"),
    ("mkdir: cannot create directory '/home/admin/.ansible': No space left on device", "disk of node1 is full"),
]


@pytest.mark.parametrize(("said", "expected"), SAID)
def test_each_has_its_words_and_its_remedy(said: str, expected: str) -> None:
    told = _connection.explain(f"Task failed: {said}", host="node1", address="192.0.2.1", user="admin")
    assert told is not None and expected in told.what
    assert told.where and told.change and "{" not in str(told)


def test_every_row_is_shown_to_work() -> None:
    used = {_connection.explain(case[0], host="", address="", user="").change for case in SAID}  # type: ignore[union-attr]
    assert len(used) == len(_connection._CATALOGUE)


def test_what_is_not_known_is_left_as_it_is() -> None:
    assert _connection.explain("MODULE FAILURE", host="a", address="", user="") is None


def test_a_key_that_ssh_would_pass_over_is_named(tmp_path: Path) -> None:
    key = tmp_path / "id"
    with pytest.raises(FinetuneError, match="There is no key"):
        _connection.refuse_key(str(key), "node1")
    key.write_text("")
    key.chmod(0o644)
    with pytest.raises(FinetuneError, match="mode 0644") as refusal:
        _connection.refuse_key(str(key), "node1")
    assert refusal.value.change == f"chmod 600 {key}"
    key.chmod(0o600)
    _connection.refuse_key(str(key), "node1")
    _connection.refuse_key("", "node1")


def test_what_a_module_says_is_not_taken_for_the_words_of_ssh() -> None:
    said = "PermissionError: [Errno 13] Permission denied: '/srv/model/model.safetensors'"
    assert _connection.explain(said, host="a", address="", user="", ssh=False) is None
    assert _connection.explain("sudo: a password is required", host="a", address="", user="", ssh=False) is not None
