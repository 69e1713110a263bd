# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Media sets: what datasets bring along, packed on the controller and unpacked on a node, whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import typing as t
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import (
    _changes,
    _dataset,
    _media_send,
    _media_set,
    _node,
    _stage,
)
from ansible_collections.llmops.finetune.plugins.module_utils._errors import FinetuneError

from .broken_records import alpaca, table, talk, write, write_table


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(os, "sync", lambda: None)


def source(name: str, **more: t.Any) -> _dataset.Source:
    (dataset,) = _dataset.parse({"name": name, "file": f"{name}.jsonl"}, "v")
    return replace(_dataset.Source(dataset, "d"), local=f"/c/{name}.jsonl", **more)


# --- what is in it ---


def test_a_digest_is_of_paths_and_content() -> None:
    one = {"a.png": "1", "b/c.png": "2"}
    assert _media_set.digest(one) == _media_set.digest(dict(reversed(one.items())))
    others: list[dict[str, str]] = [{}, {"a.png": "1"}, {**one, "a.png": "3"}, {"A.png": "1", "b/c.png": "2"}]
    assert len({_media_set.digest(content) for content in (one, *others)}) == 5
    assert _media_set.digest({}) == ""


def test_datasets_share_one_set() -> None:
    a = source("a", media_files={"x/1.png": "1", "x/2.png": "2"}, media_folders=("/c", "/d"))
    b = source("b", media_files={"x/2.png": "2", "x/3.png": "3"})
    texts = source("texts", media_folders=("/c",))
    planned = _media_send.plan([a, texts, b])
    assert planned["count"] == 3
    assert planned["digest"] == _media_set.digest({"x/1.png": "1", "x/2.png": "2", "x/3.png": "3"})
    assert [(local, folders) for local, _fields, folders in planned["parts"]] == [
        ("/c/a.jsonl", ("/c", "/d")),
        ("/c/b.jsonl", ()),
    ]
    assert _media_send.plan([texts]) == {}


@pytest.mark.parametrize(
    ("other", "says", "where"),
    [
        ({"media_files": {"x/1.png": "2"}}, "'a' and 'b' mean two files by one path", "x/1.png"),
        ({"media_files": {"x": "2"}}, "dataset 'b' has the path of a folder", "train_datasets, x"),
        ({"media_files": {"x/1.png/2.png": "2"}}, "dataset 'a' has the path of a folder", "train_datasets, x/1.png"),
        ({"media_dir": True}, "'a' brings its media along, those of dataset 'b'", "train_datasets"),
    ],
)
def test_what_does_not_go_into_one_folder_is_refused(other: dict[str, t.Any], says: str, where: str) -> None:
    sources = [source("a", media_files={"x/1.png": "1"}), source("b", **other)]
    with pytest.raises(FinetuneError) as refusal:
        _media_send.plan(sources)
    assert says in refusal.value.what and where in refusal.value.where and refusal.value.change


# --- sent and stored ---

