# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast records are checked on one core, and how much memory it takes, by form and ending.

Files are of 100 MB. LLMOPS_BENCH_MB is the size of one of them, of alpaca records in lines: 5000 for the real thing.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pyarrow
from pyarrow import ipc, parquet

REPOSITORY = Path(__file__).parents[1]
SIZE = 100 * 10**6
BIG = ("long-alpaca.jsonl", int(os.environ.get("LLMOPS_BENCH_MB") or 100) * 10**6)

Row = dict[str, t.Any]
SHAPES: dict[str, tuple[Row, str, t.Callable[[str, str], Row]]] = {
    # by form: its entry in train_datasets, its stage, and a record of a question and an answer
    "alpaca": ({}, "sft", lambda asked, answer: {"instruction": asked, "input": "", "output": answer}),
    "sharegpt": (
        {"formatting": "sharegpt"},
        "sft",
        lambda asked, answer: {
            "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}],
        },
    ),
    "openai": (
        {"formatting": "openai"},
        "sft",
        lambda asked, answer: {
            "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}],
        },
    ),
    "dpo": (
        {"ranking": True},
        "dpo",
        lambda asked, answer: {"instruction": asked, "input": "", "chosen": answer, "rejected": answer[::2]},
    ),
    "kto": (
        {},
        "kto",
        lambda asked, answer: {"instruction": asked, "input": "", "output": answer, "kto_tag": "?" in asked},
    ),
    "text": ({"columns": {"prompt": "text"}}, "pt", lambda asked, answer: {"text": f"{asked} {answer}"}),
}
LENGTHS = {"short": 1, "long": 6}
"""How often a record has the answer of the demo's."""
ENDINGS = {
    "alpaca": (".jsonl", ".json", ".csv", ".parquet", ".arrow"),
    "sharegpt": (".jsonl", ".parquet", ".arrow"),
    "text": (".txt",),
}

MEASURE = """
import json, pathlib, sys, time
from ansible_collections.llmops.finetune.plugins.module_utils import _dataset, _records
path, entry, stage = json.loads(sys.argv[1])
(dataset,) = _dataset.parse([{"path": path, **entry}], "bench")
before = time.process_time()
report = _records.check(pathlib.Path(path), dataset, stage)
seconds = time.process_time() - before
status = pathlib.Path("/proc/self/status").read_text()  # getrusage has the memory of the parent in it
peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
print(json.dumps([seconds, peak, report.records, [*report.faults, *report.doubts]]))
"""


def write(path: Path, rows: t.Sequence[Row], size: int) -> None:
    """These rows again and again, until the file is of about this size."""
    if path.suffix in (".parquet", ".arrow"):
        table = pyarrow.Table.from_pylist(rows)
        times = max(1, size // table.nbytes)
        if path.suffix == ".parquet":  # not compressed: the rate is that of its content
            with parquet.ParquetWriter(path, table.schema, compression="none", use_dictionary=False) as writer:
                for _hundred in range(0, times, 100):
                    writer.write_table(pyarrow.concat_tables([table] * 100))
        else:
            with ipc.new_stream(path, table.schema) as sink:
                for _time in range(times):
                    sink.write_table(table, max_chunksize=1000)
        return
    begin, between, end = {".json": ("[", ",\n", "]"), ".csv": (",".join(rows[0]) + "\n", "", "")}.get(
        path.suffix, ("", "", "")
    )
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(begin)
        if path.suffix == ".csv":
            while file.tell() < size:
                csv.writer(file).writerows(row.values() for row in rows)
            return
        if path.suffix == ".txt":
            texts = [row["text"] for row in rows]
        else:
            texts = [json.dumps(row, ensure_ascii=False) for row in rows]
        part = (between or "\n").join(texts) + ("" if between else "\n")
        file.write(part)
        while file.tell() < size:
            file.write(between + part)
        file.write(end)


def measure(path: Path, entry: Row, stage: str) -> tuple[float, int, int]:
    """Seconds of one core, peak memory and number of records, in a process of its own."""
    asked = json.dumps([str(path), entry, stage])
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "collections")}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, asked], env=environment, capture_output=True, text=True, check=True
    )
    seconds, peak, records, told = json.loads(done.stdout)
    if told:
        raise SystemExit(f"{path.name}: {told[0]}")
    return seconds, peak, records


def rows(folder: Path) -> list[list[str]]:
    demo = REPOSITORY / "roles" / "train" / "files" / "demo.jsonl"
    asked = [json.loads(line) for line in demo.read_text(encoding="utf-8").splitlines()]
    found = []
    for form, (entry, stage, shape) in SHAPES.items():
        for length, times in LENGTHS.items():
            records = [shape(row["instruction"], row["output"] * times) for row in asked]
            for ending in ENDINGS.get(form, (".jsonl",)):
                path = folder / f"{length}-{form}{ending}"
                write(path, records, BIG[1] if path.name == BIG[0] else SIZE)
                size = path.stat().st_size
                seconds, peak, count = measure(path, entry, stage)
                path.unlink()
                line = [f"{form} {ending}", f"{size / 1e6:.0f} MB", f"{size / count:.0f} B"]
                found.append([*line, f"{size / 1e6 / seconds:.0f} MB/s", f"{peak / 1e6:.0f} MB"])
                print(" | ".join(found[-1]), flush=True)
    return found


TITLE = ("records of", "size", "a record", "rate on one core", "memory")
