# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GPUs tried out: what a job says, or does not, becomes a table. The job itself runs with a torch in e2e tests."""

from __future__ import annotations

import json
import os
import stat
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.module_utils._gpu import tool, verify
from ansible_collections.llmops.finetune.plugins.module_utils._gpu.verify import Row

WELL = [
    {"what": "context", "ok": True, "torch": "2.8.0", "capability": 9.0},
    {"what": "memory", "ok": True, "bytes": 60 << 30, "free": 75 << 30},
    {"what": "float32", "ok": True},
    {"what": "bfloat16", "ok": True},
]


def said(*steps: dict[str, t.Any]) -> str:
    return "".join(json.dumps(step) + "\n" for step in steps)


def device(number: int, **more: t.Any) -> dict[str, t.Any]:
    return {"index": number, "uuid": f"GPU-{number}", "name": "H100", **more}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (tool.Answer(0, said(*WELL)), [True, True, True, True]),
        (tool.Answer(0, "noise of a library\n" + said(*WELL)), [True, True, True, True]),
        (tool.Answer(0, said({"what": "context", "ok": False, "why": "CUDA error: 802"})), ["CUDA error: 802"]),
        (tool.Answer(0, said(*WELL[:1], {"what": "memory", "ok": False, "why": "w"})), [True, "w"]),
        (tool.Answer(None, said(*WELL[:2])), [True, True, "it was not done after 9 s and was ended"]),
        (
            tool.Answer(None, said(*WELL[:1]), stuck=[77]),
            [True, "it waits in the kernel and cannot be ended (process 77)"],
        ),
        (tool.Answer(-11, said(*WELL[:1]), "a\nlast words\n\n"), [True, "it was ended by SIGSEGV: last words"]),
        (tool.Answer(-9, ""), ["it was ended by SIGKILL"]),
        (tool.Answer(1, "", "Traceback\nImportError: no torch\n"), ["ImportError: no torch"]),
        (tool.Answer(0, "{broken\n[1]\n"), ["it ended with status 0"]),
    ],
)  # fmt: skip
def test_what_a_job_says_of_one_gpu(answer: tool.Answer, expected: list[t.Any]) -> None:
    rows = verify.alone("0", answer, 9)
    assert [row.ok or row.why for row in rows] == expected
    assert [row.what for row in rows] == list(verify.STEPS[: len(rows)])


def test_what_a_job_says_of_pairs() -> None:
    text = said(
        {"what": "peer", "ok": True, "pair": [0, 1], "direct": True},
        {"what": "peer", "ok": False, "pair": [0, 2], "why": "bytes changed on the way there"},
    )
    rows = verify.pairs(["0", "2", "5", "7"], tool.Answer(None, text), 9)
    assert [(row.gpu, row.ok) for row in rows] == [
        ("0-2", True),
        ("0-5", False),
        ("2-5", False),
        ("0-7", None),
        ("2-7", None),
        ("5-7", None),
    ]
    assert rows[2].why == "no answer: it was not done after 9 s and was ended"


def test_a_table_for_people_and_a_refusal() -> None:
    rows = [
        *verify.alone("0", tool.Answer(0, said(*WELL)), 9),
        *verify.alone("1", tool.Answer(0, said({"what": "context", "ok": False, "why": "CUDA error: 802"})), 9),
        Row("2:1", "context", None, "GPU-2 is held by run a-1 (user me, process 7)."),
        Row("0-3", "peer", True, figures={"direct": False}),
    ]
    assert verify.table(rows) == [
        "GPU 0      ok: context, memory, float32, bfloat16 (60.0 GiB written and read)",
        "GPU 1      FAILED: context, CUDA error: 802",
        "GPU 2:1    not tried: context, GPU-2 is held by run a-1 (user me, process 7).",
        "GPUs 0-3   ok: bytes are the same, copied by way of the host",
    ]
    with pytest.raises(FinetuneError) as refusal:
        verify.refuse(rows)
    assert "GPU 1      FAILED" in refusal.value.where and "train_gpus" in refusal.value.change
    verify.refuse([row for row in rows if row.ok is not False])


PYTHON = """#!/bin/sh
# A stand-in for an environment's Python: -I -c SOURCE QUESTION
echo "$4" >> {folder}/asked
case "$4" in
*'"together": true'*) echo '{{"what": "peer", "ok": true, "pair": [0, 1], "direct": true}}' ;;
*GPU-9*) sleep 600 ;;
*) cat {folder}/well ;;
esac
"""


@pytest.fixture
def python(tmp_path: Path) -> str:
    path = tmp_path / "python"
    path.write_text(PYTHON.format(folder=tmp_path), encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "well").write_text(said(*WELL), encoding="utf-8")
    return str(path)


def test_gpus_are_tried_alone_and_then_in_pairs(python: str, tmp_path: Path) -> None:
    devices = [device(0), device(1), device(3, slice=0, uuid="MIG-a"), device(9), device(4)]
    held = {"GPU-4": "GPU-4 is held by run a-1."}
    begun = time.monotonic()
    rows = verify.verify(devices, held, python, "job", share=0.5, size=0, seconds=1)
    assert time.monotonic() - begun < 6
    well = [gpu for gpu in ("0", "1", "3:0") if all(row.ok for row in rows if row.gpu == gpu)]
    assert well == ["0", "1", "3:0"]
    assert [(row.gpu, row.ok) for row in rows if row.gpu not in well] == [("4", None), ("9", False), ("0-1", True)]
    asked = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    assert {tuple(one["visible"]) for one in asked} == {
        ("GPU-0",),
        ("GPU-1",),
        ("MIG-a",),
        ("GPU-9",),
        ("GPU-0", "GPU-1"),
    }
    assert asked[-1] == {"device": "cuda", "share": 0.5, "bytes": 0, "visible": ["GPU-0", "GPU-1"], "together": True}


def test_what_leads_python_elsewhere_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ansible/modules")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert not {"PYTHONPATH", "CUDA_VISIBLE_DEVICES"} & verify._variables().keys()


def marked(root: Path, digest: str, age: float) -> str:
    mark = root / "envs" / digest / "environment.json"
    mark.parent.mkdir(parents=True)
    mark.write_text("{}", encoding="utf-8")
    os.utime(mark, (time.time() - age,) * 2)
    return str(mark.parent)


def recorded(root: Path, run: str, digest: str, created: float) -> None:
    record = root / "runs" / run / "run.json"
    record.parent.mkdir(parents=True)
    record.write_text(
        json.dumps({"created": created, "resolved": {"environment": {"digest": digest}}}), encoding="utf-8"
    )


def test_the_environment_is_that_of_the_newest_run_else_the_newest(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match="There is no environment with torch below") as refusal:
        verify.environment("", str(tmp_path))
    assert refusal.value.where == "environment"
    old, new = marked(tmp_path, "old", 100), marked(tmp_path, "new", 1)
    assert verify.environment("", str(tmp_path)) == new
    recorded(tmp_path, "a-1", "new", 1.0)
    recorded(tmp_path, "a-2", "old", 2.0)
    recorded(tmp_path, "a-3", "gone", 3.0)
    assert verify.environment("", str(tmp_path)) == old


def test_an_environment_that_is_named_must_have_a_python(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match="There is no environment in") as refusal:
        verify.environment(str(tmp_path), "/nowhere")
    assert refusal.value.where == "environment"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to("/bin/sh")
    assert verify.environment(str(tmp_path), "/nowhere") == str(tmp_path)
