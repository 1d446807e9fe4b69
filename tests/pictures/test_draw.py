"""Pictures of boxes: what is drawn where."""

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from detkit.pictures.draw import PNG_METADATA, class_color, contact_sheet, draw_boxes, encode_png, is_own_png

GRAY = np.full((200, 300, 3), 90, np.uint8)
NAMES = ["cat", "dog", "a much longer name of a class"]


def changed(picture: np.ndarray) -> np.ndarray:
    return (picture != GRAY).any(axis=2)


def test_without_boxes_it_is_a_copy():
    picture = draw_boxes(GRAY, np.zeros((0, 4)), [], NAMES)
    np.testing.assert_array_equal(picture, GRAY)
    assert picture is not GRAY
    assert not np.shares_memory(picture, GRAY)


def test_the_outline_lies_on_the_first_and_last_pixel_inside():
    picture = draw_boxes(GRAY, np.array([[50, 60, 150, 160]]), [0], NAMES)
    for row, column in ((100, 50), (100, 149), (60, 100), (159, 100)):
        assert tuple(picture[row, column]) == class_color(0)
    for row, column in ((100, 48), (100, 151), (161, 100), (100, 100)):
        np.testing.assert_array_equal(picture[row, column], GRAY[0, 0])
    assert (GRAY == 90).all()


def test_the_name_stands_above_the_box_or_inside_where_there_is_no_room():
    above = changed(draw_boxes(GRAY, np.array([[50, 60, 150, 160]]), [0], NAMES))
    assert above[45:58, 50:70].mean() > 0.9
    inside = changed(draw_boxes(GRAY, np.array([[50, 0, 150, 100]]), [0], NAMES))
    assert inside[2:10, 51:70].mean() > 0.9


def test_a_tag_is_moved_into_the_picture():
    picture = changed(draw_boxes(GRAY, np.array([[290, 60, 299, 160]]), [2], NAMES))
    assert picture[45:58, 150:299].mean() > 0.9


