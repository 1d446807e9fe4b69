"""Deformable layers in the models: what a fresh one is, how pretrained weights reach it, and that it learns."""

from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from detkit.config import REGION_POOLS, ConfigError, build, validate
from detkit.models.backbones import ResNet
from detkit.models.heads import DeformRoIPool, ModulatedDeformRoIPool, RoIAlign
from detkit.models.layers import ConvNorm, DeformConv, OffsetConv, conv_norm, make_conv
from detkit.structures import FeatureSpec
from tests.models.builders import images

PIXELS = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_fresh_layer_is_the_plain_convolution(stride):
    plain = make_conv("conv", 4, 6, 3, stride, bias=True)
    x = torch.randn(2, 4, 9, 12)
    for name, share in (("deform", 1.0), ("modulated_deform", 0.5)):  # Zhu et al., section 3.1: the mask starts at 0.5
        layer = make_conv(name, 4, 6, 3, stride, bias=True)
        layer.load_state_dict(plain.state_dict(), strict=False)
        bias = plain.bias[:, None, None]
        torch.testing.assert_close(layer(x), share * (plain(x) - bias) + bias, rtol=1e-4, atol=1e-5)


def test_every_parameter_of_a_layer_learns():
    for modulated in (False, True):
        layer = DeformConv(
            in_channels=4, out_channels=4, kernel_size=3, padding=2, dilation=2, groups=2, offset_groups=2, bias=True,
            modulated=modulated,
        )  # fmt: skip
        layer(torch.randn(1, 4, 8, 8)).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


def test_a_frozen_norm_is_folded_into_it():
    conv, norm = make_conv("modulated_deform", 4, 6, 3), FrozenBatchNorm2d(6)
    nn.init.normal_(conv.offset.weight, std=0.1)
    for buffer, low in (("weight", 0.5), ("bias", -1.0), ("running_mean", -1.0), ("running_var", 0.5)):
        norm.get_buffer(buffer).uniform_(low, 2.0)
    x = torch.randn(2, 4, 9, 12)
    torch.testing.assert_close(conv_norm(x, conv, norm), norm(conv(x)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ConvNorm(conv, norm)(x), norm(conv(x)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [18, 50])
def test_resnet_deforms_the_stages_asked_for_and_starts_as_the_pretrained_network(depth, tmp_path):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    options = {"depth": depth, "weights": str(tmp_path / "resnet.pth"), "frozen_stages": 0}
    plain = ResNet(**options)
    deformable = ResNet(**options, stage_conv=("conv", "conv", "deform", "deform"))
    for i, kind in enumerate((nn.Conv2d, nn.Conv2d, DeformConv, DeformConv), start=1):
        assert {type(block.conv2) for block in getattr(deformable, f"layer{i}")} == {kind}
    assert not any(p.any() for m in deformable.modules() if isinstance(m, OffsetConv) for p in m.parameters())
    with torch.no_grad():
        for a, b in zip(deformable(PIXELS), plain(PIXELS), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


def test_a_file_that_lacks_more_than_offsets_is_refused(tmp_path):
    state = torchvision.models.resnet18(weights=None).state_dict()
    del state["layer4.0.conv2.weight"]
    torch.save(state, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"1 missing \(layer4\.0\.conv2\.weight\)"):
        ResNet(depth=18, weights=str(tmp_path / "resnet.pth"), stage_conv=("conv", "conv", "conv", "deform"))


@pytest.mark.parametrize(("make", "share"), [(DeformRoIPool, 1.0), (partial(ModulatedDeformRoIPool, hidden=8), 0.5)])
def test_fresh_deformable_pooling_is_roi_align_and_its_offsets_learn(make, share):
    g = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, 3, 16, 20, generator=g), torch.randn(1, 3, 8, 10, generator=g)]
    boxes = torch.tensor([[8.0, 8.0, 60.0, 44.0], [20.0, 4.0, 100.0, 90.0]])
    options = {"in_spec": FeatureSpec((3, 3), (8.0, 16.0)), "resolution": 4, "canonical_size": 80.0}
    layer, inputs = make(**options), (maps, [boxes], images((128, 160)))
    assert layer.levels(boxes).tolist() == [0, 1]
    out = layer(*inputs)
    plain = share * RoIAlign(**options)(*inputs)
    torch.testing.assert_close(out, plain)
    out.square().sum().backward()
    assert all(part.any() for part in layer.offset.weight.grad.split(16)), "of dx, of dy and of the mask"
    with torch.no_grad():
        layer.offset.bias[:32] = 5.0
    assert not torch.allclose(layer(*inputs), plain)
    with torch.no_grad():
        layer.offset.bias[:32], layer.offset.bias[32:] = 0.0, 20.0
    torch.testing.assert_close(layer(*inputs), plain / share)


@pytest.mark.parametrize("name", list(REGION_POOLS))
def test_what_all_pools_are_told_is_in_the_schema_of_each_and_arrives(name):
    told = {"resolution": 3, "sampling_ratio": 1, "num_levels": 1, "canonical_size": 32.0, "canonical_stride": 4.0}
    node = {"_target_": name, **told}
    validate(node)
    pool = build(node, in_spec=FeatureSpec((9, 9), (4.0, 8.0)))
    assert {key: getattr(pool, key) for key in told} == told
    with pytest.raises(ConfigError, match=r"^num_levels: must be int of 1 or more or null, not 'many'$"):
        validate({**node, "num_levels": "many"})
    with pytest.raises(ConfigError, match=r"did you mean 'resolution'"):
        validate({**node, "resolutoin": 3})


def test_a_deformable_stage_that_nothing_reads_is_refused():
    node = {"_target_": "ResNet", "depth": 18, "weights": None, "norm": "bn", "width": 16, "levels": (2, 3, 4)}
    with pytest.raises(ConfigError, match=r"stage_conv changes C5 .*, which levels=\[2, 3, 4\] leave out"):
        build({**node, "stage_conv": ("conv", "conv", "conv", "deform")})
    backbone = build({**node, "stage_conv": ("conv", "conv", "deform", "deform")})
    assert any(isinstance(module, DeformConv) for module in backbone.modules()), "C4 is read"
