# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ray clusters: what is planned and refused, and what a proof must show. Real ones: tests/e2e/test_cluster_ray.py."""

from __future__ import annotations

import secrets
import shlex
import subprocess
import typing as t

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _ray
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.plugin_utils._render import render

ENVIRONMENT = "/data/llmops/envs/1a2b"


def facts(address: str, root: str = "/data/llmops") -> dict[str, t.Any]:
    interface = {"name": "eth0", "address": address, "prefix": 24, "speed": 1000, "default": True}
    return {"interfaces": [interface], "user": "llmops", "root": root, "systemd": True}


def plan(*addresses: str, root: str = "/data/llmops", asked: str = "", port: int = 6379) -> _ray.Cluster:
    hosts = {f"h{number}": facts(address, root) for number, address in enumerate(addresses)}
    return _ray.plan(hosts, {"h0": asked}, port)


TWO = plan("10.0.0.5", "10.0.0.4")


def test_the_head_is_the_first_host_and_all_are_known_by_private_addresses() -> None:
    assert (TWO["host"], TWO["address"], TWO["port"]) == ("h0", "10.0.0.5", 6379)
    assert {host: node["address"] for host, node in TWO["nodes"].items()} == {"h0": "10.0.0.5", "h1": "10.0.0.4"}


def test_a_single_host_is_a_cluster() -> None:
    """Not by 127.0.0.1: Ray would put another address in its place."""
    assert plan("10.0.0.5")["address"] == "10.0.0.5"


def test_a_public_address_is_taken_only_where_it_is_asked_for() -> None:
    with pytest.raises(FinetuneError, match=r"public address 8\.8\.8\.8(.|\n)*ray_address of h0"):
        plan("8.8.8.8")
    assert plan("8.8.8.8", asked="8.8.8.8")["address"] == "8.8.8.8"


@pytest.mark.parametrize(
    ("hosts", "port", "told"),
    [
        (
            {"a": facts("10.0.0.5"), "b": facts("10.0.0.4", "/srv")},
            6379,
            "The root of b is /srv, that of a /data/llmops",
        ),
        ({"a": facts("10.0.0.5", "/" + "r" * 34)}, 6379, "too long"),
        ({"a": facts("10.0.0.5", "/" + "é" * 17)}, 6379, "too long"),
        ({"a": facts("10.0.0.5")}, 80, "80 is no port for Ray"),
        ({"a": facts("10.0.0.5")}, "ssh", "ssh is no port for Ray"),
        ({"a": facts("10.0.0.5"), "b": {}}, 6379, "Nothing is known of b."),
        ({"a": facts("10.0.0.5")}, 65536, "65536 is no port for Ray"),
    ],
)
def test_what_is_refused(hosts: dict[str, dict[str, t.Any]], port: int, told: str) -> None:
    with pytest.raises(FinetuneError, match=r"change:") as refused:
        _ray.plan(hosts, {}, port)
    assert told in str(refused.value) and ("ray_" in str(refused.value) or "--limit" in str(refused.value))


def test_the_longest_root_leaves_room_for_the_names_of_sockets() -> None:
    folder = plan("10.0.0.5", root="/" + "r" * (_ray.LONGEST_ROOT - 1))["nodes"]["h0"]["folder"]
    session = "session_2026-11-25_09-30-46_322939_4194304"
    assert len(f"{folder}/{_ray.TEMPORARY}/{session}/sockets/plasma_store") <= 107


def test_how_the_head_is_started() -> None:
    head = _ray.node(TWO, "h0", ENVIRONMENT, joins=False)
    assert head["head"] and head["command"][:4] == [f"{ENVIRONMENT}/bin/python", "-m", "ray.scripts.scripts", "start"]
    wanted = {"--head", "--port=6379", "--node-ip-address=10.0.0.5", "--dashboard-host=127.0.0.1", "--block"}
    assert wanted | {"--disable-usage-stats", "--temp-dir=/data/llmops/ray/tmp"} <= set(head["command"])


