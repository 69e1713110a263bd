# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make measure`: what runs take of a real GPU, and tokens a second of the planner's choice beside plain defaults.

Run by the Python of a node's environment, or another one that has LLaMA-Factory; no network, no weights, no Ansible:

    PYTHONPATH=collections ENVIRONMENT/bin/python -m tests.vram.measure --out bench/vram_h200.csv

Each configuration has a process and a time limit of its own, and is a row once it is over, in the columns that
`make bench-vram ARGS="--measured FILE"` reads. Rows that are there are not measured again: what is cut goes on. A row
that ran out of memory, or failed, says so; without it in the file it is tried again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import sys
import time
import typing as t
from dataclasses import replace
from pathlib import Path

from ansible_collections.llmops.finetune.plugins.module_utils._gpu import detect
from ansible_collections.llmops.finetune.plugins.module_utils._vram import estimate, hardware
from ansible_collections.llmops.finetune.plugins.module_utils._vram.options import Situation

from . import rows
from .cases import PLAN, RACES, Case, race
from .process import Device, Found, measure

HERE = Path(__file__).parent
COLUMNS = (
    *("id", "source", "url", "tier", "model", "params_b", "method", "quant", "double_quant", "precision", "lora_rank"),
    *("targets", "seq_len", "micro_batch", "grad_ckpt", "attn", "loss_kernel", "optimizer", "engine", "n_gpus", "gpu"),
    *("software", "alloc_gib", "reserved_gib", "process_gib", "other_gb", "other_metric", "notes"),
)
LIMIT = 120.0
"""Seconds of a configuration; the largest is to take 30."""
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512, "head_dim": 16}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2}
TINY_LENGTH = 64
GIB = rows.GIB
MOMENTS = {"forward", "backward", "optimizer", "between"}


