# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan: ranks, GPUs, batch, precision, paths, leases and variables of each node; records reused, drift told."""

from __future__ import annotations

import json
import typing as t
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from ansible_collections.llmops.finetune.plugins.module_utils import _dataset, _plan, _request, _sources, _wish
from ansible_collections.llmops.finetune.plugins.module_utils._engine import base_model
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

DEFAULTS: dict[str, t.Any] = {
    **yaml.safe_load((Path(__file__).parents[2] / "roles/train/defaults/main.yml").read_text(encoding="utf-8")),
    "train_eval_datasets": [],
    "train_name": "",
}
SCHEMAS = _sources.schemas()
CORPUS = "c" * 64
LOCK = {"lock": "node-main", "digest": "0123456789abcdef"}
DATA = _dataset.Source(
    _dataset.parse({"file": "a.json"}, "v")[0], "d" * 64, ".json", ("instruction", "output"), "/controller/a.json"
)
HELD_OUT = _dataset.Source(
    _dataset.parse({"file": "h.jsonl"}, "v")[0], "e" * 64, ".jsonl", (), "/controller/h.jsonl", True
)
TABLE = replace(
    _dataset.Source(_dataset.parse({"path": "/srv/t.parquet"}, "v")[0], "f" * 64, ".parquet"), unread="a: no pyarrow"
)
HUB = _dataset.Source(_dataset.parse({"hub": "org/data"}, "v")[0], "")

Variables = dict[str, t.Any]
DEMO_ARGUMENTS = base_model.RECIPE["fine_tuning"]


def eth0(address: str) -> list[dict[str, t.Any]]:
    return [{"name": "eth0", "address": address, "prefix": 24, "speed": 0, "default": True}]


def node(gpus: int = 0, capability: float = 9.0, **facts: t.Any) -> dict[str, t.Any]:
    return {
        "user": "me",
        "account_exists": True,
        "root": "/home/me/llmops",
        "interfaces": eth0("10.0.0.1"),
        "cpus": 8,
        "compilers": ["c++"],
        "gpus": [
            {"index": i, "uuid": f"GPU-{'abcdefgh'[i]}", "name": "H200", "compute_capability": capability}
            for i in range(gpus)
        ],
        "systemd": False,
        "runs": {},
        "datasets": [],
        "media": [],
        "models": [],
        "leases": {},
        **facts,
    }


def make(
    facts: dict[str, dict[str, t.Any]],
    sources: t.Sequence[_dataset.Source] = (DATA,),
    lock: t.Any = None,
    addresses: dict[str, str] | None = None,
    **wish: t.Any,
) -> _plan.Plan:
    read = _wish.read({**DEFAULTS, "train_datasets": [{"file": "a.json"}], **wish}, SCHEMAS)
    return _plan.make(
        read,
        sources,
        facts,
        corpus_digest=CORPUS,
        environment=lock or LOCK,
        schema=SCHEMAS[read.environment],
        addresses=addresses,
    )


def lines(plan: _plan.Plan, host: str = "a") -> dict[str, t.Any]:
    """train.yaml of a host as LLaMA-Factory reads it."""
    return {line["key"]: yaml.safe_load(line["value"]) for line in plan.nodes[host]["arguments"]}


def origins(plan: _plan.Plan) -> dict[str, str]:
    return {line["key"]: line["origin"] for line in plan.nodes["a"]["arguments"]}


def recorded(plan: _plan.Plan, **facts: t.Any) -> dict[str, t.Any]:
    """The facts of a node where this plan was applied: run.json sorts its keys."""
    stored = json.loads(json.dumps({"request": plan.request, "resolved": plan.resolved}, sort_keys=True))
    return node(**facts, runs={plan.id: {"id": plan.id, "state": "finished", "created": 1.0, **stored}})


# --- one node ---


