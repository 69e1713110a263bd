# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store of a run: sending to a stand-in of S3 (moto) and fetching from it."""

from __future__ import annotations

import base64
import io
import json
import shutil
import threading
import typing as t
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils._engine import (
    bucket,
    checkpoint,
    files,
    forget,
    restore,
    store,
    upload,
)
from ansible_collections.llmops.finetune.plugins.module_utils._engine.store import Save

from . import stored
from .stored import NAME, RUN, S3, URL, Node

server, s3 = stored.server, stored.s3  # fixtures


def send(node: Node) -> None:
    assert upload.work(node.run, 0) == 0, files.read_json(node.run.stored)


def fetch(node: Node, **how: bool) -> int:
    return int(restore.work(node.run, **{"look": False, "lacking": False, **how})["step"])


def test_a_fresh_host_has_what_was_saved_and_the_log_of_it(s3: S3, tmp_path: Path) -> None:
    old, new = Node(tmp_path / "old"), Node(tmp_path / "new")
    old.save(8)
    send(old)
    (save,) = s3.whole()
    assert fetch(new) == 8
    assert new.content(8) == old.content(8)
    assert checkpoint.read_mark(new.run.output / "checkpoint-8") == checkpoint.read_mark(
        old.run.output / "checkpoint-8"
    )
    assert new.run.trainer_log.read_text() == '{"current_steps": 8}\n'
    assert sorted(path.name for path in new.run.output.iterdir()) == ["checkpoint-8", "trainer_log.jsonl"]
    assert (fetch(new), json.loads(s3.content("run.json"))["resolved"]) == (0, {"world_size": 1})
    new.save(16)
    send(new)
    assert s3.whole() == [save, s3.whole()[1]] and s3.whole()[1].step == 16, "what it fetched is not sent again"
    stored = files.read_json(new.run.stored)
    assert (stored["url"], stored["step"], stored["error"]) == (URL, 16, "")


def test_each_file_carries_its_digest_for_s3_to_prove(s3: S3, tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.save(8)
    place = bucket.Bucket(URL)
    seen: dict[str, str] = {}
    place.client.meta.events.register(
        "before-send.s3.PutObject",
        lambda request, **_: seen.update({request.url.rpartition("/")[2]: request.headers["x-amz-checksum-sha256"]}),
    )
    sending = upload.Sending(node.run, place, node.launch)
    assert sending.checkpoint() and not sending.checkpoint()
    digest = bytes.fromhex(files.sha256(node.run.output / "checkpoint-8/model.safetensors"))
    assert text(seen["model.safetensors"]) == base64.b64encode(digest).decode()
    assert len(seen) == 6, "four files, the log and the manifest"
    place.send("x", io.BytesIO(b"what came of it on its way"), 26, "00" * 32)
    assert text(seen["x"]) == base64.b64encode(bytes(32)).decode(), "it is that of what was read, not of what is sent"


def text(header: str | bytes) -> str:
    return header.decode() if isinstance(header, bytes) else header


def test_a_large_file_goes_in_parts_and_what_was_left_of_it_is_given_up(s3: S3, tmp_path: Path) -> None:
    node = Node(tmp_path / "a", keep=1)
    place = bucket.Bucket(URL, part=5 << 20)
    node.save(8, size=6 << 20)
    sending = upload.Sending(node.run, place, node.launch)
    assert sending.checkpoint()
    (save,) = s3.whole()
    told = s3.client.head_object(Bucket=NAME, Key=f"team/{RUN}/{save.files}optimizer.pt", ChecksumMode="ENABLED")
    assert told["ETag"].endswith('-2"') and told["ChecksumSHA256"]
    s3.client.create_multipart_upload(Bucket=NAME, Key=f"team/{RUN}/{save.files}optimizer.pt")
    node.save(16)
    assert sending.checkpoint()
    sending.tidy()
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket=NAME)
    other = Node(tmp_path / "b")
    node.save(24, size=6 << 20)
    assert sending.checkpoint() and fetch(other) == 24
    assert other.content(24) == node.content(24)


def test_as_many_are_kept_as_on_disk(s3: S3, tmp_path: Path) -> None:
    node = Node(tmp_path, keep=2)
    for step in (8, 16, 24, 32):
        node.save(step)
        send(node)
    assert [save.step for save in s3.whole()] == [24, 32]
    assert {name.split("/")[1].split("-")[0] for name in s3.names("checkpoints/")} == {"24", "32"}


