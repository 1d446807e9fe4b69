"""The three scripts from end to end: tiny archives laid out like the real ones, on a server of our own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import archives
import bccd
import coco
import cv2
import disk
import numpy as np
import pytest
import voc
from archives import Archive

from detkit.data.datasets.coco import CocoDataset
from detkit.data.datasets.voc import VocDataset
from tests.datasets.archive_files import Files, make_tar, make_zip
from tests.datasets.conftest import SCRIPTS
from tests.datasets.server import FileServer

Object = tuple[str, tuple[float, float, float, float], bool]


def picture(seed: int, width: int = 50, height: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def xml(objects: Sequence[Object], size: tuple[int, int] = (50, 40)) -> str:
    """One of VOC's files. A person gets a part with a box of its own, before the person's: VOC 2012 has such."""
    text = f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    for name, (x1, y1, x2, y2), difficult in objects:
        part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
        box = f"<bndbox><xmax>{x2}</xmax><xmin>{x1}</xmin><ymax>{y2}</ymax><ymin>{y1}</ymin></bndbox>"
        text += f"<object><name>{name}</name>{part if name == 'person' else ''}{box}"
        text += f"<difficult>{int(difficult)}</difficult></object>"
    return text + "</annotation>"


def published(archive: Archive, content: bytes) -> Archive:
    """``archive`` with the size and checksum of ``content``."""
    return dataclasses.replace(archive, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def boxes(content: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (a["id"], a["image_id"], a["category_id"], a["bbox"], a["area"], a["iscrowd"]) for a in content["annotations"]
    ]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- COCO ----


def coco_json(name: str) -> str:
    return json.dumps(
        {
            "images": [{"id": 9, "file_name": name, "width": 50, "height": 40}],
            "annotations": [
                {"id": 1, "image_id": 9, "category_id": 18, "bbox": [1.5, 2, 10, 20], "area": 150.5, "iscrowd": 0}
            ],
            "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}],
        }
    )


@pytest.fixture
def coco_home(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    contents: dict[str, Files] = {
        "zips/train2017.zip": {"train2017/000000000009.jpg": picture(9)},
        "zips/val2017.zip": {"val2017/000000000139.jpg": picture(139)},
        "annotations/annotations_trainval2017.zip": {
            "annotations/instances_train2017.json": coco_json("000000000009.jpg"),
            "annotations/instances_val2017.json": coco_json("000000000139.jpg"),
            "annotations/captions_val2017.json": "{}",
        },
    }
    packed = {path: make_zip(files) for path, files in contents.items()}
    for path, content in packed.items():
        server.add("/" + path, content)
    monkeypatch.setattr(coco, "ANNOTATIONS", published(coco.ANNOTATIONS, packed[coco.ANNOTATIONS.path]))
    monkeypatch.setattr(coco, "IMAGES", {s: published(a, packed[a.path]) for s, a in coco.IMAGES.items()})
    monkeypatch.setattr(coco, "HOMES", (server.url,))
    return server


def test_coco_leaves_the_layout_that_detkit_reads(
    coco_home: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert coco.main(["--root", str(tmp_path)]) == 0
    for split, name in (("train", "000000000009.jpg"), ("val", "000000000139.jpg")):
        dataset = CocoDataset(
            root=str(tmp_path), annotations=f"annotations/instances_{split}2017.json", images=f"{split}2017"
        )
        truth = dataset.truths[0]
        assert (len(dataset), Path(truth.file).name, truth.size) == (1, name, (40, 50))
        assert truth.boxes.tolist() == [[1.5, 2.0, 10.0, 20.0]]
        assert dataset.read(0).shape == (40, 50, 3)
    out = capsys.readouterr().out
    assert f"val: 1 pictures in {tmp_path}/val2017, {tmp_path}/annotations/instances_val2017.json" in out
    assert f"Ready: data=coco2017 data.root={tmp_path}" in out


def test_coco_again_asks_for_nothing(coco_home: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert coco.main(["--root", str(tmp_path), "--split", "val", "--delete-archives"]) == 0
    assert not (tmp_path / "train2017").exists()
    assert not list((tmp_path / "archives").glob("*.zip"))
    before, num_seen = tree(tmp_path), len(coco_home.seen)
    assert num_seen == 2
    assert coco.main(["--root", str(tmp_path), "--split", "val"]) == 0
    assert tree(tmp_path) == before
    assert len(coco_home.seen) == num_seen
    assert f"val2017.zip: already unpacked in {tmp_path}" in capsys.readouterr().out


def test_coco_brings_back_what_was_lost(coco_home: FileServer, tmp_path: Path) -> None:
    coco.main(["--root", str(tmp_path)])
    lost = tmp_path / "val2017" / "000000000139.jpg"
    lost.unlink()
    num_seen = len(coco_home.seen)
    assert coco.main(["--root", str(tmp_path)]) == 0
    assert lost.read_bytes() == picture(139)
    assert len(coco_home.seen) == num_seen  # from the archive that was kept


def test_coco_tells_of_pictures_that_the_archive_lacks(
    coco_home: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_home.add("/zips/val2017.zip", make_zip({"val2017/other.jpg": picture(1)}))
    arguments = ["--root", str(tmp_path), "--split", "val", "--mirror", coco_home.url]
    assert coco.main(arguments) == 1
    assert "it has " in capsys.readouterr().err  # the size is not the published one
    assert coco.main([*arguments, "--no-checksum"]) == 1
    error = capsys.readouterr().err
    assert f"error: {tmp_path}/val2017: 1 of 1 pictures are missing, first 000000000139.jpg" in error


# ---- the ways to the archives, alike for all scripts ----


def test_second_home_is_tried_and_all_are_told(
    coco_home: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(coco, "HOMES", (coco_home.url + "/gone", coco_home.url))
    assert coco.main(["--root", str(tmp_path), "--split", "val"]) == 0
    monkeypatch.setattr(coco, "HOMES", (coco_home.url + "/gone", coco_home.url + "/away"))
    assert coco.main(["--root", str(tmp_path / "b"), "--split", "val"]) == 1
    error = capsys.readouterr().err
    assert f"{coco_home.url}/gone/annotations/annotations_trainval2017.zip: cannot be had" in error
    assert f"{coco_home.url}/away/annotations/annotations_trainval2017.zip: cannot be had" in error
    assert "Another source can be named with --mirror URL" in error


def test_mirror_may_be_flat(coco_home: FileServer, tmp_path: Path) -> None:
    for path in list(coco_home.files):
        coco_home.files["/flat/" + path.rpartition("/")[2]] = coco_home.files.pop(path)
    mirror = coco_home.url + "/flat/"
    assert coco.main(["--root", str(tmp_path), "--split", "val", "--mirror", mirror]) == 0
    assert (tmp_path / "val2017/000000000139.jpg").exists()


def test_archive_put_there_by_hand_is_used(coco_home: FileServer, tmp_path: Path) -> None:
    (tmp_path / "archives").mkdir()
    for path, file in coco_home.files.items():
        (tmp_path / "archives" / path.rpartition("/")[2]).write_bytes(file.content)
    assert coco.main(["--root", str(tmp_path)]) == 0
    assert coco_home.seen == []


def test_wrong_archive_put_there_by_hand_is_refused(
    coco_home: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(coco, "HOMES", (coco_home.url, coco_home.url + "/second"))
    (tmp_path / "archives").mkdir()
    wrong = tmp_path / "archives" / "annotations_trainval2017.zip"
    wrong.write_bytes(b"PK")
    assert coco.main(["--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count(f"{wrong}: not the file that {coco_home.url}") == 1
    assert wrong.read_bytes() == b"PK"


def test_space_for_everything_is_asked_for_first(
    coco_home: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice all archives, packed and unpacked, less the bytes that are on the disk already."""
    usage = namedtuple("usage", "total used free")
    free = disk.SPACE_RESERVE + 2 * sum(len(file.content) for file in coco_home.files.values())
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage(0, 0, free - 1))
    assert coco.main(["--root", str(tmp_path)]) == 1
    assert f"error: {tmp_path}: what is still to fetch needs" in capsys.readouterr().err
    assert coco_home.seen == []
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives/train2017.zip.part").write_bytes(coco_home.files["/zips/train2017.zip"].content[:1])
    assert coco.main(["--root", str(tmp_path)]) == 0


