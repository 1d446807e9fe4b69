"""Analytic fields: published values, both derivations over every backbone, and the gradient as an independent proof."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detkit.analysis.receptive_field import Box, receptive_fields
from detkit.analysis.receptive_field.graph import nodes_below, trace_back
from detkit.analysis.receptive_field.recorder import Recorder
from detkit.analysis.receptive_field.rules import rule_of
from detkit.config import BACKBONES, build
from detkit.models.backbones import ResNet
from detkit.models.necks import FPN
from tests.analysis.receptive_field.networks import Bottlenecks, alexnet, make_linear, seen_by_gradient, vgg16
from tests.models.test_contracts import BACKBONE_OPTIONS

PIXELS = torch.zeros(1, 3, 128, 160)

#: blocks per stage
R50, R101, R152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)


@pytest.mark.parametrize(
    ("network", "size", "stride"),
    [
        (lambda x: [alexnet()(x)], 195, 32), (lambda x: [vgg16()(x)], 212, 32),
        (Bottlenecks(R50, "last"), 483, 32), (Bottlenecks(R101, "last"), 1027, 32), (Bottlenecks(R152, "last"), 1507, 32),
        (Bottlenecks(R50, "first"), 483, 32), (Bottlenecks(R101, "first"), 1027, 32), (Bottlenecks(R152, "first"), 1507, 32),
        (Bottlenecks(R50, "middle"), 427, 32), (Bottlenecks(R101, "middle"), 971, 32), (Bottlenecks(R152, "middle"), 1451, 32),
    ],
)  # fmt: skip
def test_published_values(network, size, stride):
    """Araujo et al. (Distill 2019) give AlexNet 195, VGG-16 212, ResNet-50 483, -101 1027, -152 1507, all at stride 32.

    Theirs are TF-Slim's ResNets. He et al.'s arrangement gives the same; with the stride in the 3x3 convolution three of
    these lie at half the stride, and the field is 2 * (4 + 8 + 16) = 56 px smaller.
    """
    (level,), notes = receptive_fields(network, PIXELS)
    assert level.size == level.closed_form == (size, size)
    assert level.stride == (stride, stride)
    assert level.is_regular
    assert not level.whole_image
    assert not notes


def test_detkits_resnets_have_the_stride_in_the_3x3():
    fields, _ = receptive_fields(ResNet(depth=50, weights=None).eval(), PIXELS)
    assert [f.size[0] for f in fields] == [35, 91, 267, 427]
    assert [f.start for f in fields] == [(0.5, 0.5)] * 4, "odd kernels with symmetric padding: on the first pixel"
    fields, _ = receptive_fields(ResNet(depth=101, weights=None).eval(), PIXELS)
    assert fields[-1].size == (971, 971)


def test_valid_padding_moves_the_start():
    (level,), _ = receptive_fields(
        lambda x: [F.conv2d(F.conv2d(x, torch.ones(1, 3, 5, 3)), torch.ones(1, 1, 2, 6), stride=(1, 2))], PIXELS
    )
    assert level.size == (6, 8)
    assert level.start == (3.0, 4.0), "the first cell reads rows 0 to 5 and columns 0 to 7"
    assert level.stride == (1.0, 2.0)


@pytest.mark.parametrize("name", BACKBONE_OPTIONS)
def test_recurrence_and_closed_form_agree_on_every_backbone(name):
    backbone = build({"_target_": name, **BACKBONE_OPTIONS[name]}).eval()
    fields, notes = receptive_fields(backbone, PIXELS)
    assert not notes
    for field, stride in zip(fields, backbone.out_spec.strides, strict=True):
        assert field.size == field.closed_form
        assert field.stride == (stride, stride)
        assert field.is_regular
    sizes = [field.size[0] for field in fields]
    assert sizes == sorted(sizes)


def test_every_backbone_is_there():
    assert {n for n in BACKBONES if BACKBONES[n].__module__.startswith("detkit.")} == set(BACKBONE_OPTIONS)


def conv(kernel, stride=1, padding=0, dilation=1, channels=1):
    return nn.Conv2d(channels, 1, kernel, stride, padding, dilation, bias=False)


class Branches(nn.Module):
    """A dilated and a lopsided branch beside each other, joined, and pooled."""

    def __init__(self):
        super().__init__()
        self.stem = conv((3, 5), 2, (1, 2), channels=3)
        self.dilated = conv(3, 1, (3, 2), (3, 2))
        self.wide = conv((1, 7))
        self.last = nn.Conv2d(3, 1, 3, 2, 1, bias=False)

    def forward(self, x):
        x = self.stem(x)
        wide = self.wide(F.pad(x, (5, 1, 0, 0)))
        return [F.avg_pool2d(self.last(torch.cat([self.dilated(x), wide, x], 1)), 2)]


class Enlarging(nn.Module):
    """Down by 8 and up again in every way that there is, each with the finer map added."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 2, 1, channels=3)
        self.down = nn.ModuleList([conv(3, 2, 1), conv(3, 2, 1)])
        self.up = nn.ConvTranspose2d(1, 1, 4, 2, 1, bias=False)
        self.up_sparse = nn.ConvTranspose2d(1, 1, 3, 2, 2, output_padding=1, dilation=2, bias=False)
        self.last = conv(3, 1, 1)

    def forward(self, x):
        a = self.stem(x)
        b = self.down[0](a)
        c = self.down[1](b)
        size = b.shape[2:]
        ups = [
            F.interpolate(c, scale_factor=2), F.interpolate(c, size=size, mode="bilinear"),
            F.interpolate(c, size=size, mode="bilinear", align_corners=True), self.up(c), self.up_sparse(c),
            F.interpolate(c, size=size, mode="nearest-exact"),
        ]  # fmt: skip
        return [self.last(up + b) for up in ups] + [self.last(F.interpolate(self.last(ups[0] + b), scale_factor=2) + a)]


