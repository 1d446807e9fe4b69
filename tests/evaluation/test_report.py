from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from detkit.evaluation import Results, comparison_sheet, save_pictures
from detkit.pictures.draw import class_color
from detkit.structures import Categories, GroundTruth

CATEGORIES = Categories(("cat", "dog"), (7, 3))
GREY = 128
CELL, GAP = 480, 6  # of the contact sheet


def record(image_id: int = 4, crowd: bool = False) -> GroundTruth:
    """One dog in the upper left of an image of 480 x 480 px."""
    return GroundTruth(
        image_id=image_id,
        file=f"images/{image_id}.jpg",
        size=(480, 480),
        boxes=np.array([[60.0, 80.0, 100.0, 120.0]]),
        labels=np.array([1]),
        area=np.array([12000.0]),
        crowd=np.array([crowd]),
        annotation_ids=np.array([1]),
    )


def found(*scores: float, image_id: int = 4, category_id: int = 7) -> Results:
    """Cats in the lower right."""
    n = len(scores)
    boxes = np.tile([300.0, 320.0, 100.0, 120.0], (n, 1))
    return Results(np.full(n, image_id), np.full(n, category_id), boxes, np.array(scores))


def sheet(results: Results, truth: GroundTruth | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Left and right picture."""
    image = np.full((480, 480, 3), GREY, np.uint8)
    whole = comparison_sheet([image], [truth or record()], results, CATEGORIES, min_score=0.5)
    assert whole.shape == (CELL + 2 * GAP, 2 * CELL + 3 * GAP, 3)
    assert (image == GREY).all()  # drawn on a copy
    return whole[GAP:-GAP, GAP : GAP + CELL], whole[GAP:-GAP, 2 * GAP + CELL : -GAP]


def has_color(picture: np.ndarray, label: int) -> bool:
    return bool((picture == class_color(label)).all(axis=-1).any())


def test_ground_truth_at_the_left_and_detections_at_the_right() -> None:
    left, right = sheet(found(0.9))
    assert has_color(left[60:220, 40:180], 1)  # the dog
    assert not has_color(left, 0)
    assert has_color(right[300:450, 280:420], 0)  # the cat
    assert not has_color(right, 1)


@pytest.mark.parametrize("results", [found(0.49), found(0.9, image_id=5), Results.empty()])
def test_low_scores_and_other_images_are_left_out(results: Results) -> None:
    _, right = sheet(results)
    assert (right == GREY).all()


def test_a_score_at_the_limit_is_shown() -> None:
    assert has_color(sheet(found(0.5))[1], 0)


def test_a_crowd_is_dashed() -> None:
    left, _ = sheet(found(), record(crowd=True))
    plain, _ = sheet(found(), record())
    edge = np.s_[199, 70:150]  # the lower one
    assert (plain[edge] == class_color(1)).all()
    dashes = (left[edge] == class_color(1)).all(axis=-1)
    assert 0.2 < dashes.mean() < 0.8


def test_boxes_stay_on_their_objects_when_a_small_image_is_enlarged() -> None:
    image = np.full((120, 120, 3), GREY, np.uint8)
    small = replace(record(), size=(120, 120), boxes=record().boxes / 4)
    whole = comparison_sheet([image], [small], found(), CATEGORIES)
    dog = (whole == class_color(1)).all(axis=-1)[GAP:-GAP, GAP : GAP + CELL]
    rows, columns = np.flatnonzero(dog.any(axis=1)), np.flatnonzero(dog.any(axis=0))
    assert abs(rows[-1] - 200) <= 2  # the lower edge of the box in px of the sheet; its name stands on the upper one
    assert abs(columns[0] - 60) <= 2
    assert abs(columns[-1] - 160) <= 2


def test_the_file_is_the_sheet(tmp_path: Path) -> None:
    images = [np.full((40, 30, 3), 200, np.uint8), np.full((30, 500, 3), 90, np.uint8)]
    path = tmp_path / "pictures" / "val.png"
    save_pictures(path, images, [record(4), record(5)], found(0.9), CATEGORIES)
    read = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    assert np.array_equal(read, comparison_sheet(images, [record(4), record(5)], found(0.9), CATEGORIES))
    assert [p.name for p in path.parent.iterdir()] == ["val.png"]


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(ValueError, match=r"val.jpg: the pictures are written as PNG"):
        save_pictures(tmp_path / "val.jpg", [image], [record()], found(0.9), CATEGORIES)
    with pytest.raises(ValueError, match="0 images and 0 records"):
        comparison_sheet([], [], found(), CATEGORIES)
    with pytest.raises(ValueError, match="1 images and 2 records"):
        comparison_sheet([image], [record(), record()], found(), CATEGORIES)
    with pytest.raises(ValueError, match=r"category id 5; known: \[3, 7\]"):
        comparison_sheet([image], [record()], found(0.9, category_id=5), CATEGORIES)