class Cut(bucket.Bucket):
    """Does so many things, then no more, as when its process is killed."""

    left = 0

    def send(self, *what: t.Any) -> None:
        self._count()
        super().send(*what)

    def remove(self, names: t.Iterable[str]) -> None:
        for name in names:
            self._count()
            super().remove([name])

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("left", range(16))
def test_cut_at_any_point_nothing_that_counts_is_torn(s3: S3, tmp_path: Path, left: int) -> None:
    """A checkpoint is sent, which outlives another one, then results over those of an earlier end."""
    node = Node(tmp_path, keep=1)
    node.save(8)
    node.finish()
    send(node)
    node.save(16)
    node.finish()
    place = Cut(URL)
    place.left = left
    with pytest.raises(KeyboardInterrupt):
        sending = upload.Sending(node.run, place, node.launch)
        sending.checkpoint()
        sending.tidy()
        sending.results()
    assert s3.whole()
    assert store.RESULTS not in s3.names() or results_are_whole(s3)
    send(node)
    assert [save.step for save in s3.whole()] == [16] and len(s3.names("checkpoints/")) == 5
    assert results_are_whole(s3)


def results_are_whole(s3: S3) -> bool:
    told = json.loads(s3.content(store.RESULTS))["files"]
    return all(store.digest_of(s3.content(f"results/{name}")) == was["sha256"] for name, was in told.items())


def test_one_that_is_removed_while_it_is_sent_is_sent_to_its_end(s3: S3, tmp_path: Path) -> None:
    node = Node(tmp_path)
    path = node.save(8)

    class Removing(bucket.Bucket):
        def send(self, name: str, *more: t.Any) -> None:
            if path.exists():
                checkpoint.remove(path)
            super().send(name, *more)

    sending = upload.Sending(node.run, Removing(URL), node.launch)
    assert sending.checkpoint() and [save.step for save in s3.whole()] == [8]
    assert not sending.checkpoint()


