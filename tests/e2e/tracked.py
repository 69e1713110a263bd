# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What trackers kept of a run, without a server: by tracker, a list of [run, step, loss], as JSON.

Run with the Python of a node's environment: tracked.py <folder of a run>.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import sys
import typing as t
from pathlib import Path

Row = tuple[str, int, float]
BLOCK, HEADER = 32768, 7
FULL, FIRST, LAST = 1, 2, 4


def records(path: Path) -> t.Iterator[bytes]:
    """Of a log in LevelDB's format, as wandb and SwanLab write it; one that was cut off ends early."""
    data, at, begun = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _sum, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        part = data[at + HEADER : at + HEADER + length]
        if len(part) < length:
            return
        at += HEADER + length
        begun = part if kind in (FULL, FIRST) else begun + part
        if kind in (FULL, LAST):
            yield begun


def wandb(logs: Path) -> t.Iterator[Row]:
    from wandb.proto import wandb_internal_pb2

    for path in sorted(logs.glob("wandb/offline-run-*/*.wandb")):
        run = ""
        for data in records(path):
            record = wandb_internal_pb2.Record.FromString(data)
            run = record.run.run_id or run
            values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if "train/loss" in values:
                yield run, int(values["train/global_step"]), float(values["train/loss"])


def swanlab(logs: Path) -> t.Iterator[Row]:
    for path in sorted(logs.glob("swanlab/run-*/backup.swanlab")):
        run = ""
        for data in records(path):
            record = json.loads(data)
            if record["model_type"] == "Experiment":
                run = record["data"]["name"]
            if record["model_type"] == "Scalar" and record["data"]["key"] == "train/loss":
                yield run, record["data"]["step"], float(record["data"]["metric"]["data"])


def mlflow(logs: Path) -> t.Iterator[Row]:
    import yaml

    for path in sorted(logs.glob("mlflow/*/*/metrics/loss")):
        name = yaml.safe_load((path.parents[1] / "meta.yaml").read_text(encoding="utf-8"))["run_name"]
        for line in path.read_text(encoding="utf-8").splitlines():
            _time, value, step = line.split()
            yield f"{name} {path.parents[1].name}", int(step), float(value)


def trackio(logs: Path) -> t.Iterator[Row]:
    for path in sorted(logs.glob("trackio/*.db")):
        with sqlite3.connect(path) as base:
            for run, metrics in base.execute("select run_name, metrics from metrics order by id"):
                values = json.loads(metrics)
                if "train/loss" in values:
                    yield run, values["train/global_step"], values["train/loss"]


def tensorboard(logs: Path) -> t.Iterator[Row]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for folder in sorted({path.parent for path in logs.parent.glob("output/runs/**/events.*")}):
        events = EventAccumulator(str(folder)).Reload()
        for event in events.Scalars("train/loss"):
            yield folder.name, event.step, event.value


def main() -> None:
    logs = Path(sys.argv[1]) / "logs"
    print(
        json.dumps({reader.__name__: list(reader(logs)) for reader in (wandb, swanlab, mlflow, trackio, tensorboard)})
    )


if __name__ == "__main__":
    main()
