# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a plan is for one node: files, data, model, and how its ranks start."""

from __future__ import annotations

import typing as t

from . import (
    _addresses,
    _before,
    _config,
    _dataset,
    _hub,
    _media_set,
    _model_place,
    _origin,
    _parallel,
    _ranks,
    _sent_model,
    _store,
    _tokens,
    _trackers,
)
from ._dataset import Source
from ._engine import base_model, lease
from ._engine.state import EARLIER
from ._env import RANKS_PATH, environment_path
from ._ranks import Facts
from ._wish.wish import DEMO_MODEL, Wish

if t.TYPE_CHECKING:
    from ._plan import Plan


GRACE_SECONDS = 120
"""What ranks have to save a checkpoint when they are to end."""
STORE_SECONDS = 600
"""What systemd gives besides to send it."""


def begins_again(arguments: t.Mapping[str, t.Any]) -> str:
    """What of a run cannot go on from a checkpoint, so that it begins again when it was interrupted; else empty."""
    if arguments["stage"] in ("rm", "ppo"):
        return f"Stage {arguments['stage']}"  # LLaMA-Factory forgets the value head, or refuses
    if arguments.get("use_badam"):
        return "BAdam"  # its state does not tell which block is in training
    if arguments.get("pissa_init") and arguments.get("pissa_convert"):
        return "PiSSA with pissa_convert"  # it would convert by what the checkpoint holds, not by what it began with
    return ""


def node(
    plan: Plan,
    wish: Wish,
    sources: t.Sequence[Source],
    places: t.Mapping[str, _addresses.Address],
    host: str,
    facts: Facts,
    rank: int,
    ranks: t.Mapping[str, int],
) -> dict[str, t.Any]:
    root = facts["root"]
    folder = f"{root}/runs/{plan.id}"
    gpus = _ranks.gpus(wish.gpus, facts["gpus"], host)
    environment = environment_path(root, plan.environment["digest"])
    return {
        "node_rank": rank,
        "user": facts["user"],
        "root": root,
        "folder": folder,
        "account_missing": not facts["account_exists"],
        "before": _origin.named(plan.resolved),
        "fetched": _before.on_node(wish.store, _origin.named(plan.resolved), facts),
        "state": facts["runs"].get(plan.id, {}).get("state", "absent"),
        "arguments": _arguments(plan, sources, root, folder, ranks),
        "tokens": _tokens.on_node(plan.tokens, root, _inputs(plan, sources, root)),
        "deepspeed": _parallel.deepspeed(plan.resolved["engine"]),
        "dataset_info": {
            source.dataset.name: _dataset.info(source.dataset, source.file_name(root), source.fields, wish.stage)
            for source in sources
        },
        "datasets": [
            {
                "name": source.dataset.name,
                "digest": source.digest,
                "folder": source.folder(root),
                "file": source.file_name(root),
                "local": source.local,
                "missing": source.file_name("").removeprefix("/datasets/") not in facts["datasets"],
            }
            for source in sources
            if source.local
        ],
        "media": {
            **plan.media,
            "folder": _media_folder(plan, root),
            "missing": plan.media["digest"][:16] not in facts["media"],
        }
        if plan.media
        else {},
        "model": {
            **_model(plan, root),
            "missing": _model(plan, root)["path"].rpartition("/")[2] not in facts["models"],
        },
        "interface": places[host].interface,
        "speed": places[host].speed,
        "launch": {
            "python": f"{environment}/bin/python",
            "nnodes": len(places),
            "node_rank": rank,
            "nproc_per_node": ranks[host],
            "master_addr": next(iter(places.values())).address,
            "master_port": wish.port if len(places) > 1 else 0,
            "address": places[host].address,
            "environment": {
                **_variables(plan, sources, facts, gpus, environment, ranks[host]),
                **_addresses.variables(places[host]),
                **_trackers.variables(plan.resolved["arguments"], plan.id, folder),
            },
            "leases": [gpu["uuid"] for gpu in gpus] or [lease.CPU],
            "lease_dir": facts["lease_dir"],
            "max_restarts": wish.max_restarts,
            **({"shared": plan.shared} if plan.shared else {}),
            **({"store": _store.on_node(plan.store, plan.s3, plan.resolved["arguments"], root)} if plan.store else {}),
            "notices": wish.spot_notices,
            "resumes": not begins_again(plan.resolved["arguments"]),
            "grace_seconds": GRACE_SECONDS,
            "start_deadline_seconds": 3600,
        },
        "predicted": plan.memory.get("predicted", {}),
        "mounts": [root, plan.shared] if plan.shared else [root],
        "stop_seconds": GRACE_SECONDS + 60 + (STORE_SECONDS if plan.store else 0),
        "systemd": facts["systemd"],
    }


def _media_folder(plan: Plan, root: str) -> str:
    return f"{root}/media/{plan.media['digest'][:16]}"


