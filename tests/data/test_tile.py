"""Tiles drawn around objects and at random, and what becomes of the objects that they cut."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.data import RandomTile
from detkit.structures import Affine
from tests.data.test_transforms import sample
from tests.data.test_window import painted, white_box


def test_a_tile_is_the_image_s_own_pixels_and_nothing_else():
    before = sample(90, 70, 3)
    for key in range(20):
        after = RandomTile(tile=32)(before, key)
        left, top = (-round(shift) for shift in after.affine[2:])
        assert after.affine == Affine(1.0, 1.0, -left, -top)
        np.testing.assert_array_equal(after.image, before.image[top : top + 32, left : left + 32])


def test_the_pixels_of_a_box_are_where_it_says():
    before = painted(100, 160, (60, 40, 76, 52))
    for key in range(40):
        after = RandomTile(tile=48, around=1.0)(before, key)
        np.testing.assert_array_equal(white_box(after.image), after.boxes[0])


@settings(max_examples=150, deadline=None)
@given(
    h=st.integers(1, 90), w=st.integers(1, 90), tile=st.integers(1, 60), key=st.integers(0, 2**62),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_around_an_object_has_it_whole_where_it_fits(h, w, tile, key, seed):
    before = replace(sample(h, w, 1, seed), ignore=np.zeros(1, bool))
    plan = RandomTile(tile=tile, around=1.0).plan(before.layout, key)
    assert plan.size == (min(tile, h), min(tile, w))
    (x1, y1, x2, y2), (top, left) = before.boxes[0], (-c for c in plan.corner)
    assert 0 <= top <= h - plan.size[0]
    assert 0 <= left <= w - plan.size[1]
    for first, last, start, side in ((x1, x2, left, plan.size[1]), (y1, y2, top, plan.size[0])):
        if np.ceil(last) - np.floor(first) <= side:
            assert start <= first
            assert last <= start + side
        else:  # as much of it as there is room for, but for the parts of a px at its ends
            assert min(last, start + side) - max(first, start) > side - 1


def test_a_tile_lies_anywhere_that_it_may():
    before = replace(sample(100, 100, 1), boxes=np.array([[50, 30, 58, 40]], np.float32), ignore=np.zeros(1, bool))
    for around, rows, columns in ((1.0, (20, 30), (38, 50)), (0.0, (0, 80), (0, 80))):
        corners = -np.array([RandomTile(tile=20, around=around).plan(before.layout, k).corner for k in range(1500)])
        assert corners.min(0).tolist() == [rows[0], columns[0]]
        assert corners.max(0).tolist() == [rows[1], columns[1]]
        assert abs(np.corrcoef(corners.T)[0, 1]) < 0.1


def test_around_is_the_share_of_tiles_with_an_object_of_the_image():
    before = replace(
        sample(1000, 1000, 1), boxes=np.array([[500, 500, 504, 504]], np.float32), ignore=np.zeros(1, bool)
    )
    seen = [len(RandomTile(tile=20, around=0.6).lay(before.layout, key).boxes) for key in range(1000)]
    assert 0.55 < np.mean(seen) < 0.65  # elsewhere one of 2,500 has it


def test_each_object_is_drawn_but_no_ignored_one():
    boxes = np.array([[0, 0, 5, 5], [200, 0, 205, 5], [0, 200, 5, 205]], np.float32)
    before = replace(sample(300, 300, 3), boxes=boxes, ignore=np.array([False, True, False]))
    seen = [RandomTile(tile=20, around=1.0).lay(before.layout, key).labels.tolist() for key in range(200)]
    assert seen.count([0]) + seen.count([2]) == 200
    assert 70 < seen.count([0]) < 130
    crowds = replace(before, ignore=np.ones(3, bool))
    assert len({RandomTile(tile=20, around=1.0).plan(crowds.layout, key).corner for key in range(20)}) > 15


def test_a_cut_object_is_kept_by_its_visible_share_or_else_ignored():
    before = replace(
        sample(40, 100, 4), ignore=np.array([False, False, False, True]),
        boxes=np.array([[45, 0, 55, 10], [47, 0, 57, 10], [49.5, 0, 59.5, 10], [44, 20, 54, 30]], np.float32),
    )  # fmt: skip
    step = RandomTile(tile=50, around=0.0, min_visibility=0.5)
    key = next(k for k in range(2000) if step.plan(before.layout, k).corner == (0, 0))  # 5, 3 and 0.5 px remain
    after = step(before, key)
    assert after.labels.tolist() == [0, 1, 3]
    assert after.ignore.tolist() == [False, True, True]
    np.testing.assert_array_equal(after.boxes, [[45, 0, 50, 10], [47, 0, 50, 10], [44, 20, 50, 30]])


def test_a_small_image_stays_as_it_is():
    before = sample(30, 20, 4)
    after = RandomTile(tile=64)(before, 5)
    np.testing.assert_array_equal(after.image, before.image)
    np.testing.assert_array_equal(after.boxes, before.boxes)
    np.testing.assert_array_equal(after.ignore, before.ignore)
    assert after.affine == Affine()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 0}, "tile must be positive, not 0"),
        ({"around": 1.5}, r"around must be in \[0, 1\], not 1.5"),
        ({"min_visibility": -0.1}, r"min_visibility must be in \[0, 1\], not -0.1"),
        ({"min_size": 0.0}, "min_size must be positive, not 0.0"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        RandomTile(**options)
