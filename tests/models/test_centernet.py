"""CenterNet against the paper: targets, equations 1 to 4 by hand, peaks without NMS."""

import math

import pytest
import torch

from detkit.losses import PenaltyReducedFocal
from detkit.matching import NEGATIVE, Selector
from detkit.matching.assigners import IGNORED
from detkit.models.heads.centernet import CenterNetHead, RawCentres
from detkit.structures import FeatureSpec
from tests.models.builders import images, target

SHAPE = (8, 12)  # 32 x 48 px at stride 4


PEAKS = Selector(score_threshold=0.0, nms_iou=None)


def head(selector=PEAKS, **options):
    spec = FeatureSpec((8,), (4.0,))
    return CenterNetHead(in_spec=spec, num_classes=2, heat_loss=PenaltyReducedFocal(), selector=selector, **options)


# centre (21, 14): cell column 5, row 3, offset (0.25, 0.5); 18 x 12 px are 4.5 x 3 cells
BOX = [12.0, 8.0, 30.0, 20.0]


def blank(num_images=1, logit=-30.0):
    return RawCentres(
        torch.full((num_images, 2, *SHAPE), logit),
        torch.zeros(num_images, 2, *SHAPE),
        torch.zeros(num_images, 2, *SHAPE),
    )


def test_equations_2_and_3_by_hand():
    raw = blank()
    raw.offsets[0, :, 3, 5] = torch.tensor([0.5, 0.25])
    raw.sizes[0, :, 3, 5] = torch.tensor([4.0, 5.0])
    losses = head().loss_from_raw(raw, images((32, 48)), [target(BOX, labels=[1])])
    assert losses.terms["offset"].item() == pytest.approx((0.25 + 0.25) / 2)
    assert losses.terms["size"].item() == pytest.approx(0.1 * (0.5 + 2.0) / 2)
    assert losses.stats["num_pos"] == 1


def test_equation_1_by_hand():
    logits = torch.tensor([0.0, 0.0, 1.0])
    heat = torch.tensor([1.0, 0.5, 0.0])
    p = 1 / (1 + math.exp(-1.0))
    expected = [-(0.5**2) * math.log(0.5), -(0.5**4) * 0.5**2 * math.log(0.5), -(p**2) * math.log(1 - p)]
    torch.testing.assert_close(PenaltyReducedFocal()(logits, heat), torch.tensor(expected))


def test_the_heat_term_is_divided_by_the_objects():
    """Two objects far apart, every cell at probability 1/2: the sum of equation 1 over both maps, over 2."""
    boxes = target([0.0, 0.0, 4.0, 4.0], [40.0, 24.0, 44.0, 28.0])
    heat = head().heatmaps(SHAPE, [boxes])
    total = PenaltyReducedFocal()(torch.zeros_like(heat), heat).sum()
    losses = head().loss_from_raw(blank(logit=0.0), images((32, 48)), [boxes])
    torch.testing.assert_close(losses.terms["heat"], total / 2)


def test_without_objects_only_the_background_counts():
    losses = head().loss_from_raw(blank(logit=0.0), images((32, 48)), [target()])
    assert losses.terms["heat"].item() == pytest.approx(2 * 96 * 0.25 * math.log(2), rel=1e-5)
    assert losses.terms["offset"] == losses.terms["size"] == 0


def test_heatmaps_of_a_batch_have_their_peaks_where_the_objects_are():
    heat = head(radius="iou").heatmaps(SHAPE, [target(BOX, labels=[1]), target(), target(BOX, BOX, labels=[0, 1])])
    assert heat.shape == (3, 2, *SHAPE)
    peaks = (heat == 1).nonzero().tolist()
    assert peaks == [[0, 1, 3, 5], [2, 0, 3, 5], [2, 1, 3, 5]]


def test_the_official_radius_is_the_wider_one():
    official, right = (head(radius=r).heatmaps(SHAPE, [target(BOX)]) for r in ("official", "iou"))
    assert official.sum() > right.sum()


def test_of_two_objects_of_a_class_in_a_cell_the_smaller_stays():
    small = [19.0, 12.0, 23.0, 16.0]
    for objects in ((small, BOX), (BOX, small)):
        assignment = head().assign([SHAPE], images((32, 48)), [target(*objects)])[0]
        assert assignment.matched.view(2, *SHAPE)[0, 3, 5] == objects.index(small)
        assert int(assignment.positive.sum()) == 1
    other = head().assign([SHAPE], images((32, 48)), [target(small, BOX, labels=[0, 1])])[0]
    assert int(other.positive.sum()) == 2, "objects of two classes do not meet"