def _model(plan: Plan, root: str) -> dict[str, t.Any]:
    """Where the model lies on the node; `build` says that it is made there from the demo text, `hub` under which name
    it is fetched and `asked` for which revision, by which `python` if not the ranks', `local` where it is on the
    controller."""
    name, revision = plan.resolved["model"]["name"], plan.resolved["model"]["revision"]
    told = {"build": name == DEMO_MODEL, "identity": revision, "hub": "", "asked": "", "python": ""}
    told |= plan.model or {"local": ""}
    told["path"] = _model_place.folder(plan.resolved["model"], root)
    if name in (DEMO_MODEL, _sent_model.NAME):
        return told
    if name.startswith(("/", EARLIER)):
        return {**told, "identity": ""}
    python = _store.python(plan.s3, root) if plan.s3 and _hub.of_s3(name) else ""
    return {**told, "hub": name, "asked": plan.request["model"]["revision"], "python": python}


def _arguments(
    plan: Plan, sources: t.Sequence[Source], root: str, folder: str, ranks: t.Mapping[str, int]
) -> list[dict[str, str]]:
    """Every line of train.yaml: key, value as YAML, where it came from."""
    paths = {**_inputs(plan, sources, root), "dataset_dir": folder}
    if plan.tokens:
        paths["tokenized_path"] = _tokens.on_node(plan.tokens, root, {})["folder"]
    paths["output_dir"] = f"{folder}/output"
    if _parallel.deepspeed(plan.resolved["engine"]):
        paths["deepspeed"] = f"{folder}/deepspeed.json"
    engine = _parallel.ENGINES[plan.resolved["engine"]].arguments
    paths |= engine
    owners = {
        "model_name_or_path": "train_model",
        "dataset": "train_datasets",
        "eval_dataset": "train_eval_datasets",
        "dataset_dir": "the run's folder",
        "media_dir": "train_datasets",
        "tokenized_path": "train_tokenized",
        "output_dir": "the run's folder",
        **dict.fromkeys(("deepspeed", *engine), f"train_engine {plan.resolved['engine']}"),
    }
    tracked = _trackers.arguments(plan.resolved["arguments"], plan.id, folder)
    paths |= tracked
    owners |= dict.fromkeys(tracked, "the run's id")
    if len(ranks) > 1 and not plan.shared:
        paths["save_on_each_node"], owners["save_on_each_node"] = True, "the nodes have no storage in common"
    lines = [{"key": key, "value": _config.to_yaml(value), "origin": owners[key]} for key, value in paths.items()]
    for key, value in plan.resolved["arguments"].items():
        if key in tracked:
            continue
        here = _origin.folder(value, root) if key in _MODELS and isinstance(value, str) else value
        lines.append({"key": key, "value": _config.to_yaml(here), "origin": plan.origins.get(key, "record")})
    return lines


def _inputs(plan: Plan, sources: t.Sequence[Source], root: str) -> dict[str, t.Any]:
    """Keys that lead to the model and the data."""
    paths = {"model_name_or_path": _model(plan, root)["path"]}
    paths["dataset"] = ",".join(source.dataset.name for source in sources if not source.evaluates)
    if any(source.evaluates for source in sources):
        paths["eval_dataset"] = ",".join(source.dataset.name for source in sources if source.evaluates)
    if plan.media:
        paths["media_dir"] = f"{_media_folder(plan, root)}/{_media_set.CONTENT}"
    return paths


def _variables(
    plan: Plan,
    sources: t.Sequence[Source],
    node: Facts,
    gpus: t.Sequence[dict[str, t.Any]],
    environment: str,
    ranks: int,
) -> dict[str, str]:
    """Environment variables of the ranks on one node."""
    cache = f"{node['root']}/cache"
    variables = {
        "PATH": f"{environment}/bin:{RANKS_PATH}",
        "PYTHONUNBUFFERED": "1",
        "HF_HOME": f"{cache}/huggingface",
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": f"{cache}/matplotlib",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_WARM_POOL": "0",  # else each rank starts processes that compile, also where nothing is compiled
        **_parallel.variables(
            plan.resolved["engine"], plan.resolved["arguments"], f"{cache}/builds/{plan.environment['digest']}"
        ),
    }
    if gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpu["uuid"] for gpu in gpus)
        variables["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
        variables["TORCH_NCCL_AVOID_RECORD_STREAMS"] = "1"
        variables["FI_EFA_USE_HUGE_PAGE"] = "0"  # with them a data loader that forks runs out of memory on EFA
    else:
        variables["DS_ACCELERATOR"] = "cpu"
        demo = plan.resolved["model"]["name"] == DEMO_MODEL
        variables["OMP_NUM_THREADS"] = str(base_model.THREADS if demo else max(1, node["cpus"] // ranks))
    loads_here = plan.tokens or all(source.dataset.source in ("file", "path") for source in sources)
    if loads_here and not _asks_hub(plan):
        variables["HF_HUB_OFFLINE"] = "1"
    return variables


_MODELS = ("adapter_name_or_path", "reward_model", "reward_model_adapters", "ref_model", "ref_model_adapters")
"""Keys that name folders or models of a hub, with commas between them."""


def _asks_hub(plan: Plan) -> bool:
    """Whether ranks have something to ask a hub for besides the model, which is on the node."""
    arguments = plan.resolved["arguments"]
    named = [word.strip() for key in _MODELS for word in str(arguments.get(key) or "").split(",")]
    if arguments.get("push_to_hub") or _trackers.asks_hub(arguments):
        return True
    return any(word and not word.startswith(("/", EARLIER)) for word in named)
