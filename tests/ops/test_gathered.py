"""The gathered forms say what the ops say."""

import pytest
import torch

from detkit.ops.gathered import deform_conv_gathered, region_pooling_gathered


@pytest.mark.parametrize(("groups", "parts", "modulated"), [(1, 1, True), (2, 2, True), (2, 1, False), (1, 2, False)])
def test_deformable_convolution(groups, parts, modulated):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 4, 7, 9, generator=g), torch.randn(6, 4 // groups, 3, 2, generator=g)
    offset = 2 * torch.randn(2, 2 * parts * 6, 7, 5, generator=g)
    mask = torch.rand(2, parts * 6, 7, 5, generator=g) if modulated else None
    args = (x, offset, mask, weight, torch.randn(6, generator=g), [1, 2], [2, 1], [2, 1])
    torch.testing.assert_close(deform_conv_gathered(*args), torch.ops.detkit.deform_conv(*args), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("sensitive", "groups", "aligned"), [(False, 1, True), (False, 3, False), (True, 3, True), (True, 1, True)]
)
def test_moved_bins(sensitive, groups, aligned):
    g = torch.Generator().manual_seed(0)
    channels = 6 * (6 if sensitive else 1)
    maps = [torch.randn(2, channels, 16, 20, generator=g), torch.randn(2, channels, 8, 10, generator=g)]
    corner = 90 * torch.rand(5, 2, generator=g) - 10
    boxes = torch.cat([corner, corner + 60 * torch.rand(5, 2, generator=g)], dim=1)
    image, level = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0, 1, 0, 1, 1])
    offsets = 3 * torch.randn(5, 2 * groups, 3, 2, generator=g)
    args = (maps, boxes, image, level, offsets, None, [3, 2], [1 / 8, 1 / 16], 2, aligned, sensitive, 0.1)
    torch.testing.assert_close(
        region_pooling_gathered(*args), torch.ops.detkit.region_pooling(*args), rtol=1e-4, atol=1e-4
    )
    assert region_pooling_gathered(*args[:4], None, *args[5:]) is NotImplemented
    with pytest.raises(ValueError, match="sampling_ratio alone: set it to 2"):
        region_pooling_gathered(*args[:8], 0, *args[9:])
