# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models in S3: one content for all nodes, fetched and proved, against a stand-in of S3 (moto)."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _describe, _hub, _wish
from ansible_collections.llmops.finetune.plugins.module_utils._engine import hub_files, hub_model, hub_s3
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError
from ansible_collections.llmops.finetune.plugins.plugin_utils import _s3

from . import stored
from .plans import COMMIT, DATA, DEFAULTS, RECIPES, SCHEMAS, lines, make, node, recorded
from .stored import ENGINE, NAME, S3

MODEL = f"s3://{NAME}/models/Qwen3-0.6B"
OTHER = "f" * 40
CONFIG = {"model_type": "qwen3", "hidden_size": 8}
FILES = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": b"1234", "sub/words.txt": b""}
KILLS = 8


class Line:
    """Between a client and the stand-in; what comes from there comes as slowly as wanted."""

    def __init__(self, address: str) -> None:
        self.there = int(address.rpartition(":")[2])
        self.pause, self.came = 0.0, 0
        """Seconds before each block, and bytes that came."""
        self.ear = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.ear.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            near = self.ear.accept()[0]
            far = socket.create_connection(("127.0.0.1", self.there))
            for pair, slow in (((near, far), False), ((far, near), True)):
                threading.Thread(target=self._pass, args=(*pair, slow), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, slow: bool) -> None:
        try:
            while block := source.recv(1 << 14):
                if slow:
                    time.sleep(self.pause)
                    self.came += len(block)
                sink.sendall(block)
        except OSError:
            pass
        for one in (source, sink):
            one.close()


server, s3 = stored.server, stored.s3  # fixtures


def put(s3: S3, files: t.Mapping[str, bytes], **more: t.Any) -> None:
    for name, content in files.items():
        s3.client.put_object(Bucket=NAME, Key=f"models/Qwen3-0.6B/{name}", Body=content, **more)


def put_in_parts(s3: S3, name: str, *parts: bytes) -> None:
    where = {"Bucket": NAME, "Key": f"models/Qwen3-0.6B/{name}"}
    upload = s3.client.create_multipart_upload(**where)["UploadId"]
    tags = [
        s3.client.upload_part(**where, UploadId=upload, PartNumber=number, Body=part)["ETag"]
        for number, part in enumerate(parts, 1)
    ]
    told = {"Parts": [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]}
    s3.client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload=told)


def asked(s3: S3, revision: str = "main", model: str = MODEL) -> dict[str, t.Any]:
    return _s3.model(model, revision, s3.variables)


# --- what the controller is told ---


def test_a_prefix_is_pinned_by_what_a_run_reads_of_it(s3: S3) -> None:
    put(s3, {**FILES, "a.gguf": b"x" * 99, "README.md/": b""})
    first = asked(s3)
    size = sum(map(len, FILES.values()))
    assert first == {"revision": first["revision"], "bytes": size, "config": CONFIG}
    assert _hub.COMMIT.fullmatch(first["revision"]) and asked(s3, first["revision"]) == first
    put(s3, {"a.gguf": b"another"})
    s3.client.put_object(Bucket=NAME, Key="models/Qwen3-0.6B-other/model.safetensors", Body=b"1")
    assert asked(s3) == first, "neither what no run reads nor what is beside it counts"
    put(s3, {"model.safetensors": b"1235"})
    moved = asked(s3)
    assert moved["revision"] != first["revision"]
    assert asked(s3, first["revision"])["kind"] == "moved"


def test_no_object_leads_out_of_the_folder(s3: S3) -> None:
    put(s3, {**FILES, "../../.ssh/authorized_keys": b"x", "/etc/passwd": b"x", "a/../../b": b"x"})
    assert hub_s3.tags(s3.client, MODEL).keys() == FILES.keys()


@pytest.mark.parametrize(
    ("model", "revision", "kind", "what"),
    [
        (f"{MODEL}-none", "main", "missing", "There is no model at"),
        ("s3://elsewhere/x", "main", "missing", "There is no model at"),
        (MODEL, "v2", "revision", "no revision v2"),
        (MODEL, OTHER, "moved", "were replaced"),
    ],
)
def test_why_it_is_not_known(s3: S3, model: str, revision: str, kind: str, what: str) -> None:
    put(s3, FILES)
    answer = asked(s3, revision, model)
    assert answer["kind"] == kind
    refusal = _hub.refusal(answer, model, revision, "train_model")
    assert model in refusal.what and what in refusal.what and "hub" not in f"{refusal.what} {refusal.change}"


