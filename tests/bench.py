# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench`: measured on this machine, into docs/bench.md. PART names one of its parts, the other is kept.

plays: what this collection costs over the bare tools, side by side in one run.
1. A no-op apply. 2. A first apply with a warm environment beside the bare trainer with the same train.yaml.
3. An environment from nothing beside a bare `uv pip install` of the same lock, each with an empty cache.
4. A refused apply, from Enter, for what is wrong in a key, a value, a record and a file.
5. What one configuration costs to check, beside LLaMA-Factory's own parser.
records: how fast records are checked, and in how much memory (tests/bench_records.py).
estimates: how long an estimate of memory takes, and the choice of the fastest way (tests/bench_estimates.py).
launch: until the last rank is there, on 1 to 16 hosts over ssh (tests/bench_launch.py); needs root and podman. Fewer
  hosts with HOSTS="1 3".
fleet: how long the playbooks of a fleet on EC2 take of themselves, against a stand-in (tests/bench_fleet.py).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import typing as t
from pathlib import Path

from . import bench_estimates, bench_fleet, bench_launch, bench_records

REPOSITORY = Path(__file__).parents[1]
BASE = Path("/var/tmp") / f"llmops-bench-{os.getuid()}"
ROOT = BASE / "root"
TIMES = 3
SHORT = 'train_set="max_steps=60 save_steps=60 logging_steps=10"'


def seconds(
    command: t.Sequence[str | Path],
    environment: t.Mapping[str, str] | None = None,
    cwd: Path = REPOSITORY,
    given: str = "",
    ends: int = 0,
) -> float:
    began = time.monotonic()
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != ends:
        raise SystemExit(f"{command}\n{done.stdout}\n{done.stderr}")
    return time.monotonic() - began


def apply(playbook: str, *more: str, root: Path = ROOT, ends: int = 0) -> float:
    variables = {"train_root": str(root), "train_lease_dir": str(BASE / "leases"), "train_watch_interval": 2}
    if os.getuid() == 0:  # both sides as the same user: the account is not what is measured
        variables |= {"train_user": "root", "train_become": False}
    play = ["ansible-playbook", playbook, "-i", "inventory", "-e", json.dumps(variables)]
    return seconds([*play, *(word for extra in more for word in ("-e", extra))], ends=ends)


def environment_from_nothing() -> list[str]:
    """Ours, then the bare tool, each with an empty cache on the same disk."""
    ours = apply("llmops.finetune.environment")
    bare = BASE / "bare"
    lock = REPOSITORY / "requirements" / "node-main.txt"
    python = json.loads(next((ROOT / "envs").glob("*/environment.json")).read_text())["python"]
    cache = {"UV_CACHE_DIR": str(BASE / "bare-cache"), "UV_NO_CONFIG": "1"}
    theirs = seconds(["uv", "venv", "--quiet", "--python", python, bare], cache)
    theirs += seconds(
        ["uv", "pip", "install", "--quiet", "--python", bare / "bin/python", "--require-hashes", "-r", lock], cache
    )
    shutil.rmtree(bare)
    shutil.rmtree(BASE / "bare-cache")
    return row("environment from nothing", ours, "`uv venv` and `uv pip install` of the same lock", theirs)


def first_apply() -> list[str]:
    """A new run each time, everything else there, beside `python -m llamafactory.launcher` with the same file."""
    apply("train.yml", SHORT, "train_name=bench-warm")
    ours, theirs = [], []
    for number in range(TIMES):
        ours.append(apply("train.yml", SHORT, f"train_name=bench-{number}"))
        folder = next((ROOT / "runs").glob(f"bench-{number}-*"))
        launch = json.loads((folder / "launch.json").read_text())
        bare = BASE / "bare.yaml"
        bare.write_text((folder / "train.yaml").read_text().replace(f"{folder}/output", str(BASE / f"bare-{number}")))
        theirs.append(seconds([launch["python"], "-m", "llamafactory.launcher", bare], launch["environment"], BASE))
    return row("first apply, environment warm", statistics.median(ours), "the bare trainer", statistics.median(theirs))


def no_op() -> list[str]:
    ours = statistics.median(apply("train.yml", SHORT, "train_name=bench-0") for _ in range(TIMES))
    return row("apply that changes nothing", ours, "`ansible -m ping`", ping())


def ping() -> float:
    command = ["ansible", "localhost", "-m", "ansible.builtin.ping", "-i", "inventory"]
    return statistics.median(seconds(command) for _ in range(TIMES))


def shown(time_taken: float) -> str:
    return f"{time_taken:.1f} s" if time_taken >= 0.1 else f"{time_taken * 1000:.1f} ms"