class Scaled(nn.Module):
    """An image pyramid: the same convolutions over the image at several scales, and what else moves pixels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(conv(5, 2, 2, channels=3), conv(3, 2, 1))
        self.mix = conv(3, 1, 1, channels=4)
        self.linear = nn.Linear(1, 1, bias=False)

    def forward(self, x):
        small = F.interpolate(x, scale_factor=0.75, mode="bilinear", align_corners=False)
        half = F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)
        maps = [self.conv(x), self.conv(small), self.conv(half), self.mix(F.pixel_unshuffle(self.conv(x), 2))]
        shuffled = F.pixel_shuffle(torch.cat([self.conv(x)] * 4, 1), 2)
        per_cell = self.linear(self.conv(x).permute(0, 2, 3, 1).flatten(0, 2)).view(1, *maps[0].shape[2:], 1)
        last = self.conv[1](per_cell.permute(0, 3, 1, 2))
        return [*maps, self.conv[1](shuffled), last, last[:, :, 1::2, 2:], F.adaptive_avg_pool2d(last, (5, 8))]


def traced(network, size, level, cell):
    """The recurrence for one cell, cut off at the border of the image."""
    pixels = torch.zeros(1, 3, *size, dtype=torch.float64)
    with torch.no_grad(), Recorder(pixels, rule_of) as recorder:
        maps = network(pixels)
    nodes = nodes_below(recorder.lookup(maps[level]).node)
    y, x = (trace_back(nodes, cell[axis], axis) for axis in (0, 1))
    return Box(max(0, y.first), max(0, x.first), min(size[0], y.last + 1), min(size[1], x.last + 1))


@pytest.mark.parametrize(
    ("kind", "size", "num_levels"), [(Branches, (96, 120), 1), (Enlarging, (96, 112), 7), (Scaled, (96, 128), 8)]
)
def test_pixels_with_a_gradient_are_the_field(kind, size, num_levels):
    """Positive weights and nothing but linear layers: a pixel of the field cannot cancel out."""
    network = make_linear(kind())
    maps = network(torch.ones(1, 3, *size, dtype=torch.float64))
    assert len(maps) == num_levels
    for level, m in enumerate(maps):
        h, w = m.shape[2:]
        for cell in ((h // 2, w // 2), (h // 2 + 1, w // 2 - 1), (h // 2 - 1, w // 2 + 2), (h // 2 + 2, w // 2 + 1)):
            assert seen_by_gradient(network, size, level, cell) == traced(network, size, level, cell), (level, cell)


def test_gradients_agree_on_a_feature_pyramid():
    size = (640, 704)
    backbone = ResNet(depth=18, weights=None, norm="bn", width=2)
    neck = FPN(in_spec=backbone.out_spec, out_channels=1, num_extra=2, extra="conv_p5")
    make_linear(neck)
    make_linear(backbone)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.double()

    def network(pixels):
        return neck(pixels, backbone)

    for level, cell in ((0, (81, 90)), (2, (20, 21)), (3, (10, 11)), (4, (5, 5))):
        assert seen_by_gradient(network, size, level, cell) == traced(network, size, level, cell), level


def test_an_enlarged_map_has_cells_of_different_fields():
    """FPN on ResNet-50: what a 3x3 convolution reads of a map that was enlarged by two is always two of its cells."""
    backbone = ResNet(depth=50, weights=None).eval()
    neck = FPN(in_spec=backbone.out_spec).eval()
    fields, notes = receptive_fields(lambda x: neck(x, backbone), PIXELS)
    assert not notes
    assert [f.size[0] for f in fields] == [427 + 32, 427 + 32, 427 + 32, 427 + 2 * 32, 427 + 2 * 32]
    assert [f.is_regular for f in fields] == [False, False, False, True, True]
    assert all(f.closed_form >= f.size for f in fields), "a bound for all cells"
    assert all(f.closed_form[0] - f.size[0] < 32 for f in fields)
    assert [f.stride[0] for f in fields] == [4.0, 8.0, 16.0, 32.0, 64.0]
    odd, _ = receptive_fields(lambda x: neck(x, backbone), torch.zeros(1, 3, 104, 128))
    assert odd[0].stride is odd[0].closed_form is None, "7 rows enlarged to 13 do not lie over them"
    assert odd[0].size[1] == 459
