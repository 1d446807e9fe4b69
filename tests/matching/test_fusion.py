"""Merging the detections of several views: by hand, beside the published package, and at the edges."""

import math

import numpy as np
import pytest
import torch

from detkit.matching import NMS, WBF, SoftNMS
from detkit.structures import Detections


def detections(*rows):
    """From rows of x1, y1, x2, y2, score, label."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


def random_views(seed, num_views=4, num_objects=25, num_classes=3, size=640.0, noise=12.0):
    """Each view sees most of the same objects, a little displaced, and sometimes takes one for another class."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(num_objects, 2, generator=g) * size * 0.7
    boxes = torch.cat([corner, corner + torch.rand(num_objects, 2, generator=g) * size * 0.28 + 20], 1)
    labels = torch.randint(0, num_classes, (num_objects,), generator=g)
    views = []
    for _ in range(num_views):
        moved = (boxes + torch.randn(num_objects, 4, generator=g) * noise).clamp(0, size)
        moved = torch.cat([torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:])], 1)
        seen = torch.rand(num_objects, generator=g) < 0.8
        wrong = torch.rand(num_objects, generator=g) < 0.1
        found = torch.where(wrong, (labels + 1) % num_classes, labels)
        views.append(Detections(moved, torch.rand(num_objects, generator=g), found).select(seen))
    return views


def as_lists(views, size=640.0):
    """The form that ensemble_boxes takes: coordinates in [0, 1]."""
    boxes = [v.boxes.double().numpy() / size for v in views]
    return boxes, [v.scores.double().numpy() for v in views], [v.labels.numpy() for v in views]


A, SHIFTED, FAR = (0, 0, 10, 10), (2, 0, 12, 10), (50, 50, 60, 60)  # the IoU of the first two is 8 / 12


def test_nms_keeps_the_best_of_all_views():
    views = [detections((*A, 0.5, 0), (*FAR, 0.9, 0)), detections((*SHIFTED, 0.7, 0), (*A, 0.6, 1))]
    found = NMS(iou_threshold=0.6)(views)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert found.boxes.tolist() == [list(FAR), list(SHIFTED), list(A)]
    assert found.labels.tolist() == [0, 0, 1]
    assert len(NMS(iou_threshold=0.7)(views)) == 4


@pytest.mark.parametrize(
    ("merge", "factor"),
    [
        (SoftNMS(), math.exp(-((8 / 12) ** 2) / 0.5)),
        (SoftNMS(sigma=0.2), math.exp(-((8 / 12) ** 2) / 0.2)),
        (SoftNMS(method="linear"), 4 / 12),
        (SoftNMS(method="linear", iou_threshold=0.7), 1.0),
    ],
)
def test_soft_nms_lowers_what_overlaps_a_better_box(merge, factor):
    found = merge([detections((*A, 0.8, 0)), detections((*SHIFTED, 0.6, 0), (*FAR, 0.5, 0), (*A, 0.4, 1))])
    expected = sorted([(0.8, 0.0), (0.6 * factor, 2.0), (0.5, 50.0), (0.4, 0.0)], reverse=True)
    assert found.scores.tolist() == pytest.approx([score for score, _ in expected])
    assert found.boxes[:, 0].tolist() == [x1 for _, x1 in expected]


def test_soft_nms_takes_the_best_of_what_is_left():
    """The second box falls behind the third, which therefore lowers it once more."""
    rows = [(0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 0), (0, 0, 10, 4, 0.7, 0)]
    merge = SoftNMS(method="linear", iou_threshold=0.3)
    found = merge([detections(*rows)])
    # u12 = 1, u13 = u23 = 0.4: the third has 0.7 * 0.6, the second 0.8 * 0 and nothing more to lose
    assert found.scores.tolist() == pytest.approx([0.9, 0.42, 0.0], abs=1e-6)
    gaussian = SoftNMS(sigma=0.5)([detections(*rows)])
    near, same = math.exp(-0.16 / 0.5), math.exp(-1 / 0.5)
    assert gaussian.scores.tolist() == pytest.approx([0.9, 0.7 * near, 0.8 * same * near])


def test_fused_box_and_score_by_hand():
    found = WBF()([detections((*A, 0.8, 0)), detections((*SHIFTED, 0.4, 0))])
    assert found.boxes.tolist() == [pytest.approx([2 / 3, 0, 32 / 3, 10])]  # (0.8 * 0 + 0.4 * 2) / 1.2
    assert found.scores.tolist() == pytest.approx([0.6])


def test_what_few_views_see_scores_less():
    """min(T, N) / N: one box of three views, two of three, and five boxes that three views hold."""
    none = detections()
    assert WBF()([detections((*A, 0.9, 0)), none, none]).scores.tolist() == pytest.approx([0.3])
    two = [detections((*A, 0.9, 0)), none, detections((*A, 0.6, 0))]
    assert WBF()(two).scores.tolist() == pytest.approx([0.75 * 2 / 3])
    five = [detections((*A, 0.9, 0), (*A, 0.5, 0)), detections((*A, 0.8, 0), (*A, 0.6, 0)), detections((*A, 0.7, 0))]
    assert WBF()(five).scores.tolist() == pytest.approx([0.7])