def test_media_are_one_folder_of_the_node_and_part_of_who_the_run_is() -> None:
    source = replace(DATA, media_files={"x/1.png": "1" * 64}, media_folders=("/controller",))
    seeing: Variables = {"train_model": "org/m", "train_set": "template=qwen2_vl"}
    plan = make({"a": node()}, sources=(source, HELD_OUT), **seeing)
    assert any("with 1 images, videos and audios" in line for line in _plan.describe(plan, (source,), {"a": node()}))
    media = plan.nodes["a"]["media"]
    folder = f"/home/me/llmops/media/{media['digest'][:16]}"
    assert (media["folder"], media["missing"], [part[0] for part in media["parts"]]) == (folder, True, [DATA.local])
    assert (lines(plan)["media_dir"], origins(plan)["media_dir"]) == (f"{folder}/files", "train_datasets")
    assert not make({"a": node(media=[Path(folder).name])}, sources=(source,), **seeing).nodes["a"]["media"]["missing"]
    other = replace(source, media_files={"x/1.png": "2" * 64})
    assert make({"a": node()}, sources=(other, HELD_OUT), **seeing).id != plan.id
    difference = _request.difference(plan.request, make({"a": node()}, sources=(other, HELD_OUT), **seeing).request)
    assert [line.partition(":")[0] for line in difference] == ["datasets.a.media"]
    without = make({"a": node()}, **seeing)
    assert without.nodes["a"]["media"] == {} and "media_dir" not in lines(without)


def test_where_media_came_from_does_not_count() -> None:
    """Of the author's media_dir nothing is left where its content is sent; where it is one of the nodes it stays."""
    source = replace(DATA, media_files={"x/1.png": "1" * 64})
    given: Variables = {"train_model": "org/m", "train_set": "template=qwen2_vl media_dir=/pictures"}
    plan = make({"a": node()}, sources=(source,), **given)
    assert plan.id == make({"a": node()}, sources=(source,), **{**given, "train_set": "template=qwen2_vl"}).id
    written = [line["value"] for line in plan.nodes["a"]["arguments"] if line["key"] == "media_dir"]
    assert len(written) == 1 and "/pictures" not in written[0]
    assert lines(make({"a": node()}, **given))["media_dir"] == "/pictures"


def test_records_that_only_the_environment_reads_are_noted() -> None:
    plan = make({"a": node()}, sources=(DATA, TABLE))
    assert plan.unread == {"t": "a: no pyarrow"}
    assert [notice.partition(":")[0] for notice in plan.notices] == ["Dataset t"]
    assert make({"a": node()}).unread == {}


def test_media_need_a_template_for_them() -> None:
    for told in ("", "template=llama3"):
        with pytest.raises(FinetuneError, match="the template is for text"):
            make({"a": node()}, sources=(replace(DATA, media=True),), train_model="org/m", train_set=told)
    assert make({"a": node()}, sources=(replace(DATA, media=True),), train_model="org/m", train_set="template=qwen2_vl")


def test_one_node_without_gpu_is_one_process_on_loopback_with_the_lease_of_its_cpus() -> None:
    plan = make({"a": node()}, train_max_restarts=5, train_lease_dir="/leases")
    launch = plan.nodes["a"]["launch"]
    environment = launch.pop("environment")
    assert launch == {
        "python": "/home/me/llmops/envs/0123456789abcdef/bin/python",
        "nnodes": 1,
        "node_rank": 0,
        "nproc_per_node": 1,
        "master_addr": "127.0.0.1",
        "master_port": 0,
        "address": "127.0.0.1",
        "leases": ["cpu"],
        "lease_dir": "/leases",
        "max_restarts": 5,
        "resumes": True,
        "grace_seconds": 120,
        "start_deadline_seconds": 3600,
    }
    assert environment["PATH"].startswith("/home/me/llmops/envs/0123456789abcdef/bin:")
    assert environment["HF_HOME"] == "/home/me/llmops/cache/huggingface"
    assert environment["DS_ACCELERATOR"] == "cpu"
    assert not environment.keys() & {"CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF"}
    assert plan.resolved["engine"] == "single"


@pytest.mark.parametrize(
    ("model", "cpus", "processes", "threads"),
    [
        ("/srv/model", 8, 1, "8"),
        ("/srv/model", 8, 3, "2"),
        ("/srv/model", 1, 3, "1"),
        ("demo", 8, 1, str(base_model.THREADS)),
        ("demo", 8, 3, str(base_model.THREADS)),
    ],
)
def test_processes_share_the_cpus_and_the_demo_takes_the_threads_it_was_made_with(
    model: str, cpus: int, processes: int, threads: str
) -> None:
    plan = make({"a": node(cpus=cpus)}, train_model=model, train_processes_per_node=processes)
    launch = plan.nodes["a"]["launch"]
    assert (launch["nproc_per_node"], launch["environment"]["OMP_NUM_THREADS"]) == (processes, threads)


