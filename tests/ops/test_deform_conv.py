"""Deformable convolution against torchvision and closed forms."""

import itertools
import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision

from detkit.ops import deform_conv
from tests.ops import cases

GEOMETRIES = list(itertools.product([(3, 3), (1, 2)], [(1, 1), (2, 1)], [(0, 0), (1, 2)], [(1, 1), (1, 2)]))
GROUPS = [(1, 1, True), (2, 1, False), (1, 2, True), (2, 4, True)]


@pytest.mark.parametrize("device", cases.DEVICES)
@pytest.mark.parametrize(("groups", "offset_groups", "modulated"), GROUPS)
def test_equals_torchvision_with_every_gradient(groups, offset_groups, modulated, device):
    for kernel, stride, padding, dilation in GEOMETRIES:
        case = cases.deform_conv(
            kernel, stride, padding, dilation, groups, offset_groups, modulated,
            size=(7, 9), dtype=torch.float64, device=device,
        )  # fmt: skip
        x, offset, weight, bias, *mask = inputs = [t.clone().requires_grad_() for t in case.inputs]
        ours = case.op(*inputs)
        theirs = torchvision.ops.deform_conv2d(
            x, offset, weight, bias, stride, padding, dilation, mask[0] if modulated else None
        )
        torch.testing.assert_close(ours, theirs)
        upstream = torch.randn_like(theirs)
        pairs = zip(*(torch.autograd.grad(out, inputs, upstream) for out in (ours, theirs)), strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("device", cases.DEVICES)
def test_zero_offsets_are_a_convolution(device):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 4, 8, 9, generator=g).to(device), torch.randn(6, 2, 3, 3, generator=g).to(device)
    options = {"stride": (2, 1), "padding": (2, 1), "dilation": (2, 1)}
    plain = F.conv2d(x, weight, groups=2, **options)
    offset = torch.zeros(2, 18, *plain.shape[2:], device=device)
    torch.testing.assert_close(deform_conv(x, offset, weight, **options), plain, rtol=1e-4, atol=1e-4)
    half = torch.full((2, 9, *plain.shape[2:]), 0.5, device=device)
    torch.testing.assert_close(deform_conv(x, offset, weight, mask=half, **options), plain / 2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", cases.DEVICES)
@pytest.mark.parametrize(("dy", "dx"), [(1, 0), (0, 2), (-1, 3)])
def test_whole_offsets_are_shifts(dy, dx, device):
    """Moving every tap by (dy, dx) convolves the map moved by (-dy, -dx): y first, x second."""
    g = torch.Generator().manual_seed(1)
    x, weight = torch.randn(1, 3, 8, 9, generator=g).to(device), torch.randn(2, 3, 3, 3, generator=g).to(device)
    offset = (
        torch.tensor([dy, dx], dtype=torch.float32, device=device).repeat(9)[None, :, None, None].expand(-1, -1, 8, 9)
    )
    wide = F.pad(x, (4, 4, 4, 4))
    moved = wide[:, :, 4 + dy - 1 : 4 + dy + 9, 4 + dx - 1 : 4 + dx + 10]
    out = deform_conv(x, offset, weight, padding=(1, 1))
    torch.testing.assert_close(out, F.conv2d(moved, weight), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("budget", [1, 1000])
def test_lines_and_images_in_several_chunks_are_all_at_once(budget, monkeypatch):
    module = sys.modules[deform_conv.__module__]  # the function hides the module of its name
    case = cases.deform_conv((2, 3), (2, 1), (0, 2), (1, 2), 2, 2, batch=3, size=(9, 6))
    outputs = []
    for numbers in (budget, 1 << 30):
        monkeypatch.setattr(module, "_CHUNK", numbers)
        inputs = [t.clone().requires_grad_() for t in case.inputs]
        out = case.op(*inputs)
        outputs.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_shapes_pass_without_numbers():
    """Detectors are asked on the "meta" device for the maps that they give; autocast knows no such device."""
    case = cases.deform_conv((3, 3), (2, 1), (1, 1), (1, 1), 1, 1, True, size=(7, 9))
    there = case.op(*case.inputs)
    moved = case.op(*(t.to("meta") for t in case.inputs))
    assert (moved.device.type, moved.shape) == ("meta", there.shape)


def test_shapes_are_checked():
    x, weight = torch.zeros(2, 4, 5, 6), torch.zeros(6, 4, 3, 3)
    offset, mask = torch.zeros(2, 18, 5, 6), torch.zeros(2, 9, 5, 6)
    with pytest.raises(ValueError, match=r"offset must be \(2, 2 G \* 9, 5, 6\), not \(2, 18, 3, 4\)"):
        deform_conv(x, offset[:, :, :3, :4], weight, padding=(1, 1))
    with pytest.raises(ValueError, match=r"mask must be \(2, 9, 5, 6\), not \(2, 8, 5, 6\)"):
        deform_conv(x, offset, weight, mask=mask[:, :8], padding=(1, 1))
    with pytest.raises(ValueError, match="4 channels do not divide into the 3 groups of the offset"):
        deform_conv(x, torch.zeros(2, 54, 5, 6), weight, padding=(1, 1))
    with pytest.raises(ValueError, match=r"bias must be \(6,\), not \(5,\)"):
        deform_conv(x, offset, weight, torch.zeros(5), padding=(1, 1))
    with pytest.raises(ValueError, match="4 channels do not divide among weights for 6"):
        deform_conv(x, offset, torch.zeros(6, 3, 3, 3), padding=(1, 1))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(2, 4, 5, 6, dtype=torch.int64)}, "x must be of a floating type, not int64"),
        ({"weight": torch.zeros(6, 4, 3, 3, dtype=torch.int32)}, "weight must be of a floating type, not int32"),
        ({"weight": torch.zeros(6, 4, 3, 3, dtype=torch.float64)}, "x is float32 and weight float64"),
        ({"x": torch.zeros(2, 4, 5, 6, dtype=torch.float64)}, "x is float64 and weight float32"),
        ({"offset": torch.zeros(2, 18, 5, 6, device="meta")}, "offset on meta, but x on cpu"),
        ({"mask": torch.zeros(2, 9, 5, 6, device="meta")}, "mask on meta, but x on cpu"),
        ({"x": torch.zeros(2, 4, 5, 6).to_sparse()}, "x must be strided, not sparse_coo"),
        ({"stride": (0, 1)}, r"stride and dilation must be at least 1 .*, not \(0, 1\), \(1, 1\) and \(1, 1\)"),
        ({"dilation": (1, -1)}, r"at least 1 .*, not \(1, 1\), \(1, -1\) and \(1, 1\)"),
        ({"padding": (-1, 1)}, r"padding at least 0, not \(1, 1\), \(1, 1\) and \(-1, 1\)"),
    ],
)
def test_what_cannot_be_computed_is_named(changed, message):
    given = {"x": torch.zeros(2, 4, 5, 6), "offset": torch.zeros(2, 18, 5, 6), "weight": torch.zeros(6, 4, 3, 3)}
    with pytest.raises(ValueError, match=message):
        deform_conv(**{**given, "padding": (1, 1), **changed})


def test_autocast_leaves_float64_as_it_leaves_a_convolution_s():
    x, weight = (torch.randn(*s, dtype=torch.float64) for s in ((1, 4, 5, 6), (6, 4, 3, 3)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = deform_conv(x, torch.zeros(1, 18, 5, 6), weight, padding=(1, 1))
        torch.testing.assert_close(out, torch.nn.functional.conv2d(x, weight, padding=1))