def test_classes_are_fused_by_themselves():
    found = WBF()([detections((*A, 0.8, 3)), detections((*A, 0.6, 1))])
    assert found.labels.tolist() == [3, 1]
    assert found.scores.tolist() == pytest.approx([0.4, 0.3])


def test_a_box_joins_the_fused_box_that_it_overlaps_most():
    """The third overlaps both. A fused box moves: another overlaps it, but not the box that began it."""
    left, right = (0, 0, 10, 10), (6, 0, 16, 10)
    third = (1, 0, 11, 10)  # IoU 9/11 with the left one, 5/15 with the right one
    found = WBF(iou_threshold=0.3)([detections((*left, 0.9, 0), (*right, 0.8, 0)), detections((*third, 0.7, 0))])
    assert found.boxes[:, 0].tolist() == pytest.approx([0.7 / 1.6, 6.0])
    mirrored = WBF(iou_threshold=0.3)([detections((*right, 0.9, 0), (*left, 0.8, 0)), detections((*third, 0.7, 0))])
    assert sorted(mirrored.boxes[:, 0].tolist()) == pytest.approx([0.7 / 1.5, 6.0]), "not the first that it overlaps"
    moving = [detections((*left, 0.9, 0), (*third, 0.8, 0), (1.6, 0, 11.6, 10, 0.7, 0))]
    # The last has an IoU of 8.4/11.6 = 0.724 with the first, and of 8.87/11.13 = 0.797 with the mean of the first two.
    assert len(WBF(iou_threshold=0.79)(moving)) == 1
    assert len(WBF(iou_threshold=0.80)(moving)) == 2


@pytest.mark.parametrize("merge", [NMS(), SoftNMS(), WBF()], ids=lambda m: type(m).__name__)
def test_order_of_views_does_not_matter_and_the_best_comes_first(merge):
    views = random_views(3)
    one, two = merge(views), merge(views[::-1])
    assert (one.scores.diff() <= 0).all()
    assert ((one.scores >= 0) & (one.scores <= 1)).all()
    assert one.scores.dtype == one.boxes.dtype == torch.float32
    assert one.labels.dtype == torch.int64
    torch.testing.assert_close(one.scores, two.scores, rtol=0, atol=1e-6)
    torch.testing.assert_close(one.boxes, two.boxes, rtol=0, atol=1e-3)


@pytest.mark.parametrize("merge", [NMS(), SoftNMS(), WBF()], ids=lambda m: type(m).__name__)
def test_nothing_found_and_scores_of_zero(merge):
    assert len(merge([detections(), detections()])) == 0
    nothing_sure = merge([detections((*A, 0.0, 0)), detections((*A, 0.0, 0), (*FAR, 0.0, 2))])
    assert nothing_sure.boxes.isfinite().all()
    assert nothing_sure.scores.tolist() == pytest.approx([0.0] * len(nothing_sure), abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("iou_threshold", [0.4, 0.55, 0.7])
def test_fusion_equals_the_published_package(seed, iou_threshold):
    package = pytest.importorskip("ensemble_boxes", reason="pip install ensemble-boxes, to compare with it")
    views = random_views(seed, num_views=2 + seed)
    found = WBF(iou_threshold=iou_threshold)(views)
    boxes, scores, labels = package.weighted_boxes_fusion(*as_lists(views), iou_thr=iou_threshold)
    np.testing.assert_allclose(found.scores, scores, atol=1e-6)
    np.testing.assert_allclose(found.boxes, boxes * 640, atol=1e-3)  # the package adds up in float32
    assert found.labels.tolist() == labels.astype(int).tolist()


KINDS = ["avg", "max", "box_and_model_avg", "absent_model_aware_avg"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("least", [0.0, 0.3])
def test_weights_and_confidences_equal_the_published_package(seed, kind, least):
    package = pytest.importorskip("ensemble_boxes", reason="pip install ensemble-boxes, to compare with it")
    views = random_views(seed, num_views=4)
    weights = (1.0, 2.0, 0.5, 1.5)
    found = WBF(weights=weights, confidence=kind, least_score=least)(views)
    boxes, scores, labels = package.weighted_boxes_fusion(
        *as_lists(views), weights=list(weights), conf_type=kind, skip_box_thr=least
    )
    order = np.argsort(-scores, kind="stable")
    np.testing.assert_allclose(found.scores, scores[order], atol=1e-6)
    np.testing.assert_allclose(found.boxes, boxes[order] * 640, atol=1e-3)
    assert found.labels.tolist() == labels[order].astype(int).tolist()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # views of weights 1, 2 and 3: two boxes of the first (0.9 and 0.6), one of the second (0.5, so 1.0 weighted)
        ("avg", (0.9 + 0.6 + 1.0) / 3 * 3 / 6),
        ("max", 1.0 / 3),
        ("box_and_model_avg", (0.9 + 0.6 + 1.0) / (1 + 1 + 2) * 3 / 6),
        ("absent_model_aware_avg", (0.9 + 0.6 + 1.0) / (1 + 1 + 2 + 3)),
    ],
)
def test_confidences_by_hand(kind, expected):
    views = [detections((*A, 0.9, 0), (*A, 0.6, 0)), detections((*SHIFTED, 0.5, 0)), detections()]
    found = WBF(weights=(1.0, 2.0, 3.0), confidence=kind)(views)
    assert found.scores.tolist() == pytest.approx([expected])
    assert found.boxes[0, 0].item() == pytest.approx(2 * 1.0 / 2.5), "boxes are weighed too"