def test_paths_lie_under_the_root_and_are_named_by_content() -> None:
    plan = make({"a": node()}, (DATA, HELD_OUT), train_name="x")
    here = plan.nodes["a"]
    folder = f"/home/me/llmops/runs/{plan.id}"
    assert plan.id.startswith("x-")
    assert here["folder"] == folder
    written = lines(plan)
    assert (written["output_dir"], written["dataset_dir"]) == (f"{folder}/output", folder)
    assert (written["dataset"], written["eval_dataset"], written["do_eval"]) == ("a", "h", True)
    assert here["dataset_info"]["a"]["file_name"] == f"/home/me/llmops/datasets/{'d' * 16}/data.json"
    assert here["dataset_info"]["a"]["columns"] == {"prompt": "instruction", "response": "output"}
    assert [(data["name"], data["local"], data["missing"]) for data in here["datasets"]] == [
        ("a", "/controller/a.json", True),
        ("h", "/controller/h.jsonl", True),
    ]
    stored = node(datasets=["d" * 16 + "/data.json", "e" * 16 + "/data.json"])
    present = make({"a": stored}, (DATA, HELD_OUT)).nodes["a"]
    assert [data["missing"] for data in present["datasets"]] == [False, True], "the second under another ending"


def test_the_demo_model_is_made_on_the_node_unless_it_is_there() -> None:
    identity = base_model.identity(CORPUS)
    path = f"/home/me/llmops/models/demo@{identity}"
    plan = make({"a": node()})
    assert plan.nodes["a"]["model"] == {"build": True, "path": path, "identity": identity, "missing": True}
    assert lines(plan)["model_name_or_path"] == path
    assert "model_revision" not in lines(plan)
    assert not make({"a": node(models=[f"demo@{identity}"])}).nodes["a"]["model"]["missing"]


@pytest.mark.parametrize(
    ("model", "sources", "revision", "offline"),
    [
        ("demo", (DATA,), None, True),
        ("/srv/model", (DATA,), None, True),
        ("Qwen/Qwen3-0.6B", (DATA,), "v1", False),
        ("/srv/model", (DATA, HUB), None, False),
        ("demo", (HUB,), None, False),
    ],
)
def test_only_what_comes_from_a_hub_asks_one(
    model: str, sources: tuple[_dataset.Source, ...], revision: str | None, offline: bool
) -> None:
    plan = make({"a": node()}, sources, train_model=model, train_model_revision="v1")
    assert lines(plan).get("model_revision") == revision
    assert ("HF_HUB_OFFLINE" in plan.nodes["a"]["launch"]["environment"]) == offline
    told = any("template" in notice for notice in plan.notices)
    assert told == (model != "demo")


# --- arguments ---


def test_each_layer_goes_over_the_one_before_and_is_named() -> None:
    plan = make({"a": node()}, train_args={"lora_rank": 16, "seed": 7}, train_set="seed=8")
    written, where = lines(plan), origins(plan)
    demo = base_model.RECIPE["fine_tuning"]
    assert (written["lora_target"], where["lora_target"]) == ("all", "recipe lora_sft")
    assert (written["learning_rate"], where["learning_rate"]) == (demo["learning_rate"], "model demo")
    assert (written["lora_rank"], where["lora_rank"]) == (16, "train_args")
    assert (written["seed"], where["seed"]) == (8, "train_set")
    assert (where["model_name_or_path"], where["dataset"], where["output_dir"]) == (
        "train_model",
        "train_datasets",
        "the run's folder",
    )


def test_the_global_batch_is_split_over_all_ranks() -> None:
    plan = make({"a": node(2), "b": node(2)}, train_global_batch_size=24)
    written = lines(plan)
    micro, accumulation = written["per_device_train_batch_size"], written["gradient_accumulation_steps"]
    assert micro * accumulation * 4 == plan.resolved["global_batch_size"] == 24
    assert origins(plan)["gradient_accumulation_steps"] in ("train_global_batch_size", "model demo")
    with pytest.raises(FinetuneError, match="24 or 28"):
        make({"a": node(2), "b": node(2)}, train_global_batch_size=26)


