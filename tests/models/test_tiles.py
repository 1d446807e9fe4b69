"""Tiles of large images: SAHI's slices, boxes cut by borders, every object once, and memory that does not grow."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detkit.matching import NMS, WBF, Fate, OverSmaller, SoftNMS, tracing
from detkit.models import Detector, Tiles
from detkit.models.tiles import _View, is_cut, slices, without_cut
from detkit.structures import Affine, Categories, Detections, ImageMeta, Images, Losses
from detkit.structures.boxes import clip, is_larger, pairwise_intersection, pairwise_iou
from tests.models.builders import build_awake

GOLDEN = json.loads((Path(__file__).parent / "slices.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: "x".join(map(str, c["image"])))
def test_slices_are_those_of_sahi(case):
    assert [list(s) for s in slices(case["image"], case["tile"], case["overlap"])] == case["boxes"]


class Squares(Detector):
    """Finds bright rectangles that stand apart: one box for each, also for what a border has left of one."""

    def __init__(self, least=0):
        super().__init__()
        self.sizes, self.least, self.metas = [], least, []

    def forward(self, images, targets=None):
        if targets is not None:
            return Losses({"one": torch.ones(())})
        self.sizes.append(tuple(images.pixels.shape))
        self.metas += images.meta
        return [
            self.find(p[0, : m.size[0], : m.size[1]] > 127, m) for p, m in zip(images.pixels, images.meta, strict=True)
        ]

    def find(self, bright, meta):
        boxes = []
        while bright.any():
            y, x = (int(v) for v in bright.nonzero()[0])
            right, bottom = x + run(bright[y, x:]), y + run(bright[y:, x])
            bright[y:bottom, x:right] = False
            boxes.append([x, y, right, bottom])
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        large = (boxes[:, 2:] - boxes[:, :2]).min(dim=1).values >= self.least
        boxes = boxes[large]
        return Detections(boxes, torch.full((len(boxes),), 0.9), torch.zeros(len(boxes), dtype=torch.int64))


def run(line):
    dark = (~line).nonzero()
    return int(dark[0]) if len(dark) else len(line)


def picture(size, *boxes):
    pixels = torch.zeros(1, 3, *size, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes:
        pixels[0, :, y1:y2, x1:x2] = 255
    return Images(pixels, (ImageMeta(7, "large.png", size, size, Affine(), key=1),))


#: Beside borders of tiles (100 px, 20 in common: 0, 80, 160 ...), across one, across two, and at the image's own.
OBJECTS = [
    (3, 3, 12, 12),
    (75, 30, 85, 40),
    (92, 50, 108, 60),
    (95, 95, 104, 105),
    (150, 10, 175, 20),
    (240, 190, 250, 200),
]


@pytest.mark.parametrize(
    "merge", [NMS(), OverSmaller(), SoftNMS(least_score=0.5), WBF()], ids=lambda m: type(m).__name__
)
@pytest.mark.parametrize("whole", [True, False])
def test_every_object_is_found_once(merge, whole):
    tiles = Tiles(detector=Squares(), tile=100, overlap=0.2, whole=whole, merge=merge, size_divisor=16)
    (found,) = tiles(picture((200, 250), *OBJECTS))
    boxes = sorted(tuple(round(v) for v in box) for box in found.boxes.tolist())
    if not whole:
        assert boxes == sorted(OBJECTS), "each is whole in a tile, and its halves in others are left out"
    assert len(boxes) == len(OBJECTS)
    assert found.scores.tolist() == pytest.approx([0.9] * len(OBJECTS))


def test_what_is_whole_in_no_tile_is_found_in_the_whole_image():
    large = (20, 30, 190, 150)
    (alone,) = Tiles(detector=Squares(), tile=100, whole=False)(picture((200, 250), large))
    assert len(alone) > 1, "pieces"
    (found,) = Tiles(detector=Squares(), tile=100)(picture((200, 250), large))
    assert len(found) == 1
    torch.testing.assert_close(found.boxes[0], torch.tensor([20.0, 30, 190, 150]), atol=3, rtol=0)


def test_a_cut_box_that_nobody_else_has_stays():
    detector = Squares(least=9)  # the neighbour's piece, 6 px, is too small for it
    (found,) = Tiles(detector=detector, tile=100, overlap=0.0, whole=False)(picture((100, 200), (90, 10, 106, 24)))
    assert found.boxes.tolist() == [[90, 10, 100, 24]]


def test_a_cut_box_of_another_class_is_no_part():
    whole, part = torch.tensor([[80.0, 10, 120, 50]]), torch.tensor([[80.0, 10, 100, 50]])

    def view(boxes, label, cut):
        return _View(Detections(boxes, torch.tensor([0.9]), torch.tensor([label])), torch.tensor([cut]))

    assert len(without_cut([view(part, 1, True), view(whole, 0, False)])) == 2
    assert without_cut([view(part, 0, True), view(whole, 0, False)]).boxes.tolist() == whole.tolist()
    assert len(without_cut([view(part, 0, True), view(whole, 0, True)])) == 2, "of two parts none is the whole"


def test_a_cut_box_does_not_go_for_its_neighbour_in_the_same_view():
    """Two objects that overlap at a border, in a crowd: the detector's own NMS left both."""
    boxes, scores = torch.tensor([[80.0, 40, 100, 60], [60.0, 30, 97, 70]]), torch.tensor([0.9, 0.5])
    crowd = _View(Detections(boxes, scores, torch.tensor([0, 0])), torch.tensor([True, False]))
    assert without_cut([crowd]).boxes.tolist() == boxes.tolist()
    elsewhere = _View(Detections(boxes[1:] + 1, scores[1:], torch.tensor([0])), torch.tensor([False]))
    assert without_cut([crowd, elsewhere]).boxes.tolist() == [boxes[1].tolist(), (boxes[1] + 1).tolist()]