def test_boxes_of_too_low_a_score_are_left_out():
    views = [detections((*A, 0.9, 0), (*FAR, 0.2, 0)), detections((*SHIFTED, 0.1, 0))]
    assert WBF(least_score=0.15)(views).scores.tolist() == pytest.approx([0.45, 0.1])
    assert WBF(least_score=0.15)(views).boxes[0].tolist() == list(A)
    lowered = SoftNMS(least_score=0.15)(views)
    assert lowered.scores.tolist() == pytest.approx([0.9, 0.2]), "0.1 has been lowered below"
    assert len(SoftNMS()(views)) == 3


def test_a_score_that_is_the_least_stays():
    assert WBF(least_score=0.5)([detections((*A, 0.5, 0), (*FAR, 0.25, 0))]).scores.tolist() == [0.5]


def test_an_iou_that_is_the_threshold_decays_and_does_not_join():
    """10 x 5 px of 10 x 10: "linear" is from the threshold on, and a fused box takes what overlaps it more."""
    half = (0, 0, 10, 5)
    lowered = SoftNMS(method="linear", iou_threshold=0.5)([detections((*A, 0.8, 0), (*half, 0.6, 0))])
    assert lowered.scores.tolist() == pytest.approx([0.8, 0.6 * 0.5])
    views = [detections((*A, 0.8, 0)), detections((*half, 0.6, 0))]
    assert [len(WBF(iou_threshold=threshold)(views)) for threshold in (0.49, 0.5)] == [1, 2]


def test_weights_are_of_the_views():
    views = [detections((*A, 0.9, 0))] * 2
    with pytest.raises(ValueError, match="weights must have a number for each of the 2 views, not 3"):
        WBF(weights=(1.0, 1.0, 1.0))(views)
    with pytest.raises(ValueError, match="weights must be numbers from 0 on, and one above it"):
        WBF(weights=(0.0, 0.0))
    with pytest.raises(ValueError, match=r"least_score must be in \[0, 1\], not 2"):
        WBF(least_score=2)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("method", "theirs"), [("linear", 1), ("gaussian", 2)])
def test_soft_nms_equals_the_published_package(seed, method, theirs):
    """It tells decayed scores by leaving out the boxes below a threshold, and gives the rest as they were."""
    package = pytest.importorskip("ensemble_boxes", reason="pip install ensemble-boxes, to compare with it")
    views = random_views(seed)
    found = SoftNMS(method=method, sigma=0.4, iou_threshold=0.35)(views)
    survivors = []
    for threshold in np.linspace(0.05, 0.95, 19):
        boxes, _, labels = package.soft_nms(*as_lists(views), method=theirs, iou_thr=0.35, sigma=0.4, thresh=threshold)
        kept = found.select(found.scores > threshold)
        ours = torch.cat([kept.boxes, kept.labels[:, None]], 1).numpy()
        both = [x[np.lexsort(x.round(2).T)] for x in (ours, np.column_stack([boxes * 640, labels]))]
        np.testing.assert_allclose(*both, atol=1e-3)
        survivors.append(len(kept))
    assert survivors[0] > survivors[9] > survivors[-1], "the thresholds divide the boxes"


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"iou_threshold must be in \[0, 1\], not 1.5"):
        NMS(iou_threshold=1.5)
    with pytest.raises(ValueError, match=r"iou_threshold must be in \[0, 1\], not -0.1"):
        WBF(iou_threshold=-0.1)
    with pytest.raises(ValueError, match="sigma must be positive, not 0"):
        SoftNMS(sigma=0.0)


@pytest.mark.parametrize("merge", [NMS(), SoftNMS(), WBF()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_boxes_of_any_type_are_merged_as_those_of_float32(merge, dtype):
    one = Detections(
        torch.tensor([[0, 0, 400, 400], [0, 0, 9, 9]]).to(dtype), torch.tensor([0.75, 0.5]), torch.arange(2)
    )
    two = Detections(torch.tensor([[30, 0, 430, 401]]).to(dtype), torch.tensor([0.5]), torch.tensor([0]))
    found, expected = (merge([read(one), read(two)]) for read in (lambda x: x, as_float))
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.scores, expected.scores)


def as_float(found):
    return Detections(found.boxes.float(), found.scores, found.labels)
