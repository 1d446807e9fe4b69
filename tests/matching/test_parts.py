"""Anchors, coders, samplers and the selection of detections."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from detkit.matching import (
    IGNORED,
    NEGATIVE,
    AnchorGrid,
    Assignment,
    BalancedSampler,
    DeltaCoder,
    Selector,
    misfit,
    select_candidates,
    select_detections,
    select_proposals,
    tracing,
)
from detkit.structures import FeatureSpec
from detkit.structures.boxes import cxcywh_to_xyxy

SPEC = FeatureSpec((8,) * 3, (4.0, 8.0, 16.0))
CPU = torch.device("cpu")


def test_anchors_equal_torchvision():
    shapes = [(8, 12), (4, 6), (2, 3)]
    theirs = AnchorGenerator(((32.0,), (64.0,), (128.0,)), ((0.5, 1.0, 2.0),) * 3)
    expected = theirs(ImageList(torch.zeros(1, 3, 32, 48), [(32, 48)]), [torch.zeros(1, 8, *s) for s in shapes])[0]
    assert torch.equal(torch.cat(AnchorGrid(in_spec=SPEC, rounded=True)(shapes, CPU)), expected)


def test_anchor_areas_and_ratios_are_exact_without_rounding():
    grid = AnchorGrid(in_spec=FeatureSpec((8,), (16.0,)), scales=(2.0, 4.0), ratios=(0.5, 1.0, 3.0))
    (boxes,) = grid([(1, 1)], CPU)
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    torch.testing.assert_close(h / w, torch.tensor([0.5, 0.5, 1, 1, 3, 3]))
    torch.testing.assert_close(w * h, torch.tensor([32.0, 64.0] * 3) ** 2)


def test_anchors_in_the_padding_are_marked():
    grid = AnchorGrid(in_spec=FeatureSpec((8,), (8.0,)), ratios=(1.0, 2.0))
    (mask,) = grid.inside([(2, 3)], (8, 17), CPU)
    assert (
        mask.tolist() == [True] * 6 + [False] * 6
    )  # the second row starts at y = 8; columns at 0, 8 and 16 are inside


@pytest.mark.parametrize(
    ("scale", "sides", "words"),
    [
        (400.0, [], "every anchor (1600..3200 px) is larger than the image of 640 px: "),
        (100.0, [20.0] * 50, "every anchor (400..800 px) is over 8 times larger than nine of ten objects (20 px): "),
        (1.0, [500.0] * 50, "every anchor (4..8 px) is over 8 times smaller than nine of ten objects (500 px): "),
        (8.0, [5.0] * 50, ""),  # tiny objects, usual anchors
        (1.0, [60.0] * 50, ""),
        (100.0, [20.0] * 50 + [200.0] * 5, ""),
        (100.0, [], ""),
    ],
)
def test_anchors_of_another_order_of_size_are_told_of(scale, sides, words):
    grid = AnchorGrid(in_spec=FeatureSpec((1, 1), (4.0, 8.0)), scales=(scale,))
    found = misfit(grid, np.array(sides), 640.0)
    assert found == (words and f"{words}AnchorGrid's scales count strides of the level, not px")


def test_anchors_refuse_nonsense():
    with pytest.raises(ValueError, match=r"scales must be positive numbers, not \[\]"):
        AnchorGrid(in_spec=SPEC, scales=())
    with pytest.raises(ValueError, match=r"ratios must be positive numbers, not \[1.0, 0.0\]"):
        AnchorGrid(in_spec=SPEC, ratios=(1.0, 0.0))


coordinate = st.floats(-500, 500, width=32)
side = st.floats(1, 300, width=32)
box = st.tuples(coordinate, coordinate, side, side)


@given(box, box)
def test_decode_inverts_encode(a, b):
    # log sizes beyond the clamp are cut on purpose
    boxes, references = (cxcywh_to_xyxy(torch.tensor([x], dtype=torch.float64)) for x in (a, b))
    coder = DeltaCoder(weights=(10.0, 10.0, 5.0, 5.0))
    if max(a[2] / b[2], a[3] / b[3]) < 62:
        torch.testing.assert_close(
            coder.decode(coder.encode(boxes, references), references), boxes, rtol=1e-6, atol=1e-5
        )


def test_coder_equals_torchvision():
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(2, 40, 2, generator=g) * 100
    boxes, references = torch.cat([corner, corner + torch.rand(2, 40, 2, generator=g) * 90 + 1], dim=2)
    theirs, ours = BoxCoder((10.0, 10.0, 5.0, 5.0)), DeltaCoder(weights=(10.0, 10.0, 5.0, 5.0))
    torch.testing.assert_close(ours.encode(boxes, references), theirs.encode_single(boxes, references))
    deltas = torch.randn(40, 4 * 3, generator=g) * 8  # large enough to meet the clamp
    expected = theirs.decode_single(deltas, references).view(40, 3, 4)
    torch.testing.assert_close(ours.decode(deltas.view(40, 3, 4), references), expected, rtol=1e-5, atol=1e-3)


def test_sampler_counts_and_fill():
    matched = torch.tensor([0] * 30 + [NEGATIVE] * 100 + [IGNORED] * 50)
    positive, negative = BalancedSampler(num=64, positive_share=0.25)(Assignment(matched), torch.Generator())
    assert (len(positive), len(negative)) == (16, 48)
    assert (matched[positive] == 0).all()
    assert (matched[negative] == NEGATIVE).all()
    assert len(set(negative.tolist())) == 48
    few = torch.tensor([0] * 3 + [NEGATIVE] * 100)
    positive, negative = BalancedSampler(num=64, positive_share=0.25)(Assignment(few), torch.Generator())
    assert (len(positive), len(negative)) == (3, 61)


def test_sampler_depends_on_its_generator_alone():
    matched = Assignment(torch.tensor([0] * 300 + [NEGATIVE] * 1000))
    draws = [BalancedSampler(num=64)(matched, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0][1], draws[1][1])
    assert not torch.equal(draws[0][1], draws[2][1])


BOXES = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [90, 90, 130, 140], [5, 5, 5, 9]])


def test_selection_by_score_class_overlap_and_border():
    scores = torch.zeros(5, 2)
    scores[0, 0], scores[1, 0], scores[2, 1], scores[3, 0], scores[4, 0] = 0.9, 0.8, 0.7, 0.6, 0.95
    found = select_detections(
        BOXES[:, None].expand(5, 2, 4), scores, (100, 100),
        score_threshold=0.05, iou_threshold=0.5, max_detections=10, min_size=1.0,
    )  # fmt: skip
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])  # 0.8 overlaps 0.9; 0.95 has no width
    assert found.labels.tolist() == [0, 1, 0]
    assert found.boxes[2].tolist() == [90, 90, 100, 100]


def test_selection_keeps_the_best_and_takes_class_agnostic_boxes():
    scores = torch.tensor([[0.5, 0.9], [0.05, 0.2]])
    found = select_detections(
        BOXES[[0, 3], None], scores, (100, 100), score_threshold=0.05, iou_threshold=0.5, max_detections=2
    )
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])
    assert found.labels.tolist() == [1, 0]


def test_a_score_that_is_the_threshold_is_not_more():
    found = select_detections(
        BOXES[[0, 3], None], torch.tensor([[0.5], [0.75]]), (100, 100),
        score_threshold=0.5, iou_threshold=None, max_detections=10,
    )  # fmt: skip
    assert found.scores.tolist() == [0.75]


def test_selecting_again_changes_nothing():
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(200, 2, generator=g) * 80
    boxes = torch.cat([corner, corner + torch.rand(200, 2, generator=g) * 40], 1)
    kwargs = {"score_threshold": 0.1, "iou_threshold": 0.5, "max_detections": 100}
    once = select_detections(boxes[:, None], torch.rand(200, 1, generator=g), (100, 100), **kwargs)
    again = select_detections(once.boxes[:, None], once.scores[:, None], (100, 100), **kwargs)
    assert torch.equal(once.boxes, again.boxes)


def test_proposals_suppress_within_a_level_only():
    scores = torch.tensor([[0.5, 0.9, 0.7]])
    levels = [(BOXES[None, :2], scores[:, :2]), (BOXES[None, 2:3], scores[:, 2:])]
    ((kept, best),) = select_proposals(levels, [(100, 100)], iou_threshold=0.7, max_proposals=9)
    assert kept.tolist() == [BOXES[1].tolist(), BOXES[2].tolist()]
    assert best.tolist() == pytest.approx([0.9, 0.7])


def test_nothing_in_nothing_out():
    none = select_detections(
        torch.zeros(0, 3, 4), torch.zeros(0, 3), (10, 10), score_threshold=0.1, iou_threshold=0.5, max_detections=5
    )
    assert len(none) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_boxes_of_any_type_are_coded_and_selected_as_those_of_float32(dtype):
    coder = DeltaCoder(weights=(0.5, 0.5, 10.0, 10.0))
    boxes, references = torch.tensor([[0, 8, 400, 320]]).to(dtype), torch.tensor([[8, 8, 800, 800]]).to(dtype)
    deltas = coder.encode(boxes, references)
    torch.testing.assert_close(deltas, coder.encode(boxes.float(), references.float()))
    torch.testing.assert_close(coder.decode(deltas, references), boxes.float(), rtol=0, atol=1e-3)
    large = torch.full((1, 4), 40.0, dtype=torch.float16)  # sizes of 60 times 800 px
    assert coder.decode(large, references).isfinite().all()
    candidates = torch.tensor([[0, 0, 400, 400], [4, 0, 400, 400], [0, 0, 400, 400]]).to(dtype)
    scores = torch.tensor([0.5, 0.75, 0.25]).to(torch.float16)
    found = select_candidates(
        candidates, scores, torch.tensor([0, 0, 70]), (512, 512), iou_threshold=0.5, max_detections=10
    )
    assert found.scores.tolist() == [0.75, 0.25], "boxes of two classes stay apart, those of one do not"


def test_anchors_in_the_padding_equal_torchvision():
    """32 x 40 px make 2 x 3 cells of the coarsest level, 16 and 13 px apart."""
    shapes = [(8, 10), (4, 5), (2, 3)]
    theirs = AnchorGenerator(((32.0,), (64.0,), (128.0,)), ((0.5, 1.0, 2.0),) * 3)
    expected = theirs(ImageList(torch.zeros(1, 3, 32, 40), [(20, 20)]), [torch.zeros(1, 8, *s) for s in shapes])[0]
    grid = AnchorGrid(in_spec=SPEC, rounded=True, in_padding=True)
    assert torch.equal(torch.cat(grid(shapes, CPU)), expected)
    assert torch.cat(grid.inside(shapes, (20, 20), CPU)).all()


def test_nms_among_all_classes_leaves_one_box_in_a_place():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]])
    scores = torch.tensor([[0.9, 0.8], [0.1, 0.85], [0.3, 0.2]])
    found = {c: Selector(class_agnostic=c).of_each_class(boxes[:, None], scores, (80, 80)) for c in (False, True)}
    assert found[False].scores.tolist() == pytest.approx([0.9, 0.85, 0.3, 0.2])
    assert found[True].scores.tolist() == pytest.approx([0.9, 0.3])
    assert found[True].labels.tolist() == [0, 0]
    with tracing() as trace:
        Selector(class_agnostic=True).of_one_class(boxes[:2], scores.amax(1)[:2], torch.tensor([0, 1]), (80, 80))
    assert trace.selections[-1].suppressors.tolist() == [-1, 0], "the report names a suppressor of another class"
    assert trace.selections[-1].labels.tolist() == [0, 1]