def where_the_tag_is(picture: np.ndarray, label: int, box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Bounds of what has the colour of ``label`` outside ``box`` and its outline."""
    colored = (picture == class_color(label)).all(axis=2)
    x1, y1, x2, y2 = box
    colored[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
    rows, columns = np.flatnonzero(colored.any(axis=1)), np.flatnonzero(colored.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


#: In the middle and at each border and corner.
SMALL = [(x, y, x + 12, y + 10) for x in (0, 140, 288) for y in (0, 90, 190)]


@pytest.mark.parametrize("box", SMALL)
@pytest.mark.parametrize("label", [0, 2])
def test_a_name_hides_nothing_of_a_small_box(box: tuple[int, int, int, int], label: int):
    """Beside it, whole, and inside the picture."""
    x1, y1, x2, y2 = box
    picture = draw_boxes(GRAY, np.array([box]), [label], NAMES)
    inside = picture[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1]
    np.testing.assert_array_equal(inside, np.full_like(inside, 90))
    tag = where_the_tag_is(picture, label, box)
    free = where_the_tag_is(
        draw_boxes(GRAY, np.array([[100, 100, 110, 110]]), [label], NAMES), label, (100, 100, 110, 110)
    )
    assert abs((tag[2] - tag[0]) - (free[2] - free[0])) <= 1
    assert abs((tag[3] - tag[1]) - (free[3] - free[1])) <= 1


def test_names_keep_off_other_names_and_small_boxes():
    """Two boxes on one object, and one below another: as many coloured pixels as each has alone."""
    for boxes in ([[50, 60, 62, 72], [50, 60, 62, 72]], [[50, 80, 62, 92], [50, 66, 62, 78]]):
        both = draw_boxes(GRAY, np.array(boxes), [0, 1], NAMES)
        for label in (0, 1):
            count = (both == class_color(label)).all(axis=2).sum()
            alone = draw_boxes(GRAY, np.array([boxes[label]]), [label], NAMES)
            outline = 4 * 12  # the other box may be drawn over this one's
            assert count >= (alone == class_color(label)).all(axis=2).sum() - outline


def test_a_name_longer_than_the_picture_is_cut():
    """Its tag ends with a margin of its own colour, as any other."""
    picture = draw_boxes(GRAY[:, :90], np.array([[10, 60, 20, 70]]), [0], ["a name without end" * 2])
    x1, y1, x2, y2 = where_the_tag_is(picture, 0, (10, 60, 20, 70))
    assert (x1, x2) == (pytest.approx(5, abs=5), pytest.approx(85, abs=5))
    assert (picture[y1:y2, x2 - 2 : x2] == class_color(0)).all()
    assert (picture[y1:y2, 60:] > 220).all(axis=2).any()  # ink


@pytest.mark.parametrize("name", ["a name without end" * 2, "two words"])
def test_a_name_that_is_cut_keeps_its_score(name: str):
    """Two scores make two pictures; where there is room for nothing else the score stands alone."""
    narrow, box = GRAY[:, : 90 if len(name) > 9 else 40], np.array([[10, 60, 20, 70]])
    assert not np.array_equal(*(draw_boxes(narrow, box, [0], [name], [score]) for score in (0.25, 0.75)))


def test_scores_are_written():
    box = np.array([[50, 60, 150, 160]])
    assert not np.array_equal(draw_boxes(GRAY, box, [0], NAMES, [0.5]), draw_boxes(GRAY, box, [0], NAMES, [0.9]))


def test_boxes_over_the_border_and_tensors_are_fine():
    boxes = torch.tensor([[-50.0, -50.0, 500.0, 500.0], [400, 400, 500, 500], [10, 10, 10, 10]])
    picture = draw_boxes(GRAY, boxes, torch.tensor([0, 1, 2]), NAMES, torch.tensor([0.5, 0.6, 0.7]))
    assert picture.shape == GRAY.shape
    assert changed(picture)[100, 0]
    assert changed(picture)[100, 299]


def test_crowds_are_dashed():
    box = np.array([[50, 60, 250, 160]])
    line = changed(draw_boxes(GRAY, box, [0], NAMES, dashed=[True]))[159, 50:250]
    assert 0.3 < line.mean() < 0.8
    assert changed(draw_boxes(GRAY, box, [0], NAMES, dashed=[False]))[159, 50:250].all()


def test_a_title_makes_the_picture_higher_and_never_wider():
    for title in ("validation", "x" * 500):
        picture = draw_boxes(GRAY, np.zeros((0, 4)), [], NAMES, title=title)
        assert picture.shape[1:] == GRAY.shape[1:]
        strip = picture[: len(picture) - len(GRAY)]
        assert 8 < len(strip) < 40
        np.testing.assert_array_equal(picture[len(strip) :], GRAY)
        assert strip.max() > 150
        assert (strip[:, -2:] == 32).all()  # the letters end before the border


def test_small_images_can_be_enlarged_first():
    picture = draw_boxes(GRAY[:50, :75], np.array([[10, 20, 40, 45]]), [0], NAMES, min_side=200)
    assert picture.shape == (200, 300, 3)
    assert tuple(picture[120, 40]) == class_color(0)
    assert draw_boxes(GRAY, np.zeros((0, 4)), [], NAMES, min_side=150).shape == GRAY.shape


def test_neighbouring_classes_differ_in_color():
    colors = np.array([class_color(k) for k in range(80)], dtype=int)
    assert len({tuple(c) for c in colors}) == 80
    assert np.abs(np.diff(colors, axis=0)).sum(axis=1).min() > 100


def test_contact_sheet_fits_all_images_into_rows_and_columns():
    images = [np.full(shape, 200, np.uint8) for shape in ((50, 100, 3), (400, 200, 3), (10, 10, 3))]
    sheet = contact_sheet(images, columns=2, cell=100, gap=4)
    assert sheet.shape == (2 * 104 + 4, 104 + 54 + 4, 3)
    bright = sheet[..., 0] == 200
    assert bright[4:104, 4:104].sum() == 50 * 100
    assert bright[4:104, 108:158].sum() == 100 * 50
    assert bright[108:208, 4:104].sum() == 100 * 100
    assert not bright[108:208, 108:158].any()
    assert contact_sheet(images[:1], columns=4, cell=100, gap=0).shape == (50, 100, 3)
    with pytest.raises(ValueError, match="a contact sheet needs images"):
        contact_sheet([])


@pytest.mark.parametrize("shape", [(90, 160, 3), (160, 90, 3)])
def test_a_sheet_of_images_of_one_shape_has_no_bands(shape: tuple[int, int, int]):
    sheet = contact_sheet([np.full(shape, 200, np.uint8)] * 4, columns=2, cell=320, gap=6)
    assert sheet.shape == (2 * (2 * shape[0] + 6) + 6, 2 * (2 * shape[1] + 6) + 6, 3)
    assert (sheet == 32).all(axis=2).mean() < 0.08


def test_a_row_is_as_high_as_its_own_images():
    wide, high = np.full((40, 80, 3), 200, np.uint8), np.full((80, 40, 3), 200, np.uint8)
    sheet = contact_sheet([wide, wide, high, high], columns=2, cell=80, gap=0)
    assert sheet.shape == (40 + 80, 160, 3)
    assert (sheet[:40] == 200).all()
    assert (sheet[40:, 20:60] == 200).all()


def test_a_png_of_detkit_is_known_by_its_content(tmp_path):
    """Whoever wrote it, OpenCV or matplotlib; and any reader gets its pixels."""
    picture = draw_boxes(GRAY, np.array([[50, 60, 150, 160]]), [0], NAMES)
    (tmp_path / "own.png").write_bytes(encode_png(picture))
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "own.png"))[..., ::-1], picture)
    with Image.open(tmp_path / "own.png") as image:
        assert image.info == PNG_METADATA
        np.testing.assert_array_equal(np.asarray(image), picture)
    Figure(figsize=(1, 1)).savefig(tmp_path / "figure.png", metadata=PNG_METADATA)
    cv2.imwrite(str(tmp_path / "other.png"), picture)
    (tmp_path / "text.png").write_text("detkit")
    known = {name: is_own_png(tmp_path / f"{name}.png") for name in ("own", "figure", "other", "text", "gone")}
    assert known == {"own": True, "figure": True, "other": False, "text": False, "gone": False}


def test_landmarks_are_dots_where_they_lie():
    box = np.array([[50, 60, 150, 160]])
    plain = draw_boxes(GRAY, box, [0], NAMES)
    points = np.array([[[80, 90, 2], [120, 90, 1], [100, 140, 0]]], float)
    picture = draw_boxes(GRAY, box, [0], NAMES, landmarks=points)
    assert tuple(picture[90, 80]) == class_color(2)
    np.testing.assert_array_equal(picture[90, 120], GRAY[0, 0], err_msg="a ring is open")
    assert (picture[86:95, 116:125] != 90).any()
    touched = (picture != plain).any(axis=2)
    assert not touched[110:].any(), "a point that nobody labelled is not drawn"
    seen = draw_boxes(GRAY, box, [0], NAMES, landmarks=points[..., :2])
    assert tuple(seen[140, 100]) == class_color(4), "without marks all are seen, each in its own colour"
    large = draw_boxes(GRAY, box, [0], NAMES, landmarks=points, min_side=400)
    assert tuple(large[180, 160]) == class_color(2), "enlarged with the picture"
    beside = draw_boxes(GRAY, box, [0], NAMES, landmarks=np.array([[[-1e9, 5], [np.nan, 5], [500, 20]]]))
    np.testing.assert_array_equal(beside, plain)