@pytest.mark.parametrize("over", [[80.0, 10, 120, 50], [0.0, 0, 200, 200]], ids=["its whole", "a loose false alarm"])
@pytest.mark.parametrize(("score", "kept"), [(0.06, [0.9, 0.06]), (0.44, [0.9, 0.44]), (0.46, [0.46]), (0.95, [0.95])])
def test_a_cut_box_stays_where_the_one_over_it_scores_less_than_half_as_much(over, score, kept):
    part, one_class = torch.tensor([[80.0, 10, 100, 50]]), torch.tensor([0])
    cut = _View(Detections(part, torch.tensor([0.9]), one_class), torch.tensor([True]))
    whole = _View(Detections(torch.tensor([over]), torch.tensor([score]), one_class), torch.tensor([False]))
    found = without_cut([cut, whole])
    assert found.scores.tolist() == pytest.approx(kept)
    assert found.boxes.tolist() == [*([part[0].tolist()] if len(kept) > 1 else []), over]


def test_a_doubtful_look_at_the_whole_image_takes_no_sure_piece_away():
    """An object that tiles see in pieces: what scores 0.06 in the whole image is not all that comes out."""

    class Unsure(Squares):
        def forward(self, images, targets=None):
            faint = images.meta[0].affine.scale_x < 1
            return [replace(f, scores=f.scores * (0.06 / 0.9 if faint else 1)) for f in super().forward(images)]

    large = (20, 30, 190, 150)
    (pieces,) = Tiles(detector=Squares(), tile=100, whole=False)(picture((200, 250), large))
    (found,) = Tiles(detector=Unsure(), tile=100)(picture((200, 250), large))
    assert found.boxes[:-1].tolist() == pieces.boxes.tolist()
    assert found.scores.tolist() == pytest.approx([0.9] * len(pieces) + [0.06])


def test_borders_of_the_image_cut_nothing():
    boxes = torch.tensor([[0.0, 50, 20, 70], [50, 80, 70, 99], [80, 50, 99, 70], [50, 0, 70, 20], [50, 50, 70, 70]])
    assert is_cut(boxes, (0, 0, 100, 100), (200, 200)).tolist() == [False, True, True, False, False]
    assert is_cut(boxes + 100, (100, 100, 200, 200), (200, 200)).tolist() == [True, False, False, True, False]