def test_crowds_and_padding_take_no_part():
    crowd = target([0.0, 0.0, 8.0, 4.0], BOX, ignore=[True, False])
    pair = images((32, 48), (16, 48))
    first, second = (a.matched.view(2, *SHAPE) for a in head().assign([SHAPE], pair, [crowd, target()]))
    assert (first[:, 0, :2] == IGNORED).all()
    assert (first[:, 0, 2:] == NEGATIVE).all()
    assert (second[:, 4:] == IGNORED).all()
    raw = blank(2)
    raw.heat[0, :, 0, :2] = 30.0
    raw.heat[1, :, 4:] = 30.0
    raw.heat[0, 0, 3, 5] = 30.0
    assert head().loss_from_raw(raw, pair, [crowd, target()]).terms["heat"].item() == pytest.approx(0, abs=1e-6)
    assert len(head().decode(raw, pair)[1]) == 0


def test_peaks_become_boxes():
    raw = blank()
    raw.heat[0, 1, 3, 5] = 2.0
    raw.heat[0, 1, 3, 6] = 1.0  # beside a higher one: no peak
    raw.heat[0, 0, 3, 6] = 1.5  # of another class: a peak of its own
    raw.offsets[0, :, 3, 5] = torch.tensor([0.25, 0.5])
    raw.sizes[0, :, 3, 5] = torch.tensor([4.5, 3.0])
    raw.sizes[0, :, 3, 6] = torch.tensor([1.0, 2.0])
    found = head().decode(raw, images((32, 48)))[0]
    torch.testing.assert_close(found.boxes, torch.tensor([BOX, [22.0, 8.0, 26.0, 16.0]]))
    torch.testing.assert_close(found.scores, torch.tensor([2.0, 1.5]).sigmoid())
    assert found.labels.tolist() == [1, 0]


def test_a_plateau_has_one_peak():
    """bfloat16 rounds neighbours to one value; each would come out as a detection of its own."""
    raw = blank()
    raw.heat[0, 1, 3, 5:8] = 2.0
    raw.heat[0, 1, 4, 5] = 2.0
    raw.offsets[0] = torch.tensor([0.25, 0.5])[:, None, None]
    raw.sizes[0] = torch.tensor([4.5, 3.0])[:, None, None]
    found = head(Selector(score_threshold=0.1, nms_iou=None)).decode(raw, images((32, 48)))[0]
    torch.testing.assert_close(found.boxes, torch.tensor([BOX]))


def test_overlapping_peaks_stay_unless_nms_is_asked_for():
    raw = blank()
    for column, logit in ((4, 2.0), (6, 1.0)):
        raw.heat[0, 0, 3, column] = logit
        raw.sizes[0, :, 3, column] = torch.tensor([8.0, 5.0])
    assert len(head().decode(raw, images((32, 48)))[0]) == 2
    assert len(head(Selector(score_threshold=0.0)).decode(raw, images((32, 48)))[0]) == 1


def test_the_published_bias():
    assert head().heat[-1].bias.tolist() == pytest.approx([-2.197] * 2, abs=1e-3)


@pytest.mark.parametrize("logit", [math.inf, -math.inf])
def test_an_infinite_logit_in_a_crowd_or_the_padding_takes_no_part(logit):
    crowd, pair = target([0.0, 0.0, 8.0, 4.0], BOX, ignore=[True, False]), images((32, 48), (16, 48))
    raw = blank(2, logit=0.0)
    expected = head().loss_from_raw(raw, pair, [crowd, target()]).terms["heat"]
    raw.heat[0, :, 0, :2] = raw.heat[1, :, 4:] = logit
    raw.heat.requires_grad_()
    term = head().loss_from_raw(raw, pair, [crowd, target()]).terms["heat"]
    assert term == expected
    term.backward()
    assert raw.heat.grad.isfinite().all()


@pytest.mark.parametrize("name", ["offset_weight", "size_weight"])
def test_factors_that_train_backwards_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be a number from 0 on, not -1.0"):
        head(**{name: -1.0})