@pytest.mark.parametrize(
    ("capabilities", "arguments", "expected"),
    [
        ((), {}, {}),  # float32
        ((9.0,), {}, {"bf16": True}),
        ((8.0, 9.0), {}, {"bf16": True}),
        ((7.5,), {}, {"fp16": True}),
        ((9.0, 7.5), {}, {"fp16": True}),
        ((9.0,), {"fp16": True}, {"fp16": True}),
        ((9.0,), {"bf16": False}, {"bf16": False}),
        ((9.0,), {"pure_bf16": True}, {"pure_bf16": True}),
    ],
)
def test_precision_is_what_the_weakest_gpu_can_unless_the_author_chose(
    capabilities: tuple[float, ...], arguments: Variables, expected: Variables
) -> None:
    facts = {"abc"[i]: node(1, capability) for i, capability in enumerate(capabilities)} or {"a": node()}
    written = lines(make(facts, train_args=arguments))
    assert {key: value for key, value in written.items() if key in ("bf16", "fp16", "pure_bf16")} == expected


# --- GPUs ---


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("all", "abcd"),
        (2, "ab"),
        ("2", "ab"),
        ("0", ""),
        ("0,", "a"),
        ([2], "c"),
        ("3,1", "db"),
        ("GPU-c", "c"),
        (["GPU-c", 0], "ca"),
        (" 1 , 2 ", "bc"),
        ("1,1,GPU-b", "b"),
    ],
)
def test_gpus_are_chosen_by_count_index_or_uuid(wanted: t.Any, chosen: str) -> None:
    launch = make({"a": node(4)}, train_gpus=wanted).nodes["a"]["launch"]
    uuids = [f"GPU-{letter}" for letter in chosen]
    assert launch["leases"] == (uuids or ["cpu"])
    assert launch["environment"].get("CUDA_VISIBLE_DEVICES", "") == ",".join(uuids)
    assert launch["nproc_per_node"] == max(1, len(uuids))


@pytest.mark.parametrize(
    ("present", "wanted", "what"),
    [
        (2, 3, "a has 2 GPUs, 3 are asked for"),
        (2, "2,", "a has no GPU 2"),
        (2, "GPU-z", "a has no GPU GPU-z"),
        (2, -1, "a has no GPU -1"),
        (0, 1, "a has no GPU, train_gpus is 1"),
        (0, "GPU-a", "a has no GPU, train_gpus is GPU-a"),
    ],
)
def test_gpus_that_are_not_there_are_refused(present: int, wanted: t.Any, what: str) -> None:
    with pytest.raises(FinetuneError) as refusal:
        make({"a": node(present)}, train_gpus=wanted)
    assert what in refusal.value.what
    assert refusal.value.where == "train_gpus"
    assert refusal.value.change


def test_each_rank_drives_one_gpu() -> None:
    assert make({"a": node(2)}, train_processes_per_node=2).nodes["a"]["launch"]["nproc_per_node"] == 2
    with pytest.raises(FinetuneError) as refusal:
        make({"a": node(2)}, train_processes_per_node=4)
    assert refusal.value.where == "train_processes_per_node"
    assert "4 processes on 2 GPUs of a" in refusal.value.what


# --- several nodes ---


def test_rank_is_the_order_of_hosts_and_the_first_is_the_master() -> None:
    facts = {
        "c": node(2, interfaces=eth0("10.0.0.3")),
        "a": node(1, interfaces=eth0("10.0.0.1"), root="/srv/llmops"),
        "b": node(1, interfaces=eth0("10.0.0.2"), cpus=4),
    }
    plan = make(facts, train_port=1234)
    launches = {host: planned["launch"] for host, planned in plan.nodes.items()}
    assert [(host, planned["node_rank"], launches[host]["node_rank"]) for host, planned in plan.nodes.items()] == [
        ("c", 0, 0),
        ("a", 1, 1),
        ("b", 2, 2),
    ]
    assert {launch["nnodes"] for launch in launches.values()} == {3}
    assert {(launch["master_addr"], launch["master_port"]) for launch in launches.values()} == {("10.0.0.3", 1234)}
    assert [launch["nproc_per_node"] for launch in launches.values()] == [2, 1, 1]
    assert [launch["leases"] for launch in launches.values()] == [["GPU-a", "GPU-b"], ["GPU-a"], ["GPU-a"]]
    assert (plan.resolved["world_size"], plan.resolved["engine"]) == (4, "ddp")
    assert lines(plan, "a")["output_dir"].startswith("/srv/llmops/runs/")
    assert {launch["environment"]["NCCL_SOCKET_IFNAME"] for launch in launches.values()} == {"eth0"}
    assert lines(plan, "a")["save_on_each_node"] is True
    assert make(facts, addresses={"c": "192.0.2.9"}).nodes["b"]["launch"]["master_addr"] == "192.0.2.9"


