"""Mosaic and mixup as pure functions: geometry by hand, partners from the key alone."""

from dataclasses import replace

import numpy as np
import pytest

from detkit.data import HorizontalFlip, MixUp, Mosaic, ResizeFit, Sample
from detkit.data.sample import Layout
from detkit.data.transforms import apply
from detkit.data.transforms.base import before_mixing
from detkit.data.transforms.mixing import assembly
from detkit.data.transforms.plan import FILL
from detkit.structures import Affine
from tests.data.test_transforms import same, sample
from tests.data.test_window import painted, white_box


def flat(h: int, w: int, value: int, box: tuple[float, ...], label: int = 0, ignore: bool = False) -> Sample:
    """An image of one grey with one object."""
    image = np.full((h, w, 3), value, np.uint8)
    return Sample(image, np.array([box], np.float32), np.array([label]), np.array([ignore]), Affine())


def test_a_mosaic_by_hand():
    tiles = [
        flat(50, 100, 10, (20, 10, 40, 30), 0),  # 0.5: 25 x 50 px, ends at (60, 40): from (10, 15)
        flat(100, 50, 20, (10, 60, 30, 80), 1, ignore=True),  # 0.5: 50 x 25 px, from (60, -10)
        flat(100, 100, 30, (0, 0, 100, 100), 2),  # 0.5: 50 x 50 px, from (10, 40)
        flat(20, 40, 40, (8, 4, 40, 16), 3),  # 1.25: 25 x 50 px, from (60, 40) to (110, 65)
    ]
    plans = assembly([tile.size for tile in tiles], 100, 0.5, y=40, x=60)
    layout = Layout.together([plan.move(tile.layout) for plan, tile in zip(plans, tiles, strict=True)])
    after = Sample.of(Mosaic(size=100).render([tile.image for tile in tiles], plans), layout)
    np.testing.assert_array_equal(
        after.boxes, [[20, 20, 30, 30], [65, 20, 75, 30], [10, 40, 60, 90], [70, 45, 110, 60]]
    )
    assert after.labels.tolist() == [0, 1, 2, 3]
    assert after.ignore.tolist() == [False, True, False, False]
    assert after.affine is None
    expected = np.full((100, 100, 3), FILL, np.uint8)
    expected[15:40, 10:60] = 10
    expected[0:40, 60:85] = 20
    expected[40:90, 10:60] = 30
    expected[40:65, 60:100] = 40
    np.testing.assert_array_equal(after.image, expected)


def test_the_mosaic_cuts_boxes_at_its_border():
    whole = flat(100, 100, 0, (0, 0, 100, 100))
    for key in range(50):
        after = Mosaic(size=80).mix(whole, [whole] * 3, key)
        sides = after.boxes[:, 2:] - after.boxes[:, :2]
        assert (sides >= 2).all()
        assert (after.boxes >= 0).all()
        assert (after.boxes <= 80).all()


def test_the_pixels_of_a_box_are_where_the_mosaic_says():
    seen = 0
    for key in range(60):
        tiles = [painted(60, 100, (30, 10, 70, 26)), *(flat(50 + i, 90 - i, 60, (1, 1, 9, 9), 1) for i in range(3))]
        shown = key % 4
        tiles[0], tiles[shown] = tiles[shown], tiles[0]
        after = Mosaic(size=200, scale=(0.5, 1.5)).mix(tiles[0], tiles[1:], key)
        boxes = after.boxes[after.labels == 0]
        if len(boxes):
            np.testing.assert_allclose(white_box(after.image), boxes[0], atol=1)
            seen += 1
    assert seen > 30


def test_where_mosaics_meet():
    """C = size * (1/2 + t + z * u): of a whole-image box the first tile shows what lies above and left of C."""
    whole = flat(64, 64, 0, (0, 0, 64, 64))
    mosaic = Mosaic(size=100, scale=(1.0, 1.0), translate=0.0, min_visibility=0.0, min_size=0.01)
    corners = np.array([mosaic.mix(whole, [whole] * 3, key).boxes[0, 2:] for key in range(300)])  # x, y
    assert corners.min() < 5
    assert corners.max() > 95
    np.testing.assert_allclose(corners.mean(axis=0), 50, atol=6)
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.2
    still = Mosaic(size=100, scale=(0.1, 0.1), translate=0.0)
    small = np.array([still.mix(whole, [whole] * 3, key).boxes[0] for key in range(100)])
    np.testing.assert_array_equal(small[:, 2:] - small[:, :2], 10)  # longer side z * size
    assert (np.abs(small[:, 2:] - 50) <= 5).all()  # z * u alone
    moved = Mosaic(size=100, scale=(0.1, 0.1), translate=0.2)
    far = np.array([moved.mix(whole, [whole] * 3, key).boxes[0, 2:] for key in range(200)]) - 50
    assert abs(np.corrcoef(far.T)[0, 1]) < 0.2  # x and y are moved by numbers of their own
    assert ((np.abs(far).max(axis=0) > 20) & (np.abs(far).max(axis=0) <= 25)).all()