def test_what_is_not_whole_is_not_sent(s3: S3, tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.save(8)
    node.save(16, marked=False)
    (node.save(24) / "model.safetensors").write_bytes(b"cut")
    send(node)
    assert [save.step for save in s3.whole()] == [8]
    assert {name.split("/")[1].split("-")[0] for name in s3.names("checkpoints/")} == {"8"}


def test_a_step_that_is_saved_again_is_another_one(s3: S3, tmp_path: Path) -> None:
    """Nothing that counts is written over, and what was saved last is the newest."""
    node, fresh = Node(tmp_path / "a"), Node(tmp_path / "b")
    for step in (8, 16):
        node.save(step)
        send(node)
    checkpoint.rewind(node.run.output, 8)
    send(node)
    assert [save.step for save in s3.whole()] == [8, 16], "that is there already, and older"
    node.save(12)
    send(node)
    assert [save.step for save in s3.whole()] == [8, 16, 12]
    checkpoint.remove(node.run.output / "checkpoint-12")
    node.save(12, size=3000)
    send(node)
    assert [save.step for save in s3.whole()] == [8, 16, 12, 12]
    assert fetch(fresh) == 12 and fresh.content(12) == node.content(12)


def test_what_a_run_went_back_to_is_not_sent_after_what_is_newer(s3: S3, tmp_path: Path) -> None:
    """Else it would be removed by one node while another one sends its part."""
    node = Node(tmp_path)
    for step in (8, 16):
        node.save(step)
    send(node)
    checkpoint.rewind(node.run.output, 8)
    send(node)
    assert [save.step for save in s3.whole()] == [16]


def test_a_file_that_has_changed_since_is_no_part_of_a_checkpoint(s3: S3, tmp_path: Path) -> None:
    node = Node(tmp_path)
    path = node.save(8)
    mark = checkpoint.read_mark(path)
    sending = upload.Sending(node.run, bucket.Bucket(URL), node.launch)
    with open(path / "model.safetensors", "rb+") as file:
        file.truncate(100)
        with pytest.raises(bucket.Refused, match="not as it was marked"):
            sending._send(Save(1, 8), 1, mark, {"model.safetensors": file})
    assert s3.whole() == []


def test_nodes_send_their_parts_and_each_gets_what_it_needs(s3: S3, tmp_path: Path) -> None:
    old = [Node(tmp_path / f"old{rank}", rank, 3) for rank in range(3)]
    for node in old:
        node.save(8, save=1)
    fresh = [Node(tmp_path / f"new{rank}", rank, 3) for rank in range(3)]
    send(old[0])
    send(old[2])
    assert s3.whole(3) == [] and fetch(fresh[1]) == 0, "the part of a node is not there yet"
    send(old[1])
    assert [save.step for save in s3.whole(3)] == [8]
    assert len(s3.names("checkpoints/")) == 3 + 3 + 1, "what all have alike is there once, and the log"
    for node, before in zip(fresh, old, strict=True):
        assert fetch(node) == 8 and node.content(8) == before.content(8)
        assert not upload.Sending(node.run, bucket.Bucket(URL), node.launch).checkpoint()
    one = Node(tmp_path / "one", 0, 1)
    assert fetch(one) == 8, "shards of all, for who goes on with another number of nodes"
    assert len(one.content(8)) == 3 + 3


def test_what_all_have_alike_may_be_of_another_size_on_each_node(s3: S3, tmp_path: Path) -> None:
    old = [Node(tmp_path / f"old{rank}", rank, 2) for rank in range(2)]
    for node in old:
        path = node.save(8, marked=False)
        (path / "trainer_state.json").write_bytes(b"x" * (10 + node.node))
        alike = {"model.safetensors": 2000, "optimizer.pt": 2000}
        wrote = [{**alike, "trainer_state.json": 10 + rank, f"global/rank_{rank}.pt": 2000} for rank in range(2)]
        checkpoint.mark(path, wrote, 1)
        send(node)
    fresh = Node(tmp_path / "new", 1, 2)
    assert fetch(fresh) == 8
    sizes = [files["trainer_state.json"] for files in checkpoint.read_mark(fresh.run.output / "checkpoint-8")["nodes"]]
    assert sizes == [10, 10]


@pytest.mark.parametrize("harm", ["other", "short", "gone", "untold"])
def test_what_is_damaged_there_is_named_and_not_taken(s3: S3, tmp_path: Path, harm: str) -> None:
    old, new = Node(tmp_path / "old"), Node(tmp_path / "new")
    old.save(8)
    old.save(16)
    send(old)
    (save,) = s3.whole()
    place = bucket.Bucket(URL)
    name = f"{save.files}model.safetensors"
    if harm == "gone":
        place.remove([name])
    elif harm == "untold":
        manifest = place.read(save.manifest(0, 1))
        s3.put(save.manifest(0, 1), json.dumps({**manifest, "nodes": [{"other": 1}]}).encode())
    else:
        content = s3.content(name)
        s3.put(name, content[:-1] + (b"" if harm == "short" else bytes([content[-1] ^ 1])))
    with pytest.raises((bucket.Damaged, bucket.Refused)) as told:
        fetch(new)
    assert "model.safetensors" in str(told.value) or harm == "untold"
    assert new.steps() == []


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_no_name_leads_out_of_its_folder(s3: S3, tmp_path: Path, name: str) -> None:
    told = {each: {"size": 1, "sha256": store.digest_of(b"x")} for each in ("fine", name)}
    with pytest.raises(bucket.Damaged, match=f"{name}, of it by what that says, leads out of its folder"):
        bucket.Bucket(URL).bring_all("", tmp_path / "new", told, "it", "that")
    assert list(tmp_path.iterdir()) == []


def test_a_fetch_that_was_cut_goes_on_where_it_was(s3: S3, tmp_path: Path) -> None:
    old, new = Node(tmp_path / "old"), Node(tmp_path / "new")
    old.save(8)
    send(old)
    (save,) = s3.whole()
    folder = new.run.output / f".checkpoint-{save.name}" / "checkpoint-8"
    folder.mkdir(parents=True)
    shutil.copy(old.run.output / "checkpoint-8/model.safetensors", folder)
    (folder / "optimizer.pt").write_bytes(b"cut")
    (folder / "optimizer.pt.Ab12").write_bytes(b"part")
    new.save(8, marked=False)
    asked: list[str] = []

    class Counting(bucket.Bucket):
        def fetch(self, name: str, path: Path) -> None:
            asked.append(name.rpartition("/")[2])
            super().fetch(name, path)

    restore.fetch(new.run, Counting(URL), save, 1, new.launch)
    assert sorted(asked) == ["optimizer.pt", "rank_0.pt", "trainer_state.json"]
    assert new.content(8) == old.content(8)
    assert sorted(path.name for path in new.run.output.iterdir()) == ["checkpoint-8", "trainer_log.jsonl"]


def test_a_disk_that_is_too_small_is_told_first(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = Node(tmp_path / "old"), Node(tmp_path / "new")
    old.save(8)
    send(old)
    monkeypatch.setattr(restore.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 7999))  # type: ignore[attr-defined]
    with pytest.raises(bucket.Refused, match=r"0\.0 GB are free"):
        fetch(new)


def test_results_are_there_once_and_whole(s3: S3, tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.save(8)
    node.finish()
    send(node)
    assert json.loads(s3.content("results.json"))["files"].keys() == {"adapter_model.safetensors", "trainer_log.jsonl"}
    weights = node.run.output / "adapter_model.safetensors"
    assert s3.content("results/adapter_model.safetensors") == weights.read_bytes()
    s3.put("results/old", b"of an earlier end")
    node.finish()
    send(node)
    assert s3.content("results/adapter_model.safetensors") == weights.read_bytes()
    assert sorted(s3.names("results/")) == ["results/adapter_model.safetensors", "results/trainer_log.jsonl"]
    weights.write_bytes(b"other")
    bucket.Bucket(URL).remove([store.RESULTS])
    assert upload.work(node.run, 0) == 1
    assert files.read_json(node.run.stored)["error"] == "adapter_model.safetensors is not what the run left"
    assert store.RESULTS not in s3.names()


def test_results_of_nodes_without_rank_0_are_not_sent(s3: S3, tmp_path: Path) -> None:
    node = Node(tmp_path, 1, 2)
    node.finish()
    send(node)
    assert s3.names() == []


def test_of_a_run_that_cannot_go_on_only_results_are_sent(s3: S3, tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.launch["resumes"] = False
    files.write_json(node.run.launch, node.launch)
    node.save(8)
    node.finish()
    send(node)
    assert s3.names("checkpoints/") == [] and s3.names("results.json") and fetch(node) == 0


def test_a_look_changes_nothing(s3: S3, tmp_path: Path) -> None:
    old, new = Node(tmp_path / "old"), Node(tmp_path / "new")
    old.save(8)
    send(old)
    before = s3.names()
    assert restore.work(new.run, look=True, lacking=False) == {"step": 8, "record": True}
    assert s3.names() == before and not list(new.run.output.iterdir())


def test_the_record_keeps_its_first_date(s3: S3, tmp_path: Path) -> None:
    old, new = Node(tmp_path / "old"), Node(tmp_path / "new")
    fetch(old)
    files.write_json(new.run.record, {**files.read_json(new.run.record), "created": 9.0})
    assert restore.work(new.run, look=True, lacking=False)["record"] is False
    files.write_json(new.run.record, {**files.read_json(new.run.record), "resolved": {}})
    assert restore.work(new.run, look=False, lacking=False)["record"] is True
    assert json.loads(s3.content("run.json"))["created"] == 1.0
    assert restore.work(Node(tmp_path / "b", 1, 2).run, look=False, lacking=False)["record"] is False


def test_a_run_is_forgotten(s3: S3, tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.save(8)
    node.finish()
    send(node)
    s3.client.put_object(Bucket=NAME, Key="team/x-00000000-other/run.json", Body=b"{}")
    place = bucket.Bucket(URL)
    there = len(s3.names())
    assert forget.forget(place, look=True) == there == len(s3.names())
    assert forget.forget(place, look=False) == there and s3.names() == []
    assert forget.forget(place, look=True) == 0
    assert s3.client.get_object(Bucket=NAME, Key="team/x-00000000-other/run.json")


@pytest.mark.parametrize("wrong", ["bucket", "server"])
def test_what_cannot_be_reached_is_told_and_tried_again(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    node = Node(tmp_path)
    node.save(8)
    monkeypatch.setattr(upload, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(upload, "POLL_SECONDS", 0.1)
    if wrong == "server":
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    else:
        node.launch["store"]["url"] = "s3://nothing-here/x"
        files.write_json(node.run.launch, node.launch)
    assert upload.work(node.run, 0) == 1
    told = files.read_json(node.run.stored)["error"]
    assert ("127.0.0.1:9" if wrong == "server" else "there is no such bucket") in told
    if wrong == "server":
        worker = threading.Thread(target=upload.work, args=(node.run, 30))
        worker.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.address)
        worker.join(30)
        assert [save.step for save in s3.whole()] == [8]