def test_a_single_node_meets_on_loopback_and_saves_once() -> None:
    plan = make({"a": node(2, interfaces=[])})
    assert plan.nodes["a"]["launch"]["master_addr"] == "127.0.0.1"
    assert "save_on_each_node" not in lines(plan) and "NCCL_SOCKET_IFNAME" not in str(plan.nodes)


def test_nodes_with_and_without_gpus_are_not_one_cluster() -> None:
    with pytest.raises(FinetuneError, match="b has no GPU, a has"):
        make({"a": node(2), "b": node()})


# --- engines ---


def test_a_deepspeed_engine_is_a_file_in_the_run_an_argument_and_a_place_to_build() -> None:
    plan = make({"a": node()}, train_engine="zero3", train_processes_per_node=2)
    assert (plan.request["engine"], plan.resolved["engine"]) == ("zero3", "zero3")
    assert plan.nodes["a"]["deepspeed"]["zero_optimization"]["stage"] == 3
    assert lines(plan)["deepspeed"] == f"/home/me/llmops/runs/{plan.id}/deepspeed.json"
    assert origins(plan)["deepspeed"] == "train_engine zero3"
    assert plan.nodes["a"]["launch"]["environment"]["TORCH_EXTENSIONS_DIR"].endswith("/cache/builds/0123456789abcdef")
    assert "  engine  zero3" in _plan.describe(plan, [DATA], {"a": node()})


def test_fsdp2_is_variables_and_auto_stays_auto_in_the_request() -> None:
    plan = make({"a": node()}, train_engine="fsdp2", train_processes_per_node=2)
    assert plan.nodes["a"]["launch"]["environment"]["FSDP_VERSION"] == "2"
    assert plan.nodes["a"]["deepspeed"] is None and "deepspeed" not in lines(plan)
    plan = make({"a": node(gpus=2)})
    assert (plan.request["engine"], plan.resolved["engine"]) == ("auto", "ddp")
    assert not plan.nodes["a"]["launch"]["environment"].keys() & {"FSDP_VERSION", "TORCH_EXTENSIONS_DIR"}


def test_the_rules_know_the_engine() -> None:
    with pytest.raises(FinetuneError, match="PiSSA cannot start under ZeRO-3"):
        make({"a": node()}, train_engine="zero3", train_args={"pissa_init": True})
    with pytest.raises(FinetuneError, match=r"a has no c\+\+"):
        make({"a": node(compilers=[])}, train_engine="zero2")


def test_shards_of_another_number_of_ranks_are_refused_and_a_finished_run_is_left_alone() -> None:
    wish: t.Any = {"train_engine": "zero3"}
    facts = recorded(make({"a": node(gpus=2)}, **wish), gpus=4)
    assert make({"a": facts}, **wish).resolved["world_size"] == 4
    for run in facts["runs"].values():
        run["state"] = "interrupted"
    with pytest.raises(FinetuneError, match="in 2 parts, now there are 4 ranks"):
        make({"a": facts}, **wish)


def test_hosts_do_not_share_their_root() -> None:
    facts = {host: node(interfaces=eth0(f"10.0.0.{i}"), storage="nas:/x/llmops") for i, host in enumerate("ab", 1)}
    with pytest.raises(FinetuneError, match="a and b have the same train_root: nas:/x/llmops"):
        make(facts)
    facts["b"]["storage"] = "nas:/y/llmops"
    assert make(facts).nodes["b"]["node_rank"] == 1


@pytest.mark.parametrize(("engine", "told"), [("zero2", False), ("zero2_offload", True), ("zero3_offload", True)])
def test_that_offload_does_not_resume_exactly_is_told(engine: str, told: bool) -> None:
    facts = {"a": node(2, compilers=["c++", "nvcc"])}
    assert any("goes on from a checkpoint" in notice for notice in make(facts, train_engine=engine).notices) is told


def test_no_host_is_refused() -> None:
    with pytest.raises(FinetuneError, match="no host to train on"):
        make({})


