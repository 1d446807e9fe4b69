"""Our own transforms: exact affines, and draws that depend on the key alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.config import TRANSFORMS
from detkit.data import (
    Albumentations,
    HorizontalFlip,
    MixingTransform,
    MixUp,
    Mosaic,
    RandomTile,
    RandomWindow,
    Resize,
    ResizeFit,
    ResizeShortestEdge,
    Sample,
    Transform,
)
from detkit.data.transforms import apply
from detkit.structures import Affine
from tests.data.builders import picture


def sample(h: int = 48, w: int = 64, num_boxes: int = 5, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 1, (num_boxes, 2, 2)), axis=1).reshape(num_boxes, 4)
    boxes = (corners * [w, h, w, h]).astype(np.float32)
    return Sample(picture(h, w, seed), boxes, np.arange(num_boxes), np.arange(num_boxes) % 2 == 0, Affine())


def same(a: Sample, b: Sample) -> bool:
    arrays = ("image", "boxes", "labels", "ignore")
    return a.affine == b.affine and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in arrays)


EVERY = {
    "ResizeShortestEdge": ResizeShortestEdge(short=(20, 30, 40), long=50),
    "ResizeFit": ResizeFit(size=33),
    "Resize": Resize(height=20, width=50),
    "HorizontalFlip": HorizontalFlip(),
    "RandomTile": RandomTile(tile=32, min_visibility=0.0),
    "RandomWindow": RandomWindow(height=40, width=30),
    "Mosaic": Mosaic(size=60),
    "MixUp": MixUp(min_size=2.0),
}


def run(transform: Transform, before: Sample, key: int) -> Sample:
    """``before`` after ``transform``, partners made up where it wants some."""
    if isinstance(transform, MixingTransform):
        return transform.mix(before, [sample(30 + i, 40, 4, seed=i) for i in range(transform.num_partners)], key)
    return transform(before, key)


def every_transform() -> dict[str, Transform]:
    import albumentations as A

    return EVERY | {"Albumentations": Albumentations(transforms=[A.RandomCrop(30, 30), A.GaussNoise(p=1)])}


def test_every_registered_transform_is_tested_here():
    assert set(every_transform()) == set(TRANSFORMS)


@pytest.mark.parametrize("name", list(TRANSFORMS))
@pytest.mark.parametrize("num_boxes", [0, 1, 7])
def test_contract(name, num_boxes):
    transform = every_transform()[name]
    before, untouched = sample(num_boxes=num_boxes), sample(num_boxes=num_boxes)
    results = [run(transform, before, key) for key in range(8)]
    assert same(before, untouched)
    for key, after in enumerate(results):
        assert same(after, run(transform, before, key))
        h, w = after.size
        n = len(after.labels)
        assert (after.image.dtype, after.image.shape) == (np.uint8, (h, w, 3))
        assert (after.boxes.dtype, after.boxes.shape) == (np.float32, (n, 4))
        assert (after.labels.dtype, after.ignore.dtype, after.ignore.shape) == (np.int64, bool, (n,))
        assert (after.boxes >= -1e-3).all()
        assert (after.boxes <= np.array([w, h, w, h]) + 1e-3).all()
        # Label and ignore stay with their box.
        np.testing.assert_array_equal(after.ignore, after.labels % 2 == 0)
    if name not in ("ResizeFit", "Resize"):
        assert any(not same(results[0], other) for other in results[1:])


@settings(max_examples=60, deadline=None)
@given(h=st.integers(1, 90), w=st.integers(1, 90), size=st.integers(1, 120), key=st.integers(0, 2**62))
def test_boxes_lead_back_to_the_original_image(h, w, size, key):
    before = sample(h, w)
    after = apply([ResizeFit(size=size), HorizontalFlip(), ResizeShortestEdge(short=(16, 24), long=99)], before, key)
    assert after.affine is not None
    back = after.affine.undo(torch.from_numpy(after.boxes)).numpy()
    np.testing.assert_allclose(back, before.boxes, atol=2e-3)
    np.testing.assert_allclose(after.affine.apply(torch.from_numpy(before.boxes)), after.boxes, atol=1e-3)
    new_h, new_w = after.size
    assert after.affine.scale_y == pytest.approx(new_h / h, rel=1e-12)
    assert abs(after.affine.scale_x) == pytest.approx(new_w / w, rel=1e-12)


@settings(deadline=None, max_examples=50)
@given(h=st.integers(1, 30), w=st.integers(1, 30))
def test_flipping_twice_is_the_identity(h, w):
    flip = HorizontalFlip(p=1.0)
    before = sample(h, w)
    once, twice = flip(before, 0), flip(flip(before, 0), 1)
    np.testing.assert_array_equal(once.image, before.image[:, ::-1])
    np.testing.assert_array_equal(twice.image, before.image)
    np.testing.assert_allclose(twice.boxes, before.boxes, atol=1e-5)
    assert twice.affine == Affine()


def test_a_flip_moves_a_box_to_the_other_side():
    before = replace(sample(num_boxes=1), boxes=np.array([[3, 4, 10, 20]], np.float32))
    np.testing.assert_array_equal(HorizontalFlip(p=1.0)(before, 0).boxes, [[54, 4, 61, 20]])
    assert HorizontalFlip(p=0.0)(before, 0) is before


def test_half_of_the_keys_flip():
    flipped = sum(HorizontalFlip()(sample(2, 3, 1), key).affine != Affine() for key in range(400))
    assert 150 < flipped < 250


def test_resize_finds_a_painted_box_where_it_says():
    image = np.zeros((100, 150, 3), np.uint8)
    image[20:60, 30:90] = 255
    before = Sample(image, np.array([[30, 20, 90, 60]], np.float32), np.zeros(1, int), np.zeros(1, bool), Affine())
    for size in (300, 97, 40):  # enlarged, bilinear, averaged
        after = ResizeFit(size=size)(before, 0)
        rows, columns = np.nonzero(after.image[..., 0] > 127)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(after.boxes[0], seen, atol=0.75)


def test_reduction_below_half_averages():
    image = np.zeros((64, 64, 3), np.uint8)
    image[::4] = 255  # bilinear reading at a fourth of the size would fall between these lines
    before = Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, bool), Affine())
    np.testing.assert_allclose(ResizeFit(size=16)(before, 0).image, 64, atol=1)


@pytest.mark.parametrize(
    ("h", "w", "expected"),
    [
        (480, 640, (800, 1067)),
        (640, 480, (1067, 800)),
        (300, 900, (444, 1333)),
        (1, 5000, (1, 1333)),
        (50, 50, (800, 800)),
    ],
)
def test_shortest_edge_rule(h, w, expected):
    assert ResizeShortestEdge()(sample(h, w, 1), 0).size == expected


def test_one_of_several_sizes_is_drawn():
    transform = ResizeShortestEdge(short=(20, 30, 40), long=99)
    drawn = [min(transform(sample(50, 60, 1), key).size) for key in range(120)]
    assert {20, 30, 40} == set(drawn)
    assert min(drawn.count(s) for s in (20, 30, 40)) > 20


@pytest.mark.parametrize(("h", "w"), [(480, 640), (640, 480), (7, 1000), (64, 64), (1, 1)])
def test_fit_makes_the_longer_side_exact(h, w):
    size = ResizeFit(size=416)(sample(h, w, 1), 0).size
    assert max(size) == 416
    assert min(size) == max(1, round(min(h, w) * 416 / max(h, w)))


def test_fit_draws_one_of_several_sizes():
    transform = ResizeFit(size=(20, 30, 40))
    drawn = [max(transform(sample(50, 60, 1), key).size) for key in range(120)]
    assert min(drawn.count(s) for s in (20, 30, 40)) > 20
    assert len(drawn) == sum(drawn.count(s) for s in (20, 30, 40))


@pytest.mark.parametrize("make", [lambda b: ResizeFit(size=tuple(range(20, 60)), per_batch=b), lambda b: ResizeShortestEdge(short=tuple(range(20, 60)), per_batch=b)])  # fmt: skip
def test_a_size_for_each_batch(make):
    def sizes(per_batch):
        return [
            [apply([make(per_batch)], sample(50, 60, 1), key, batch).size for key in range(8)] for batch in range(8)
        ]

    each = sizes(per_batch=True)
    assert all(len(set(batch)) == 1 for batch in each)
    assert len({batch[0] for batch in each}) > 4
    assert all(len(set(batch)) > 4 for batch in sizes(per_batch=False))
    alone = apply([make(True)], sample(50, 60, 1), 3)
    assert alone.size == apply([make(False)], sample(50, 60, 1), 3).size  # without a batch, the image's own key


def test_stretching():
    before = replace(sample(100, 200, 1), boxes=np.array([[20, 10, 60, 40]], np.float32))
    after = Resize(height=50, width=40)(before, 0)
    assert after.size == (50, 40)
    np.testing.assert_array_equal(after.boxes, [[4, 5, 12, 20]])
    assert after.affine == Affine(scale_x=0.2, scale_y=0.5)
    np.testing.assert_allclose(after.affine.undo(torch.from_numpy(after.boxes)), before.boxes, rtol=1e-6)


def test_steps_draw_independently_and_leaving_one_out_changes_no_other():
    flip, resize = HorizontalFlip(), ResizeShortestEdge(short=(20, 30), long=99)
    agreements = 0
    for key in range(300):
        both = apply([resize, flip], sample(50, 60, 1), key).affine
        assert (both.scale_x < 0) == (apply([flip], sample(50, 60, 1), key).affine.scale_x < 0)
        twice = apply([flip, flip], sample(2, 3, 1), key).affine
        agreements += twice == Affine()
    assert 100 < agreements < 200  # the second flip does not repeat the first


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResizeFit(size=0), "size must be positive, not 0"),
        (lambda: ResizeFit(size=(32, 0)), r"size must be positive, not \[32, 0\]"),
        (lambda: ResizeFit(size=()), r"size must be positive, not \[\]"),
        (lambda: Resize(height=0), "height 0 and width 448 must be positive"),
        (lambda: ResizeShortestEdge(short=()), r"short \[\] must be positive and long 1333 not below any of them"),
        (lambda: ResizeShortestEdge(short=(800, 1400)), r"short \[800, 1400\] must be positive and long 1333"),
        (lambda: HorizontalFlip(p=1.5), r"p must be in \[0, 1\], not 1.5"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
