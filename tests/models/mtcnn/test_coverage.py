"""Which windows of P-Net's pyramid answer for which object, by hand and beside plain loops."""

import pytest
import torch

from detkit.models import MTCNN
from detkit.models.mtcnn.crops import squared
from detkit.models.mtcnn.nets import PNet
from detkit.models.mtcnn.pyramid import pyramid_scales, scaled_size, windows
from detkit.structures import Target
from detkit.structures.boxes import pairwise_iou
from tests.models.builders import images, target

SIZE = (97, 140)
PYRAMID = {"min_size": 16.0, "factor": 0.5}  # scales 0.75, 0.375, 0.1875


def asked(of, size=SIZE, **options):
    detector = MTCNN(num_classes=6, **PYRAMID, **options)
    (references,) = detector.references(images(size), [of])
    return detector, references


def counts(references, k):
    return [int(((references.matched == k) & (references.levels == level)).sum()) for level in range(3)]


@torch.no_grad()
@pytest.mark.parametrize("size", [(12, 12), (13, 12), (14, 15), (29, 40), (30, 41)])
def test_the_map_is_as_large_as_the_networks(size):
    assert PNet.map_size(size) == tuple(PNet()(torch.zeros(1, 3, *size)).logits.shape[2:])


@pytest.mark.parametrize("squares", [False, True])
def test_by_plain_loops(squares):
    """Every cell of every scale, whatever lies near; objects to be ignored have none."""
    boxes = [
        [10.0, 12, 25, 26],
        [14, 12, 30, 30],
        [60, 5, 130, 80],
        [40, 60, 48, 92],
        [2, 70, 20, 88],
        [100, 81, 118, 97],
    ]
    ignore = [False, False, False, False, True, False]
    of = target(*boxes, ignore=ignore)
    _, found = asked(of, match_squares=squares)
    measured = squared(of.boxes) if squares else of.boxes
    row = 0
    for level, scale in enumerate(pyramid_scales(SIZE, 16.0, 0.5)):
        height, width = PNet.map_size(scaled_size(SIZE, scale))
        for y in range(height):
            for x in range(width):
                box = windows(torch.tensor([[y, x]]), scale)
                overlaps = [0 if ignore[k] else float(pairwise_iou(box, measured[k][None])) for k in range(len(boxes))]
                best = max(range(len(boxes)), key=overlaps.__getitem__)
                assert int(found.matched[row]) == (best if overlaps[best] > 0.65 else -1)
                assert found.boxes[row].tolist() == box[0].tolist()
                assert int(found.levels[row]) == level
                row += 1
    assert row == len(found.matched)
    assert found.num_levels == 3
    assert len(set(found.matched.tolist())) > 4


def test_an_object_on_a_window_of_the_second_scale():
    box = windows(torch.tensor([[3, 5]]), 0.375)
    detector, found = asked(target(box[0].tolist()))
    (row,) = ((found.boxes == box).all(dim=1) & (found.levels == 1)).nonzero().flatten().tolist()
    assert int(found.matched[row]) == 0
    assert counts(found, 0)[0] == counts(found, 0)[2] == 0 < counts(found, 0)[1]
    assert float(detector.overlaps(found.boxes[row], box[0])) == 1
    assert [detector.level_value(level) for level in range(3)] == [16, 32, 64]


def test_a_long_object_has_windows_by_its_square_alone():
    of = target([30.0, 40, 59, 47])
    detector, found = asked(of)
    assert counts(found, 0) == [0, 0, 0]
    assert detector.why_none(of.boxes[0].tolist(), SIZE) == "too long for any square (model.match_squares)"
    detector, found = asked(of, match_squares=True)
    assert sum(counts(found, 0)) > 0
    of_object = found.boxes[found.matched == 0]
    assert float(detector.overlaps(of_object, of.boxes.expand_as(of_object)).min()) > 0.65, "of the square"


def test_of_two_objects_on_one_window_the_nearer_has_it():
    box = windows(torch.tensor([[3, 5]]), 0.75)[0]
    of = target(box.tolist(), (box + torch.tensor([1.0, 1, -1, -1])).tolist())
    _, found = asked(of)
    assert sum(counts(found, 0)) > 0
    assert counts(found, 1) == [0, 0, 0]
    _, alone = asked(of.select(torch.tensor([1])))
    assert sum(counts(alone, 0)) > 0


@pytest.mark.parametrize(
    ("box", "size", "words"),
    [
        ([50.0, 50, 58, 58], SIZE, "smaller than the smallest windows (model.min_size, 16 px)"),
        ([0.0, 0, 95, 95], SIZE, "larger than the largest windows that its image has room for"),
        ([30.0, 20, 50.5, 40.5], SIZE, "between two windows of the pyramid (model.factor)"),
        ([2.0, 2, 10, 10], (13, 90), "its image is smaller than a window of model.min_size, 16 px"),
    ],
)
def test_why_an_object_has_none(box, size, words):
    detector, found = asked(target(box), size)
    assert (found.matched < 0).all()
    assert detector.why_none(box, size) == words


def test_images_without_objects_and_without_windows():
    assert (asked(Target.empty())[1].matched < 0).all()
    _, none = asked(target([1.0, 1, 9, 9]), (10, 300))
    assert (len(none.matched), none.boxes.shape, none.num_levels) == (0, (0, 4), 0)
    assert MTCNN(num_classes=1, min_size=300.0).misfit(None, 128) == (
        "every window (from 300 px) is larger than the image of 128 px: model.min_size"
    )