def test_hosts_addresses_and_users_are_not_in_the_id() -> None:
    one = make({"a": node()})
    other = make(
        {"z": node(4, interfaces=eth0("192.0.2.1"), root="/x", user="u"), "y": node(1)},
        addresses={"z": "198.51.100.7"},
        train_port=1,
        train_user="u",
        train_root="/x",
        train_gpus="all",
        train_max_restarts=9,
        train_lease_dir="/y",
    )
    assert other.id == one.id == _request.run_id(one.request)
    assert make({"a": node()}, train_args={"num_train_epochs": 3.0}).id == (
        make({"a": node()}, train_set="num_train_epochs=3").id
    )


@pytest.mark.parametrize(
    "inputs",
    [
        {"train_set": "seed=1"},
        {"train_recipe": "full_sft", "train_name": "lora-sft"},
        {"train_model": "org/x"},
        {"train_engine": "ddp"},
        {"train_global_batch_size": 8},
        {"train_processes_per_node": 1},
    ],
    ids=str,
)
def test_each_input_of_the_author_is_in_the_id(inputs: Variables) -> None:
    assert make({"a": node()}, **inputs).id != make({"a": node()}).id


def test_the_text_of_the_demo_model_is_in_the_id() -> None:
    wish = _wish.read({**DEFAULTS, "train_datasets": ["demo"]}, SCHEMAS)
    requests = [_plan.request(wish, [DATA], digest) for digest in ("c", "d")]
    assert _request.run_id(requests[0]) != _request.run_id(requests[1])


# --- records ---


def test_a_recorded_plan_is_reused_line_by_line() -> None:
    first = make({"a": node()}, train_args={"seed": 1, "lora_alpha": 2})
    again = make({"a": recorded(first)}, train_args={"seed": 1, "lora_alpha": 2})
    assert (first.recorded, again.recorded) == (False, True)
    assert again.nodes["a"]["arguments"] == first.nodes["a"]["arguments"]
    assert again.nodes["a"]["state"] == "finished"
    assert (again.notices, again.difference) == ([], [])


def test_a_newer_lock_is_told_and_taken_only_when_asked() -> None:
    first = make({"a": node()})
    newer = {"lock": "node-main", "digest": "f" * 16}
    kept = make({"a": recorded(first)}, lock=newer)
    assert kept.nodes["a"]["launch"]["python"] == first.nodes["a"]["launch"]["python"]
    assert kept.environment == {**LOCK, "current": False}
    assert len(kept.notices) == 1
    assert kept.notices[0].startswith("Drift: the run keeps environment")
    assert "train_resolve=refresh" in kept.notices[0]
    taken = make({"a": recorded(first)}, lock=newer, train_resolve="refresh")
    assert taken.id == first.id
    assert taken.environment == {**newer, "current": True}
    assert taken.notices == []


def test_another_number_of_ranks_is_resolved_again() -> None:
    first = make({"a": node(1)})
    again = make({"a": recorded(first, gpus=2)})
    assert again.resolved["world_size"] == 2
    assert ["1 ranks" in notice and "2" in notice for notice in again.notices] == [True]


@pytest.mark.parametrize("resolved", [None, {}])
def test_a_record_without_resolution_is_resolved_again(resolved: t.Any) -> None:
    plan = make({"a": node()})
    facts = recorded(plan)
    facts["runs"][plan.id]["resolved"] = resolved
    assert not make({"a": facts}).recorded


def known(*runs: tuple[_plan.Plan, str, float]) -> dict[str, t.Any]:
    """The facts of a node that records these runs."""
    return node(
        runs={
            plan.id: {
                "id": plan.id,
                "state": now,
                "request": plan.request,
                "resolved": plan.resolved,
                "created": created,
            }
            for plan, now, created in runs
        }
    )


def test_a_new_request_is_compared_with_the_newest_run() -> None:
    old, newer = make({"a": node()}, train_set="seed=1"), make({"a": node()}, train_set="seed=2")
    facts = known((newer, "finished", 20.0), (old, "finished", 10.0))
    plan = make({"a": facts}, train_set="seed=3")
    assert plan.difference == [f"since   {newer.id} (finished)", "        seed: 2 → 3 (train_set)"]
    assert make({"a": facts}, train_set="seed=1").difference == [], "a known run is no new request"


