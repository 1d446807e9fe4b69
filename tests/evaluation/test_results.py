from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.evaluation import Results, read_results, restore, write_results
from detkit.structures import Affine, Categories, Detections, ImageMeta
from tests.evaluation.cases import random_case

CATEGORIES = Categories(("cat", "dog"), (70, 3))


def meta(affine: Affine | None, size: tuple[int, int] = (200, 300)) -> ImageMeta:
    return ImageMeta(12, "images/twelve.jpg", (100, 100), size, affine)


def detections(*boxes: list[float], label: int = 0) -> Detections:
    n = len(boxes)
    return Detections(torch.tensor(boxes).reshape(-1, 4), torch.full((n,), 0.3), torch.full((n,), label))


def test_original_ids_pixels_and_numbers_come_back() -> None:
    found = restore(detections([10, 20, 30, 60], label=1), meta(Affine(0.5, 2.0, 5.0, 10.0)), CATEGORIES)
    assert found.image_ids.tolist() == [12]
    assert found.category_ids.tolist() == [3]
    assert found.boxes.tolist() == [[10, 5, 40, 20]]
    assert found.scores.tolist() == [float(np.float32(0.3))]
    assert [a.dtype for a in (found.boxes, found.scores)] == [np.float64, np.float64]


def test_the_inverse_is_taken_in_float64() -> None:
    found = restore(detections([1, 1, 2, 2]), meta(Affine(0.3, 0.3)), CATEGORIES)
    assert found.boxes[0, 0] == 1 / 0.3  # float32 would give 3.3333332538604736


def test_boxes_are_clipped_to_the_original_image_and_stay_when_nothing_is_left() -> None:
    outside = detections([-20, -10, 50, 40], [290, 150, 310, 260], [400, 10, 500, 20])
    found = restore(outside, meta(Affine()), CATEGORIES)
    assert found.boxes.tolist() == [[0, 0, 50, 40], [290, 150, 10, 50], [300, 10, 0, 10]]


def test_nothing_found() -> None:
    found = restore(detections(), meta(Affine()), CATEGORIES)
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert len(Results.join([])) == 0


def test_gradients_and_half_precision_are_no_obstacle() -> None:
    half = Detections(
        torch.ones(1, 4, requires_grad=True), torch.tensor([0.3], dtype=torch.bfloat16), torch.tensor([0])
    )
    assert restore(half, meta(Affine()), CATEGORIES).scores.tolist() == [0.30078125]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (detections([5, 1, 4, 9]), r"1 of 1 detections have a reversed box.*\[5.0, 1.0, 4.0, 9.0\]"),
        (detections([0, 0, 1, 1], [0, 0, 1, 1], label=2), r"2 of 2 detections have a label that is not in 0\.\.1"),
        (detections([0, 0, 1, 1], label=-1), "1 of 1 .* label -1"),
    ],
)
def test_detections_that_make_no_sense_are_refused_with_the_image(found: Detections, words: str) -> None:
    with pytest.raises(ValueError, match=r"images/twelve.jpg \(image id 12\): " + words):
        restore(found, meta(Affine()), CATEGORIES)


def test_no_way_back_to_the_original_image() -> None:
    with pytest.raises(ValueError, match=r"images/twelve.jpg \(image id 12\): meta.affine is missing"):
        restore(detections(), meta(None), CATEGORIES)


def test_the_file_keeps_every_bit(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "results.json"
    written = next(c.results for c in map(random_case, range(20)) if len(c.results) == 400)
    write_results(path, written)
    read = read_results(path)
    for name in ("image_ids", "category_ids", "boxes", "scores"):
        assert np.array_equal(getattr(read, name), getattr(written, name)), name
    first = json.loads(path.read_text())[0]
    assert list(first) == ["image_id", "category_id", "bbox", "score"]
    assert first["image_id"] == written.image_ids[0]


def test_an_empty_file_of_results(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", Results.empty())
    assert (tmp_path / "results.json").read_text() == "[]"
    assert len(read_results(tmp_path / "results.json")) == 0


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, Results.empty())
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(path, Results(np.array([1]), np.array([1]), np.ones((1, 4)), np.array([np.nan])))
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    assert path.read_text() == "[]"


GOOD = {"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "results.json: not JSON"),
        ("{}", "results.json: a results file is a list of detections, not dict"),
        (json.dumps([GOOD, 3]), "results.json: entry 1: must be an object, not 3"),
        (json.dumps([{k: v for k, v in GOOD.items() if k != "score"}]), "entry 0: has no 'score'"),
        (json.dumps([GOOD | {"image_id": "1"}]), "entry 0: image_id must be a whole number, not '1'"),
        (json.dumps([GOOD | {"bbox": [1, 2, 3]}]), r"entry 0: bbox must be four finite numbers, not \[1, 2, 3\]"),
        (json.dumps([GOOD | {"bbox": [1, 2, 3, float("nan")]}]), "entry 0: bbox must be four finite numbers"),
        (json.dumps([GOOD | {"score": None}]), "entry 0: score must be a finite number, not None"),
    ],
)
def test_files_that_are_no_results(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_results(path)


def test_arrays_of_different_length() -> None:
    with pytest.raises(ValueError, match=r"1 boxes but scores is \(2,\)"):
        Results(np.array([1]), np.array([1]), np.ones((1, 4)), np.ones(2))


def test_sorting_keeps_the_order_inside_an_image() -> None:
    mixed = Results(np.array([9, 2, 9, 2]), np.arange(4), np.zeros((4, 4)), np.zeros(4))
    assert mixed.sort().category_ids.tolist() == [1, 3, 0, 2]
