# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bench of memory: rows that it can take, rows that it leaves out, and the tables that it prints."""

from __future__ import annotations

import csv
import dataclasses
import json
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._vram import hardware, options
from ansible_collections.llmops.finetune.plugins.module_utils._vram.estimate import estimate, of_job
from ansible_collections.llmops.finetune.plugins.module_utils._vram.options import Situation

from .. import bench_vram
from ..conftest import REPOSITORY
from ..vram import cases, measure, others, process, rows

CONFIGS = REPOSITORY / "tests" / "vram" / "configs"
COLUMNS = (
    *("id", "source", "url", "tier", "model", "params_b", "method", "quant", "double_quant", "precision", "lora_rank"),
    *("targets", "seq_len", "micro_batch", "grad_ckpt", "attn", "loss_kernel", "optimizer", "engine", "n_gpus", "gpu"),
    *("software", "alloc_gib", "reserved_gib", "process_gib", "other_gb", "other_metric", "notes"),
)
TRAINED: dict[str, t.Any] = {
    **{"outcome": "", "reserved": 4 * rows.GIB, "process": 5 * rows.GIB, "seconds": 2.0, "trained": 1, "retries": 0},
    "peaks": {
        "load": 9 * rows.GIB,
        "forward": rows.GIB,
        "backward": 3 * rows.GIB,
        "optimizer": 2 * rows.GIB,
        "between": 1,
    },
    "versions": {"torch": "2.8.0"},
}


def length(case: cases.Case) -> dict[str, t.Any]:
    return {"batch": [case.arguments["per_device_train_batch_size"], case.arguments["cutoff_len"]]}


def gpu_of(gpu: hardware.Gpu) -> process.Device:
    return process.Device(gpu, "GPU-0", gpu.memory)


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


@pytest.mark.parametrize(
    ("changes", "tag"),
    [
        ({}, "replayed"),
        ({"source": "LLaMA-Factory wiki", "gpu": "A100 40GB"}, "formula"),
        ({"source": "LLaMA-Factory wiki", "gpu": "A100 40GB", "engine": "Unsloth single GPU"}, "unverified"),
        ({"source": "an issue", "gpu": "not told"}, "unverified"),
        ({"source": "torchtune README/docs"}, "formula"),
        ({"source": "torchtune README/docs", "notes": "+8-bit AdamW"}, "unverified"),
    ],
)
def test_a_row_is_trusted_as_far_as_an_estimate_of_the_same_run(changes: dict[str, str], tag: str) -> None:
    row = measured(**changes)
    assert isinstance(row, rows.Row) and row.tag == tag


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
    assert f"{others.FITCHECK}: left out, --fitcheck is not given" in text


# fitcheck-llm


def uv(folder: Path, script: str) -> None:
    """A stand-in of it."""
    folder.mkdir()
    (folder / "uv").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / "uv").chmod(0o755)


@pytest.mark.parametrize(
    ("script", "why"),
    [("", "uv is not on PATH"), ("echo no index >&2; exit 2", "no index"), ("exit 1", "ended with 1")],
)
def test_another_estimator_that_cannot_be_had_is_left_out(
    script: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script:
        uv(tmp_path / "bin", script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + (":/usr/bin:/bin" if script else ""))
    told = others.fitcheck([])
    assert isinstance(told, str) and why in told


def test_another_estimator_is_asked_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = measured(process_gib="6")
    assert isinstance(row, rows.Row)
    question = others.question(row, of_job(row.job, row.gpu, row.tag))
    assert (question["gpu"], question["model"]["num_params"]) == ("t4", 1_235_814_400)
    asked = question["training"]
    assert (asked["precision"], asked["quantization"], asked["lora_rank"], asked["flash_attn"]) == (
        "fp16",
        "none",
        8,
        False,
    )
    uv(tmp_path / "bin", """cat > asked; echo '[{"tensors": 1, "process": 2}, null]'""")
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + ":/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    found = [(row, of_job(row.job, row.gpu, row.tag))] * 2
    assert others.fitcheck(found) == [{"tensors": 1, "process": 2}, None]
    assert json.loads((tmp_path / "asked").read_text(encoding="utf-8")) == [question] * 2


def test_what_another_estimator_does_not_know_is_no_row_of_its(capsys: t.Any) -> None:
    row = measured(process_gib="6")
    assert isinstance(row, rows.Row)
    found = [(row, of_job(row.job, row.gpu, row.tag))] * 2
    bench_vram.others(found, [{"tensors": 0, "process": 3.0 * rows.GIB}, None])
    (line,) = (one for one in capsys.readouterr().out.splitlines() if one.startswith(f"  {others.FITCHECK}"))
    assert line.split()[3:5] == ["1", "50.00"]


# Rows of measure.py, in which nothing has to be guessed


@pytest.mark.parametrize("case", [one for one in cases.PLAN if one.model], ids=lambda one: one.name)
def test_what_is_measured_is_held_against_the_same_run(case: cases.Case) -> None:
    gpu = hardware.find("H200")
    record = {key: str(value) for key, value in measure.row(case, gpu_of(gpu), TRAINED | length(case)).items()}
    row = rows.measured(record, rows.configs(CONFIGS))
    assert isinstance(row, rows.Row), row
    situation = Situation(gpu=gpu, padded=case.padded, expandable=case.expandable)
    asked = options.read(row.job.shape, case.arguments, situation)
    assert row.job == dataclasses.replace(asked.job, varied=False) and row.tag == asked.tag
    assert (row.allocated / rows.GIB, row.process / rows.GIB) == (3.0, 5.0)
    assert row.phases == (rows.GIB, 3 * rows.GIB, 2 * rows.GIB)


def test_a_person_reads_how_far_the_estimate_is_off() -> None:
    case, gpu = cases.PLAN[10], hardware.find("H200")
    config = rows.configs(CONFIGS)[case.model]
    mine = estimate(config, case.arguments, Situation(gpu=gpu, padded=False), thorough=True)
    peaks = {"load": 10 * mine.allocated, "backward": mine.allocated}
    found = {**TRAINED, **length(case), "peaks": peaks, "reserved": mine.reserved * 2, "process": 0}
    line = measure.told(case, config, gpu_of(gpu), found)
    assert "1024 tokens/s" in line and "GiB +0.0 %, reserved" in line and line.endswith("-50.0 %")
    assert measure.told(case, config, gpu_of(gpu), {"outcome": "out of memory"}).endswith("out of memory")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"outcome": "out of memory"}, "out of memory"),
        ({"batch": [1, 1024]}, "batches had 1024 tokens"),
        ({"peaks": {"forward": 1}}, "not every moment was seen"),
    ],
)
def test_what_was_not_measured_is_left_out_with_the_reason(changes: dict[str, t.Any], why: str) -> None:
    made = measure.row(cases.PLAN[10], gpu_of(hardware.find("H200")), TRAINED | length(cases.PLAN[10]) | changes)
    out = rows.measured({key: str(value) for key, value in made.items()}, rows.configs(CONFIGS))
    assert isinstance(out, rows.Out) and why in out.why


def test_without_files_it_takes_our_own_peaks(capsys: t.Any) -> None:
    bench_vram.main(["--quick"])
    text = capsys.readouterr().out
    assert "truth.csv" in text and " 0 left out" in text