def test_a_failed_run_is_compared_with_only_where_there_is_no_other() -> None:
    good, bad = make({"a": node()}, train_set="seed=1"), make({"a": node()}, train_set="seed=2")
    facts = known((good, "finished", 10.0), (bad, "failed", 20.0))
    assert make({"a": facts}, train_set="seed=3").difference[0] == f"since   {good.id} (finished)"
    facts = known((bad, "failed", 20.0))
    assert make({"a": facts}, train_set="seed=3").difference[0] == f"since   {bad.id} (failed)"


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({"train_set": "learning_rate=2e-4"}, ["learning_rate: 0.001 → 0.0002 (train_set)"]),
        ({"train_args": {"learning_rate": 1e-3}}, ["learning_rate: not set → 0.001, which comes to the same"]),
        ({"train_model": "/srv/x", "train_args": DEMO_ARGUMENTS}, ["model.name: demo → /srv/x", "model.recipe: "]),
        (
            {"train_recipe": "full_sft", "train_name": "lora-sft"},
            ["recipe: lora_sft → full_sft", "finetuning_type: lora"],
        ),
    ],
    ids=str,
)
def test_a_difference_is_told_in_the_values_that_ranks_get(wish: Variables, expected: list[str]) -> None:
    first = make({"a": node()})
    told = [line.strip() for line in make({"a": known((first, "finished", 1.0))}, **wish).difference[1:]]
    for line in expected:
        assert any(one.startswith(line) for one in told), told


@pytest.mark.parametrize(
    ("leases", "wish", "held"),
    [
        ({}, {}, ""),
        ({"cpu": {"run": "theirs", "user": "ada", "pid": 42}}, {}, "held by run theirs (user ada, process 42)"),
        ({"cpu": {"run": "theirs", "user": "ada", "pid": 42}}, {}, "-e train_run_id=theirs -e train_user=ada"),
        ({"cpu": {"run": "theirs", "user": "me", "pid": 42}}, {}, "-e train_run_id=theirs)"),
        ({"cpu": {"run": "theirs"}}, {"train_state": "staged"}, ""),
        ({"GPU-z": {"run": "theirs"}}, {}, ""),
    ],
    ids=str,
)
def test_who_holds_what_the_run_needs_is_known_before_anything_is_staged(
    leases: Variables, wish: Variables, held: str
) -> None:
    plan = make({"a": node(leases=leases)}, **wish)
    assert (held in plan.held) if held else plan.held == ""
    assert "train_gpus" not in plan.held, "no advice about GPUs where there is none"
    busy = [line for line in _plan.describe(plan, [DATA], {"a": node()}) if line.startswith("  busy")]
    assert len(busy) == bool(held)


@pytest.mark.parametrize(("state", "held"), [("running", False), ("finished", False), ("interrupted", True)])
def test_a_run_that_does_not_start_now_is_not_held_up(state: str, held: bool) -> None:
    plan = make({"a": node()})
    facts = {**known((plan, state, 1.0)), "leases": {"cpu": {"run": "x", "user": "me", "pid": 1}}}
    assert bool(make({"a": facts}).held) is held


def test_a_held_gpu_is_told_with_the_way_round_it() -> None:
    facts = node(2, leases={"GPU-b": {"run": "theirs", "user": "me", "pid": 1}})
    assert "choose other GPUs with train_gpus" in make({"a": facts}).held
    assert make({"a": facts}, train_gpus="0,").held == ""


def test_a_person_reads_what_will_run_where() -> None:
    facts = {"a": node(2), "b": node(1, interfaces=eth0("10.0.0.2"))}
    plan = make(facts, train_global_batch_size=12)
    text = "\n".join(_plan.describe(plan, [DATA], facts))
    assert f"Run {plan.id}: absent" in text
    assert "recipe  lora_sft, environment node-main 0123456789abcdef" in text
    assert "12 = " in text
    assert "a at 10.0.0.1: 2 × H200, 2 process(es)" in text
    assert "b at 10.0.0.2: 1 × H200, 1 process(es)" in text
    alone = "\n".join(_plan.describe(make({"a": node()}), [DATA], {"a": node()}))
    assert "a: 8 CPUs, no GPU, 1 process(es)" in alone


def test_a_model_that_is_not_on_a_node_is_refused_before_anything_is_staged() -> None:
    facts = {"a": node(), "b": node(model_missing=True)}
    with pytest.raises(FinetuneError, match="no model in /srv/x on b") as refusal:
        make(facts, train_model="/srv/x")
    assert refusal.value.where == "train_model"
    text = "\n".join(_plan.describe(make({"a": node()}, train_model="/srv/x"), [DATA], {"a": node()}))
    assert "model   /srv/x\n" in text, "a path has no revision"


