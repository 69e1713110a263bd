# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bench of memory: rows that it can take, rows that it leaves out, and the tables that it prints."""

from __future__ import annotations

import csv
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._vram.estimate import of_job

from .. import bench_vram
from ..conftest import REPOSITORY
from ..vram import rows

CONFIGS = REPOSITORY / "tests" / "vram" / "configs"
COLUMNS = (
    *("id", "source", "url", "tier", "model", "params_b", "method", "quant", "double_quant", "precision", "lora_rank"),
    *("targets", "seq_len", "micro_batch", "grad_ckpt", "attn", "loss_kernel", "optimizer", "engine", "n_gpus", "gpu"),
    *("software", "alloc_gib", "reserved_gib", "process_gib", "other_gb", "other_metric", "notes"),
)
ROW = {
    **dict.fromkeys(COLUMNS, ""),
    **{"id": "x1", "source": "fitcheck", "tier": "A", "model": "llama3.2-1b", "method": "lora", "quant": "none"},
    **{"lora_rank": "8", "targets": "q_proj+v_proj", "seq_len": "512", "micro_batch": "1", "grad_ckpt": "True"},
    **{"attn": "eager", "engine": "single GPU", "n_gpus": "1", "gpu": "Tesla T4 16GB"},
}
"""Made up, in the columns of a file of measured rows."""


def measured(**changes: str) -> rows.Made:
    return rows.measured({**ROW, **changes}, rows.configs(CONFIGS))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": "nobody/none"}, "no config"),
        ({"n_gpus": "4"}, "several GPUs"),
        ({"seq_len": "unpacked alpaca"}, "length"),
        ({"micro_batch": ""}, "length or batch"),
        ({"method": "ln_tuning"}, "LLaMA-Factory"),
    ],
)
def test_what_cannot_be_replayed_is_left_out_with_the_reason(changes: dict[str, str], why: str) -> None:
    out = measured(**changes)
    assert isinstance(out, rows.Out) and why in out.why


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({"alloc_gib": "4", "reserved_gib": "5", "process_gib": "6"}, "process"),
        ({"other_gb": "6", "other_metric": "GB (reserved peak, 1e9)"}, "reserved"),
        ({"other_gb": "6", "other_metric": "GiB peak per GPU"}, "allocated"),
        ({"other_gb": "6", "other_metric": "VRAM rounded to GB"}, "process"),
    ],
)
def test_a_figure_is_held_against_what_it_is_a_figure_of(changes: dict[str, str], level: str) -> None:
    row = measured(**changes)
    assert isinstance(row, rows.Row) and bench_vram.highest(row)[0] == level


def test_the_report_counts_rows_errors_and_wrong_verdicts(tmp_path: Path, capsys: t.Any) -> None:
    row = measured(process_gib="1")
    assert isinstance(row, rows.Row)
    told = of_job(row.job, row.gpu, row.tag, thorough=True).process / rows.GIB
    path = tmp_path / "measured.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerow({**ROW, "process_gib": str(told)})
        writer.writerow({**ROW, "process_gib": str(told * 2)})  # an estimate of half of it would say that it fits
        writer.writerow({**ROW, "process_gib": str(told / 2)})  # and one of twice that it does not
        writer.writerow({**ROW, "model": "nobody/none"})
        writer.writerow({**ROW, "tier": "C"})
    bench_vram.main(["--measured", str(path), "--configs", str(CONFIGS)])
    text = capsys.readouterr().out
    assert "measured.csv: 3 rows, 1 left out" in text
    assert "-50.00 % +100.00 %" in text
    (line,) = (line for line in text.splitlines() if line.startswith("  all ") and "=" in line)
    assert line.split()[1:] == ["3", "1", "=", "33.3", "%", "1", "=", "33.3", "%"]
    assert "accelerate estimate-memory" in text and "DeepSpeed" in text and "LLaMA-Factory's table" in text


def test_without_files_it_takes_our_own_peaks(capsys: t.Any) -> None:
    bench_vram.main(["--quick"])
    text = capsys.readouterr().out
    assert "truth.csv" in text and " 0 left out" in text
