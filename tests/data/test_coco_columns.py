"""The typed decoder of COCO's JSON: it finds what the careful reader finds, and leaves to it what is odd."""

import dataclasses
import json

import numpy as np
import pytest

from detkit.data import CocoDataset
from detkit.data.datasets import coco
from detkit.data.datasets.coco_columns import read_columns
from detkit.data.datasets.table import TruthTable
from tests.data import coco_sized
from tests.data.builders import CATEGORIES, annotation, coco_set, image, write_coco

COLUMNS = [field.name for field in dataclasses.fields(TruthTable) if field.name not in ("files", "landmarks", "stored")]


def both(monkeypatch, root, **options) -> tuple[CocoDataset, CocoDataset]:
    """Read by the decoder, and entry by entry."""
    quick = CocoDataset(root=str(root), **options)
    monkeypatch.setattr(coco, "read_columns", lambda path: None)
    return quick, CocoDataset(root=str(root), **options)


def assert_same(quick: CocoDataset, careful: CocoDataset) -> None:
    assert (quick.categories, quick.report) == (careful.categories, careful.report)
    assert list(quick.truths.files) == list(careful.truths.files)
    for name in COLUMNS:
        one, other = getattr(quick.truths, name), getattr(careful.truths, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_a_file_like_coco_s_own_gives_the_same_table(tmp_path, monkeypatch):
    path = coco_sized.write(tmp_path, num_images=90, num_boxes=2500)
    monkeypatch.setattr("detkit.data.datasets.coco_columns._BLOCK", 700)
    assert read_columns(path) is not None, "or the rest compares a reader with itself"
    quick, careful = both(monkeypatch, tmp_path)
    assert_same(quick, careful)
    assert len(quick.truths.labels) == 2500
    assert quick.truths.crowd.any()


def test_what_is_remarkable_is_told_in_the_same_words(tmp_path, monkeypatch):
    root = coco_set(tmp_path)
    content = json.loads((root / "train.json").read_text())
    odd = [[70, 5, 10, 10], [1, 2, -3, 4], [0.25, 0.5, 0.25, 0.5], [1, 1, 9, 9], [1, 1, 9, 9.0], [2, 2, 0, 5]]
    content["annotations"] += [annotation(100 + i, 1 + i % 2, box) for i, box in enumerate(odd)]
    content["annotations"] += [
        annotation(200, 99, [1, 1, 2, 2]), annotation(201, 1, [1, 1, 2, 2], 5), annotation(100, 2, [1, 1, 7, 7]),
        annotation(202, 1, [3, 3, 4, 4], area=None), annotation(203, 1, [3, 3, 5, 5], area=900, iscrowd=True),
    ]  # fmt: skip
    content["images"].append(image(1, 40, 56, file_name="2.png"))
    (root / "train.json").write_text(json.dumps(content))
    assert read_columns(root / "train.json") is not None
    quick, careful = both(monkeypatch, root, on_bad_annotation="skip")
    assert_same(quick, careful)
    assert len(quick.report.findings) > 8
    assert "box [70, 5, 10, 10]" in str(quick.report), "whole numbers as the file writes them"


WHOLE = {"images": [image(1)], "annotations": [annotation(1, 1, [1, 1, 9, 9])], "categories": CATEGORIES}
ODD = {
    "id as text": ("annotations", {"id": "1"}),
    "id as float": ("annotations", {"id": 1.5}),
    "id beyond int64": ("annotations", {"id": 2**63}),
    "three numbers": ("annotations", {"bbox": [1, 2, 3]}),
    "number as text": ("annotations", {"bbox": [1, 2, 3, "4"]}),
    "number as flag": ("annotations", {"bbox": [1, 2, 3, True]}),
    "not a number": ("annotations", {"bbox": [1, 2, 3, float("nan")]}),
    "area as text": ("annotations", {"area": "81"}),
    "flag as text": ("annotations", {"iscrowd": "1"}),
    "no flag": ("annotations", {"iscrowd": 2}),
    "flag beyond int64": ("annotations", {"iscrowd": 2**63}),
    "number beyond float": ("annotations", {"bbox": [1, 2, 3, 10**400]}),
    "flag null": ("annotations", {"iscrowd": None}),
    "category as text": ("annotations", {"category_id": "3"}),
    "blank file": ("images", {"file_name": " "}),
    "height 0": ("images", {"height": 0}),
    "name as number": ("categories", {"name": 7}),
}


@pytest.mark.parametrize("case", ODD)
def test_what_needs_a_word_is_left_to_the_careful_reader(tmp_path, case):
    part, change = ODD[case]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(WHOLE))
    assert read_columns(path) is not None
    path.write_text(json.dumps({**WHOLE, part: [{**WHOLE[part][0], **change}]}))
    assert read_columns(path) is None


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"images": "\xff"}', b'{"images": [' + b"[" * 100_000, b'{"a": "\\ud800"}']
)
def test_no_coco_at_all(tmp_path, content):
    (tmp_path / "train.json").write_bytes(content)
    assert read_columns(tmp_path / "train.json") is None
    assert read_columns(tmp_path / "missing.json") is None
    assert read_columns(tmp_path) is None


def test_of_a_key_given_twice_both_take_the_last(tmp_path, monkeypatch):
    write_coco(tmp_path, [image(1)], [annotation(1, 1, [1, 1, 9, 9])])
    path = tmp_path / "train.json"
    twice = path.read_text().replace('"bbox": ', '"bbox": [5, 5, 5, 5], "bbox": ')
    path.write_text('{"annotations": [], ' + twice[1:])
    quick, careful = both(monkeypatch, tmp_path)
    assert_same(quick, careful)
    assert quick.truths.boxes.tolist() == [[1, 1, 9, 9]]


@pytest.mark.parametrize("name", ["a.png", "sub/a.png", "./a.png", "sub//a.png", "sub/../a.png"])
def test_paths_are_spelt_as_pathlib_does(tmp_path, name, monkeypatch):
    write_coco(tmp_path, [image(1, file_name=name)], [])
    (tmp_path / "images" / "sub").mkdir(exist_ok=True)
    assert CocoDataset(root=str(tmp_path)).truths[0].file == str(tmp_path / "images" / name)
    monkeypatch.chdir(tmp_path / "images")
    assert CocoDataset(root="..", images="images/../images").truths[0].file == f"../images/../images/{name}".replace(
        "/./", "/"
    ).replace("//", "/")


def test_two_images_with_one_file_are_told_and_kept(tmp_path, monkeypatch):
    images = [image(1), image(2, file_name="1.png"), image(5, file_name="1.png"), image(4)]
    write_coco(tmp_path, images, [annotation(1, 1, [1, 1, 9, 9])])
    told = "images with the file of another: 2 (kept, each with its own boxes): 1.png: ids 1 and 2; 1.png: ids 1 and 5"
    for data in both(monkeypatch, tmp_path):
        assert len(data) == 4
        assert told in str(data.report)