def test_tiles_come_in_batches_and_tell_their_place():
    detector = Squares()
    Tiles(detector=detector, tile=100, overlap=0.2, batch_size=4, size_divisor=32)(picture((200, 250), (5, 5, 9, 9)))
    assert detector.sizes == [(4, 3, 128, 128), (4, 3, 128, 128), (1, 3, 128, 128), (1, 3, 96, 128)]
    tile, whole = detector.metas[1], detector.metas[-1]
    assert (tile.size, tile.image_id) == ((100, 100), 7)
    assert tile.affine.undo(torch.tensor([[0.0, 0, 10, 10]])).tolist() == [[80, 0, 90, 10]]
    assert whole.size == (80, 100)
    assert whole.affine.undo(torch.tensor([[0.0, 0, 10, 10]])).tolist() == [[0, 0, 25, 25]]


def test_an_image_of_one_tile_is_seen_once_as_it_is():
    detector = Squares()
    images = picture((90, 70), (5, 6, 20, 30))
    (found,) = Tiles(detector=detector, tile=100, size_divisor=1)(images)
    assert detector.sizes == [(1, 3, 90, 70)]
    assert found.boxes.tolist() == [[5, 6, 20, 30]]


def test_losses_are_those_of_the_image_as_it_is():
    assert Tiles(detector=Squares())(picture((50, 50)), []).terms == {"one": torch.ones(())}


def test_tiles_must_move_on():
    with pytest.raises(ValueError, match=r"overlap must be below 1, not 1.0"):
        Tiles(detector=Squares(), overlap=1.0)


class Nothing(Detector):
    """Finds nothing, and knows the most pixels that it was ever given."""

    most = 0

    def forward(self, images, targets=None):
        self.most = max(self.most, images.pixels.numel())
        empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        return [empty for _ in images.meta]


def test_the_detector_never_sees_more_than_a_few_tiles_of_an_image_of_8000_px():
    detector = Nothing()
    pixels = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(1, 3, 8000, 8000)  # one byte of memory
    images = Images(pixels, (ImageMeta(0, "huge.png", (8000, 8000), (8000, 8000)),))
    (found,) = Tiles(detector=detector, tile=640, batch_size=4, whole=False)(images)
    assert len(found) == 0
    assert detector.most == 4 * 3 * 640 * 640


class Marked(Detector):
    """Marks exact boxes: of each object what its view shows, if that has an area, and one more like it, scored less."""

    def __init__(self, boxes, labels):
        super().__init__()
        self.boxes, self.labels = boxes, labels

    def forward(self, images, targets=None):
        return [self.of_view(meta) for meta in images.meta]

    def of_view(self, meta):
        boxes = clip(meta.affine.apply(self.boxes), meta.size)
        seen = is_larger(boxes, 1.0)
        scores = torch.full((int(seen.sum()),), 0.9)
        points = meta.affine.apply(self.boxes)[seen].view(-1, 2, 2)  # beyond the view, as a network may say
        one = Detections(boxes[seen], scores, self.labels[seen], points)
        return Detections.join([one, replace(one, boxes=clip(one.boxes + 0.5, meta.size), scores=scores - 0.3)])


def scattered(size, spots, least=12, most=60):
    """Boxes of ``least`` to ``most`` px, none overlapping: about each of ``spots`` (x, y), and anywhere beside them."""
    rng, taken = torch.Generator().manual_seed(4), torch.zeros(0, 4)
    anywhere = [None] * 400
    for spot in [*spots, *anywhere]:
        w, h = (least + torch.rand(2, generator=rng) * (most - least)).tolist()
        at = torch.rand(2, generator=rng).tolist()
        x, y = (spot[0] - at[0] * w, spot[1] - at[1] * h) if spot else (at[0] * (size[1] - w), at[1] * (size[0] - h))
        x, y = min(max(x, 0), size[1] - w), min(max(y, 0), size[0] - h)
        box = torch.tensor([[x, y, x + w, y + h]])
        if not (pairwise_intersection(box, taken) > 0).any():
            taken = torch.cat([taken, box])
    return taken


