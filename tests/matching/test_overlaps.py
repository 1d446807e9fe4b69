"""A sweep finds the pairs that a look at all pairs finds, and NMS by it keeps the same boxes, to the last index."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, nms

from detkit.matching import groups as module
from detkit.matching import nms_by_group
from detkit.matching.overlaps import Sweep, survivors


def random_boxes(num, side, seed, field=800.0):
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(num, 2, generator=g) * field
    return torch.cat([corner, corner + side * (0.2 + torch.rand(num, 2, generator=g))], 1)


def pairs_of(boxes, threshold, offset=None):
    corners = boxes.double().numpy()
    sweep = Sweep(corners, np.zeros(len(corners)) if offset is None else offset, threshold)
    return sorted((min(a, b), max(a, b)) for a, b in zip(*(i.tolist() for i in sweep.pairs()), strict=True))


@pytest.mark.parametrize("side", [3.0, 60.0, 900.0])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 0.95])
def test_the_pairs_are_those_of_the_whole_matrix(threshold, side):
    boxes = random_boxes(700, side, seed=3)
    boxes[600:] = boxes[:100]  # twice the same
    above = (box_iou(boxes.double(), boxes.double()) > threshold).triu(1)
    assert pairs_of(boxes, threshold) == [tuple(p) for p in above.nonzero().tolist()]
    assert above.any()


def test_a_pair_at_the_threshold_is_not_above_it_and_a_hair_more_is():
    """IoU 1/2 exactly: 10 x 10 and its left half. The quick look in float32 cannot tell these apart."""
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 5.0, 10.0]])
    assert pairs_of(boxes, 0.5) == []
    assert pairs_of(boxes, 0.5 - 1e-12) == [(0, 1)]
    beside = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 10.0, 10.0]])  # as far right as can be
    assert pairs_of(beside, 0.5) == []
    assert pairs_of(beside, 0.5 - 1e-12) == [(0, 1)]


def test_far_from_the_origin_and_far_apart_nothing_is_rounded_away():
    near = random_boxes(600, 5.0, seed=5, field=60.0)
    far = near.double() + 2.0**20
    assert pairs_of(far, 0.5) == pairs_of(far - 2.0**20, 0.5) != []
    apart = np.repeat([0.0, 1e9], 300)
    expected = [(a, b) for a, b in pairs_of(near, 0.5) if (a < 300) == (b < 300)]
    assert pairs_of(near, 0.5, apart) == expected != []


@pytest.mark.parametrize("across", [False, True])
def test_small_boxes_far_into_a_large_image_lose_no_pair(across):
    """From the corner of the field to 4000 px float32 moves a corner by up to 1e-4 px, which is much of a box of 3."""
    place = 3000.0 + 7.123 * torch.arange(100, dtype=torch.float64)
    one = torch.stack([place * 0, place, place * 0 + 3, place + 3.3], dim=1)
    other = one + torch.tensor([0.0, 1.1, 0.0, 1.1], dtype=torch.float64)  # of 3.3 px 2.2 in common: IoU 1/2
    boxes = torch.cat([one, other, torch.tensor([[0.0, 0.05, 1.0, 1.0]])])
    boxes = boxes[:, [1, 0, 3, 2]] if across else boxes
    assert pairs_of(boxes, 0.5 - 1e-9) == [(i, 100 + i) for i in range(100)]


def test_boxes_without_an_area_and_turned_ones_overlap_nothing():
    boxes = torch.tensor([[5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0], [9.0, 0.0, 1.0, 8.0], [0.0, 0.0, 9.0, 9.0]])
    assert pairs_of(boxes, 0.0) == []


def test_who_is_removed_by_one_that_is_removed_itself_stays():
    """0 removes 1, so 1 cannot remove 2, which removes 3; 4 has nobody."""
    assert survivors(np.array([0, 1, 2]), np.array([1, 2, 3]), 5).tolist() == [True, False, True, False, True]
    assert survivors(np.array([], dtype=int), np.array([], dtype=int), 2).tolist() == [True, True]


@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize(("side", "swept"), [(8.0, True), (60.0, True), (1500.0, False)])
def test_nms_by_it_keeps_the_same_boxes_in_the_same_order(side, swept, num_groups, monkeypatch):
    boxes = random_boxes(4000, side, seed=7)
    boxes[3900:] = boxes[:100] + 0.1
    g = torch.Generator().manual_seed(num_groups)
    scores = torch.randint(0, 400, (4000,), generator=g) / 400  # with ties
    groups = torch.randint(0, num_groups, (4000,), generator=g)
    side_by_side = boxes.double()
    side_by_side[:, [0, 2]] += groups[:, None] * 10_000.0
    expected = nms(side_by_side, scores.double(), 0.6)
    expected = expected[scores[expected].argsort(descending=True, stable=True)]
    calls = []
    monkeypatch.setattr(module, "nms", lambda *args: calls.append(1) or nms(*args))
    assert torch.equal(nms_by_group(boxes, scores, groups, 0.6), expected)
    assert bool(calls) != swept  # where nearly all boxes lie within reach of each other, torchvision's is the faster
    assert len(expected) < 4000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_values_that_float32_cannot_compare_are_left_to_torchvision(value, monkeypatch):
    boxes = random_boxes(1500, 8.0, seed=1)
    boxes[700, 2] = value
    scores = torch.linspace(1, 0, 1500)
    calls = []
    monkeypatch.setattr(module, "nms", lambda *args: calls.append(1) or nms(*args))
    nms_by_group(boxes, scores, torch.zeros(1500, dtype=torch.int64), 0.5)
    assert calls
