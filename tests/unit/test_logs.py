# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read of the logs of a run."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.llmops.finetune.plugins.module_utils._engine import logs


def test_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"a" * 100 + b"\xffend")
    assert logs.tail(tmp_path / "log", 4) == "\ufffdend"
    assert len(logs.tail(tmp_path / "log")) == 104
    assert logs.tail(tmp_path / "missing") == ""


def test_the_ending_is_a_few_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"line {i}\n" for i in range(9)), encoding="utf-8")
    assert logs.ending(tmp_path / "log") == [f"line {i}" for i in range(4, 9)]
    assert logs.ending(tmp_path / "missing") == []


def test_torchruns_account_of_a_failed_rank_is_left_out_of_the_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = "\n".join(f"line {i}" for i in range(9))
    banner = "E1124 02:09:08.802000 3188 torch/distributed/elastic/multiprocessing/api.py:874] failed (exitcode: 1)"
    log.write_text(f"{words}\n\n{banner}\nengine.rank FAILED\n====\n", encoding="utf-8")
    assert logs.last_words(log) == ["line 3", "line 4", "line 5", "line 6", "line 7", "line 8"]
    assert logs.last_words(log, 1) == ["line 8"]
    assert logs.last_words(tmp_path / "missing") == []
