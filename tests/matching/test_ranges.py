"""SNIP: an image or a level learns nothing from objects outside its range."""

import dataclasses
import math

import pytest
import torch

from detkit.losses import BCE, L1, CrossEntropy, Focal
from detkit.matching import (
    AnchorGrid,
    BalancedSampler,
    DeltaCoder,
    MaxIoUAssigner,
    Selector,
    assign_allowed,
    assign_anchors,
    found_in_range,
    only_in_range,
)
from detkit.matching.assigners import IGNORED, NEGATIVE
from detkit.models.heads import RPN, RegionMLP, RoIAlign, RoIHead
from detkit.models.heads.retinanet import RetinaHead
from detkit.structures import FeatureSpec, ImageMeta, Images, SizeRange, Target, size_ranges

SPEC = FeatureSpec((4, 4), (8.0, 16.0))
SHAPES = [(8, 8), (4, 4)]
RANGES = (SizeRange(0.0, 30.0), SizeRange(20.0))
IMAGES = Images(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), (ImageMeta(0, "0.png", (64, 64), (64, 64)),))


def in_image(low, high):
    """The image, where only sizes from ``low`` to ``high`` count."""
    return Images(IMAGES.pixels, (dataclasses.replace(IMAGES.meta[0], valid_range=SizeRange(low, high)),))


def target(*boxes):
    n = len(boxes)
    return Target(
        torch.tensor(boxes, dtype=torch.float32), torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.bool)
    )


def assign(boxes, ranges=RANGES, images=IMAGES):
    grid = AnchorGrid(in_spec=SPEC, scales=(2.0,), ratios=(1.0,))
    assigner = MaxIoUAssigner(positive=0.5, negative=0.4, match_best=True)
    return assign_anchors(grid, assigner, SHAPES, images, [target(*boxes)], ranges)[0]


def test_sizes_are_square_roots_of_areas_and_bounds_belong_to_the_range():
    boxes = target([0, 0, 40, 10], [0, 0, 30, 30], [0, 0, 60, 60], [0, 0, 10, 10]).boxes
    assert [r.holds(boxes).tolist() for r in RANGES] == [[True, True, False, True], [True, True, True, False]]


def test_each_level_answers_for_its_own_sizes():
    small, large = [20.0, 20.0, 36.0, 36.0], [8.0, 8.0, 56.0, 56.0]
    fine, coarse = assign([small, large]).matched.split([64, 16])
    assert (fine == 0).any()
    assert not (fine == 1).any()
    assert (coarse == 1).any()
    assert not (coarse == 0).any()


def test_an_anchor_on_a_forbidden_object_is_ignored_not_background():
    exact = [16.0, 16.0, 32.0, 32.0]  # the very box of a fine anchor, centred on cell (3, 3)
    free = assign([exact], None).matched[:64]
    forbidden = assign([exact], (SizeRange(30.0), SizeRange())).matched[:64]
    place = (free == 0).nonzero()[0]
    assert forbidden[place] == IGNORED
    assert not (forbidden == 0).any()