def refused() -> list[str]:
    """The slowest kind of refusal: each is asked for TIMES."""
    (BASE / "broken.jsonl").write_text('{"instruction": "Why?", "output": "So."}\n{"instruction": "Why?"}\n')
    (BASE / "broken.yaml").write_text("model_name_or_path: org/model\ndo_train: true\nlora_rnak: 8\n")
    kinds = (
        "train_set=lora_rnak=8",
        "train_set=quantization_bit=3",
        json.dumps({"train_datasets": [{"file": str(BASE / "broken.jsonl")}]}),
        f"train_config={BASE}/broken.yaml",
    )
    ours = max(statistics.median(apply("train.yml", kind, ends=2) for _ in range(TIMES)) for kind in kinds)
    return row("apply that is refused", ours, "`ansible -m ping`", ping())


def one_configuration() -> list[str]:
    """Every configuration of the rules' table, from the variables to the plan, in this process."""
    from .unit import test_refusals
    from .unit.rule_cases import cases, situations

    configurations = [arguments for case in cases.CASES for arguments in (case[1], case[3])]
    began = time.monotonic()
    for arguments in configurations:
        test_refusals.planned(train_args=arguments)
    ours = (time.monotonic() - began) / len(configurations)
    assert "torch" not in sys.modules
    python = next((ROOT / "envs").glob("*/bin/python"))
    one = json.dumps([{**situations.BASE, "model_name_or_path": "/m", "dataset": "d"}])
    theirs = statistics.median(
        seconds([python, REPOSITORY / "tests/e2e/upstream.py", "29500"], cwd=BASE, given=one) for _ in range(TIMES)
    )
    return row("check of one configuration", ours, "LLaMA-Factory's own parser", theirs)


def row(what: str, ours: float, beside: str, theirs: float) -> list[str]:
    line = [what, shown(ours), beside, shown(theirs), f"{ours / theirs:.2f}", f"{ours - theirs:+.1f} s"]
    print(" | ".join(line), flush=True)
    return line


def plays() -> str:
    rows = [environment_from_nothing(), first_apply(), no_op(), refused(), one_configuration()]
    told = (
        f"{machine()} Medians of {TIMES}, except the environment, which is built once on each side. Downloads are part "
        "of it."
    )
    return section("plays", told, ("what", "ours", "beside", "takes", "ratio", "difference"), rows)


def records() -> str:
    rows = bench_records.rows(BASE)
    told = (
        f"{machine()} The demo's records again and again, and the same with answers six times as long. Rate and memory "
        "are those of the process that checks them; of parquet and arrow not compressed."
    )
    return section("records", told, bench_records.TITLE, rows)


def estimates() -> str:
    rows = bench_estimates.rows()
    told = f"{machine()} Each median of {bench_estimates.TIMES}; the middle and the slowest of all."
    return section("estimates", told, bench_estimates.TITLE, rows)


def launch() -> str:
    apply("llmops.finetune.environment")
    rows = bench_launch.rows(BASE, ROOT / "cache" / "uv")
    told = (
        f"{machine()} From Enter until the last rank began, environment, model and records in place, beside ssh to all "
        f"hosts at once with connections kept open. Medians of {bench_launch.TIMES}. All hosts are containers on these "
        "cores, which load torchrun once for each host on either side."
    )
    return section("launch", told, bench_launch.TITLE, rows)


def fleet() -> str:
    rows = bench_fleet.rows(BASE)
    told = (
        f"{machine()} From Enter, on {bench_fleet.NODES} nodes with EFA, against moto on the same cores, which answers "
        f"at once: what AWS takes comes on top. Medians of {bench_fleet.TIMES}."
    )
    return section("fleet", told, bench_fleet.TITLE, rows)


def section(part: str, told: str, title: t.Sequence[str], rows: t.Sequence[t.Sequence[str]]) -> str:
    lines = [title, ["---"] * len(title), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"## {part.capitalize()}\n\n`make bench PART={part}` {told}\n\n{table}\n"


def machine() -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    cpu = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    )
    return (
        f"on commit {commit.stdout.strip()}: {os.cpu_count()} × {cpu}, {platform.system()}, "
        f"Python {platform.python_version()}; load {os.getloadavg()[0]:.1f} at the end."
    )


PARTS = {"plays": plays, "records": records, "estimates": estimates, "launch": launch, "fleet": fleet}


def main() -> None:
    report = REPOSITORY / "docs" / "bench.md"
    kept = report.read_text(encoding="utf-8").split("\n## ")[1:]
    parts = {text.partition("\n")[0].lower(): f"## {text.rstrip()}\n" for text in kept}
    shutil.rmtree(BASE, ignore_errors=True)
    (BASE / "leases").mkdir(parents=True)
    try:
        parts |= {part: PARTS[part]() for part in sys.argv[1:] or PARTS}
    finally:
        shutil.rmtree(BASE, ignore_errors=True)
    report.write_text("\n".join(["# Bench\n", *(parts[part] for part in PARTS if part in parts)]), encoding="utf-8")


if __name__ == "__main__":
    main()