def main(arguments: t.Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the file of rows; bench/vram_<gpu>.csv if not given")
    parser.add_argument("--only", action="append", default=[], help="configurations whose name has this, or is of it")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of a configuration")
    parser.add_argument("--seconds", type=float, default=0, help="of all; what is left is for the next call")
    parser.add_argument("--python", default=sys.executable, help="that has LLaMA-Factory")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU, to try the way; no measurement")
    given = parser.parse_args(arguments)
    device = Device(None) if given.tiny else _device()
    if device is None:
        sys.exit(
            "There is no GPU here, or it has no driver.\n  change: run it where nvidia-smi lists one, or try the "
            "way with --tiny"
        )
    named = re.sub(r"\W+", "_", device.gpu.name.lower()) if device.gpu else "tiny"
    out = given.out or Path("bench") / f"vram_{named}.csv"
    known = rows.configs(HERE / "configs")
    cases = _cases(device, known, lambda name: not given.only or any(word in name for word in given.only))
    whole(out)
    there = {record["id"] for record in rows.records(out)} if out.exists() else set()
    deadline = time.monotonic() + (given.seconds or float("inf"))
    print(f"{out}: {len(there)} rows are there", flush=True)
    for case in cases:
        if case.name in there:
            continue
        if time.monotonic() + given.limit > deadline:
            print("the rest is for another call: --seconds is nearly over")
            break
        case, config = _tiny(case, known) if given.tiny else (case, known.get(case.model, {}))
        found = measure(case, config, device, given.python, given.limit, out)
        append(out, row(case, device, found))
        print(told(case, config, device, found), flush=True)
    for line in ratios(rows.records(out)):
        print(line)


def _device() -> Device | None:
    """The first one that there is."""
    cards = detect.look().devices()
    if not cards:
        return None
    one = cards[0]
    gpu = hardware.Gpu(one["name"], int(one["memory"]), float(one["compute_capability"] or 0))
    return Device(gpu, one["uuid"], int(one["memory_free"]))


def _cases(device: Device, known: t.Mapping[str, t.Any], wanted: t.Callable[[str], bool]) -> t.Iterator[Case]:
    """Races are planned for the GPU that is there, without one for a large one."""
    gpu = device.gpu or hardware.find("H100")
    for case in PLAN:
        if wanted(case.name) and (gpu.bf16 or not case.keys.get("pure_bf16")):
            yield case if gpu.bf16 else replace(case, keys={**case.keys, "bf16": False, "fp16": True})
    for recipe, model in RACES:
        if any(wanted(f"{recipe} {model} {kind}") for kind in ("plain", "chosen")):
            pair = race(recipe, model, known[model], gpu, device.free or gpu.memory)
            yield from (case for case in pair if wanted(case.name))


def _tiny(case: Case, known: t.Mapping[str, t.Any]) -> tuple[Case, dict[str, t.Any]]:
    """As the CPU of a laptop trains it in a second: 32 bits, and nothing that only GPUs have."""
    changed = {"bf16": False, "pure_bf16": False, "fp16": False, "enable_liger_kernel": False}
    keys = {**case.keys, **changed, "cutoff_len": TINY_LENGTH}
    config = {**known[case.model], **TINY} if case.model else {}
    return replace(case, keys=keys), config


# Rows


def row(case: Case, device: Device, found: Found) -> dict[str, t.Any]:
    """In the columns of measured rows; what these have no place for is JSON in `notes`."""
    keys, peaks = case.arguments, _peaks(found)
    bits, method = keys.get("quantization_bit"), str(keys["finetuning_type"])
    versions = found.get("versions", {})
    notes = {
        "args": keys,
        "padded": case.padded,
        "expandable": case.expandable,
        "torch": versions.get("torch", ""),
        "peaks_mib": {name: round(size / 2**20, 2) for name, size in peaks.items()},
        "context_mib": round(max(0, found.get("process", 0) - found.get("reserved", 0)) / 2**20),
        "retries": found.get("retries", 0),
        "step_seconds": found.get("seconds", 0),
        "tokens_per_second": round(speed(case, found)),
    }
    batch = found.get("batch") or [0]
    wrong = found["outcome"]
    if case.model and not wrong and not peaks.keys() >= MOMENTS:
        wrong = "not every moment was seen"
    if case.model and not wrong and batch[-1] != keys["cutoff_len"]:
        wrong = f"batches had {batch[-1]} tokens"
    return {
        **dict.fromkeys(COLUMNS, ""),
        "id": case.name,
        "source": f"{rows.OWN} tests/vram/measure.py",
        "tier": device.tier,
        "model": case.model or "none",
        "method": ("qlora" if bits else method) if case.model else "context",
        "quant": "nf4" if bits == 4 else f"int{bits}" if bits else "none",
        "double_quant": "True" if bits == 4 else "",
        "precision": "pure bf16" if keys.get("pure_bf16") else _half(keys),
        "lora_rank": keys.get("lora_rank", 8) if method == "lora" else "",
        "targets": keys.get("lora_target", "") if method == "lora" else "",
        "seq_len": batch[-1] or "",
        "micro_batch": keys["per_device_train_batch_size"],
        "grad_ckpt": not keys.get("disable_gradient_checkpointing", False),
        "attn": {"disabled": "eager"}.get(str(keys.get("flash_attn")), "sdpa"),
        "loss_kernel": "Liger" if keys.get("enable_liger_kernel") else "plain",
        "optimizer": keys.get("optim", "adamw_torch_fused"),
        "engine": "single GPU",
        "n_gpus": 1,
        "gpu": device.gpu.name if device.gpu else "",
        "software": "; ".join(f"{name} {version}" for name, version in versions.items()),
        "alloc_gib": _gib(max(peaks.values(), default=0)),
        "reserved_gib": _gib(found.get("reserved", 0)),
        "process_gib": _gib(found.get("process", 0)),
        "other_metric": wrong,
        "notes": json.dumps(notes),
    }


def _peaks(found: Found) -> dict[str, int]:
    """Of the steps; a model that is loaded needs more for a moment, once."""
    return {name: size for name, size in found.get("peaks", {}).items() if name != "load"}


def _half(keys: t.Mapping[str, t.Any]) -> str:
    return next((f"{name}, autocast" for name in ("bf16", "fp16") if keys.get(name)), "fp32")


def _gib(size: int) -> str:
    return f"{size / GIB:.4f}" if size else ""


def speed(case: Case, found: Found) -> float:
    """Tokens a second, of all micro-batches of a step."""
    batch, seconds = found.get("batch") or [0], float(found.get("seconds") or 0)
    each = batch[0] * batch[-1] if len(batch) > 1 else 0
    return each * int(case.arguments["gradient_accumulation_steps"]) / seconds if seconds else 0.0


def whole(path: Path) -> None:
    """A last line that was cut is no row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_bytes() if path.exists() else b""
    if not text.endswith(b"\n") and text:
        path.write_bytes(text[: text.rfind(b"\n") + 1])


def append(path: Path, record: t.Mapping[str, t.Any]) -> None:
    """On disk when this returns: the machine may be taken away."""
    new = not path.exists() or not path.stat().st_size
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(record)
        file.flush()
        os.fsync(file.fileno())


# What people read


def told(case: Case, config: t.Mapping[str, t.Any], device: Device, found: Found) -> str:
    line = f"{case.model or 'none':14} {case.name:34}"
    if found["outcome"]:
        return f"{line} {found['outcome']}"
    line += f" {speed(case, found):8.0f} tokens/s"
    if not device.gpu or not case.model:
        return line
    mine = estimate.estimate(
        config,
        case.arguments,
        Situation(gpu=device.gpu, torch=found["versions"]["torch"], padded=case.padded, expandable=case.expandable),
        thorough=True,
    )
    sizes = {"allocated": max(_peaks(found).values()), "reserved": found["reserved"], "process": found["process"]}
    errors = [
        f"{name} {size / GIB:.2f} GiB {100 * (getattr(mine, name) / size - 1):+.1f} %"
        for name, size in sizes.items()
        if size
    ]
    return f"{line} {', '.join(errors)}"


def ratios(records: t.Sequence[t.Mapping[str, str]]) -> list[str]:
    """Of each pair, where both are there: the planner's choice beside the plain defaults."""
    speeds = {
        one["id"]: float(json.loads(one["notes"])["tokens_per_second"]) for one in records if not one["other_metric"]
    }
    found = []
    for recipe, model in RACES:
        plain, chosen = (speeds.get(f"{recipe} {model} {kind}", 0) for kind in ("plain", "chosen"))
        if plain and chosen:
            found.append(
                f"{recipe} {model}: {plain:.0f} tokens/s plain, {chosen:.0f} chosen, {chosen / plain:.2f} times"
            )
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
