"""Strided depthwise convolutions train in float32 where a CPU runs the rest in bf16."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from detkit.models.backbones import MobileNetV2, MobileNetV3, Timm
from detkit.models.layers import use_strided_depthwise
from detkit.models.layers.depthwise import StridedDepthwise

NETWORKS = {
    "mobilenetv2": lambda: MobileNetV2(weights=None),
    "mobilenetv2 with norms": lambda: MobileNetV2(weights=None, norm="bn"),
    "mobilenetv3": lambda: MobileNetV3(weights=None),
    "timm": lambda: Timm(name="efficientnet_lite0", pretrained=False),
}


def outcome(conv, x, cast):
    """The result and the gradients of the input and the weights."""
    x, weights = x.clone().requires_grad_(), list(conv.parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        result = conv(x)
    pull = torch.linspace(-1, 1, result.numel()).view_as(result)
    return [result, *torch.autograd.grad((result * pull).sum(), [x, *weights])]


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_convolution_of_float32(bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, 5, (2, 1), padding=2, groups=6, bias=bias)
    own, x = StridedDepthwise(conv), torch.randn(2, 6, 9, 11)
    assert own.weight is conv.weight
    for ours, theirs in zip(outcome(own, x, False), outcome(conv, x, False), strict=True):
        assert torch.equal(ours, theirs)
    ours, theirs = outcome(own, x, True), outcome(conv, x, False)
    assert torch.equal(ours[0], theirs[0].bfloat16())
    for mine, exact in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(mine, exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_network_takes_the_slow_gradient(name):
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution_backward.default:
                gradient, x, weight, _, stride = args[:5]
                is_strided_depthwise = weight.shape[1] == 1 < x.shape[1] and max(stride) > 1
                if is_strided_depthwise:
                    seen.append(gradient.dtype)
            return func(*args, **(kwargs or {}))

    network = NETWORKS[name]().train()
    with Watch():
        with torch.autocast("cpu", torch.bfloat16):
            maps = network(torch.rand(2, 3, 64, 64))
        sum(m.float().sum() for m in maps).backward()
    assert seen == 4 * [torch.float32]


def test_only_strided_depthwise_ones_are_replaced():
    layers = nn.Sequential(
        nn.Conv2d(4, 4, 3, 2, groups=4), nn.Conv2d(4, 8, 3, 2, groups=4), nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 3, 2, groups=4), nn.Conv2d(8, 8, 3, 2), nn.Conv2d(8, 1, 3, 2), nn.Conv2d(1, 1, 3, 2),
        nn.Conv2d(1, 1, 3, 2, padding=1, padding_mode="reflect"),
    )  # fmt: skip
    names = list(layers.state_dict())
    use_strided_depthwise(layers)
    assert [isinstance(layer, StridedDepthwise) for layer in layers] == [True, True] + [False] * 6
    assert list(layers.state_dict()) == names