@pytest.mark.parametrize("merge", [NMS(), OverSmaller(), WBF()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("whole", [True, False])
def test_every_object_of_a_large_image_is_found_once(merge, whole):
    """2,048 x 1,700 px, tiles of 640: objects on each seam, where four tiles meet, and in the image's corners."""
    size, tile = (1700, 2048), 640
    borders = slices(size, (tile, tile), (0.2, 0.2))
    xs, ys = ({b[i] for b in borders} | {b[i + 2] for b in borders} for i in (0, 1))
    spots = [(x, y) for x in sorted(xs) for y in sorted(ys)]  # crossings of borders, and the corners of the image
    spots += [(x, 333.0) for x in sorted(xs)] + [(777.0, y) for y in sorted(ys)]
    boxes = scattered(size, spots)
    labels = torch.arange(len(boxes)) % 3
    assert len(boxes) > 250
    pixels = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(1, 3, *size)  # one byte of memory
    images = Images(pixels, (ImageMeta(0, "large.png", size, size, Affine()),))
    tiles = Tiles(detector=Marked(boxes, labels), tile=tile, whole=whole, merge=merge, max_detections=1000)
    (found,) = tiles(images)
    least = 0.7 if isinstance(merge, WBF) else 0.95  # a mean with a box beside it is not exact
    matched = (pairwise_iou(boxes, found.boxes) > least) & (labels[:, None] == found.labels)
    assert matched.sum(dim=1).tolist() == [1] * len(boxes), "each object once"
    assert matched.sum(dim=0).tolist() == [1] * len(found), "and nothing else"
    corners = boxes[matched.int().argmax(dim=0)].view(-1, 2, 2)
    torch.testing.assert_close(found.landmarks, corners, rtol=0, atol=0.01)


def test_bounds_of_what_the_border_cuts():
    """A tile of 100 px at the corner of 200: an edge is inside from 2 px on, and half as sure a whole is enough."""
    boxes = torch.tensor([[40.0, 40, 98, 60], [40, 40, 97.9, 60]])
    assert is_cut(boxes, (0, 0, 100, 100), (200, 200)).tolist() == [True, False]

    def view(box, score, cut):
        return _View(Detections(torch.tensor([box]), torch.tensor([score]), torch.tensor([0])), torch.tensor([cut]))

    half = [view([80.0, 10, 100, 50], 0.8, True), view([80.0, 10, 120, 50], 0.4, False)]
    assert without_cut(half).scores.tolist() == pytest.approx([0.4])
    for x1, left in ((68.0, 1), (74.0, 2)):  # 0.8 and 0.65 of the part
        assert len(without_cut([view([60.0, 10, 100, 50], 0.8, True), view([x1, 10, 140, 50], 0.8, False)])) == left


@torch.no_grad()
@pytest.mark.parametrize("name", ["faster_rcnn_fpn", "centernet"])
def test_the_trace_is_in_px_of_the_image_whatever_the_tile(name):
    detector = build_awake(name, Categories(("a", "b"), (1, 2))).eval()
    pixels = torch.randint(0, 256, (1, 3, 96, 160), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = Images(pixels, (ImageMeta(0, "a.png", (96, 160), (96, 160), Affine(), key=0),))
    tiles = Tiles(detector=detector, tile=64, overlap=0.25, batch_size=2, max_detections=20)
    with tracing() as trace:
        (found,) = tiles(images)
    (alone,) = tiles(images)
    torch.testing.assert_close(found.boxes, alone.boxes, atol=1e-2, rtol=0, msg="watching changes nothing")
    *of_views, merge = trace.selections
    torch.testing.assert_close(merge.boxes[merge.fates == Fate.KEPT], found.boxes)
    assert (merge.fates != Fate.KEPT).any()
    kept = torch.cat([s.boxes[s.fates == Fate.KEPT] for s in of_views])
    assert (torch.cdist(merge.boxes, kept, p=float("inf")).min(dim=1).values < 1e-2).all()
    assert kept[:, 0].max() > 64, "those of other tiles than the first have moved"


def test_a_piece_goes_for_its_whole_and_the_trace_says_so():
    with tracing() as trace:
        Tiles(detector=Squares(), tile=100, overlap=0.2, whole=False)(picture((100, 180), (84, 30, 105, 40)))
    (merge,) = trace.selections
    assert merge.boxes.tolist() == [[84, 30, 105, 40], [84, 30, 100, 40]]
    assert merge.fates.tolist() == [Fate.KEPT, Fate.MERGED]
    assert merge.suppressors.tolist() == [-1, 0]
