# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a plan is for each node: ranks, GPUs, paths, media, leases, engines and variables."""

from __future__ import annotations

import typing as t
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _dataset, _describe, _request
from ansible_collections.llmops.finetune.plugins.module_utils._engine import base_model
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

from .plans import CORPUS, DATA, HELD_OUT, HUB, Variables, eth0, lines, make, node, origins, recorded


def test_media_are_one_folder_of_the_node_and_part_of_who_the_run_is() -> None:
    source = replace(DATA, media_files={"x/1.png": "1" * 64}, media_folders=("/controller",))
    seeing: Variables = {"train_model": "org/m", "train_set": "template=qwen2_vl"}
    plan = make({"a": node()}, sources=(source, HELD_OUT), **seeing)
    assert any("with 1 file of media" in line for line in _describe.lines(plan, (source,), {"a": node()}))
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


def test_one_node_without_gpu_is_one_process_on_loopback_with_the_lease_of_its_cpus() -> None:
    plan = make({"a": node(lease_dir="/leases")}, train_max_restarts=5)
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
        "notices": ["interruption", "rebalance"],
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


def test_ranks_on_gpus_see_those_of_the_run_alone() -> None:
    environment = make({"a": node(gpus=3)}, train_gpus="2,0").nodes["a"]["launch"]["environment"]
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-c,GPU-a"
    assert environment["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True", "as estimates of memory have it"
    assert environment["FI_EFA_USE_HUGE_PAGE"] == "0"
    assert not environment.keys() & {"DS_ACCELERATOR", "OMP_NUM_THREADS"}


def test_ranks_start_no_processes_that_compile() -> None:
    """With CPUs and with GPUs: those that torch starts when it is imported take seconds of each rank's start."""
    for gpus in (0, 2):
        assert make({"a": node(gpus=gpus)}).nodes["a"]["launch"]["environment"]["TORCH_WARM_POOL"] == "0"


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
    assert plan.nodes["a"]["model"] == {
        "build": True,
        "hub": "",
        "asked": "",
        "python": "",
        "local": "",
        "path": path,
        "identity": identity,
        "missing": True,
    }
    assert lines(plan)["model_name_or_path"] == path
    assert "model_revision" not in lines(plan)
    assert not make({"a": node(models=[f"demo@{identity}"])}).nodes["a"]["model"]["missing"]


@pytest.mark.parametrize(
    ("model", "sources", "settings", "offline"),
    [
        ("demo", (DATA,), "", True),
        ("/srv/model", (DATA,), "", True),
        ("Qwen/Qwen3-0.6B", (DATA,), "", True),
        ("/srv/model", (DATA, HUB), "", False),
        ("demo", (HUB,), "", False),
        ("demo", (DATA,), "adapter_name_or_path=/srv/a", True),
        ("demo", (DATA,), "adapter_name_or_path=org/a", False),
        ("demo", (DATA,), "push_to_hub=true hub_model_id=org/a", False),
    ],
)
def test_ranks_ask_no_hub_but_for_what_is_not_on_the_node(
    model: str, sources: tuple[_dataset.Source, ...], settings: str, offline: bool
) -> None:
    facts = node(folders={"/srv/a": ["adapter_config.json"]})
    plan = make({"a": facts}, sources, train_model=model, train_set=settings)
    assert ("HF_HUB_OFFLINE" in plan.nodes["a"]["launch"]["environment"]) == offline


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


def gpu(index: int, name: str, memory: int, **more: t.Any) -> dict[str, t.Any]:
    known = {"index": index, "uuid": f"GPU-{index}", "name": name, "memory": memory << 30, "compute_capability": 8.0}
    return {**known, **more}


UNEQUAL = {**node(), "gpus": [gpu(0, "A100", 80), gpu(1, "A10", 24), gpu(2, "A100", 80)]}
SLICES = {**node(), "gpus": [gpu(0, "A100 MIG 3g", 20, uuid=f"MIG-{part}", slice=part) for part in (0, 1)]}


def test_gpus_of_several_kinds_are_refused_unless_they_are_meant() -> None:
    with pytest.raises(FinetuneError, match="GPUs of several kinds") as refusal:
        make({"a": UNEQUAL})
    assert refusal.value.where.split() == ["A100:", "a", "A10:", "a"] and "mixed_gpus" in refusal.value.change
    with pytest.raises(FinetuneError, match="GPUs of several kinds") as refusal:
        make({"a": node(1), "b": UNEQUAL}, train_gpus="0,")
    assert "H200: a\n" in refusal.value.where and "A100: b" in refusal.value.where
    assert make({"a": UNEQUAL}, train_gpus="0,2").nodes["a"]["launch"]["nproc_per_node"] == 2
    make({"a": UNEQUAL}, train_state="stopped")
    plan = make({"a": UNEQUAL}, train_insist="mixed_gpus")
    assert "GPUs of several kinds: the smallest decides, A10 of a." in plan.notices
    assert any("a: 2 × A100, 1 × A10, 3 process(es)" in line for line in _describe.lines(plan, [DATA], {"a": UNEQUAL}))
    assert plan.id == make({"a": node(1)}).id, "which GPUs is not part of the run"


def test_a_rank_has_one_slice() -> None:
    with pytest.raises(FinetuneError, match="a would have 2 ranks, with MIG slices") as refusal:
        make({"a": SLICES})
    assert "MIG-0 (A100 MIG 3g), MIG-1" in refusal.value.change and refusal.value.where == "train_gpus"
    make({"a": SLICES}, train_state="absent")
    for wanted in ("0:1", "MIG-1"):
        launch = make({"a": SLICES}, train_gpus=wanted).nodes["a"]["launch"]
        assert (launch["leases"], launch["environment"]["CUDA_VISIBLE_DEVICES"]) == (["MIG-1"], "MIG-1")
    with pytest.raises(FinetuneError, match="a has no GPU 0") as refusal:
        make({"a": SLICES}, train_gpus="0,")
    assert "0:0, 0:1, MIG-0, MIG-1" in refusal.value.change


def test_a_plan_tells_what_is_wrong_with_gpus() -> None:
    problem = {"what": "NVIDIA L4 is there, and no driver has it.", "change": "install NVIDIA's driver"}
    facts = {"a": node(gpu_problems=[problem])}
    told = "a: NVIDIA L4 is there, and no driver has it. Remedy: install NVIDIA's driver."
    assert told in make(facts).notices and told not in make(facts, train_gpus=0).notices


def test_a_deepspeed_engine_is_a_file_in_the_run_an_argument_and_a_place_to_build() -> None:
    plan = make({"a": node()}, train_engine="zero3", train_processes_per_node=2)
    assert (plan.request["engine"], plan.resolved["engine"]) == ("zero3", "zero3")
    assert plan.nodes["a"]["deepspeed"]["zero_optimization"]["stage"] == 3
    assert lines(plan)["deepspeed"] == f"/home/me/llmops/runs/{plan.id}/deepspeed.json"
    assert origins(plan)["deepspeed"] == "train_engine zero3"
    assert plan.nodes["a"]["launch"]["environment"]["TORCH_EXTENSIONS_DIR"].endswith("/cache/builds/0123456789abcdef")
    assert "  engine  zero3" in _describe.lines(plan, [DATA], {"a": node()})


def test_fsdp2_is_variables_and_auto_stays_auto_in_the_request() -> None:
    plan = make({"a": node()}, train_engine="fsdp2", train_processes_per_node=2)
    assert plan.nodes["a"]["launch"]["environment"]["FSDP_VERSION"] == "2"
    assert plan.nodes["a"]["deepspeed"] is None and "deepspeed" not in lines(plan)
    plan = make({"a": node(gpus=2)})
    assert (plan.request["engine"], plan.resolved["engine"]) == ("auto", "ddp")
    assert not plan.nodes["a"]["launch"]["environment"].keys() & {"FSDP_VERSION", "TORCH_EXTENSIONS_DIR"}


def test_megatron_is_a_variable_and_keys_and_its_batch_counts_copies_of_the_model() -> None:
    sizes = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
    wish: t.Any = {"train_recipe": "full_sft", "train_engine": "megatron", "train_args": sizes}
    plan = make({"a": node(gpus=4), "b": node(gpus=4)}, train_global_batch_size=16, **wish)
    launch = plan.nodes["b"]["launch"]
    assert (launch["environment"]["USE_MCA"], launch["nnodes"], launch["nproc_per_node"]) == ("1", 2, 4)
    written = lines(plan)
    assert sizes.items() <= written.items() and not {"deepspeed", "use_kt", "use_mca"} & written.keys()
    assert written["per_device_train_batch_size"] * written["gradient_accumulation_steps"] * 2 == 16
    told = _describe.lines(plan, [DATA], {"a": node(4), "b": node(4)})
    assert any("× copies of the model)" in line for line in told)
    assert [notice for notice in plan.notices if "megatron is unproved" in notice]
    with pytest.raises(FinetuneError, match="One copy of the model takes"):
        make({"a": node(gpus=6)}, **wish)
    with pytest.raises(FinetuneError, match="trains all weights, whatever finetuning_type says"):
        make({"a": node(gpus=4)}, train_engine="megatron")


def test_ktransformers_is_fsdp2_a_key_and_an_environment_of_its_own() -> None:
    wish: t.Any = {"train_model": "org/moe", "train_engine": "ktransformers"}
    settings = {"kt_backend": "auto", "kt_num_threads": 96}
    plan = make({"a": node(gpus=2)}, train_args={"kt_config": settings}, **wish)
    launch = plan.nodes["a"]["launch"]
    assert launch["environment"]["FSDP_VERSION"] == "2" and launch["nproc_per_node"] == 2
    assert lines(plan)["use_kt"] is True and lines(plan)["kt_config"] == settings
    assert origins(plan)["use_kt"] == "train_engine ktransformers"
    assert [notice for notice in plan.notices if "ktransformers is unproved" in notice]
    for asked, told in (({"use_kt": True}, "train_engine decides it"), ({"fp16_backend": "auto"}, "0.9.6.dev0 has no")):
        with pytest.raises(FinetuneError, match=told):
            make({"a": node(gpus=2)}, train_args=asked, **wish)
    with pytest.raises(FinetuneError, match="no key kt_config") as refusal:
        make({"a": node(gpus=2)}, train_args={"kt_config": settings})
    assert refusal.value.change == "set train_engine: ktransformers"


def test_without_a_lock_nothing_is_current() -> None:
    wish: t.Any = {"train_recipe": "full_sft", "train_engine": "megatron", "train_state": "stopped"}
    plan = make({"a": node(gpus=2)}, lock={"lock": "node-megatron", "digest": ""}, **wish)
    assert plan.environment["current"] is False and plan.held == ""


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


@pytest.mark.parametrize(
    ("recipe", "arguments", "again"),
    [
        ("lora_sft", {}, ""),
        ("reward", {}, "Stage rm"),
        ("badam", {}, "BAdam"),
        ("pissa", {}, "PiSSA with pissa_convert"),
        ("pissa", {"pissa_convert": False}, ""),
        ("galore", {}, ""),
    ],
)
def test_what_cannot_go_on_from_a_checkpoint_begins_again_and_says_so(
    recipe: str, arguments: dict[str, t.Any], again: str
) -> None:
    plan = make({"a": node()}, train_recipe=recipe, train_args=arguments)
    assert plan.nodes["a"]["launch"]["resumes"] is not bool(again)
    told = [notice for notice in plan.notices if "cannot go on from a checkpoint" in notice]
    assert [notice.startswith(again) for notice in told] == [True] * bool(again)
