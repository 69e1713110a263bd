# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand-ins on loopback: S3 (moto) and the metadata of an instance of EC2; and nodes with checkpoints to send."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import random
import shutil
import threading
import typing as t
import urllib.request
from pathlib import Path

import boto3
import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _engine
from ansible_collections.llmops.finetune.plugins.module_utils._engine import checkpoint, files, state, store
from moto.server import ThreadedMotoServer

NAME, RUN = "runs", "x-00000000"
URL = f"s3://{NAME}/team/{RUN}"
ENGINE = Path(str(_engine.__file__)).parent
SECRETS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


class S3:
    def __init__(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.server.start()
        self.address = "http://{}:{}".format(*self.server.get_host_and_port())
        self.variables = {**SECRETS, "AWS_ENDPOINT_URL_S3": self.address, "AWS_EC2_METADATA_DISABLED": "true"}
        self.client = boto3.client(
            "s3",
            endpoint_url=self.address,
            aws_access_key_id="a",
            aws_secret_access_key="b",
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket=NAME)

    def close(self) -> None:
        urllib.request.urlopen(f"{self.address}/moto-api/reset", b"").close()
        self.server.stop()

    def names(self, under: str = "") -> list[str]:
        """All objects of the run, by what they are called there."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=NAME, Prefix=f"team/{RUN}/{under}")
        return [each["Key"].removeprefix(f"team/{RUN}/") for page in pages for each in page.get("Contents", ())]

    def content(self, name: str) -> bytes:
        return bytes(self.client.get_object(Bucket=NAME, Key=f"team/{RUN}/{name}")["Body"].read())

    def put(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=NAME, Key=f"team/{RUN}/{name}", Body=content)

    def whole(self, nodes: int = 1) -> list[store.Save]:
        """What counts as a checkpoint there, each file of it held against its manifest: a torn one is an error."""
        names = self.names()
        found = store.complete(names)
        for save in found:
            for node in range(nodes):
                manifest = json.loads(self.content(save.manifest(node, nodes)))
                for name, told in manifest["files"].items():
                    content = self.content(save.files + name)
                    assert hashlib.sha256(content).hexdigest() == told["sha256"], f"{name} of {save} is torn"
                    assert len(content) == told["size"]
        return found


@pytest.fixture(scope="module")
def server() -> t.Iterator[S3]:
    """A stand-in for a file of tests, which takes it by this name: `server = stored.server`."""
    served = S3()
    yield served
    served.close()


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:  # pylint: disable=redefined-outer-name
    """The same, empty, and where boto3 looks."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**server.variables, "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    pages = server.client.get_paginator("list_objects_v2").paginate(Bucket=NAME)
    for each in [each for page in pages for each in page.get("Contents", ())]:
        server.client.delete_object(Bucket=NAME, Key=each["Key"])
    return server


class Metadata:
    """IMDSv2 on loopback: without a token of its own nothing is told."""

    def __init__(self) -> None:
        self.said: dict[str, t.Any] = {}
        self.token = 0
        self.asked: list[str] = []
        metadata = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                assert self.path == "/latest/api/token"
                assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "21600"
                metadata.token += 1
                self._answer(200, str(metadata.token).encode())

            def do_GET(self) -> None:
                metadata.asked.append(self.path)
                if self.headers.get("X-aws-ec2-metadata-token") != str(metadata.token):
                    return self._answer(401, b"")
                said = metadata.said.get(self.path.removeprefix("/latest/meta-data/"))
                return self._answer(404, b"") if said is None else self._answer(200, json.dumps(said).encode())

            def _answer(self, code: int, content: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: t.Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Node:
    """A run's folder on a node that has trained, without the training."""

    def __init__(self, folder: Path, node: int = 0, nodes: int = 1, keep: int = 0) -> None:
        self.run = state.Run(folder / "runs" / RUN)
        self.node, self.nodes = node, nodes
        self.run.logs.mkdir(parents=True)
        self.run.output.mkdir()
        shutil.copytree(ENGINE, self.run.path / "engine", ignore=shutil.ignore_patterns("__pycache__"))
        self.launch: dict[str, t.Any] = {
            "node_rank": node,
            "nnodes": nodes,
            "store": {"url": URL, "python": "python", "keep": keep},
        }
        files.write_json(self.run.launch, self.launch)
        record = {"run": RUN, "request": {"name": "x"}, "resolved": {"world_size": nodes}, "created": 1.0}
        files.write_json(self.run.record, record)

    def save(self, step: int, size: int = 2000, *, common: bool = True, marked: bool = True, save: int = 0) -> Path:
        """A checkpoint as this node writes it: what all have alike, and a shard of its own."""
        path = self.run.output / f"checkpoint-{step}"
        (path / "global").mkdir(parents=True)
        numbers = random.Random(step)
        if common:
            for name in ("trainer_state.json", "model.safetensors", "optimizer.pt"):
                (path / name).write_bytes(numbers.randbytes(size))
        (path / f"global/rank_{self.node}.pt").write_bytes(random.Random(step * 100 + self.node).randbytes(size))
        with open(self.run.trainer_log, "a", encoding="utf-8") as log:
            log.write(f'{{"current_steps": {step}}}\n')
        if marked:
            wrote = {"trainer_state.json": size, "model.safetensors": size, "optimizer.pt": size}
            all_wrote = [{**wrote, f"global/rank_{rank}.pt": size} for rank in range(self.nodes)]
            checkpoint.mark(path, all_wrote if self.nodes > 1 else [], save)
        return path

    def content(self, step: int) -> dict[str, bytes]:
        """What is in a whole checkpoint, the mark aside."""
        path = self.run.output / f"checkpoint-{step}"
        assert checkpoint.is_complete(path)
        named = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
        return {name: file.read_bytes() for name, file in named.items() if name != checkpoint.MARK}

    def steps(self) -> list[int]:
        return [checkpoint.step_of(path) for path in checkpoint.found(self.run.output) if checkpoint.is_complete(path)]

    def finish(self) -> None:
        (self.run.output / "adapter_model.safetensors").write_bytes(os.urandom(100))
        files.write_json(self.run.artefacts, state.inventory(self.run))
