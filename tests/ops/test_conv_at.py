"""A convolution at a few cells is the convolution there, with its gradients."""

import pytest
import torch
from torch import nn

from detkit.models.layers import make_conv
from detkit.ops import can_conv_at, conv_at

IMAGE = torch.tensor([0, 1, 1, 0, 1])
LEVEL = torch.tensor([0, 0, 1, 1, 0])
CELL = torch.tensor([0, 34, 5, 0, 17])  # corners, an edge and the middle of 5 x 7 and 2 x 3 cells


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"dilation": 2, "padding": 2}, {"kernel_size": 1, "padding": 0},
                                     {"kernel_size": (3, 5), "padding": (1, 2)}])  # fmt: skip
def test_equals_the_dense_convolution_and_its_gradients(options):
    g = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 3, *s, generator=g, dtype=torch.float64, requires_grad=True) for s in ((5, 7), (2, 3))]
    conv = nn.Conv2d(3, 4, **{"kernel_size": 3, "padding": 1, **options}).double()
    upstream = torch.randn(5, 4, generator=g, dtype=torch.float64)
    parameters = [*features, *conv.parameters()]

    dense = torch.stack([conv(features[lv])[i].flatten(1)[:, c] for i, lv, c in zip(IMAGE, LEVEL, CELL, strict=True)])
    sparse = conv_at(features, conv, IMAGE, LEVEL, CELL)
    torch.testing.assert_close(sparse, dense)
    expected = torch.autograd.grad((dense * upstream).sum(), parameters)
    for found, wanted in zip(torch.autograd.grad((sparse * upstream).sum(), parameters), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_of_a_half_type_has_its_convolution(dtype):
    conv, features = nn.Conv2d(3, 4, 3, padding=1).to(dtype), [torch.randn(2, 3, 5, 7, dtype=dtype)]
    found = conv_at(features, conv, IMAGE[:2], LEVEL[:2], CELL[:2])
    assert found.dtype == dtype
    dense = torch.stack([conv(features[0])[i].flatten(1)[:, c] for i, c in zip(IMAGE[:2], CELL[:2], strict=True)])
    torch.testing.assert_close(found, dense, rtol=0.02, atol=0.02)


def test_what_is_infinite_beyond_the_border_does_not_matter():
    features = [torch.ones(1, 1, 2, 2)]
    features[0][0, 0, 0, 0] = torch.inf
    conv = nn.Conv2d(1, 1, 1)
    assert conv_at(features, conv, IMAGE[:1], LEVEL[:1], torch.tensor([3])).isfinite().all()


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2),
     nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 4, 2, padding=1), nn.Linear(4, 4),
     make_conv("deform", 4, 4, 3)],
)  # fmt: skip
def test_other_layers_are_refused(conv):
    assert not can_conv_at(conv)
    with pytest.raises(ValueError, match="plain convolution that keeps the size of its map"):
        conv_at([torch.zeros(1, 4, 4, 4)], conv, IMAGE[:1], LEVEL[:1], CELL[:1])