def test_who_may_not_read_and_a_server_that_is_not_there_are_told(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    put(s3, FILES)
    gone = _s3.model(MODEL, "main", {**s3.variables, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"})
    assert gone["kind"] == "unreachable" and "127.0.0.1:9" in gone["said"]
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)  # from now on keys count
    answer = asked(s3)
    assert answer["kind"] == "gated" and "role" in _hub.refusal(answer, MODEL, "main", "train_model").change


@pytest.mark.parametrize("kind", _hub._WHAT_IN_S3)
def test_every_reason_has_words_of_its_own(kind: str) -> None:
    refusal = _hub.refusal({"kind": kind, "said": "so"}, MODEL, "v1", "train_model")
    assert MODEL in refusal.what and "(so)" in refusal.what and refusal.change


# --- what a node adds to it ---


def test_a_node_that_was_told_asks_nobody(tmp_path: Path) -> None:
    told = {"revision": COMMIT, "bytes": 6, "config": CONFIG}
    begun = tmp_path / f".s3--Qwen3-0.6B@{COMMIT}" / ".s3" / "model.safetensors"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"12")
    assert _hub.facts(MODEL, "main", tmp_path, (), told=told) == {**told, "begun": 2}
    lost = {"kind": "unreachable", "said": "refused"}
    assert _hub.facts(MODEL, "main", tmp_path, (), told=lost) == lost
    _hub.remember(tmp_path, MODEL, "main", COMMIT)
    here = _hub.facts(MODEL, "main", tmp_path, [f"s3--Qwen3-0.6B@{COMMIT}"], told=lost)
    assert (here["kind"], here["revision"]) == ("unreachable", COMMIT)


# --- one content for all nodes ---


def test_the_run_is_pinned_and_what_speaks_to_s3_is_there_where_it_has_to() -> None:
    plan = make({"a": node()}, train_model=f"{MODEL}/")
    assert plan.resolved["model"] == {"name": MODEL, "revision": COMMIT}
    assert plan.request["model"] == {"name": MODEL, "revision": "main"}
    model, folder = plan.nodes["a"]["model"], f"/home/me/llmops/models/s3--Qwen3-0.6B@{COMMIT}"
    assert (model["path"], model["hub"], model["asked"], model["missing"]) == (folder, MODEL, "main", True)
    assert model["python"] == "/home/me/llmops/envs//bin/python" and plan.s3["lock"] == "node-store.txt"
    assert lines(plan)["model_name_or_path"] == folder and lines(plan)["template"] == "qwen3"
    assert plan.nodes["a"]["launch"]["environment"]["HF_HUB_OFFLINE"] == "1"
    assert "store" not in plan.nodes["a"]["launch"] and plan.store == {}
    assert f"  model   {MODEL} at {COMMIT}, 3.0 GiB to be fetched" in _describe.lines(plan, [DATA], {"a": node()})


@pytest.mark.parametrize(
    ("there", "state", "speaks"),
    [(False, "finished", True), (True, "finished", False), (False, "absent", False), (False, "staged", True)],
)
def test_it_is_not_made_for_nothing(there: bool, state: str, speaks: bool) -> None:
    facts = node(models=[f"s3--Qwen3-0.6B@{COMMIT}"] if there else [])
    assert bool(make({"a": facts}, train_model=MODEL, train_state=state).s3) == speaks
    assert make({"a": facts}, train_model=MODEL, train_state=state, train_store="s3://runs/team").s3


def test_objects_that_were_replaced_are_drift() -> None:
    first = make({"a": node()}, train_model=MODEL)
    facts = recorded(first, hub={"revision": OTHER, "bytes": 5})
    again = make({"a": facts}, train_model=MODEL)
    assert again.resolved["model"]["revision"] == COMMIT
    assert any("Drift: the run keeps model" in notice and OTHER[:12] in notice for notice in again.notices)
    assert make({"a": facts}, train_model=MODEL, train_resolve="refresh").resolved["model"]["revision"] == OTHER


@pytest.mark.parametrize(
    ("wish", "where"),
    [
        ({"train_model": "s3://"}, "train_model"),
        ({"train_model": "s3://Bucket/x"}, "train_model"),
        ({"train_args": {"adapter_name_or_path": "s3://bucket/adapter"}}, "adapter_name_or_path"),
    ],
)
def test_what_is_no_place_is_refused(wish: dict[str, t.Any], where: str) -> None:
    with pytest.raises(FinetuneError) as refusal:
        _wish.read({**DEFAULTS, **wish}, SCHEMAS, RECIPES)
    assert where in str(refusal.value.where)


# --- fetched ---


def fetch(s3: S3, folder: Path, pin: str = "") -> dict[str, str]:
    return hub_model.fetch(MODEL, "main", pin or asked(s3)["revision"], folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_pinned_is_fetched_and_nothing_else(s3: S3, tmp_path: Path) -> None:
    put(s3, {**FILES, "a.gguf": b"x"})
    digests = fetch(s3, tmp_path / "model")
    assert contents(tmp_path / "model") == FILES and digests.keys() == FILES.keys()
    pin = asked(s3)["revision"]
    put(s3, {"model.safetensors": b"1235"})
    with pytest.raises(hub_files.Failure, match=r"it has \w+ now") as failure:
        fetch(s3, tmp_path / "other", pin)
    assert failure.value.kind == "moved"


def test_an_object_that_is_replaced_meanwhile_is_not_taken(s3: S3, tmp_path: Path) -> None:
    put(s3, FILES)
    ((size, tag),) = [hub_s3.tags(s3.client, MODEL)["model.safetensors"]]
    put(s3, {"model.safetensors": b"1235"})
    with pytest.raises(hub_files.Failure) as failure:
        hub_s3._bring(s3.client, MODEL, tmp_path, "model.safetensors", size, tag)
    assert failure.value.kind == "moved" and contents(tmp_path) == {}


PART = 5 << 20


@pytest.mark.parametrize("sent", ["whole", "parts", "sha256", "one part"])
def test_every_byte_is_proved(s3: S3, tmp_path: Path, sent: str) -> None:
    """By what S3 tells of it, whichever way it was sent."""
    content = random.Random(3).randbytes(2 * PART + 77)
    if sent == "parts":
        put_in_parts(s3, "model.safetensors", content[:PART], content[PART : 2 * PART], content[2 * PART :])
    elif sent == "one part":
        put_in_parts(s3, "model.safetensors", content)
    else:
        put(s3, {"model.safetensors": content}, **({"ChecksumAlgorithm": "SHA256"} if sent == "sha256" else {}))
    expected = hub_s3.listed(MODEL, "main", asked(s3)["revision"])
    form = {"whole": 32, "parts": 34 + 1 + len(str(PART)), "sha256": 64, "one part": 34 + 1 + 8}[sent]
    assert len(expected["model.safetensors"][1]) == form
    for place, right in ((None, True), (0, False), (PART, False), (len(content) - 1, False)):
        spoilt = bytearray(content)
        if place is not None:
            spoilt[place] ^= 1
        (tmp_path / "model.safetensors").write_bytes(spoilt)
        assert bool(hub_files.digests(tmp_path, expected)) == right


def test_of_unequal_parts_and_keys_of_kms_only_the_length_is_proved(s3: S3, tmp_path: Path) -> None:
    put_in_parts(s3, "model.safetensors", bytes(PART), bytes(2 * PART), b"1")
    put(s3, {"config.json": b"{}"}, ServerSideEncryption="aws:kms")
    expected = hub_s3.listed(MODEL, "main", asked(s3)["revision"])
    assert expected == {"model.safetensors": (3 * PART + 1, ""), "config.json": (2, "")}
    assert fetch(s3, tmp_path / "model").keys() == expected.keys()


def test_a_part_that_was_damaged_on_the_disk_is_fetched_again(s3: S3, tmp_path: Path) -> None:
    put(s3, FILES)
    begun = tmp_path / hub_s3.PARTIAL / "model.safetensors"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"9")
    fetch(s3, tmp_path)
    assert contents(tmp_path) == FILES


def there(folder: Path) -> int:
    """Bytes that have come."""
    return sum(path.stat().st_size for path in (folder / "model").rglob("*.safetensors"))


def test_a_fetch_that_is_killed_goes_on_where_it_was(s3: S3, tmp_path: Path) -> None:
    numbers = random.Random(5)
    files = {f"model-{i}.safetensors": numbers.randbytes(3_000_000 + i) for i in range(3)} | {"config.json": b"{}"}
    put(s3, files)
    line = Line(s3.address)
    line.pause = 0.01
    (tmp_path / "engine").symlink_to(ENGINE)
    command = [sys.executable, "-m", "engine.hub_model", "--model", MODEL, "--asked", "main"]
    command += ["--revision", asked(s3)["revision"], "--folder", str(tmp_path / "model")]
    variables = {**os.environ, "AWS_ENDPOINT_URL_S3": line.address}
    for _kill in range(KILLS):
        until = there(tmp_path) + numbers.randint(100_000, 600_000)
        running = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=subprocess.DEVNULL)
        while there(tmp_path) < until and running.poll() is None:
            time.sleep(0.005)
        assert running.poll() is None, "it was ready before it was killed often enough"
        running.kill()
        running.wait()
    kept = there(tmp_path)
    line.pause, before = 0, line.came
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(tmp_path / "model") == files
    assert line.came - before < sum(map(len, files.values())) - kept + 200_000, "and does not come again"
