"""Several views of each image: the way there and back, what the merge is given, and every model preset."""

import cv2
import numpy as np
import pytest
import torch

from detkit.app.cli.paths import config_dir
from detkit.matching import NMS, WBF, Fate, Merge, SoftNMS, tracing
from detkit.models import Detector, MultiView
from detkit.models.tta import see
from detkit.structures import Affine, Categories, Detections, ImageMeta, Images, Losses, Target
from tests.models.builders import build_awake

CATEGORIES = Categories(("a", "b", "c"), (1, 4, 9))
MODEL_PRESETS = sorted(p.stem for p in (config_dir() / "model").glob("*.yaml"))
RED, GREEN, BLUE = range(3)


class ColorDetector(Detector):
    """Finds what is red, green and blue: the extent of each colour is a box of its class. Remembers what it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images, targets=None):
        if targets is not None:
            return Losses({"one": torch.ones(())})
        self.seen.append(images)
        return [self.find(pixels[:, :h, :w]) for pixels, (h, w) in zip(images.pixels, images.sizes, strict=True)]

    @staticmethod
    def find(pixels):
        boxes, labels = [], []
        for label, channel in enumerate(pixels):
            y, x = (channel > 127.5).nonzero().unbind(1)
            if len(y):
                boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
                labels.append(label)
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        return Detections(boxes, 0.9 - 0.1 * torch.arange(len(boxes)), torch.tensor(labels, dtype=torch.int64))


class Watched(Merge):
    """Another merge, and what each view of the last image brought to it."""

    def __init__(self, merge):
        self.merge = merge

    def __call__(self, views):
        self.views = views
        return self.merge(views)


def draw(*pictures, original=1.0):
    """A batch of black images of the given (h, w) with boxes (label, x1, y1, x2, y2), and those boxes image by image."""
    height, width = (max(size[i] for size, _ in pictures) for i in (0, 1))
    pixels = torch.zeros(len(pictures), 3, height, width, dtype=torch.uint8)
    metas, boxes = [], []
    for i, ((h, w), things) in enumerate(pictures):
        for label, x1, y1, x2, y2 in things:
            pixels[i, label, y1:y2, x1:x2] = 255
        affine = Affine(scale_x=original, scale_y=original)
        metas.append(ImageMeta(i, f"{i}.png", (h, w), (round(h / original), round(w / original)), affine, key=i))
        boxes.append(torch.tensor([thing[1:] for thing in things], dtype=torch.float32))
    return Images(pixels, tuple(metas)), boxes


def two_pictures(original=1.0):
    """Of different sizes, each with padding; all numbers are even, so that they stay whole at half the size."""
    return draw(
        ((48, 80), [(RED, 2, 4, 20, 40), (GREEN, 50, 0, 80, 30)]), ((64, 40), [(RED, 0, 20, 16, 64), (BLUE, 20, 2, 36, 12)]),
        original=original,
    )  # fmt: skip


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (2.0,), (0.5,), (1.5,), (0.5, 1.0, 1.5, 2.0)])
def test_boxes_of_every_view_come_back_exactly(scales, flip):
    images, boxes = two_pictures()
    merge = Watched(WBF())
    detector = ColorDetector()
    tta = MultiView(detector=detector, size_divisor=16, scales=scales, flip=flip, merge=merge)
    for found, expected in zip(tta(images), boxes, strict=True):
        assert len(merge.views) == len(scales) * (1 + flip)
        torch.testing.assert_close(found.boxes, expected)
        assert found.scores.tolist() == pytest.approx([0.9, 0.8])
    for view in merge.views:
        torch.testing.assert_close(view.boxes, boxes[1])
    for seen in detector.seen:
        assert not (seen.pixels * ~seen.valid_mask()).any(), "padding is at the right and bottom, and black"
        if seen.padded_size != images.padded_size:
            assert all(side % 16 == 0 for side in seen.padded_size)


def test_views_are_mirrored_within_each_image_and_know_the_way_back():
    images, boxes = two_pictures(original=2.0)
    seen = see(images, 1.5, flip=True, size_divisor=32)
    assert seen.sizes == [(72, 120), (96, 60)]
    assert seen.padded_size == (96, 128)
    for meta, there, pixels, original in zip(images.meta, seen.meta, seen.pixels, boxes, strict=True):
        found = ColorDetector.find(pixels[:, : there.size[0], : there.size[1]])
        torch.testing.assert_close(there.affine.undo(found.boxes), meta.affine.undo(original))
        assert (there.original_size, there.key, there.file) == (meta.original_size, meta.key, meta.file)
    red = ColorDetector.find(seen.pixels[0, :, :72, :120]).boxes[0]
    assert red.tolist() == [120 - 1.5 * 20, 6, 120 - 1.5 * 2, 60]


def test_sizes_that_do_not_divide_come_back_too():
    """Height and width are rounded each by itself: 3 x 100 px at 1.5 are 4 x 150."""
    images, (box,) = draw(((3, 100), [(RED, 20, 0, 80, 3)]))
    assert see(images, 1.5, flip=False, size_divisor=32).sizes == [(4, 150)]
    found = MultiView(detector=ColorDetector(), scales=(1.5,), flip=True, merge=WBF())(images)[0]
    torch.testing.assert_close(found.boxes, box)
    images, (box,) = draw(((37, 53), [(RED, 5, 7, 31, 29)]))
    found = MultiView(detector=ColorDetector(), scales=(0.7, 1.3), flip=True)(images)[0]
    assert (found.boxes - box).abs().max() < 1


def test_the_image_itself_is_handed_on_untouched():
    images, _ = two_pictures()
    assert see(images, 1.0, flip=False, size_divisor=32) is images
    mirrored = see(images, 1.0, flip=True, size_divisor=32)
    assert mirrored.pixels.dtype == torch.uint8
    assert mirrored.padded_size == images.padded_size
    twice = see(mirrored, 1.0, flip=True, size_divisor=32)
    assert torch.equal(twice.pixels, images.pixels)
    assert twice.meta == images.meta


def test_a_square_batch_stays_square():
    images, _ = draw(((48, 64), []), ((64, 64), []))
    for scale in (0.3, 0.75, 1.7):
        h, w = see(images, scale, flip=False, size_divisor=32).padded_size
        assert h == w


def test_resizing_is_the_loaders():
    """Bilinear between pixel centres; below half the size, where that would skip pixels, every pixel counts."""
    pixels = torch.rand(1, 3, 40, 60, generator=torch.Generator().manual_seed(0)) * 255
    images = Images(pixels, (ImageMeta(0, "0.png", (40, 60), (40, 60)),))
    for scale in (0.75, 1.5):
        ours = see(images, scale, flip=False, size_divisor=1).pixels[0].permute(1, 2, 0).numpy()
        theirs = cv2.resize(pixels[0].permute(1, 2, 0).numpy(), ours.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(ours, theirs, atol=1e-2)
    stripes = torch.zeros(1, 3, 4, 32)
    stripes[..., ::4] = 240.0  # bilinear at a quarter would read columns 1 and 2 of each four, and see none
    small = see(Images(stripes, (ImageMeta(0, "0.png", (4, 32), (4, 32)),)), 0.25, flip=False, size_divisor=1).pixels
    assert (small - 60).abs().max() < 30


def test_float_pixels_and_lower_precision_give_the_same():
    images, _ = two_pictures()
    tta = MultiView(detector=ColorDetector(), scales=(0.3, 0.75, 1.5), flip=True, merge=SoftNMS())
    as_float = Images(images.pixels.float(), images.meta)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = tta(images)
    for a, b, c in zip(tta(images), tta(as_float), low, strict=True):
        for other in (b, c):
            assert torch.equal(a.boxes, other.boxes)
            assert torch.equal(a.scores, other.scores)
            assert other.boxes.dtype == other.scores.dtype == torch.float32


def test_losses_are_those_of_the_detector():
    images, _ = two_pictures()
    tta = MultiView(detector=ColorDetector(), flip=True)
    assert tta(images, [Target.empty(), Target.empty()]).terms["one"] == 1
    assert tta.detector.seen == []


def test_each_scale_keeps_its_sizes():
    """Sizes are those in the file: the network input is twice as large here, so the boxes are 4, 10 and 20 px."""
    images, _ = draw(((96, 128), [(RED, 0, 0, 8, 8), (GREEN, 16, 16, 36, 36), (BLUE, 40, 40, 80, 80)]), original=2.0)
    merge = Watched(NMS())
    ranges = ((0.0, 4.0), (5.0, 15.0), (10.0, None))
    tta = MultiView(detector=ColorDetector(), scales=(2.0, 1.0, 0.5), flip=True, merge=merge, valid_ranges=ranges)
    labels = tta(images)[0].labels.tolist()
    assert [v.labels.tolist() for v in merge.views] == [[RED]] * 2 + [[GREEN]] * 2 + [[GREEN, BLUE]] * 2
    assert labels == [RED, GREEN, BLUE]
    unknown = Images(images.pixels, (ImageMeta(0, "0.png", (96, 128), (48, 64)),))
    with pytest.raises(
        ValueError, match=r"0.png: valid_ranges count px of the original image, but meta.affine is missing"
    ):
        tta(unknown)


def test_limits_on_what_is_merged():
    images, _ = draw(((64, 64), [(RED, 0, 0, 8, 8), (GREEN, 16, 16, 36, 36), (BLUE, 40, 40, 60, 60)]))
    second = ColorDetector()(images)[0].scores[1].item()  # as float32 has 0.8: it is not more than itself
    for limits, expected in (
        ({}, [0.9, 0.8, 0.7]),
        ({"max_detections": 2}, [0.9, 0.8]),
        ({"score_threshold": 0.85}, [0.9]),
        ({"score_threshold": second}, [0.9]),
    ):
        found = MultiView(detector=ColorDetector(), flip=True, **limits)(images)[0]
        assert found.scores.tolist() == pytest.approx(expected)


class OneSize(ColorDetector):
    """As a fully connected head is."""

    def forward(self, images, targets=None):
        if images.padded_size != (64, 64):
            raise ValueError(f"needs 64 x 64 px, not {images.padded_size}; set transform.val.resize.size=64")
        return super().forward(images, targets)


def test_a_detector_of_one_size_takes_flips_but_no_scales():
    images, boxes = draw(((48, 64), [(RED, 2, 4, 20, 40)]), ((64, 64), []))
    found = MultiView(detector=OneSize(), flip=True)(images)
    torch.testing.assert_close(found[0].boxes, boxes[0])
    assert len(found[1]) == 0
    with pytest.raises(
        ValueError,
        match=r"refuses images at scale 0.5, 32 x 32 px: needs 64 x 64 px.*resize.size=64. A detector that insists on "
        r"one input size cannot be used with scales: tta.scales=\[1\]",
    ):
        MultiView(detector=OneSize(), scales=(1.0, 0.5))(images)
    with pytest.raises(ValueError, match=r"^needs 64 x 64 px"):
        MultiView(detector=OneSize(), scales=(1.0, 0.5))(two_pictures()[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": ()}, r"scales must be positive numbers, not \[\]"),
        ({"scales": (1.0, 0.0)}, r"scales must be positive numbers, not \[1.0, 0.0\]"),
        ({"max_detections": 0}, "need max_detections >= 1 and 0 <= score_threshold <= 1, not 0 and 0.001"),
        ({"score_threshold": 2.0}, "not 100 and 2.0"),
        ({"valid_ranges": ((0.0, 9.0), (9.0, None))}, r"valid_ranges must have a \[from, to\] for each of the 1 scales, not 2"),
        ({"valid_ranges": ((9.0, 8.0),)}, r"with 0 <= from < to, not \[\[9.0, 8.0\]\]"),
        ({"valid_ranges": ((0.0, 9.0),), "merge": WBF()}, "WBF scores a box by how many of all views found it; merge by NMS or SoftNMS"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MultiView(detector=ColorDetector(), **settings)


def random_batch():
    g = torch.Generator().manual_seed(0)
    sizes = ((64, 96), (50, 70))
    pixels = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    for i, (h, w) in enumerate(sizes):
        pixels[i, :, :h, :w] = torch.randint(0, 256, (3, h, w), generator=g, dtype=torch.uint8)
    return Images(pixels, tuple(ImageMeta(i, f"{i}.png", s, s, Affine(), key=i) for i, s in enumerate(sizes)))


@pytest.fixture(params=MODEL_PRESETS, scope="module")
@torch.no_grad()
def detector(request):
    """Untrained, and made to say all that it thinks."""
    detector = build_awake(request.param, CATEGORIES).eval()
    try:
        detector(see(random_batch(), 0.6, flip=True, size_divisor=32))
    except ValueError as error:
        pytest.skip(f"takes images of one size only: {error}")
    return detector


def rows(found):
    """Score, label and box of each detection, in an order of their own."""
    table = torch.cat([found.scores[:, None], found.labels[:, None], found.boxes], 1)
    return sorted(table.tolist())


@torch.no_grad()
def test_one_view_gives_what_the_detector_gives(detector):
    images = random_batch()
    tta = MultiView(detector=detector, merge=NMS(iou_threshold=1.0), score_threshold=0.0, max_detections=10**6)
    for plain, found in zip(detector(images), tta(images), strict=True):
        assert len(plain) > 0
        assert rows(plain) == rows(found)


@pytest.mark.parametrize("merge", [NMS(), SoftNMS(), WBF()], ids=lambda m: type(m).__name__)
@torch.no_grad()
def test_every_model_takes_several_views(detector, merge):
    images = random_batch()
    tta = MultiView(detector=detector, scales=(1.0, 0.6), flip=True, merge=merge, max_detections=30)
    for detections, (h, w) in zip(tta(images), images.sizes, strict=True):
        assert 0 < len(detections) <= 30
        assert (detections.scores.diff() <= 0).all()
        assert (detections.labels < len(CATEGORIES)).all()
        boxes = detections.boxes
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= w).all()
        assert (boxes[:, 3] <= h).all()


def kept_somewhere(boxes, selections):
    """Whether each of ``boxes`` (N, 4) stands in one of ``selections`` among those that were kept there."""
    kept = torch.cat([s.boxes[s.fates == Fate.KEPT] for s in selections])
    return (torch.cdist(boxes, kept, p=float("inf")).min(dim=1).values < 1e-2).all()


@torch.no_grad()
def test_the_trace_of_every_model_is_in_px_of_the_image_whatever_the_view(detector):
    both = random_batch()
    images = Images(both.pixels[1:], both.meta[1:])
    tta = MultiView(detector=detector, scales=(1.0, 0.6), flip=True, max_detections=30)
    with tracing() as trace:
        (found,) = tta(images)
    (alone,) = tta(images)
    torch.testing.assert_close(found.boxes, alone.boxes, msg="watching changes nothing")
    *of_views, merge = trace.selections
    torch.testing.assert_close(merge.boxes[merge.fates == Fate.KEPT], found.boxes)
    assert (merge.fates != Fate.KEPT).any()
    assert kept_somewhere(merge.boxes, of_views)


def test_what_a_scale_leaves_to_others_is_of_a_size_that_it_does_not_answer_for():
    images, _ = draw(((96, 128), [(RED, 0, 0, 8, 8), (GREEN, 16, 16, 36, 36)]))
    with tracing() as trace:
        MultiView(detector=ColorDetector(), scales=(1.0, 0.5), valid_ranges=((0.0, 10.0), (9.0, None)))(images)
    large, small, merge = trace.selections
    assert (large.fates.tolist(), large.boxes.tolist()) == ([Fate.TOO_SMALL], [[16, 16, 36, 36]])
    assert (small.fates.tolist(), small.boxes.tolist()) == ([Fate.TOO_SMALL], [[0, 0, 8, 8]])
    assert merge.fates.tolist() == [Fate.KEPT, Fate.KEPT]
