"""Deformable RoI pooling: what zero and whole offsets are."""

import pytest
import torch

from detkit.ops import deform_roi_pool, multi_level_roi_align, ps_roi_align
from tests.ops import cases

OPTIONS = {"output_size": (3, 2), "sampling_ratio": 2}


@pytest.fixture
def regions():
    g = torch.Generator().manual_seed(3)
    boxes, index = cases.boxes_and_images(g, 6, torch.float32, "cpu")
    return torch.randn(2, 12, 9, 13, generator=g), boxes, index, torch.zeros(6, dtype=torch.int64)


def test_zero_offsets_are_roi_align(regions):
    features, boxes, index, levels = regions
    zero = torch.zeros(6, 2, 3, 2)
    plain = multi_level_roi_align([features], boxes, index, levels, scales=(1 / 8,), **OPTIONS)
    torch.testing.assert_close(
        deform_roi_pool([features], boxes, index, levels, zero, scales=(1 / 8,), **OPTIONS), plain
    )
    sensitive = ps_roi_align(features, boxes, index, scale=1 / 8, **OPTIONS)
    out = deform_roi_pool([features], boxes, index, levels, zero, scales=(1 / 8,), position_sensitive=True, **OPTIONS)
    torch.testing.assert_close(out, sensitive)


def test_offsets_are_a_tenth_of_the_box_each(regions):
    """dx = 10 with the paper's gamma of 0.1 moves a bin by one box width, dy = 10 by one height (eq. 7)."""
    features, _, index, levels = regions
    boxes = torch.tensor([[16.0, 8.0, 40.0, 32.0]]).repeat(6, 1)
    for channel, by in ((0, (24.0, 0.0)), (1, (0.0, 24.0))):
        offsets = torch.zeros(6, 2, 3, 2)
        offsets[:, channel] = 10
        moved = boxes + torch.tensor([*by, *by])
        out = deform_roi_pool([features], boxes, index, levels, offsets, scales=(1 / 8,), **OPTIONS)
        plain = multi_level_roi_align([features], moved, index, levels, scales=(1 / 8,), **OPTIONS)
        torch.testing.assert_close(out, plain, rtol=1e-4, atol=1e-5)


def test_each_group_moves_its_own_channels(regions):
    features, boxes, index, levels = regions
    offsets = torch.zeros(6, 4, 3, 2)
    offsets[:, 2:] = torch.randn(6, 2, 3, 2, generator=torch.Generator().manual_seed(0))
    out = deform_roi_pool([features], boxes, index, levels, offsets, scales=(1 / 8,), **OPTIONS)
    for part, run in ((offsets[:, :2], slice(0, 6)), (offsets[:, 2:], slice(6, 12))):
        alone = deform_roi_pool([features], boxes, index, levels, part, scales=(1 / 8,), **OPTIONS)
        torch.testing.assert_close(out[:, run], alone[:, run])


def test_shapes_are_checked(regions):
    features, boxes, index, levels = regions
    with pytest.raises(ValueError, match=r"offsets must be \(6, 2 G, 3, 2\), not \(6, 3, 3, 2\)"):
        deform_roi_pool([features], boxes, index, levels, torch.zeros(6, 3, 3, 2), scales=(1 / 8,), **OPTIONS)
    with pytest.raises(ValueError, match="12 channels do not divide into the 5 groups of the offsets"):
        deform_roi_pool([features], boxes, index, levels, torch.zeros(6, 10, 3, 2), scales=(1 / 8,), **OPTIONS)
    with pytest.raises(ValueError, match=r"offsets must be \(6, 2 G, 3, 2\), not \(12,\)"):
        deform_roi_pool([features], boxes, index, levels, torch.zeros(12), scales=(1 / 8,), **OPTIONS)
    zero, mask = torch.zeros(6, 2, 3, 2), torch.zeros(6, 2, 3, 2)
    with pytest.raises(ValueError, match=r"mask must be \(6, 1, 3, 2\), not \(6, 2, 3, 2\)"):
        deform_roi_pool([features], boxes, index, levels, zero, scales=(1 / 8,), mask=mask, **OPTIONS)