def test_other_errors_of_the_disk_are_told_in_words(coco_home: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = subprocess.run(
        [sys.executable, SCRIPTS / "coco.py", "--root", tmp_path / "file", "--mirror", coco_home.url],
        capture_output=True,
        text=True,
    )
    assert result.returncode == archives.FAILED
    assert "error:" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("script", ["coco", "voc", "bccd"])
def test_help(script: str) -> None:
    result = subprocess.run([sys.executable, SCRIPTS / f"{script}.py", "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    for option in ("--root", "--mirror", "--no-checksum", "--delete-archives"):
        assert option in result.stdout


# ---- VOC ----

DOG_PERSON: list[Object] = [("dog", (9, 11, 30, 40), False), ("person", (1, 1, 50, 40), True)]


@pytest.fixture
def voc_home(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    def split(year: str, name: str, objects: Mapping[str, Sequence[Object]]) -> Files:
        base = f"VOCdevkit/VOC{year}"
        files: dict[str, bytes | str] = {f"{base}/ImageSets/Main/{name}.txt": "".join(f"{n}\n" for n in objects)}
        for number, (stem, found) in enumerate(objects.items()):
            files[f"{base}/Annotations/{stem}.xml"] = xml(found)
            files[f"{base}/JPEGImages/{stem}.jpg"] = picture(number)
        return files

    contents = {
        "2007-trainval": split("2007", "trainval", {"000005": DOG_PERSON, "000007": []}),
        "2007-test": split("2007", "test", {"000001": [("tvmonitor", (48, 2, 50, 2), False)]}),
        "2012-trainval": {
            **split("2012", "trainval", {"2008_000002": [("aeroplane", (45.7, 3.2, 48.7, 9.4), False)]}),
            # A picture of the segmentation task alone: in the archive, but in no list of Main.
            "VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg": picture(99),
        },
    }
    changed = {}
    for name, files in contents.items():
        content = make_tar(files)
        changed[name] = published(voc.ARCHIVES[name], content)
        server.add("/" + changed[name].path, content)
    monkeypatch.setattr(voc, "ARCHIVES", changed)
    return server


def test_voc_leaves_the_devkit_as_it_is(voc_home: FileServer, tmp_path: Path) -> None:
    assert voc.main(["--root", str(tmp_path), "--mirror", voc_home.url]) == 0
    devkit = tmp_path / "VOCdevkit"
    assert {p.name for p in devkit.iterdir()} == {"VOC2007", "VOC2012"}
    # Two archives fill VOC2007 together.
    assert {p.name for p in (devkit / "VOC2007/JPEGImages").iterdir()} == {"000001.jpg", "000005.jpg", "000007.jpg"}
    assert (devkit / "VOC2007/Annotations/000005.xml").read_text() == xml(DOG_PERSON)
    assert not (tmp_path / "annotations").exists()
    assert len(VocDataset(root=str(devkit / "VOC2007"), split="trainval")) == 2


def test_voc_to_coco_box_by_box(voc_home: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert voc.main(["--root", str(tmp_path), "--mirror", voc_home.url, "--to-coco"]) == 0
    trainval = read(tmp_path / "annotations/voc2007_trainval.json")
    assert [(i["id"], i["file_name"], i["width"], i["height"]) for i in trainval["images"]] == [
        (5, "VOC2007/JPEGImages/000005.jpg", 50, 40),
        (7, "VOC2007/JPEGImages/000007.jpg", 50, 40),
    ]
    # VOC's pixels 9..30 x 11..40, counted from 1, last one inside: from 8 to 30 and from 10 to 40, 22 x 30 px. The
    # person fills the picture of 50 x 40 px; it is difficult, hence crowd, and its head's box is not its own.
    assert boxes(trainval) == [
        (1, 5, 12, [8.0, 10.0, 22.0, 30.0], 660.0, 0),
        (2, 5, 15, [0.0, 0.0, 50.0, 40.0], 2000.0, 1),
    ]
    # A single row of pixels has an area in this convention.
    assert boxes(read(tmp_path / "annotations/voc2007_test.json")) == [(1, 1, 20, [47.0, 1.0, 3.0, 1.0], 3.0, 0)]
    (aeroplane,) = boxes(read(tmp_path / "annotations/voc2012_trainval.json"))
    assert aeroplane[:3] == (1, 2008000002, 1)
    assert aeroplane[3] == pytest.approx([44.7, 2.2, 4.0, 7.2])
    assert [(c["id"], c["name"]) for c in trainval["categories"]][::19] == [(1, "aeroplane"), (20, "tvmonitor")]
    out = capsys.readouterr().out
    assert f"{tmp_path}/annotations/voc2007_trainval.json: 2 images, 2 boxes (1 difficult, as crowd)" in out


def test_voc_union_of_both_years(voc_home: FileServer, tmp_path: Path) -> None:
    voc.main(["--root", str(tmp_path), "--mirror", voc_home.url, "--to-coco"])
    union = read(tmp_path / "annotations/voc0712_trainval.json")
    assert [i["id"] for i in union["images"]] == [5, 7, 2008000002]
    assert [(b[0], b[1], b[2]) for b in boxes(union)] == [(1, 5, 12), (2, 5, 15), (3, 2008000002, 1)]
    dataset = CocoDataset(root=str(tmp_path), annotations="annotations/voc0712_trainval.json", images="VOCdevkit")
    assert dataset.read(2).shape == (40, 50, 3)


def test_voc_converted_is_what_detkit_reads_from_the_devkit(voc_home: FileServer, tmp_path: Path) -> None:
    arguments = ["--root", str(tmp_path), "--mirror", voc_home.url, "--to-coco", "--split", "2007-trainval"]
    assert voc.main(arguments) == 0
    assert not (tmp_path / "annotations/voc0712_trainval.json").exists()
    converted = CocoDataset(root=str(tmp_path), annotations="annotations/voc2007_trainval.json", images="VOCdevkit")
    direct = VocDataset(root=str(tmp_path / "VOCdevkit/VOC2007"), split="trainval", classes=voc.CLASSES)
    assert converted.categories == direct.categories
    for a, b in zip(converted.truths, direct.truths, strict=True):
        assert Path(a.file).name == Path(b.file).name
        assert a.boxes.tolist() == b.boxes.tolist()
        assert a.labels.tolist() == b.labels.tolist()
        assert a.crowd.tolist() == b.crowd.tolist()
        assert a.area.tolist() == b.area.tolist()


def test_voc_conversion_is_repeatable(voc_home: FileServer, tmp_path: Path) -> None:
    arguments = ["--root", str(tmp_path), "--mirror", voc_home.url, "--to-coco"]
    voc.main(arguments)
    before = tree(tmp_path)
    voc.main(arguments)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("000005.xml", xml([("zebra", (1, 1, 2, 2), False)])), "unknown class 'zebra'; known are aeroplane, bicycle"),
        (("000005.xml", "<annotation>"), "000005.xml: not readable: no element found"),
        (("000005.xml", xml([("dog", (1, 1, float("nan"), 2), False)])), "<bndbox/xmax> of <object> is 'nan', not a"),
        (("000005.xml", "<annotation/>"), "<size/width> of <annotation> is None, not a number"),
        (("000005.xml", xml([], (0, 40))), "000005.xml: the size 0 x 40 is not one"),
    ],
)
def test_voc_broken_annotations(
    voc_home: FileServer, tmp_path: Path, change: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    voc.main(["--root", str(tmp_path), "--mirror", voc_home.url, "--split", "2007-trainval"])
    name, content = change
    (tmp_path / "VOCdevkit/VOC2007/Annotations" / name).write_text(content)
    shutil.rmtree(tmp_path / ".unpacked")  # or the change would be undone
    options = archives.Options(tmp_path, (), False, True, False, archives.Console())
    with pytest.raises(disk.FetchError) as caught:
        voc.write_coco(options, "x", ["2007-trainval"])
    assert message in str(caught.value)


def test_voc_missing_picture(voc_home: FileServer, tmp_path: Path) -> None:
    voc.main(["--root", str(tmp_path), "--mirror", voc_home.url, "--split", "2007-trainval"])
    (tmp_path / "VOCdevkit/VOC2007/JPEGImages/000007.jpg").unlink()
    with pytest.raises(disk.FetchError, match=r"000007\.jpg: missing, though 2007-trainval names it"):
        voc.find_pictures(tmp_path / "VOCdevkit", "2007-trainval")


# ---- BCCD ----

BLOOD: dict[str, dict[str, list[Object]]] = {
    "train": {
        "BloodImage_00001": [("WBC", (10, 5, 30, 40), False), ("RBC", (7, 8, 7, 20), False)],
        "BloodImage_00003": [("Platelets", (1, 1, 4, 3), False)],
    },
    "val": {"BloodImage_00000": [("RBC", (0, 0, 50, 40), False), ("RBC", (20, 9, 10, 12), False)]},
    "test": {"BloodImage_00007": []},
}


def blood_archive() -> bytes:
    base = "BCCD_Dataset-1.0"
    files: dict[str, bytes | str] = {f"{base}/LICENSE": "MIT License", f"{base}/example.jpg": picture(0)}
    for split, pictures in BLOOD.items():
        files[f"{base}/BCCD/ImageSets/Main/{split}.txt"] = "".join(f"{name}\n" for name in pictures)
        for name, objects in pictures.items():
            files[f"{base}/BCCD/Annotations/{name}.xml"] = xml(objects)
            files[f"{base}/BCCD/JPEGImages/{name}.jpg"] = picture(int(name[-1]))
    return make_zip(files)


@pytest.fixture
def bccd_home(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    server.add("/v1.0.zip", blood_archive(), framing="chunked", ranges=False)  # as GitHub answers
    monkeypatch.setattr(bccd, "ARCHIVE", published(bccd.ARCHIVE, blood_archive()))
    monkeypatch.setattr(bccd, "NUM_IMAGES", {split: len(pictures) for split, pictures in BLOOD.items()})
    return server


def test_bccd_box_by_box(bccd_home: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bccd.main(["--root", str(tmp_path), "--mirror", bccd_home.url]) == 0
    train, val, test = (read(tmp_path / f"{split}.json") for split in ("train", "val", "test"))
    assert [(i["id"], i["file_name"]) for c in (train, val, test) for i in c["images"]] == [
        (1, "BloodImage_00001.jpg"),
        (2, "BloodImage_00003.jpg"),
        (3, "BloodImage_00000.jpg"),
        (4, "BloodImage_00007.jpg"),
    ]
    # Corners as they are: 10..30 is 20 px wide. Ids run on over the splits, and dropped boxes take none.
    assert boxes(train) == [(1, 1, 2, [10.0, 5.0, 20.0, 35.0], 700.0, 0), (2, 2, 3, [1.0, 1.0, 3.0, 2.0], 6.0, 0)]
    assert boxes(val) == [(3, 3, 1, [0.0, 0.0, 50.0, 40.0], 2000.0, 0)]
    assert boxes(test) == []
    assert [(c["id"], c["name"]) for c in train["categories"]] == [(1, "RBC"), (2, "WBC"), (3, "Platelets")]
    assert {p.name for p in (tmp_path / "images").iterdir()} == {
        f"{name}.jpg" for pictures in BLOOD.values() for name in pictures
    }
    out = capsys.readouterr().out
    assert (
        "train.json: 2 images, 2 boxes (0 difficult, as crowd); 1 boxes without area dropped: "
        "BloodImage_00001.xml: RBC [7.0, 8.0, 7.0, 20.0]" in out
    )
    assert "val.json: 1 images, 1 boxes (0 difficult, as crowd); 1 boxes without area dropped" in out
    assert "another version" not in out


def test_bccd_is_what_detkit_reads_by_default(bccd_home: FileServer, tmp_path: Path) -> None:
    bccd.main(["--root", str(tmp_path), "--mirror", bccd_home.url])
    dataset = CocoDataset(root=str(tmp_path))
    assert (len(dataset), dataset.categories.names) == (2, ("RBC", "WBC", "Platelets"))
    assert dataset.truths[0].boxes.tolist() == [[10.0, 5.0, 20.0, 35.0]]
    assert dataset.read(0).shape == (40, 50, 3)


def test_bccd_again_changes_nothing_and_mends_pictures(bccd_home: FileServer, tmp_path: Path) -> None:
    arguments = ["--root", str(tmp_path), "--mirror", bccd_home.url]
    bccd.main(arguments)
    before = tree(tmp_path)
    (tmp_path / "images/BloodImage_00000.jpg").write_bytes(b"half")
    (tmp_path / "images/BloodImage_00001.jpg").unlink()
    assert bccd.main(arguments) == 0
    assert tree(tmp_path) == before
    assert len(bccd_home.seen) == 1


def test_bccd_packed_anew_needs_a_word(server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the published checksum, from outside, as a user would."""
    server.add("/v1.0.zip", blood_archive())
    command = [sys.executable, SCRIPTS / "bccd.py", "--root", tmp_path, "--mirror", server.url]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == archives.FAILED
    assert "instead of 7875205" in refused.stderr
    assert "--no-checksum accepts an archive that was packed anew" in refused.stderr
    accepted = subprocess.run([*command, "--no-checksum"], capture_output=True, text=True)
    assert accepted.returncode == 0, accepted.stderr
    assert "note: v1.0 has 205 images in train; this is another version of BCCD" in accepted.stdout
    record = read(tmp_path / "archives/BCCD_Dataset-1.0.zip.json")
    assert record["sha256"] == hashlib.sha256(blood_archive()).hexdigest()
    # What was accepted once is not taken for the published one later.
    assert subprocess.run(command, capture_output=True).returncode == archives.FAILED
    assert subprocess.run([*command, "--no-checksum"], capture_output=True).returncode == 0
    assert len(server.seen) == 3  # two addresses at the mirror were refused, then one taken; after that none


# ---- what is published ----


@pytest.mark.parametrize("module", [coco, voc, bccd])
def test_published_checksums_are_whole(module: ModuleType) -> None:
    """A typing error here would only show after hours of downloading."""
    found = [v for v in vars(module).values() if isinstance(v, Archive)]
    found += [a for v in vars(module).values() if isinstance(v, dict) for a in v.values() if isinstance(a, Archive)]
    assert found
    for archive in found:
        assert len(bytes.fromhex(archive.sha256)) == 32
        assert archive.size > 10**6


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (("</object>", "<bndbox><xmin>1</xmin></bndbox></object>"), "object 1 has more than one <bndbox>"),
        (("<name>", "<difficult>yes</difficult><name>"), "<difficult> of object 1 is 'yes', not 0, 1, true or false"),
        (("<name>x</name>", ""), "object 1 has no <name>"),
        (("<name>x</name>", "<name>x</name><name>y</name>"), "object 1 has something twice, 2 <name>"),
    ],
)
def test_xml_that_would_lose_something_is_refused(tmp_path: Path, changed: tuple[str, str], told: str) -> None:
    from disk import FetchError
    from voc_xml import Picture, to_coco

    box = "<bndbox><xmin>0</xmin><ymin>2</ymin><xmax>8</xmax><ymax>9</ymax></bndbox>"
    text = f"<annotation><size><width>64</width><height>48</height></size><object><name>x</name>{box}</object></annotation>"
    path = tmp_path / "a.xml"
    path.write_text(text)
    _, counts = to_coco([Picture(1, "a.jpg", path)], ("x",), inclusive=True, description="")
    assert "1 boxes with a corner of 0, where VOC counts from 1" in counts.describe()
    path.write_text(text.replace(*changed))
    with pytest.raises(FetchError, match=f"a.xml: {told}"):
        to_coco([Picture(1, "a.jpg", path)], ("x",), inclusive=True, description="")


def test_lists_with_marks_spaces_and_flags(tmp_path: Path) -> None:
    from voc_xml import read_list

    (tmp_path / "list.txt").write_bytes("\ufeffmy photo\r\nb  -1\r\n\r\nc 1".encode())
    assert read_list(tmp_path / "list.txt") == ["my photo", "b", "c"]
