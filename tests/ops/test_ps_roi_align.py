"""Position-sensitive pooling against torchvision, and by what a bin may see."""

import pytest
import torch
import torchvision

from detkit.ops import ps_roi_align, ps_roi_pool
from tests.ops import cases


def rois(boxes, index):
    return torch.cat([index[:, None].to(boxes.dtype), boxes], dim=1)


def bins_within_channels(features, bins=9):
    """torchvision's order of the channels of ``features``, whose channels lie within bins."""
    return features.unflatten(1, (bins, -1)).transpose(1, 2).flatten(1, 2)


@pytest.mark.parametrize("device", cases.DEVICES)
@pytest.mark.parametrize("sampling", [1, 2, 0])
def test_align_equals_torchvision_with_gradient(sampling, device):
    case = cases.ps_roi_align(sampling, num=40, size=(3, 3), device=device)
    features, boxes, index = case.raw[1][0][0].requires_grad_(), *case.raw[1][1:3]
    ours = case.op(features)
    theirs = torchvision.ops.ps_roi_align(bins_within_channels(features), rois(boxes, index), 3, 1 / 8, sampling or -1)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(theirs)
    a, b = (torch.autograd.grad(out, features, upstream)[0] for out in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", cases.DEVICES)
def test_pool_equals_torchvision_with_gradient(device):
    case = cases.ps_roi_pool(num=40, size=(3, 3), device=device)
    features, boxes, index = case.raw[1][0].requires_grad_(), *case.raw[1][1:3]
    boxes = boxes.clone()
    # torchvision's forward pass alone leaves out the last row and column of a map: 9 x 13 cells of 8 px
    boxes[:, 0::2].clamp_(max=95)
    boxes[:, 1::2].clamp_(max=63)
    ours = ps_roi_pool(features, boxes, index, output_size=(3, 3), scale=1 / 8)
    theirs = torchvision.ops.ps_roi_pool(bins_within_channels(features), rois(boxes, index), 3, 1 / 8)
    inside = ((boxes[:, 2] / 8).round() < 12) & ((boxes[:, 3] / 8).round() < 8)
    assert inside.sum() > 15
    torch.testing.assert_close(ours[inside], theirs[inside], rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(theirs)
    a, b = (torch.autograd.grad(out, features, upstream)[0] for out in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", [ps_roi_align, ps_roi_pool])
def test_each_bin_reads_its_own_channels(op):
    """A map whose channels hold their own number comes out as those numbers: eq. 1's order of channels."""
    features = torch.arange(2 * 6.0)[None, :, None, None].expand(1, 12, 8, 8).contiguous()
    box = torch.tensor([[8.0, 8.0, 48.0, 56.0]])
    out = op(features, box, torch.tensor([0]), output_size=(3, 2), scale=1 / 8)
    torch.testing.assert_close(out[0], torch.arange(12.0).view(3, 2, 2).permute(2, 0, 1))


@pytest.mark.parametrize("op", [ps_roi_align, ps_roi_pool])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_bad_boxes_do_not_crash_nor_disturb(op, bad):
    case = cases.ps_roi_pool()
    features, boxes, index = case.inputs[0], *case.raw[1][1:3]
    good = op(features, boxes, index, output_size=(3, 2), scale=1 / 8)
    boxes = boxes.clone()
    boxes[3, 2] = bad
    out = op(features, boxes, index, output_size=(3, 2), scale=1 / 8)
    assert out.isfinite().all()
    if bad != 1e30:
        assert not out[3].any()
    rest = torch.arange(len(boxes)) != 3
    torch.testing.assert_close(out[rest], good[rest])


def test_shapes_are_checked():
    features, boxes, index = torch.zeros(1, 7, 4, 4), torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)
    for op in (ps_roi_align, ps_roi_pool):
        with pytest.raises(ValueError, match="7 channels do not divide into 3 x 2 bins"):
            op(features, boxes, index, output_size=(3, 2), scale=1.0)
        with pytest.raises(ValueError, match="1 boxes but 2 image indices"):
            op(features[:, :6], boxes, index.repeat(2), output_size=(3, 2), scale=1.0)
        with pytest.raises(ValueError, match="output_size must be at least 1 x 1, not 3 x 0"):
            op(features, boxes, index, output_size=(3, 0), scale=1.0)


@pytest.mark.parametrize("op", [ps_roi_align, ps_roi_pool])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_boxes_of_any_type_are_those_of_float32(op, dtype):
    features = torch.randn(1, 12, 60, 60, generator=torch.Generator().manual_seed(0))
    box, index = torch.tensor([[8, 16, 400, 320], [0, 0, 12, 20]]).to(dtype), torch.tensor([0, 0])
    expected = op(features, box.float(), index, output_size=(3, 2), scale=1 / 8)
    assert torch.equal(op(features, box, index, output_size=(3, 2), scale=1 / 8), expected)