def test_zooms_are_drawn_from_their_range():
    whole = flat(64, 64, 0, (0, 0, 64, 64))
    mosaic = Mosaic(size=1000, scale=(0.1, 0.3), translate=0.0)
    zooms = [np.ptp(mosaic.mix(whole, [whole] * 3, key).boxes[0, ::2]) / 1000 for key in range(200)]
    assert 0.1 <= min(zooms) < 0.12
    assert 0.28 < max(zooms) <= 0.3


def test_an_image_that_is_not_mixed_is_fitted():
    before = sample(50, 80, 3)
    after = Mosaic(size=40).mix(before, [], 0)
    assert same(after, ResizeFit(size=40)(before, 0))
    assert after.affine is not None
    assert MixUp().mix(before, [], 0) is before


def test_mixup_by_hand():
    before = flat(60, 80, 100, (1, 2, 3, 4), 0)
    partner = flat(30, 40, 200, (10, 5, 20, 15), 1, ignore=True)  # fits at 2 times its size
    after = MixUp(scale=(1.0, 1.0), flip=0.0).mix(before, [partner], 0)
    np.testing.assert_array_equal(after.image, np.full((60, 80, 3), 150))
    np.testing.assert_array_equal(after.boxes, [[1, 2, 3, 4], [20, 10, 40, 30]])
    assert (after.labels.tolist(), after.ignore.tolist(), after.affine) == ([0, 1], [False, True], None)
    mirrored = MixUp(scale=(1.0, 1.0), flip=1.0).mix(before, [partner], 0)
    np.testing.assert_array_equal(mirrored.boxes[1], [40, 10, 60, 30])
    small = MixUp(scale=(0.5, 0.5), flip=0.0).mix(before, [partner], 0)
    np.testing.assert_array_equal(small.boxes[1], [10, 5, 20, 15])
    assert (small.image[:30, :40] == 150).all()
    assert (small.image[30:] == (100 + FILL) // 2).all()
    assert (small.image[:, 40:] == (100 + FILL) // 2).all()


def test_the_aspect_of_a_partner_is_kept():
    before = flat(60, 80, 100, (1, 2, 3, 4))
    upright = flat(60, 20, 200, (4, 12, 16, 36))  # as high as the sample already
    after = MixUp(scale=(1.0, 1.0), flip=0.0).mix(before, [upright], 0)
    np.testing.assert_array_equal(after.boxes[1], [4, 12, 16, 36])


def test_a_partner_that_is_larger_moves_within_its_rest():
    before = replace(sample(60, 80, 0), image=np.zeros((60, 80, 3), np.uint8))
    partner = painted(30, 40, (18, 12, 22, 16))  # the middle
    starts = []
    for key in range(100):
        after = MixUp(scale=(1.5, 1.5), flip=0.0).mix(before, [partner], key)
        x1, y1, x2, y2 = after.boxes[0]
        assert (x2 - x1, y2 - y1) == (12, 12)
        rows, columns = np.nonzero(after.image[..., 0] > 63)
        np.testing.assert_allclose(
            [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], [x1, y1, x2, y2], atol=1
        )
        starts.append((54 - x1, 36 - y1))
    starts = np.array(starts)
    assert (starts >= 0).all()
    assert (starts.max(axis=0) <= [40, 30]).all()
    assert (starts.max(axis=0) > [36, 27]).all()
    assert (starts.min(axis=0) < 4).all()


def test_a_partner_of_which_no_box_remains_is_left_out():
    before = sample(60, 80, 3)
    assert MixUp().mix(before, [sample(30, 40, 0)], 0) is before
    tiny = flat(30, 40, 0, (1, 1, 2, 2))
    assert MixUp().mix(before, [tiny], 0) is before
    nothing = sample(60, 80, 0)
    mixed = MixUp(scale=(1.0, 1.0)).mix(nothing, [flat(30, 40, 0, (1, 1, 20, 20), 7)], 0)
    assert mixed.labels.tolist() == [7]


@pytest.mark.parametrize("make", [Mosaic, MixUp])
def test_partners_without_boxes_and_of_crowds(make):
    transform = make()
    empty = transform.mix(sample(num_boxes=0), [sample(num_boxes=0)] * transform.num_partners, 0)
    assert (empty.boxes.shape, empty.labels.shape, empty.ignore.shape) == ((0, 4), (0,), (0,))
    assert (empty.boxes.dtype, empty.labels.dtype, empty.ignore.dtype) == (np.float32, np.int64, bool)
    crowds = replace(sample(num_boxes=4), ignore=np.ones(4, bool))
    after = transform.mix(crowds, [crowds] * transform.num_partners, 1)
    assert len(after.boxes)
    assert after.ignore.all()


def test_partners_follow_from_the_key():
    mosaic = Mosaic()
    drawn = [mosaic.choose(key, 0, 10) for key in range(300)]
    assert drawn == [mosaic.choose(key, 99, 10) for key in range(300)]
    counts = np.bincount(np.concatenate(drawn), minlength=10)
    assert len(counts) == 10
    assert counts.min() > 50
    assert {len(d) for d in drawn} == {3}
    assert mosaic.choose(5, 0, 1) == [0, 0, 0]
    assert len(MixUp().choose(5, 0, 10)) == 1


def test_a_share_is_mixed_and_only_in_the_first_epochs():
    assert sum(bool(MixUp(p=0.25).choose(key, 0, 10)) for key in range(400)) in range(60, 140)
    assert not any(Mosaic(p=0.0).choose(key, 0, 10) for key in range(100))
    limited = Mosaic(num_epochs=3)
    assert [bool(limited.choose(1, epoch, 10)) for epoch in range(5)] == [True, True, True, False, False]
    assert not Mosaic(num_epochs=0).choose(1, 0, 10)


class Pool:
    """Numbered images; remembers what was asked of it."""

    epoch = 0

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return 20

    def load(self, place: int, key: int) -> Sample:
        self.asked.append((place, key))
        return flat(40, 40, place, (5, 5, 35, 35), label=place)


def test_steps_ask_the_pool_for_their_partners():
    pool = Pool()
    after = apply([Mosaic(size=64, scale=(0.4, 0.4)), MixUp()], flat(40, 40, 0, (5, 5, 35, 35), 99), 5, pool=pool)
    places = [place for place, _ in pool.asked]
    assert len(places) == 4
    assert after.labels.tolist() == [99, *places]
    assert len({key for _, key in pool.asked}) == 4  # each draws for itself, even the same image twice
    again = Pool()
    assert same(
        after, apply([Mosaic(size=64, scale=(0.4, 0.4)), MixUp()], flat(40, 40, 0, (5, 5, 35, 35), 99), 5, pool=again)
    )
    assert again.asked == pool.asked
    other = Pool()
    apply([Mosaic(), MixUp()], sample(), 6, pool=other)
    assert other.asked != pool.asked


def test_what_stands_before_the_first_mixing_step():
    flip, resize = HorizontalFlip(), ResizeFit()
    assert before_mixing([flip, resize]) == [flip, resize]
    assert before_mixing([flip, Mosaic(), resize, MixUp()]) == [flip]
    assert before_mixing([MixUp()]) == []


def test_without_others_at_hand_mixing_is_refused():
    with pytest.raises(ValueError, match=r"^Mosaic mixes images: only a loader for training has others at hand$"):
        apply([Mosaic()], sample(), 0)
    with pytest.raises(ValueError, match=r"^MixUp mixes images"):
        MixUp()(sample(), 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mosaic(size=0), "size must be positive, not 0"),
        (lambda: Mosaic(translate=0.7), r"translate must be in \[0, 0.5\], not 0.7"),
        (lambda: Mosaic(scale=(2.0, 0.1)), r"scale must be a range within \[0.1, 10\], not \[2.0, 0.1\]"),
        (lambda: Mosaic(p=1.1), r"p must be in \[0, 1\], not 1.1"),
        (lambda: Mosaic(num_epochs=-1), "num_epochs must not be negative, not -1"),
        (lambda: Mosaic(min_visibility=-0.1), r"min_visibility must be in \[0, 1\], not -0.1"),
        (lambda: MixUp(flip=2.0), r"flip must be in \[0, 1\], not 2.0"),
        (lambda: MixUp(scale=(0.5, 11.0)), r"scale must be a range within \[0.1, 10\], not \[0.5, 11.0\]"),
        (lambda: MixUp(min_size=0.0), "min_size must be positive, not 0.0"),
        (lambda: MixUp(p=-0.5), r"p must be in \[0, 1\], not -0.5"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
