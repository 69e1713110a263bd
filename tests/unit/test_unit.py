# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unit files of runs, with a systemctl that only notes what it is told. The real one: tests/e2e/test_systemd.py."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _unit
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.plugin_utils._render import render

HOME = '/data/50% of "all" \\ $HOME'
SYSTEMCTL = """#!/bin/sh
echo "$@" >> "{log}"
test -e "{log}.fails" && case "$1" in enable) echo "no such account" >&2; exit 1 ;; esac
case "$1$2" in
    show--property=MainPID) cat "{log}.pid" 2>/dev/null || echo 0 ;;
    show--property=LoadState) cat "{log}.load" 2>/dev/null || echo not-found ;;
    daemon-reload) rm -f "{log}.forgetful" ;;
    start*) test ! -e "{log}.forgetful" || {{ echo "Unit not found." >&2; exit 5; }} ;;
esac
"""


class Systemd:
    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"

    def told(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []

    def has(self, pid: int) -> None:
        Path(f"{self.log}.pid").write_text(f"{pid}\n", encoding="utf-8")

    def remembers(self, load_state: str) -> None:
        Path(f"{self.log}.load").write_text(f"{load_state}\n", encoding="utf-8")

    def is_forgetful(self) -> None:
        """Till it reads all units again, it does not find a new one."""
        Path(f"{self.log}.forgetful").touch()

    def fails(self) -> None:
        Path(f"{self.log}.fails").touch()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(SYSTEMCTL.format(log=tmp_path / "log"), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    units = tmp_path / "units"
    units.mkdir()
    monkeypatch.setattr(_unit, "FOLDER", units)
    return Systemd(tmp_path)


def unit(folder: str = "/data/runs/demo-1") -> str:
    launch: dict[str, t.Any] = {
        "python": f"{HOME}/bin/python",
        "environment": {"HF_HOME": HOME},
    }
    spec = {"mounts": [HOME, "/mnt/team/x"], "user": "llmops", "folder": folder, "launch": launch, "stop_seconds": 180}
    return render("unit.j2", plan={"id": "demo-1"}, spec=spec)


def test_any_path_is_one_word_of_the_unit() -> None:
    lines = unit(f"{HOME}/runs/demo-1").splitlines()
    word = r"/data/50%% of \"all\" \\ $HOME"
    assert f'RequiresMountsFor="{word}"' in lines
    assert f'Environment="HF_HOME={word}"' in lines
    assert f'ExecStart="{word}/bin/python" -m engine.supervisor' in lines
    assert r'WorkingDirectory=/data/50%% of "all" \ $HOME/runs/demo-1' in lines  # to the end of the line, as it is
    assert "TimeoutStopSec=180" in lines


def test_a_unit_is_known_by_the_folder_of_its_run(systemd: Systemd) -> None:
    folder = f"{HOME}/runs/demo-1"
    assert not _unit.installed("demo-1", folder)
    _unit.path("demo-1").write_text(unit(folder), encoding="utf-8")
    assert _unit.installed("demo-1", folder)
    assert not _unit.installed("demo-1", folder[:-1]) and not _unit.installed("demo-1", "/other/runs/demo-1")


def test_a_start_installs_enables_and_names_the_process(systemd: Systemd) -> None:
    systemd.has(4711)
    assert _unit.start("demo-1", unit(), "/data/runs/demo-1") == 4711
    assert systemd.told()[-3:-1] == ["enable --no-reload llmops-demo-1.service", "start llmops-demo-1.service"]
    (installed,) = _unit.FOLDER.iterdir()
    assert installed.name == "llmops-demo-1.service" and installed.read_text(encoding="utf-8") == unit()
    assert installed.stat().st_mode & 0o777 == 0o644


def test_a_unit_that_is_written_again_is_read_again(systemd: Systemd) -> None:
    """systemd reads one that is new when it starts; of one that it knows, it would start what it read before."""
    _unit.start("demo-1", unit(), "/data/runs/demo-1")
    assert "daemon-reload" not in systemd.told()
    _unit.start("demo-1", unit(), "/data/runs/demo-1")
    assert systemd.told().count("daemon-reload") == 1


def test_a_unit_whose_file_is_gone_is_read_again_where_systemd_has_it_still(systemd: Systemd) -> None:
    systemd.remembers("loaded")
    _unit.start("demo-1", unit(), "/data/runs/demo-1")
    told = systemd.told()
    assert told.index("daemon-reload") < told.index("start llmops-demo-1.service")


def test_a_new_unit_that_is_not_found_is_looked_for_once_more(systemd: Systemd) -> None:
    systemd.is_forgetful()
    systemd.has(4711)
    assert _unit.start("demo-1", unit(), "/data/runs/demo-1") == 4711
    assert systemd.told()[-4:-1] == ["start llmops-demo-1.service", "daemon-reload", "start llmops-demo-1.service"]


def test_a_supervisor_that_is_gone_already_is_told(systemd: Systemd) -> None:
    assert _unit.start("demo-1", unit(), "/data/runs/demo-1") == -1


def test_a_start_that_fails_leaves_no_unit(systemd: Systemd) -> None:
    systemd.fails()
    with pytest.raises(FinetuneError, match="no such account"):
        _unit.start("demo-1", unit(), "/data/runs/demo-1")
    assert list(_unit.FOLDER.iterdir()) == []
    assert systemd.told()[-1] == "daemon-reload"


def test_the_same_run_of_another_root_is_left_alone(systemd: Systemd) -> None:
    theirs = unit("/home/bob/llmops/runs/demo-1")
    _unit.path("demo-1").write_text(theirs, encoding="utf-8")
    _unit.remove("demo-1", "/data/runs/demo-1")
    assert systemd.told() == []
    systemd.has(4711)
    with pytest.raises(FinetuneError, match="another folder"):
        _unit.start("demo-1", unit(), "/data/runs/demo-1")
    assert _unit.path("demo-1").read_text(encoding="utf-8") == theirs


def test_what_is_removed_is_stopped_and_forgotten(systemd: Systemd) -> None:
    _unit.path("demo-1").write_text(unit(), encoding="utf-8")
    _unit.remove("demo-1", "/data/runs/demo-1")
    assert not _unit.path("demo-1").exists()
    assert [line.split()[0] for line in systemd.told()] == ["stop", "disable", "reset-failed", "daemon-reload"]
    _unit.remove("demo-1", "/data/runs/demo-1")
    assert len(systemd.told()) == 4