def test_a_reward_model_must_be_on_every_node_unless_the_run_is_finished() -> None:
    asked: Variables = {"train_recipe": "ppo", "train_set": "reward_model=/srv/reward"}
    whole = ["value_head.safetensors", "adapter_config.json"]
    plan = make({"a": node(reward_model=whole), "b": node(reward_model=whole)}, **asked)
    assert lines(plan)["reward_model"] == "/srv/reward"
    assert plan.nodes["a"]["launch"]["resumes"] is False
    with pytest.raises(FinetuneError, match="no reward model") as refusal:
        make({"a": node(reward_model=whole), "b": node(reward_model=[])}, **asked)
    assert refusal.value.where == "train_set, key reward_model" and "recipe reward" in refusal.value.change
    alone = make({"a": node(reward_model=whole)}, **asked)
    assert make({"a": {**known((alone, "finished", 1.0)), "reward_model": []}}, **asked).recorded


# --- what is known of the model ---


def test_what_the_model_on_the_node_says_is_held_against_the_arguments() -> None:
    facts = {"a": node(model={"type": "qwen3", "length": 1024, "first_length": 1024})}
    with pytest.raises(FinetuneError, match="not made for texts") as refusal:
        make(facts, train_model="/srv/x", train_args={"cutoff_len": 2048})
    assert (refusal.value.where, refusal.value.change) == (
        "train_args, key cutoff_len",
        "set cutoff_len: 1024, or rope_scaling: yarn",
    )
    make(facts, train_model="/srv/x", train_args={"cutoff_len": 1024})


@pytest.mark.parametrize(
    ("recipe", "arguments", "told"),
    [
        ("dpo", {"finetuning_type": "full"}, True),
        ("dpo", {"finetuning_type": "full", "pref_loss": "simpo"}, False),
        ("dpo", {"finetuning_type": "full", "ref_model": "/srv/ref"}, False),
        ("dpo", {}, False),
        ("full_sft", {}, False),
    ],
)
def test_the_second_copy_that_dpo_keeps_is_told(recipe: str, arguments: Variables, told: bool) -> None:
    plan = make({"a": node()}, train_recipe=recipe, train_args=arguments)
    assert any("second copy" in notice for notice in plan.notices) is told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [({}, False), ({"eval_steps": 5}, True), ({"eval_steps": 5, "eval_strategy": "steps"}, False)],
)
def test_steps_of_an_evaluation_that_there_is_not_are_told(arguments: Variables, told: bool) -> None:
    plan = make({"a": node()}, (DATA, HELD_OUT), train_args=arguments)
    assert ("eval_steps is passed over: eval_strategy is no." in plan.notices) is told


def test_an_evaluation_without_data_is_refused_at_the_key_that_was_written() -> None:
    with pytest.raises(FinetuneError, match="nothing to evaluate on") as refusal:
        make({"a": node()}, train_set="eval_strategy=steps")
    assert refusal.value.where == "train_set, key eval_strategy"


def test_num_samples_tells_how_many_records_there_are_and_max_samples_cuts_it() -> None:
    drawn = replace(DATA, dataset=replace(DATA.dataset, options={"num_samples": 9}), records=20)
    plan = make({"a": node()}, (drawn,), train_args={"max_samples": 5})
    assert f"Dataset {DATA.dataset.name}: of its num_samples 9, max_samples keeps 5." in plan.notices
    make({"a": node()}, (drawn,), train_args={"val_size": 8})
    with pytest.raises(FinetuneError, match="leaves no record to train on"):
        make({"a": node()}, (drawn,), train_args={"val_size": 9})


def test_the_model_is_the_same_on_every_node() -> None:
    facts = {host: node(interfaces=eth0(f"10.0.0.{i}"), model={"type": "qwen3"}) for i, host in enumerate("ab", 1)}
    make(facts, train_model="/srv/x")
    facts["b"]["model"] = {"type": "qwen3", "absent": ["model-00002-of-00002.safetensors"]}
    with pytest.raises(FinetuneError, match="not the same on a and b") as refusal:
        make(facts, train_model="/srv/x")
    assert refusal.value.where == "train_model"