def test_an_object_out_of_every_range_gives_exactly_no_gradient():
    """Moving such an object changes no gradient by a bit, as long as it covers the same anchors."""
    head = RetinaHead(
        in_spec=SPEC, num_classes=2, anchors=AnchorGrid(in_spec=SPEC, scales=(2.0,), ratios=(1.0,)),
        assigner=MaxIoUAssigner(positive=0.5, negative=0.4, match_best=True), coder=DeltaCoder(), cls_loss=Focal(),
        box_loss=L1(), selector=Selector(), valid_ranges=((0.0, 20.0), (0.0, 20.0)),
    )  # fmt: skip
    torch.manual_seed(0)
    features = [torch.randn(1, 4, *shape) for shape in SHAPES]
    inside, outside = [4.0, 4.0, 20.0, 20.0], [30.0, 30.0, 62.0, 62.0]

    def gradients(*boxes):
        head.zero_grad()
        head.loss(features, IMAGES, [target(*boxes)]).total.backward()
        return [p.grad.clone() for p in head.parameters()]

    one, two = gradients(inside, outside), gradients(inside, [30.5, 30.5, 62.5, 62.5])
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))

    raw = head(features)
    for part in (*raw.logits, *raw.deltas):
        part.retain_grad()
    head.loss_from_raw(raw, IMAGES, [target(outside)]).total.backward()
    matched = head.assign(SHAPES, IMAGES, [target(outside)])[0].matched
    logit_gradient = torch.cat([part.grad for part in raw.logits], 1)[0]
    assert (matched == IGNORED).any()
    assert (logit_gradient[matched == IGNORED] == 0).all()
    assert all((part.grad == 0).all() for part in raw.deltas), "no box learns from it either"


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (((0.0, 10.0),), r"a \[from, to\] for each of the 2 levels, not 1"),
        (((5.0, 5.0), (0.0, None)), r"\[from, to\] with 0 <= from < to, not \[\[5.0, 5.0\]"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(ranges, message):
    with pytest.raises(ValueError, match=message):
        size_ranges(ranges, 2, "levels")


@torch.no_grad()
def test_a_level_drops_what_is_out_of_its_range_at_test():
    """A fine level that was never taught large boxes is not believed when it finds one."""

    def head(ranges):
        made = RetinaHead(
            in_spec=SPEC, num_classes=2, anchors=AnchorGrid(in_spec=SPEC, scales=(2.0,), ratios=(1.0,)),
            assigner=MaxIoUAssigner(positive=0.5, negative=0.4), coder=DeltaCoder(), cls_loss=Focal(), box_loss=L1(),
            selector=Selector(nms_iou=1.0), valid_ranges=ranges,
        )  # fmt: skip
        return made

    raw = head(None)([torch.zeros(1, 4, *shape) for shape in SHAPES])
    raw.logits[0][0, 27, 0] = 3.0  # an anchor of 16 px
    raw.logits[0][0, 36, 0] = 2.0
    raw.deltas[0][0, 27] = torch.tensor([0.0, 0.0, 1.0, 1.0])  # grown to 43 px, out of the fine level's range
    free, kept = head(None).decode(raw, IMAGES)[0], head(((0.0, 30.0), (20.0, None))).decode(raw, IMAGES)[0]
    assert len(free) == 2
    assert len(kept) == 1
    torch.testing.assert_close(kept.boxes[0], free.boxes[1])
    in_range = head(None).decode(raw, in_image(0, 30))[0]
    torch.testing.assert_close(in_range.boxes, kept.boxes)


def test_a_positive_that_overlaps_a_forbidden_object_is_ignored_too():
    """SNIP's source: whatever else a reference overlaps, IoU over 0.3 with an object out of range takes it out."""
    allowed = torch.tensor([[True], [False]])
    references = torch.tensor([[0.0, 0.0, 20.0, 20.0]])
    objects = target([0, 0, 20, 20], [0, 0, 20, 7])  # IoU 1 and 0.35
    assigner = MaxIoUAssigner(positive=0.5, negative=0.4)
    assert assign_allowed(assigner, references, objects, None).matched.tolist() == [0]
    assert assign_allowed(assigner, references, objects, allowed).matched.tolist() == [IGNORED]
    little = target([0, 0, 20, 20], [0, 0, 20, 5])  # 0.25
    assert assign_allowed(assigner, references, little, allowed).matched.tolist() == [0]
    crowd = Target(objects.boxes, objects.labels, torch.tensor([False, True]))
    assert assign_allowed(assigner, references, crowd, allowed).matched.tolist() == [0], "a crowd forbids nothing"


def test_the_range_of_an_image_counts_on_every_level():
    small, large = [20.0, 20.0, 36.0, 36.0], [8.0, 8.0, 56.0, 56.0]
    matched = assign([small, large], None, in_image(30, math.inf)).matched
    assert (matched == 1).any()
    assert not (matched == 0).any()
    both = assign([small, large], RANGES, in_image(30, math.inf)).matched.split([64, 16])
    assert not (both[0] >= 0).any(), "small ones by the image, large ones by the level"


def roi_head(**options):
    return RoIHead(
        in_spec=SPEC, num_classes=2, pool=RoIAlign(in_spec=SPEC, resolution=2, canonical_size=30.0),
        network=lambda **given: RegionMLP(hidden=(8,), **given), assigner=MaxIoUAssigner(positive=0.5, negative=0.5),
        sampler=BalancedSampler(num=8), coder=DeltaCoder(), cls_loss=CrossEntropy(), box_loss=L1(),
        selector=Selector(score_threshold=0.0, nms_iou=1.0), **options,
    )  # fmt: skip


SMALL, LARGE = [20.0, 20.0, 36.0, 36.0], [0.0, 0.0, 60.0, 60.0]


@pytest.mark.parametrize(
    ("options", "images"),
    [({}, in_image(0, 30)), ({"valid_ranges": ((0.0, 30.0), (0.0, 30.0))}, IMAGES)],
    ids=["of the image", "of the levels"],
)
def test_the_second_stage_learns_nothing_out_of_range(options, images):
    head = roi_head(**options)
    proposals = torch.tensor([SMALL, LARGE, [0.0, 0.0, 50.0, 60.0], [40.0, 40.0, 60.0, 60.0]])
    regions, assignment = head.assign(proposals, target(SMALL, LARGE), images.meta[0])
    assert regions.tolist() == [*proposals.tolist(), SMALL, LARGE]
    assert assignment.matched.tolist() == [0, IGNORED, IGNORED, NEGATIVE, 0, IGNORED], "the large object is none"
    free, assignment = roi_head().assign(proposals, target(SMALL, LARGE), IMAGES.meta[0])
    assert free.tolist() == [*proposals.tolist(), SMALL, LARGE]
    assert assignment.matched.tolist() == [0, 1, 1, NEGATIVE, 0, 1]


@torch.no_grad()
def test_the_second_stage_finds_nothing_out_of_the_range_of_its_image():
    torch.manual_seed(0)
    features = [torch.randn(1, 4, *shape) for shape in SHAPES]
    proposals = [torch.tensor([SMALL, LARGE])]
    found = [roi_head().predict(features, proposals, images)[0] for images in (IMAGES, in_image(0, 30))]
    assert [len(f) for f in found] == [4, 2]
    assert SizeRange(0, 30).holds(found[1].boxes).all()


def test_cells_take_an_object_out_of_range_for_a_crowd():
    both = target(SMALL, LARGE)
    assert only_in_range(both, SizeRange(0, 30)).ignore.tolist() == [False, True]
    assert only_in_range(both, None) is both


def test_a_level_answers_for_a_box_by_what_the_image_holds_of_it():
    boxes = torch.tensor([[-100.0, -100, 20, 20], [4, 4, 60, 60], [60, 0, 200, 4]])
    assert found_in_range(boxes, (64, 64), SizeRange(0.0, 30.0), None).tolist() == [True, False, True]
    assert found_in_range(boxes, (64, 64), None, None) is None


PARTS = {
    "anchors": AnchorGrid(in_spec=SPEC, scales=(2.0,), ratios=(1.0,)),
    "assigner": MaxIoUAssigner(positive=0.5, negative=0.4, match_best=True),
    "coder": DeltaCoder(),
    "box_loss": L1(),
}


def rpn(ranges):
    made = RPN(
        in_spec=SPEC, sampler=BalancedSampler(), cls_loss=BCE(), nms_iou=1.0, valid_ranges=ranges, **PARTS
    )  # fmt: skip
    return made


def test_both_dense_heads_learn_by_the_ranges():
    objects, ranges = target([16.0, 16.0, 32.0, 32.0]), ((30.0, None), (0.0, None))
    retina = RetinaHead(
        in_spec=SPEC, num_classes=2, cls_loss=Focal(), selector=Selector(), valid_ranges=ranges, **PARTS
    )
    sizes = size_ranges(ranges, 2, "levels")
    expected = assign_anchors(PARTS["anchors"], PARTS["assigner"], SHAPES, IMAGES, [objects], sizes)[0]
    free = assign_anchors(PARTS["anchors"], PARTS["assigner"], SHAPES, IMAGES, [objects])[0]
    assert not torch.equal(expected.matched, free.matched)
    for head in (retina, rpn(ranges)):
        assert torch.equal(head.assign(SHAPES, IMAGES, [objects])[0].matched, expected.matched)


@torch.no_grad()
def test_a_level_proposes_nothing_out_of_its_range():
    """Anchors of 16 and 32 px that grow to 43 and 87: the fine level answers for up to 10 px."""
    proposals = {}
    for ranges in (None, ((0.0, 10.0), (20.0, None))):
        head = rpn(ranges)
        head.bbox_pred.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 1.0]))
        proposals[ranges] = head.propose([torch.zeros(1, 4, *shape) for shape in SHAPES], IMAGES)[0]
    free, kept = proposals.values()
    assert (len(free), len(kept)) == (64 + 16, 16)
