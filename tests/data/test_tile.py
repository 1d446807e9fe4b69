"""Tiles to train on: where they lie, and what becomes of the objects that they cut."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from detkit.data import RandomTile
from tests.data.test_transforms import sample
from tests.data.test_window import painted

KEYS = range(300)


def of_boxes(h, w, *boxes, ignore=()):
    crowd = np.isin(np.arange(len(boxes)), ignore)
    return replace(sample(h, w, len(boxes)), boxes=np.array(boxes, np.float32).reshape(-1, 4), ignore=crowd)


def corners(tiles, before, keys=KEYS):
    """(top, left) of the tile for each key."""
    return np.array(
        [[-tiles.plan(before.layout, key).corner[0], -tiles.plan(before.layout, key).corner[1]] for key in keys]
    )


def test_pixels_and_boxes_are_cut_out_alike():
    before = painted(300, 400, (120, 50, 160, 90))
    for key in range(20):
        after = RandomTile(size=100, around=1.0)(before, key)
        assert after.size == (100, 100)
        x1, y1, x2, y2 = after.boxes[0].astype(int)
        assert (after.image[y1:y2, x1:x2] == 255).all()
        assert int((after.image == 255).sum()) == 40 * 40 * 3, "all of it, nothing resized"
        assert after.affine.undo(torch.from_numpy(after.boxes)).tolist() == [[120, 50, 160, 90]]


def test_a_tile_about_an_object_holds_all_of_it_wherever_it_lies():
    boxes = [[0, 0, 30, 20], [370, 280, 400, 300], [200, 100, 290, 199]]
    for box in boxes:
        found = corners(RandomTile(size=100, around=1.0), of_boxes(300, 400, box))
        low, high = np.maximum(0, [box[3] - 100, box[2] - 100]), np.minimum([box[1], box[0]], [200, 300])
        assert (found.min(axis=0) >= low).all()
        assert (found.max(axis=0) <= high).all()
        assert (found.max(axis=0) - found.min(axis=0) >= 0.9 * (high - low) - 1).all(), "anywhere it can"


def test_of_a_larger_object_the_tile_shows_a_part():
    for tile, before in ((RandomTile(size=50, around=1.0), of_boxes(300, 400, [100, 100, 250, 220])),):
        found = corners(tile, before)
        assert found.min(axis=0).tolist() >= [100, 100]
        assert (found.max(axis=0) <= [170, 200]).all()


def test_every_object_has_its_turn_but_not_ignored_ones():
    before = of_boxes(100, 1000, [0, 0, 10, 10], [300, 0, 310, 10], [990, 0, 1000, 10], ignore=[1])
    lefts = corners(RandomTile(size=20, around=1.0), before)[:, 1]
    near = [int(((lefts >= x - 10) & (lefts <= x)).sum()) for x in (0, 300, 990)]
    assert near[0] + near[2] == len(KEYS)
    assert min(near[0], near[2]) > 110
    assert near[1] == 0


def test_the_other_tiles_lie_anywhere():
    before = of_boxes(300, 400, [0, 0, 10, 10])
    anywhere = corners(RandomTile(size=100, around=0.0), before)
    assert (anywhere.min(axis=0) < 10).all()
    assert (anywhere.max(axis=0) > [190, 290]).all()
    some = corners(RandomTile(size=100, around=0.5), before)
    share = ((some == 0).all(axis=1)).mean()
    assert 0.4 < share < 0.6, "half of them hold the object in the corner"
    empty = corners(RandomTile(size=100, around=1.0), of_boxes(300, 400))
    assert empty.max() > 100, "an image without objects has tiles too"


def test_what_is_hardly_seen_is_ignored_and_what_is_not_seen_left_out():
    before = of_boxes(
        100, 400, [10, 10, 20, 20], [190, 0, 210, 100], [160, 0, 240, 10], [196, 5, 216, 15], [300, 0, 310, 10]
    )
    tile = RandomTile(size=200, around=0.0, min_visibility=0.5)
    key = next(key for key in range(10_000) if tile.plan(before.layout, key).corner == (0, 0))
    after = tile(before, key)
    assert after.boxes.tolist() == [[10, 10, 20, 20], [190, 0, 200, 100], [160, 0, 200, 10], [196, 5, 200, 15]]
    assert after.ignore.tolist() == [False, False, False, True], "half of it is enough, a fifth is not"
    assert after.labels.tolist() == [0, 1, 2, 3]


def test_a_smaller_image_is_seen_whole_along_that_side():
    before = of_boxes(60, 400, [10, 10, 20, 20])
    after = RandomTile(size=100)(before, 1)
    assert after.size == (60, 100)
    small = of_boxes(60, 50, [10, 10, 20, 20])
    assert RandomTile(size=100)(small, 1) is small


def test_laid_without_pixels_it_is_the_same():
    before = of_boxes(300, 400, [100, 100, 250, 220], [0, 0, 30, 20], [390, 0, 400, 300])
    for key in range(30):
        tile = RandomTile(size=64)
        laid, cut = tile.lay(before.layout, key), tile(before, key).layout
        np.testing.assert_array_equal(laid.boxes, cut.boxes)
        np.testing.assert_array_equal(laid.ignore, cut.ignore)
        assert (laid.size, laid.affine) == (cut.size, cut.affine)


@pytest.mark.parametrize("bad", [{"min_size": 0.0}, {"min_visibility": 1.5}])
def test_what_is_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        RandomTile(**bad)
