"""Soft-NMS in the place of NMS: values by hand, and the merge of the same name over all candidates."""

import math

import pytest
import torch

from detkit.config import ConfigError, build
from detkit.matching import Selector, SoftNMS, SoftSelector
from detkit.structures import Detections

SIZE = (100, 100)
A, B, FAR = [0.0, 0, 10, 10], [2.0, 0, 12, 10], [50.0, 50, 60, 60]  # A and B overlap by 8 of 12
FACTOR = math.exp(-((8 / 12) ** 2) / 0.5)


def candidates(count, num_classes, seed):
    g = torch.Generator().manual_seed(seed)
    corner = 60 * torch.rand(count, 2, generator=g)
    boxes = torch.cat([corner, corner + 5 + 35 * torch.rand(count, 2, generator=g)], dim=1)
    return boxes, torch.rand(count, num_classes, generator=g)


def test_a_neighbour_stays_at_a_lower_score():
    boxes, scores = torch.tensor([A, B, FAR])[:, None], torch.tensor([[0.8], [0.7], [0.5]])
    assert Selector().of_each_class(boxes, scores, SIZE).scores.tolist() == pytest.approx([0.8, 0.5])
    found = SoftSelector().of_each_class(boxes, scores, SIZE)
    assert found.scores.tolist() == pytest.approx([0.8, 0.5, 0.7 * FACTOR])
    assert found.boxes.tolist() == [A, FAR, B]
    assert len(SoftSelector(score_threshold=0.7 * FACTOR + 1e-3).of_each_class(boxes, scores, SIZE)) == 2


def test_classes_lower_each_other_only_where_it_is_said():
    boxes, scores, labels = torch.tensor([A, B]), torch.tensor([0.8, 0.7]), torch.tensor([1, 0])
    apart = SoftSelector().of_one_class(boxes, scores, labels, SIZE)
    together = SoftSelector(class_agnostic=True).of_one_class(boxes, scores, labels, SIZE)
    assert apart.scores.tolist() == pytest.approx([0.8, 0.7])
    assert together.scores.tolist() == pytest.approx([0.8, 0.7 * FACTOR])
    assert together.labels.tolist() == [1, 0]


@pytest.mark.parametrize("most", [200, 12])
@pytest.mark.parametrize("sigma", [0.1, 0.5])
@pytest.mark.parametrize("num_classes", [3, 1])  # of one class, as many come out as may be taken of it
def test_it_is_the_merge_over_all_candidates(num_classes, sigma, most):
    boxes, scores = candidates(80, num_classes, 0)
    found = SoftSelector(sigma=sigma, max_detections=most, score_threshold=0.05).of_each_class(
        boxes[:, None], scores, SIZE
    )
    place, label = (scores > 0.05).nonzero().unbind(1)
    wanted = SoftNMS(sigma=sigma)([Detections(boxes[place], scores[place, label], label)])
    wanted = wanted.select((wanted.scores > 0.05).nonzero()[:most, 0])
    assert len(found) == min(len(wanted), most) > 10
    torch.testing.assert_close(found.scores, wanted.scores)
    assert torch.equal(found.boxes, wanted.boxes)
    assert torch.equal(found.labels, wanted.labels)


def test_of_few_that_come_out_each_was_lowered_by_the_better_ones():
    """The third best at first overlaps the second, which leaves the third place to the fourth."""
    boxes = torch.tensor([[80.0, 0, 90, 10], A, B, FAR])[:, None]
    found = SoftSelector(max_detections=3).of_each_class(boxes, torch.tensor([[0.9], [0.8], [0.7], [0.5]]), SIZE)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.5])


def test_small_boxes_and_those_that_do_not_count_lower_nothing():
    boxes = torch.tensor([[0.0, 0, 3, 10], A, B])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64)
    found = SoftSelector(min_size=4.0).of_one_class(boxes, scores, labels, SIZE, torch.tensor([True, False, True]))
    assert found.scores.tolist() == pytest.approx([0.7])


def test_nothing_in_nothing_out():
    assert len(SoftSelector().of_each_class(torch.zeros(0, 3, 4), torch.zeros(0, 3), SIZE)) == 0


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_a_sigma_that_is_none_is_refused(sigma):
    with pytest.raises(ConfigError, match=f"sigma must be positive, not {sigma}"):
        build({"_target_": "SoftSelector", "sigma": sigma})
    with pytest.raises(ValueError, match=f"sigma must be positive, not {sigma}"):
        SoftNMS(sigma=sigma)