def test_how_the_others_join() -> None:
    other = _ray.node(TWO, "h1", ENVIRONMENT, joins=True)
    assert {"--address=10.0.0.5:6379", "--node-ip-address=10.0.0.4", "--disable-usage-stats"} <= set(other["command"])
    assert not other["head"] and "--head" not in other["command"]


def test_none_joins_a_head_that_did_not_get_so_far() -> None:
    with pytest.raises(FinetuneError, match="h0, the first host, is to be the head"):
        _ray.node(TWO, "h1", ENVIRONMENT, joins=False)


@pytest.mark.parametrize("host", ["h0", "h1"])
def test_every_node_asks_for_the_token(host: str) -> None:
    environ = _ray.node(TWO, host, ENVIRONMENT, joins=True)["environment"]
    assert (environ["RAY_AUTH_MODE"], environ["RAY_AUTH_TOKEN_PATH"]) == ("token", "/data/llmops/ray/token")
    assert (environ["GLOO_SOCKET_IFNAME"], environ["RAY_USAGE_STATS_ENABLED"]) == ("eth0", "0")


def test_a_shell_that_read_activate_has_what_a_job_needs() -> None:
    cluster = plan("10.0.0.5", root="/my $HOME's")
    text = _ray.node(cluster, "h0", "/my $HOME's/envs/1", joins=False)["files"][_ray.ACTIVATE]
    script = f'{text}printf \'%s\\n\' "$RAY_ADDRESS" "$RAY_AUTH_TOKEN_PATH" "$PATH"'
    said = subprocess.run(["/bin/sh", "-c", script], env={}, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[:2] == ["10.0.0.5:6379", "/my $HOME's/ray/token"]
    assert said.splitlines()[2].startswith("/my $HOME's/envs/1/bin:")


def test_any_path_is_one_word_of_the_unit() -> None:
    spec = _ray.node(plan("10.0.0.5", root='/50% of "all"'), "h0", '/50% of "all"/envs/1', joins=False)
    lines = render("ray.unit.j2", spec=spec).splitlines()
    command = next(line for line in lines if line.startswith("ExecStart=")).removeprefix("ExecStart=")
    assert [word.replace("%%", "%") for word in shlex.split(command)] == spec["command"]
    assert 'WorkingDirectory=/50%% of "all"/ray' in lines and "User=llmops" in lines


def test_a_sealed_token_is_another_one_until_it_is_unsealed() -> None:
    token, seal = "00" + secrets.token_hex(31), secrets.token_hex(32)
    assert _ray.sealed(token, seal) not in (token, seal)
    assert _ray.sealed(_ray.sealed(token, seal), seal) == token
    assert _ray.sealed("", seal) == ""


def worker(address: str, least: float = 3.0, most: float = 3.0) -> dict[str, t.Any]:
    return {"address": address, "least": least, "most": most}


def answer(*workers: dict[str, t.Any], missing: t.Sequence[str] = ()) -> dict[str, t.Any]:
    return {"missing": list(missing), "workers": list(workers), "cpus": 4.0, "gpus": 0.0, "seconds": 2.0}


def test_what_a_proof_says() -> None:
    line = _ray.told(TWO, answer(worker("10.0.0.5"), worker("10.0.0.4")))
    assert "10.0.0.5:6379: 2 nodes, 4 CPUs" in line and "2 workers (h0, h1): the sum is 3" in line
    assert "1 node, " in _ray.told(plan("10.0.0.5"), answer(worker("10.0.0.5"), worker("10.0.0.5")))


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (answer(missing=["10.0.0.4"]), "Not in the cluster: h1."),
        (answer(worker("10.0.0.5"), worker("10.0.0.4", most=4.0)), "is not 3 on every node"),
        (answer(worker("10.0.0.5", least=1.0), worker("10.0.0.4")), "is not 3 on every node"),
        (answer(worker("10.0.0.5"), worker("10.0.0.5")), "is not 3 on every node"),
    ],
)
def test_what_no_proof_is(seen: dict[str, t.Any], told: str) -> None:
    with pytest.raises(FinetuneError, match=r"change:") as refused:
        _ray.told(TWO, seen)
    assert told in str(refused.value)
