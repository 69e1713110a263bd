# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The script that measures on a real GPU: what it makes of a process that answers, fails, hangs or is killed, and what
it does when it is called again. No process of these tests trains."""

from __future__ import annotations

import csv
import json
import time
import types
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._vram import choose, hardware

from ..conftest import REPOSITORY
from ..vram import cases, measure, process, rows, trained

CONFIGS = rows.configs(REPOSITORY / "tests" / "vram" / "configs")
FOUND = {
    **{"outcome": "", "reserved": 0, "seconds": 0.5, "batch": [1, measure.TINY_LENGTH], "trained": 8},
    "peaks": dict.fromkeys(("between", "forward", "backward", "optimizer"), 0),
    "versions": {"torch": "2.8.0"},
}
ANSWER = f"echo '{json.dumps(FOUND)}' > $4.part; mv $4.part $4; cat > /dev/null"
"""What the process of a configuration does; its arguments are -m, a module, what is asked and where to write."""


def python(folder: Path, script: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def run(folder: Path, script: str, *more: str) -> list[rows.Record]:
    out = folder / "measured.csv"
    measure.main(["--tiny", "--out", str(out), "--python", python(folder, script), *more])
    return rows.records(out)


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (ANSWER, ""),
        (ANSWER.replace('"outcome": ""', '"outcome": "out of memory"'), "out of memory"),
        ("exit 3", "ended with 3"),
        ("kill -9 $$", "ended with -9"),
        ("sleep 60 & echo $! > $MARK; wait", "over 1 s"),
    ],
    ids=["answers", "memory", "fails", "killed", "hangs"],
)
def test_every_end_of_a_configuration_is_a_row(
    script: str, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARK", str(tmp_path / "child"))
    (record,) = run(tmp_path, script, "--only", "11 ", "--limit", "1" if "sleep" in script else "60")
    assert (record["id"], record["other_metric"], record["tier"]) == ("11 adapters", outcome, "none")
    if (tmp_path / "child").exists():  # what it had started is gone too
        child = Path("/proc") / (tmp_path / "child").read_text(encoding="utf-8").strip() / "stat"
        deadline = time.monotonic() + 5
        while child.exists() and ") Z " not in child.read_text(encoding="utf-8") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not child.exists() or ") Z " in child.read_text(encoding="utf-8")


def test_rows_that_are_there_are_not_measured_again(tmp_path: Path, capsys: t.Any) -> None:
    first = run(tmp_path, ANSWER, "--only", "11 ")
    again = run(tmp_path, "exit 1", "--only", "11 ", "--only", "12 ")
    assert again[0] == first[0] and [one["other_metric"] for one in again] == ["", "ended with 1"]
    out = tmp_path / "measured.csv"
    text = out.read_text(encoding="utf-8")
    out.write_text(text[: text.rindex("12 a larger") + 30], encoding="utf-8")  # cut while it was written
    assert [one["id"] for one in run(tmp_path, ANSWER, "--only", "12 ")] == ["11 adapters", "12 a larger batch"]
    assert set(csv.DictReader(text.splitlines()).fieldnames or ()) == set(measure.COLUMNS)
    assert "1 rows are there" in capsys.readouterr().out


def test_what_there_is_no_time_for_is_left_for_another_call(tmp_path: Path, capsys: t.Any) -> None:
    (tmp_path / "measured.csv").touch()
    assert run(tmp_path, "exit 1", "--only", "11 ", "--limit", "9", "--seconds", "5") == []
    assert "another call" in capsys.readouterr().out


def test_without_a_gpu_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_device", lambda: None)
    with pytest.raises(SystemExit, match=r"no GPU here(.|\n)*--tiny"):
        measure.main([])


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("7, 100\n41, 300\n", 300),
        ("7, 100\n", 100),  # a container numbers its processes itself
        ("7, 100\n8, 200\n", 50),
        ("41, [N/A]\n", 50),
        ("", 50),
    ],
)
def test_the_driver_tells_what_the_process_has(text: str, size: int) -> None:
    assert process.driver(text, 41, 10 << 20, {"used": 60 << 20}) == size << 20


def test_the_planners_choice_is_raced_on_the_same_samples() -> None:
    gpu = hardware.find("H200")
    for recipe, model in cases.RACES:
        plain, chosen = cases.race(recipe, model, CONFIGS[model], gpu, gpu.memory)
        for one in (plain, chosen):
            assert one.arguments[choose.MICRO] * one.arguments[choose.ACCUMULATION] == 8
            assert (one.model, one.arguments["cutoff_len"], one.arguments["bf16"]) == (model, 2048, True)
        assert chosen.arguments[choose.MICRO] > plain.arguments[choose.MICRO] == 1
        assert plain.arguments.get(choose.BITS) == chosen.arguments.get(choose.BITS)


def test_a_process_is_asked_for_what_its_case_says(tmp_path: Path) -> None:
    device = process.Device(hardware.find("H200"), "GPU-0")
    masked = process.question(cases.PLAN[16], CONFIGS["llama3-8b"], device, tmp_path / "a.csv")
    assert (masked["padded"], masked["steps"], masked["settles"], masked["history"]) == (True, 3, 2, "")
    assert (masked["dtype"], masked["arguments"]["per_device_train_batch_size"]) == ("bfloat16", 4)
    kept = process.question(cases.PLAN[10], CONFIGS["llama3-8b"], device, tmp_path / "a.csv")
    assert kept["history"] == str(tmp_path / "a.history.pickle") and not kept["padded"]
    fixed = process.environment(cases.PLAN[23], device, tmp_path)
    assert (fixed["CUDA_VISIBLE_DEVICES"], fixed["PYTORCH_CUDA_ALLOC_CONF"]) == ("GPU-0", "expandable_segments:False")


@pytest.mark.parametrize(("name", "count", "key"), [("H200", 34, "bf16"), ("T4", 29, "fp16")])
def test_a_gpu_gets_what_it_can_compute(name: str, count: int, key: str) -> None:
    gpu = hardware.find(name)
    found = list(measure._cases(process.Device(gpu, "", 80 << 30), CONFIGS, lambda name: True))
    assert len(found) == count
    assert all(case.arguments[key] or case.arguments.get("pure_bf16") for case in found)


def test_ratios_are_of_rows_side_by_side() -> None:
    def record(name: str, speed: int, wrong: str = "") -> rows.Record:
        return {"id": name, "other_metric": wrong, "notes": json.dumps({"tokens_per_second": speed})}

    pair = [record("lora_sft llama3-8b plain", 1000), record("lora_sft llama3-8b chosen", 1700)]
    assert measure.ratios(pair) == ["lora_sft llama3-8b: 1000 tokens/s plain, 1700 chosen, 1.70 times"]
    assert measure.ratios(pair[:1]) == [] == measure.ratios([pair[0], record(pair[1]["id"], 900, "out of memory")])


def test_tokens_of_all_micro_batches_count() -> None:
    case = cases.Case("x", "llama3-8b", {"gradient_accumulation_steps": 4})
    assert measure.speed(case, {"batch": [2, 100], "seconds": 0.5}) == 1600


class Cuda:
    """Counters as torch.cuda has them: those of peaks go back to what is live."""

    def __init__(self) -> None:
        self.live = self.peak = 0

    def take(self, size: int) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)

    def is_available(self) -> bool:
        return True

    def max_memory_allocated(self) -> int:
        return self.peak

    def max_memory_reserved(self) -> int:
        return 2 * self.peak

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.live


def test_peaks_are_of_the_moment_that_they_were_in() -> None:
    cuda = Cuda()
    meter = trained.Meter(types.SimpleNamespace(cuda=cuda))
    steps = {9: "between", -8: "forward", 3: "backward", 4: "between", -6: "forward", 2: "between"}
    for size, moment in steps.items():
        cuda.take(size)
        meter.begin(moment)
    assert meter.peaks == {"load": 9, "between": 9, "forward": 4, "backward": 8}
    meter.forget()
    assert meter.peaks == {"between": 0} and meter.reserved == 18
    cuda.take(1)
    meter.begin("forward")
    assert meter.peaks["between"] == 5


def test_a_case_and_what_it_needs_are_where_the_rows_say() -> None:
    names = [case.name for case in cases.PLAN]
    assert len(set(names)) == len(names) == 28 and {case.model for case in cases.PLAN if case.model} <= CONFIGS.keys()
    assert sum(case.history for case in cases.PLAN) == 1 and sum(not case.expandable for case in cases.PLAN) == 1
