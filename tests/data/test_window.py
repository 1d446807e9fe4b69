"""The random window and what becomes of boxes at the border."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.data import RandomWindow, Sample
from detkit.data.transforms.plan import FILL, Plan, blank, paint, render
from detkit.structures import Affine
from tests.data.test_transforms import sample


def painted(h: int, w: int, box: tuple[int, int, int, int]) -> Sample:
    """A black image with one white box, which is its only object."""
    image = np.zeros((h, w, 3), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = 255
    return Sample(image, np.array([box], np.float32), np.zeros(1, int), np.zeros(1, bool), Affine())


def white_box(image: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(image[..., 0] > 127)  # half white, half black; FILL is below
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_painting_follows_a_box():
    before = painted(20, 10, (2, 4, 8, 12))
    plan = Plan((20, 10), (40, 60), (40, 30), (10, -6))  # 2 times as high, 3 times as wide
    after, canvas = plan.move(before.layout), render(before.image, plan)
    np.testing.assert_array_equal(after.boxes, [[0, 18, 18, 34]])
    assert after.affine == Affine(scale_x=3.0, scale_y=2.0, shift_x=-6.0, shift_y=10.0)
    assert after.affine == plan.affine
    assert after.size == canvas.shape[:2] == (40, 60)
    np.testing.assert_allclose(white_box(canvas), [0, 18, 18, 34], atol=1)
    assert (canvas[:10] == FILL).all()
    assert (canvas[:, 24:] == FILL).all()
    assert (canvas[10:, :24] != FILL).any()


@pytest.mark.parametrize(("top", "left"), [(40, 0), (0, 60), (-20, 0), (0, -10)])
def test_painting_beside_the_canvas_leaves_it(top, left):
    canvas = blank(40, 60)
    paint(canvas, sample(20, 10).image, Plan((20, 10), (40, 60), (20, 10), (top, left)))
    np.testing.assert_array_equal(canvas, blank(40, 60))


def test_clipping_cuts_and_drops():
    boxes = [
        [-10, 5, 10, 15],
        [-8, 0, 2, 10],
        [-9, 0, 1, 10],
        [30, -30, 40, 1.5],
        [41, 0, 50, 10],
        [38, 28, 60, 60],
        [5, 5, 6, 6],
    ]
    before = replace(sample(30, 40, 7), boxes=np.array(boxes, np.float32), ignore=np.arange(7) < 3).layout
    after = before.clip(min_visibility=0.2, min_size=1.0)
    np.testing.assert_array_equal(after.boxes, [[0, 5, 10, 15], [0, 0, 2, 10], [5, 5, 6, 6]])
    assert after.labels.tolist() == [0, 1, 6]
    assert after.ignore.tolist() == [True, True, False]
    assert before.clip(0.0, 1.5).labels.tolist() == [0, 1, 3, 5]
    assert before.clip(0.0, 1.6).labels.tolist() == [0, 1, 5]
    assert before.clip(1.0, 0.01).labels.tolist() == [6]


def test_a_window_of_the_whole_image_is_a_resize():
    before = replace(sample(100, 200, 1), boxes=np.array([[20, 10, 60, 40]], np.float32))
    options = {"height": 80, "width": 80, "scale": (1.0, 1.0), "shift": 0.0}
    fitted = RandomWindow(**options)(before, 3)  # 80 x 40 px in the middle of 80 x 80
    np.testing.assert_allclose(fitted.boxes, [[8, 24, 24, 36]], rtol=1e-6)
    assert fitted.affine == Affine(0.4, 0.4, 0.0, 20.0)
    assert (fitted.image[[0, 19, 60, 79]] == FILL).all()
    stretched = RandomWindow(**options, keep_aspect=False)(before, 3)
    np.testing.assert_allclose(stretched.boxes, [[8, 8, 24, 32]], rtol=1e-6)
    assert stretched.affine == Affine(0.4, 0.8, 0.0, 0.0)


@pytest.mark.parametrize(("scale", "expected"), [(0.5, [-24, 8, 8, 32]), (2.0, [24, 32, 32, 38])])
def test_half_the_window_shows_things_twice_as_large(scale, expected):
    before = replace(sample(100, 200, 1), boxes=np.array([[20, 10, 60, 40]], np.float32))
    window = RandomWindow(height=80, width=80, scale=(scale, scale), shift=0.0)
    whole = window(before, 0)
    raw = whole.affine.apply(torch.from_numpy(before.boxes)).numpy()
    np.testing.assert_allclose(raw, [expected], rtol=1e-6)
    np.testing.assert_allclose(whole.boxes, np.clip([expected], 0, 80), rtol=1e-6)


@settings(max_examples=80, deadline=None)
@given(
    h=st.integers(1, 90), w=st.integers(1, 90), out=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    key=st.integers(0, 2**62), keep=st.booleans(),
)  # fmt: skip
def test_the_affine_is_exact_and_within_the_limits(h, w, out, key, keep):
    before = sample(h, w)
    after = RandomWindow(height=out[0], width=out[1], scale=(0.5, 2.0), shift=0.25, keep_aspect=keep)(before, key)
    assert after.size == out
    assert after.affine is not None
    moved = after.affine.apply(torch.from_numpy(before.boxes)).numpy()
    kept = moved.clip(0, [out[1], out[0]] * 2)[after.labels]
    np.testing.assert_allclose(after.boxes, kept, atol=1e-3)
    fits = [min(out[0] / h, out[1] / w)] * 2 if keep else [out[0] / h, out[1] / w]
    for side, fit, scale in ((h, fits[0], after.affine.scale_y), (w, fits[1], after.affine.scale_x)):
        assert fit / 2 - 0.5 / side - 1e-9 <= scale <= max(2 * fit + 0.5 / side, 1 / side) + 1e-9
    centre_y, centre_x = (
        (out[0] / 2 - after.affine.shift_y) / after.affine.scale_y,
        (out[1] / 2 - after.affine.shift_x) / after.affine.scale_x,
    )
    assert abs(centre_y - h / 2) <= 0.25 * h + 0.5 / after.affine.scale_y + 1e-6
    assert abs(centre_x - w / 2) <= 0.25 * w + 0.5 / after.affine.scale_x + 1e-6


@pytest.mark.parametrize("keep_aspect", [True, False])
def test_the_pixels_of_a_box_are_where_it_says(keep_aspect):
    before = painted(60, 100, (30, 10, 70, 26))
    window = RandomWindow(height=72, width=96, keep_aspect=keep_aspect)
    for key in range(40):
        after = window(before, key)
        np.testing.assert_allclose(white_box(after.image), after.boxes[0], atol=1)


def test_scale_and_shift_take_all_their_values_and_each_axis_its_own():
    before = sample(100, 100, 0)
    window = RandomWindow(height=1000, width=1000, scale=(0.8, 1.25), shift=0.2, keep_aspect=False)
    affines = [window(before, key).affine for key in range(300)]
    scales = 10 / np.array([[a.scale_y, a.scale_x] for a in affines])
    centres = np.array([[(500 - a.shift_y) / a.scale_y, (500 - a.shift_x) / a.scale_x] for a in affines]) / 100 - 0.5
    for values, low, high in ((scales, 0.8, 1.25), (centres, -0.2, 0.2)):
        margin = (high - low) / 20
        assert (values.min(axis=0) < low + margin).all()
        assert (values.max(axis=0) > high - margin).all()
        assert abs(np.corrcoef(values.T)[0, 1]) < 0.2
    kept = [RandomWindow()(before, key).affine for key in range(50)]
    assert all(a.scale_x == a.scale_y for a in kept)
    assert len({a.scale_x for a in kept}) > 30


def test_a_sample_without_boxes_and_one_of_crowds():
    window = RandomWindow(height=30, width=30)
    assert window(sample(num_boxes=0), 0).boxes.shape == (0, 4)
    crowds = replace(sample(num_boxes=4), ignore=np.ones(4, bool))
    assert window(crowds, 0).ignore.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 0}, "height 0 and width 512 must be positive"),
        ({"scale": (1.4, 0.6)}, r"scale must be a range within \[0.1, 10\], not \[1.4, 0.6\]"),
        ({"scale": (0.0, 1.0)}, r"scale must be a range within \[0.1, 10\], not \[0.0, 1.0\]"),
        ({"shift": 0.6}, r"shift must be in \[0, 0.5\], not 0.6"),
        ({"min_visibility": 2.0}, r"min_visibility must be in \[0, 1\], not 2.0"),
        ({"min_size": 0.0}, "min_size must be positive, not 0.0"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        RandomWindow(**options)
