# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench-vram`: how far estimates of memory are off. Takes files of measured and of computed peaks.

make bench-vram ARGS="--measured FILE --truth FILE --configs DIR". Without --truth the peaks that tests/vram/fake.py
computed under our own lock are taken, with their configs. A config is named after its model, with __ for /; rows of
models without one are left out and counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import typing as t
from collections import Counter
from pathlib import Path

from ansible_collections.llmops.finetune.plugins.module_utils._vram.estimate import Estimate, of_job

from .vram import rows
from .vram.others import FITCHECK, OTHERS, Answers, fitcheck

HERE = Path(__file__).parent / "vram"
Errors = dict[str, list[float]]
LEVELS = ("allocated", "reserved", "process")


def main(arguments: t.Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, action="append", default=[])
    parser.add_argument("--truth", type=Path, action="append", default=[])
    parser.add_argument("--configs", type=Path, action="append", default=[])
    parser.add_argument("--fitcheck", action="store_true", help="ask fitcheck-llm too, which uv fetches")
    parser.add_argument("--rows", action="store_true", help="every row")
    parser.add_argument("--quick", action="store_true", help="a few layers of each kind, as a planner asks")
    given = parser.parse_args(arguments)
    known = {name: one for folder in given.configs or [HERE / "configs"] for name, one in rows.configs(folder).items()}
    for path in given.truth or ([] if given.measured else [HERE / "truth.csv"]):
        report(f"computed peaks, {path.name}", [rows.truth(one, known) for one in rows.records(path)], given)
    for path in given.measured:
        made = [rows.measured(one, known) for one in rows.records(path) if one["tier"] in ("A", "B")]
        found = report(f"measured peaks, {path.name}", made, given)
        verdicts(found)
        others(found, fitcheck(found) if given.fitcheck else "--fitcheck is not given")


Found = list[tuple[rows.Row, Estimate]]


def report(title: str, made: t.Sequence[rows.Made], given: argparse.Namespace) -> Found:
    out = [one for one in made if isinstance(one, rows.Out)]
    found = [
        (one, of_job(one.job, one.gpu, one.tag, thorough=not given.quick)) for one in made if isinstance(one, rows.Row)
    ]
    print(f"\n{title}: {len(found)} rows, {len(out)} left out")
    for why, count in Counter(one.why for one in out).most_common():
        print(f"  left out: {count:3}  {why}")
    if given.rows:
        for one, estimate in found:
            told = [
                f"{level} {percent:+.2f} %" for level in LEVELS if (percent := error(one, estimate, level)) is not None
            ]
            print(f"  {one.name:44} {one.group:44} {', '.join(told)}")
    print(f"  {'':50} {'level':10} {'rows':>5} {'mean':>8} {'median':>8} {'lowest':>9} {'highest':>9}")
    for level in LEVELS:
        groups: Errors = {}
        for one, estimate in found:
            percent = error(one, estimate, level)
            if percent is not None:
                for name in (one.group, f"{one.group[:2]} all" if one.group[1] == ":" else "all"):
                    groups.setdefault(name, []).append(percent)
        for name, errors in sorted(groups.items()):
            print(line(name, level, errors))
    return found


def error(row: rows.Row, estimate: Estimate, level: str) -> float | None:
    """In percent; computed peaks are sums of tensors."""
    told = float(getattr(row, level))
    if not told:
        return None
    mine = estimate.tensors if level == "allocated" and not row.gpu and not row.process else getattr(estimate, level)
    return 100 * (mine / told - 1)


def line(name: str, level: str, errors: t.Sequence[float]) -> str:
    mean = statistics.mean(map(abs, errors))
    middle = statistics.median(map(abs, errors))
    ends = f"{min(errors):+7.2f} % {max(errors):+7.2f} %"
    return f"  {name:50} {level:10} {len(errors):5} {mean:6.2f} % {middle:6.2f} % {ends}"


def highest(row: rows.Row) -> tuple[str, float]:
    """The level that a row tells of: of the process where it is told."""
    return next((level, told) for level in reversed(LEVELS) if (told := float(getattr(row, level))))


def verdicts(found: Found) -> None:
    """Each row on a GPU with 0.9 and with 1.1 times what was measured: to be refused, and to be accepted."""
    groups: dict[str, list[tuple[bool, bool]]] = {}
    for row, estimate in found:
        level, told = highest(row)
        bound = getattr(estimate, level) * (1 + estimate.band)
        for name in (row.group, f"{row.group[:2]} all", "all"):
            groups.setdefault(name, []).append((bound <= 0.9 * told, bound > 1.1 * told))
    print(f"\n  verdicts {'':41} {'rows':>5} {'wrong fits':>16} {'wrong refuses':>16}")
    for name, each in sorted(groups.items()):
        fits, refuses = sum(fit for fit, _refuse in each), sum(refuse for _fit, refuse in each)
        rates = [f"{count} = {100 * count / len(each):.1f} %" for count in (fits, refuses)]
        print(f"  {name:50} {len(each):5} {rates[0]:>16} {rates[1]:>16}")


def others(found: Found, asked: Answers | str) -> None:
    """What is published elsewhere, on the same rows. fitcheck-llm was fitted to most rows of tier A."""
    print(f"\n  on the same rows {'':33} {'level':10} {'rows':>5}")
    told = [highest(row) for row, _estimate in found]
    said: dict[str, list[float | None]] = {
        "this collection": [getattr(one, level) for (_row, one), (level, _size) in zip(found, told, strict=True)]
    }
    for name, formula in OTHERS.items():
        said[name] = [formula(row, estimate.parameters) for row, estimate in found]
    if isinstance(asked, str):
        print(f"  {FITCHECK}: left out, {asked}")
    else:
        words = ["tensors" if level == "allocated" else "process" for level, _size in told]
        said[FITCHECK] = [one[word] if one else None for one, word in zip(asked, words, strict=True)]
    for tier in ("", "A", "B"):
        for name, sizes in said.items():
            both = [
                100 * (size / measured - 1)
                for (row, _estimate), size, (_level, measured) in zip(found, sizes, told, strict=True)
                if size is not None and row.group.startswith(tier)
            ]
            if both:
                print(line(f"{tier}: {name}" if tier else name, "as told", both))


if __name__ == "__main__":
    main(sys.argv[1:])
