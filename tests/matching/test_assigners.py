"""Who answers for which object: hand-made cases, crowds, and agreement with torchvision's matcher."""

import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from detkit.matching import IGNORED, NEGATIVE, MaxIoUAssigner
from detkit.structures import Target


def target(boxes, ignore=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    ignored = torch.zeros(len(boxes), dtype=torch.bool)
    if ignore is not None:
        ignored[ignore] = True
    return Target(boxes, torch.arange(len(boxes)), ignored)


REFERENCES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 3.9], [0, 0, 10, 2], [50, 50, 60, 60]])


def test_three_bands():
    assigner = MaxIoUAssigner(positive=0.5, negative=0.3)
    matched = assigner(REFERENCES, target([[0, 0, 10, 10]])).matched
    assert matched.tolist() == [0, 0, IGNORED, NEGATIVE, NEGATIVE]  # IoU 1, 0.5, 0.39, 0.2, 0


def test_best_reference_is_positive_below_the_threshold():
    box = [[48, 48, 54, 54]]  # IoU 16 / (36 + 100 - 16) with the last reference
    without, best = MaxIoUAssigner(), MaxIoUAssigner(match_best=True)
    assert without(REFERENCES, target(box)).matched[4] == NEGATIVE
    assert best(REFERENCES, target(box)).matched.tolist() == [NEGATIVE] * 4 + [0]


def test_an_object_that_no_reference_meets_takes_none():
    assert (MaxIoUAssigner(match_best=True)(REFERENCES, target([[200, 200, 210, 210]])).matched == NEGATIVE).all()


def test_no_objects_is_all_negative():
    assert (MaxIoUAssigner()(REFERENCES, Target.empty()).matched == NEGATIVE).all()


def test_crowd_ignores_what_it_covers_but_not_positives():
    boxes = [[0, 0, 10, 10], [45, 45, 58, 70]]  # the crowd covers 0.8 of the last reference
    matched = MaxIoUAssigner(positive=0.5, negative=0.5)(REFERENCES, target(boxes, ignore=[1])).matched
    assert matched.tolist() == [0, 0, NEGATIVE, NEGATIVE, IGNORED]
    matched = MaxIoUAssigner(positive=0.5, negative=0.5)(
        REFERENCES, target([[0, 0, 100, 100], [0, 0, 10, 10]], ignore=[0])
    ).matched
    assert matched.tolist() == [1, 1, IGNORED, IGNORED, IGNORED], "matched indexes the whole target, crowds counted"


def test_half_inside_a_crowd_is_enough():
    matched = MaxIoUAssigner(crowd_cover=0.5)(REFERENCES[:1], target([[5, 0, 20, 10]], ignore=[0])).matched
    assert matched.tolist() == [IGNORED], "5 of 10 columns"


def test_labels_follow_the_match():
    t = Target(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([7]), torch.tensor([False]))
    assert MaxIoUAssigner(positive=0.5)(REFERENCES, t).labels(t, 20).tolist() == [7, 7, 20, 20, 20]
    assert MaxIoUAssigner()(REFERENCES, Target.empty()).labels(Target.empty(), 20).tolist() == [20] * 5


@pytest.mark.parametrize(("high", "low", "best"), [(0.7, 0.3, True), (0.5, 0.5, False), (0.6, 0.4, True)])
def test_equals_torchvision(high, low, best):
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        corner = torch.rand(300, 2, generator=g) * 80
        boxes = torch.cat([corner, corner + torch.rand(300, 2, generator=g) * 40 + 2], 1)
        objects, references = boxes[:6], boxes[6:]
        expected = Matcher(high, low, allow_low_quality_matches=best)(box_iou(objects, references))
        matched = MaxIoUAssigner(positive=high, negative=low, match_best=best)(references, target(objects.tolist()))
        assert torch.equal(matched.matched, expected)


def test_thresholds_in_the_wrong_order():
    with pytest.raises(ValueError, match=r"need 0 <= negative <= positive <= 1, not negative 0\.8 and positive 0\.5"):
        MaxIoUAssigner(positive=0.5, negative=0.8)
