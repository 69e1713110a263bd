# Copyright (c) llmops.finetune contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images, videos and audios: as many as the texts ask for, and where they are looked for."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pyarrow
import pytest
from ansible_collections.llmops.finetune.plugins.module_utils import _dataset, _records
from ansible_collections.llmops.finetune.plugins.module_utils._media import Media

from .broken_records import (
    ALPACA,
    MEDIA,
    MEDIA_BROKEN,
    MEDIA_FINE,
    PICTURE,
    alpaca,
    table,
    write,
    write_table,
)

IMAGE = MEDIA["image"]


def check(path: Path, records: t.Sequence[t.Any], media: Media, form: str = "image") -> _records.Report:
    if path.suffix == ".jsonl":
        write(path, records)
    else:
        write_table(path, table(records))
    (path.parent / "a.ppm").write_bytes(PICTURE)
    dataset = _dataset.parse({"file": path.name, **MEDIA[form].entry}, "v")[0]
    return _records.check(path, dataset, MEDIA[form].stage, media=media)


@pytest.mark.parametrize(("form", "broken", "says"), MEDIA_BROKEN)
def test_a_broken_record_is_named(tmp_path: Path, form: str, broken: t.Any, says: str) -> None:
    good = MEDIA[form].good
    report = check(tmp_path / "a.jsonl", [good, broken, good], Media(True, [str(tmp_path)], here=True), form)
    assert [fault.record for fault in report.faults] == [2]
    assert says in report.faults[0].what and report.faults[0].change


@pytest.mark.parametrize(("form", "odd"), [*((name, form.good) for name, form in MEDIA.items()), *MEDIA_FINE])
def test_what_is_trained_on_is_not_refused(tmp_path: Path, form: str, odd: t.Any) -> None:
    report = check(tmp_path / "a.jsonl", [odd], Media(True, [str(tmp_path)], here=True), form)
    assert (report.faults, report.doubts) == ([], {})


def test_a_placeholder_is_mere_text_to_a_template_for_texts(tmp_path: Path) -> None:
    """A question about HTML, say."""
    asked = alpaca(instruction="What does <video> do?")
    assert check(tmp_path / "a.jsonl", [asked], Media()).faults == []
    (fault,) = check(tmp_path / "a.jsonl", [asked], Media(taken=True)).faults
    assert "'videos' holds 0, its texts have 1 <video>" in fault.what


def test_the_number_is_looked_at_where_there_are_any(tmp_path: Path) -> None:
    (fault,) = check(tmp_path / "a.jsonl", [alpaca(images=["a.ppm"])], Media(folders=[str(tmp_path)], here=True)).faults
    assert "its texts have 0 <image>" in fault.what


@pytest.mark.parametrize("folder", ["", "pictures"])
def test_a_relative_path_needs_a_folder(tmp_path: Path, folder: str) -> None:
    """dataset_dir, LLaMA-Factory's default, is the run's own folder, and so is where its ranks are."""
    (fault,) = check(tmp_path / "a.jsonl", [IMAGE.good], Media(True, [folder], here=True)).faults
    assert "no media_dir says where that is" in fault.what and "`media_dir`" in fault.change


@pytest.mark.parametrize(
    ("path", "folders"),
    [("/pictures/a.ppm", ["."]), ("a.ppm", ["/pictures"])],
    ids=["full path", "media_dir of the nodes"],
)
def test_media_on_the_nodes_are_told_of(tmp_path: Path, path: str, folders: list[str]) -> None:
    """Nobody looked for those of a file on the controller."""
    records = [ALPACA, *[alpaca(instruction="<image>Why?", images=[path])] * 2]
    report = check(tmp_path / "a.jsonl", records, Media(True, folders))
    assert (report.faults, report.media, report.media_dir) == ([], True, path == "a.ppm")
    (doubt,) = _records.doubts(report.doubts)
    assert doubt.startswith("2 records have media on the nodes") and "`path`" in doubt and "record 2)" in doubt


def test_media_that_are_sent_along_are_found_in_the_first_folder_that_has_them(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "more").mkdir(parents=True)
        (tmp_path / folder / "more" / f"{folder}.ppm").write_bytes(PICTURE)
        (tmp_path / folder / "both.ppm").write_bytes(PICTURE)
    names = ["both.ppm", "./more//one.ppm", "more/one.ppm", "more/two.ppm"]
    records = [ALPACA, alpaca(instruction="<image>" * 4, images=names), alpaca(instruction="<image>", images=["a.ppm"])]
    folders = [str(tmp_path / folder) for folder in ("one", "two", ".")]
    report = check(tmp_path / "a.jsonl", records, Media(True, folders, sent=True))
    assert (report.faults, report.doubts, report.media, report.media_dir) == ([], {}, True, False)
    assert {name: str(Path(path).relative_to(tmp_path)) for name, path in report.sent.items()} == {
        "both.ppm": "one/both.ppm",
        "more/one.ppm": "one/more/one.ppm",
        "more/two.ppm": "two/more/two.ppm",
        "a.ppm": "a.ppm",
    }


@pytest.mark.parametrize(
    ("path", "says", "change"),
    [
        ("none.ppm", "there is no file", "put it below {0}/one or {0}, or correct the path or media_dir"),
        ("https://example.org/a.ppm", "addresses are not fetched", "download it"),
        ("../a.ppm", "leads out of its folder", "media_dir"),
        ("one/../a.ppm", "leads out of its folder", "media_dir"),
        ("", "there is no file", "media_dir"),
    ],
)
def test_media_that_cannot_be_sent_along_are_named(tmp_path: Path, path: str, says: str, change: str) -> None:
    media = Media(True, [f"{tmp_path}/one", str(tmp_path)], sent=True)
    (tmp_path / "one").mkdir()
    asked = alpaca(instruction="<image>", images=[path])
    (fault,) = check(tmp_path / "a.jsonl", [IMAGE.good, asked], media).faults
    assert fault.record == 2 and says in fault.what and change.format(tmp_path) in fault.change


def test_pretraining_looks_at_texts_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "<image>", "images": ["none.ppm"]}\n', encoding="utf-8")
    dataset = _dataset.parse({"file": "a.jsonl", "columns": {"prompt": "text", "images": "images"}}, "v")[0]
    report = _records.check(tmp_path / "a.jsonl", dataset, "pt", media=Media(True))
    assert (report.faults, report.media) == ([], False)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ({"bytes": PICTURE, "path": None}, ""),
        ({"bytes": PICTURE, "path": "a.ppm"}, ""),
        ({"bytes": None, "path": "a.ppm"}, "no media_dir"),  # never joined with media_dir, nor sent
        (PICTURE, ""),
    ],
    ids=["bytes", "both", "path", "plain"],
)
def test_a_table_may_hold_the_images_themselves(tmp_path: Path, image: t.Any, says: str) -> None:
    kind = pyarrow.binary() if isinstance(image, bytes) else pyarrow.struct({"bytes": "binary", "path": "string"})
    rows = table([alpaca(instruction="<image>")]).append_column("images", pyarrow.array([[image]], pyarrow.list_(kind)))
    write_table(tmp_path / "a.parquet", rows)
    dataset = _dataset.parse({"file": "a.parquet"}, "v")[0]
    (tmp_path / "a.ppm").write_bytes(PICTURE)
    for where in ({"here": True}, {"sent": True}):
        report = _records.check(tmp_path / "a.parquet", dataset, media=Media(True, [str(tmp_path)], **where))
        assert [fault.what for fault in report.faults if says not in fault.what] == []
        assert (bool(report.faults), report.sent) == (bool(says), {})
