"""The Gaussian radius by both rules, and heatmaps drawn by hand."""

import math

import pytest
import torch

from detkit.matching.gaussian import draw_gaussians, gaussian_radius

#: radii of boxes of 10 x 10 and 100 x 20 cells at an overlap of 0.7, from the quadratics by hand
OFFICIAL, BY_IOU = [2.7332, 9.4666], [0.8167, 2.6139]


def displaced_iou(h, w, r, case):
    """IoU of a box of h x w with one whose corners moved by r, in each of the three ways."""
    if case == 1:
        inter = (h - r) * (w - r)
        return inter / (2 * h * w - inter)
    if case == 2:
        return (h - 2 * r) * (w - 2 * r) / (h * w)
    return h * w / ((h + 2 * r) * (w + 2 * r))


@pytest.mark.parametrize(("h", "w"), [(10, 10), (100, 20), (3, 40), (1, 1), (250.5, 7.25)])
@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.7, 0.9])
def test_the_iou_rule_keeps_the_overlap_in_every_case(h, w, overlap):
    r = gaussian_radius(torch.tensor([[h, w]], dtype=torch.float64), overlap, "iou").item()
    overlaps = [displaced_iou(h, w, r, case) for case in (1, 2, 3)]
    assert min(overlaps) == pytest.approx(overlap, abs=1e-9), "and the tightest case meets it exactly"


@pytest.mark.parametrize(("h", "w"), [(10, 10), (100, 20), (3, 40), (1, 1)])
def test_the_official_rule_is_the_published_codes(h, w):
    """What the published code computes: (b + sqrt(b^2 - 4ac)) / 2 in all three cases, with its own signs of b."""
    o = 0.7
    roots = []
    for a, b, c in (
        (1, h + w, w * h * (1 - o) / (1 + o)),
        (4, 2 * (h + w), (1 - o) * w * h),
        (4 * o, -2 * o * (h + w), (o - 1) * w * h),
    ):
        roots.append((b + math.sqrt(b * b - 4 * a * c)) / 2)
    assert gaussian_radius(torch.tensor([[h, w]], dtype=torch.float64))[0].item() == pytest.approx(min(roots))


def test_golden_radii():
    sizes = torch.tensor([[10.0, 10.0], [100.0, 20.0]])
    torch.testing.assert_close(gaussian_radius(sizes, rule="official"), torch.tensor(OFFICIAL), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gaussian_radius(sizes, rule="iou"), torch.tensor(BY_IOU), rtol=1e-4, atol=1e-4)


def test_a_peak_drawn_by_hand():
    heat = draw_gaussians(torch.tensor([[2, 1]]), torch.tensor([1]), torch.tensor([0]), 2, (4, 5))
    side = math.exp(-1 / (2 * 0.5**2))  # sigma = 3 / 6
    expected = torch.zeros(2, 4, 5)
    expected[0, 0:3, 1:4] = torch.tensor([[side**2, side, side**2], [side, 1, side], [side**2, side, side**2]])
    torch.testing.assert_close(heat, expected)


def test_where_peaks_meet_the_larger_value_stays():
    cells, radii = torch.tensor([[3, 3], [5, 3], [3, 3]]), torch.tensor([3, 3, 3])
    heat = draw_gaussians(cells, radii, torch.tensor([0, 0, 1]), 2, (7, 9))
    alone = draw_gaussians(cells[1:2], radii[1:2], torch.tensor([0]), 1, (7, 9))[0]
    torch.testing.assert_close(heat[0], torch.maximum(heat[1], alone))
    assert heat[0, 3, 3] == heat[0, 3, 5] == 1


def test_many_objects_equal_one_by_one():
    g = torch.Generator().manual_seed(0)
    n, shape = 300, (12, 17)
    cells = torch.stack([torch.randint(0, s, (n,), generator=g) for s in (shape[1], shape[0])], 1)
    radii, channels = torch.randint(0, 6, (n,), generator=g), torch.randint(0, 4, (n,), generator=g)
    together = draw_gaussians(cells, radii, channels, 4, shape)
    alone = torch.stack(
        [draw_gaussians(c[None], r[None], k[None], 4, shape) for c, r, k in zip(cells, radii, channels, strict=True)]
    )
    torch.testing.assert_close(together, alone.amax(0))


def test_no_objects_no_heat():
    empty = torch.zeros(0, dtype=torch.int64)
    assert draw_gaussians(torch.zeros(0, 2, dtype=torch.int64), empty, empty, 3, (2, 2)).sum() == 0
