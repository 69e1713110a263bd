# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an all-reduce over all nodes came to: its bandwidth, or which host failed with what.

Pure: from what each node left. Where one node fails the others fail with it, so only those are told whose error says
most.
"""

from __future__ import annotations

import re
import typing as t

from . import _fit

Answer = dict[str, t.Any]
"""ok; with ok what was measured, else phase and error."""

_OWN, _WAY, _FOLLOWS = 2, 1, 0
"""How much an error says: of this host; of the way to another one; only that another one failed."""


class _Cause(t.NamedTuple):
    pattern: str
    what: str
    change: str
    says: int


_LOG = "read logs/allreduce.log in the folder of the run on that host"
_ENVIRONMENT = "run the environment playbook on that host; it names what differs from the lock"
_CAUSES = (
    _Cause(
        r"Silent: (.*)",
        r"\1, though small packets do",
        "let packets of every size through (the same MTU all the way); train_address picks another network",
        _OWN,
    ),
    _Cause(
        r"WrongSum: (.*)", r"\1", "see that host's kernel log for faults of memory, GPU or network; leave it out", _OWN
    ),
    _Cause(
        r"((?:ImportError|ModuleNotFoundError): .*|OSError: .*\.so\b.*)",
        r"torch cannot be loaded there: \1",
        _ENVIRONMENT,
        _OWN,
    ),
    _Cause(r".*port: (\d+).*EADDRINUSE.*", r"port \1, which was free before, is in use", "apply again", _OWN),
    _Cause(
        r".*(?:Unable to find (?:address|interface) for|no socket interface found).*",
        "gloo and NCCL cannot use {interface}",
        "set train_address of that host to its address in the network of the trainers",
        _OWN,
    ),
    _Cause(
        r".*while trying to connect to \(([\d.]+), (\d+)\).*",
        r"does not get through to \1:\2",
        _fit.REMEDY["reach"],
        _WAY,
    ),
    _Cause(
        r"Hung: connecting .*|.*(?:connectFullMesh|Connection refused|No route to host).*",
        "gloo cannot connect to all others over {interface}",
        _fit.REMEDY["reach"],
        _WAY,
    ),
    _Cause(r"Hung: (.*) did not end", r"\1 did not end, over {interface}", _fit.REMEDY["reach"], _WAY),
    _Cause(
        r"(?:Late|Elsewhere): (.*)|.*(?:(?:reset|closed) by peer|likely closed|Broken pipe|waiting for clients|"
        r"wait timeout|Timed out).*",
        "the others went away, or did not come",
        _LOG,
        _FOLLOWS,
    ),
)
_UNKNOWN = _Cause("", "", _LOG, _OWN)


def rows(answers: t.Mapping[str, Answer], nodes: t.Mapping[str, dict[str, t.Any]]) -> list[_fit.Row]:
    """What stands in the way. answers: by host, in rank order, of those that took part; nodes: of the plan."""
    told = {host: _row(host, answer, nodes) for host, answer in answers.items() if answer and not answer["ok"]}
    most = max((cause.says for cause, row in told.values()), default=0)
    return [row for cause, row in told.values() if cause.says == most]


def _row(host: str, answer: Answer, nodes: t.Mapping[str, dict[str, t.Any]]) -> tuple[_Cause, _fit.Row]:
    error = " ".join(answer["error"].split())
    cause, what = _UNKNOWN, f"{answer['phase']}: {error or 'it died'}"
    for one in _CAUSES:
        if found := re.fullmatch(one.pattern, error):
            cause, what = one, found.expand(one.what)
            break
    what = what.replace("{interface}", nodes[host]["interface"] or f"the way to {nodes[host]['launch']['master_addr']}")
    return cause, _fit.Row(host, "all-reduce", _with_names(what, nodes)[:300], cause.change)


def _with_names(text: str, nodes: t.Mapping[str, dict[str, t.Any]]) -> str:
    """Hosts by the names of the inventory, in place of the numbers of their nodes and beside their addresses."""
    names = list(nodes)
    text = re.sub(r"\bnode (\d+)\b", lambda found: names[int(found[1])], text)
    for name, node in nodes.items():
        text = re.sub(rf"(?<![\d.]){re.escape(node['launch']['address'])}(?![\d.])", rf"{name} (\g<0>)", text)
    return text


def line(measured: Answer, nodes: t.Mapping[str, dict[str, t.Any]]) -> str:
    """One line of bandwidth, beside the speed of the slowest link where all are known. What is slow is not judged."""
    told = (
        f"All-reduce over {measured['nodes']} nodes ({measured['ranks']} ranks, {measured['backend']}, "
        f"{measured['bytes'] / 2**20:.0f} MiB): bus bandwidth {measured['bus_bandwidth']:.2f} GB/s, "
        f"algorithm bandwidth {measured['algorithm_bandwidth']:.2f} GB/s"
    )
    slowest = min(int(node["speed"]) for node in nodes.values())  # Mbit/s
    if not slowest:
        return told
    share = measured["bus_bandwidth"] / (slowest / 8000)
    return f"{told}; {share:.0%} of the slowest link's {slowest / 8000:.2f} GB/s"