CONTENT = {"one.png": b"1", "below/two.png": b"22" * 70000, "below/three.png": b"", "frames/1.png": b"f"}
FIELDS = {"images": "pictures", "videos": "videos"}


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Files in two folders on the controller, one of them behind a link."""
    folder = tmp_path / "controller"
    for i, (path, content) in enumerate(CONTENT.items()):
        file = folder / ("first" if i % 2 else "second") / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    link = folder / "second/one.png"
    link.symlink_to(link.rename(folder / "elsewhere.png"))
    records = [
        alpaca(pictures=["./one.png", "below/two.png"]),
        alpaca(pictures=["below/three.png", "one.png", "/there/already.png"]),
        alpaca(videos=[["frames/1.png", "frames/1.png"]]),
        alpaca(),
    ]
    write(folder / "a.jsonl", records)
    return folder


def packed(folder: Path, data: str = "a.jsonl") -> Path:
    archive = folder.parent / "set.tar"
    folders = [str(folder / "first"), str(folder / "second")]
    _media_send.pack([[str(folder / data), FIELDS, folders]] * 2, archive)
    return archive


def wanted() -> str:
    return _media_set.digest({path: _sha(content) for path, content in CONTENT.items()})


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def stage(root: Path, archive: Path | None, digest: str = "") -> list[tuple[str, str]]:
    """Stage in check mode, then for real: both tell the same."""
    media = {"digest": digest or wanted(), "folder": str(root / "media" / (digest or wanted())[:16])}
    dry, made = _changes.Changes(dry=True), _changes.Changes(dry=False)
    _stage._stage_media({**media, "stream": None}, dry)
    with open(archive or os.devnull, "rb") as stream:
        _stage._stage_media({**media, "stream": stream if archive else None}, made)
    assert dry.made == made.made
    return [(change["action"], change["path"]) for change in made.made]


def test_a_set_is_packed_once_and_stored_once(there: Path, tmp_path: Path) -> None:
    archive, root = packed(there), tmp_path / "node"
    before = archive.stat()
    assert packed(there).stat() == before and sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "set.lock",
        "set.tar",
    ]
    folder = root / "media" / wanted()[:16]
    assert stage(root, archive) == [("create", str(folder))]
    stored = {str(path.relative_to(folder / "files")): path.read_bytes() for path in files_of(folder / "files")}
    assert stored == CONTENT
    assert _node.media_sets(root) == [folder.name]
    assert stage(root, None) == []
    assert [path.name for path in (root / "media").iterdir()] == [folder.name]


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_tables_are_packed_too(there: Path) -> None:
    rows = table([alpaca(pictures=["one.png"]), alpaca(pictures=["below/two.png"])])
    write_table(there / "a.parquet", rows)
    with tarfile.open(packed(there, "a.parquet")) as archive:
        assert archive.getnames() == ["one.png", "below/two.png"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [flip, Path.unlink], ids=["a byte flipped", "deleted"])
def test_a_damaged_set_is_stored_again(there: Path, tmp_path: Path, harm: t.Callable[[Path], None]) -> None:
    archive, root = packed(there), tmp_path / "node"
    ((_action, folder),) = stage(root, archive)
    harm(Path(folder) / "files/below/two.png")
    assert _node.media_sets(root) == []
    assert stage(root, archive) == [("update", folder)]
    assert (Path(folder) / "files/below/two.png").read_bytes() == CONTENT["below/two.png"]
    assert _node.media_sets(root) == [Path(folder).name]


def test_a_picture_that_changed_since_the_plan_is_not_stored(there: Path, tmp_path: Path) -> None:
    flip(there / "first/below/two.png")
    with pytest.raises(FinetuneError, match="not those that were planned with"):
        stage(tmp_path / "node", packed(there))
    assert not list(tmp_path.glob("node/media/*"))


def test_a_picture_that_is_gone_is_named(there: Path) -> None:
    (there / "first/below/two.png").unlink()
    with pytest.raises(FinetuneError, match="cannot be packed") as refusal:
        packed(there)
    assert refusal.value.where.endswith("first/below/two.png")
    assert not list(there.parent.glob("*.tar")) and not list(there.parent.glob("*.part"))


def member(name: str, content: bytes = b"x", **more: t.Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


@pytest.mark.parametrize(
    "members",
    [
        [member("a", b"", type=tarfile.SYMTYPE, linkname=".."), member("a/x.png")],
        [member("a", b"", type=tarfile.LNKTYPE, linkname="../x.png")],
        [member("a", b"", type=tarfile.FIFOTYPE)],
        [member("a.png"), member("a.png")],
        [member("a.png"), member("a.png/b.png")],
        [member("a.png")],
        [],
    ],
    ids=["link", "hard link", "pipe", "twice", "below a file", "other", "empty"],
)
def test_an_archive_that_is_not_the_set_leaves_nothing(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    archive = tmp_path / "set.tar"
    with tarfile.open(archive, "w") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(FinetuneError) as refusal:
        stage(tmp_path / "node", archive)
    assert refusal.value.where and refusal.value.change
    assert {path.name for path in tmp_path.rglob("*")} <= {"set.tar", "node", "media"}


@pytest.mark.parametrize("name", ["../x.png", "../../../x.png", "a/../../../../x.png", "{}/x.png"])
def test_a_path_that_leads_out_of_the_set_is_not_written(tmp_path: Path, name: str) -> None:
    archive, name = tmp_path / "set.tar", name.format(tmp_path)
    info, content = member(name)
    with tarfile.open(archive, "w") as tar:
        tar.addfile(info, io.BytesIO(content))
    with pytest.raises(FinetuneError, match="not those that were planned with") as refusal:
        stage(tmp_path / "node", archive, _media_set.digest({name: _sha(content)}))
    assert refusal.value.where == name
    assert not list(tmp_path.rglob("x.png"))


@pytest.mark.parametrize("left", [0, 100, 700, 100_000])
def test_an_archive_that_was_cut_leaves_nothing(there: Path, tmp_path: Path, left: int) -> None:
    archive = packed(there)
    os.truncate(archive, left)
    with pytest.raises(FinetuneError, match="not those that were planned with"):
        stage(tmp_path / "node", archive)
    assert not list(tmp_path.glob("node/media/*"))


def test_a_full_disk_is_told(there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: t.Any) -> str:
        raise OSError(28, "No space left on device", "x.png")

    monkeypatch.setattr(_media_set, "_store", full)
    with pytest.raises(FinetuneError, match="cannot be stored: No space left") as refusal:
        stage(tmp_path / "node", packed(there))
    assert "train_root" in refusal.value.change


def test_records_of_a_talk_are_packed(there: Path) -> None:
    (there / "talk.json").write_text(json.dumps([talk(pictures=["one.png"])]), encoding="utf-8")
    with tarfile.open(packed(there, "talk.json")) as archive:
        assert archive.getnames() == ["one.png"]
