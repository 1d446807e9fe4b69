"""Necks by their geometry: what each level sees, and how paths start."""

import pytest
import torch
from torch import nn
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detkit.models.necks import FPN, ImagePyramid, Upsample
from detkit.models.necks.image_pyramid import scaled
from detkit.models.necks.upsample import start_as_bilinear
from detkit.structures import FeatureSpec

SPEC = FeatureSpec((3, 3, 3), (4.0, 8.0, 16.0))


class Pooling(nn.Module):
    """A backbone whose cell is the mean of the pixels below it; it remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, pixels):
        self.seen.append(tuple(pixels.shape[2:]))
        return [nn.functional.avg_pool2d(pixels, int(s)) for s in SPEC.strides]


def transparent(neck):
    """Let lateral and output convolutions pass the three channels through."""
    with torch.no_grad():
        for conv in (neck.lateral, neck.output):
            conv.weight.zero_()
            for c in range(3):
                conv.weight[c, c, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1
    return neck


def test_an_image_pyramid_runs_one_network_at_every_scale():
    backbone = Pooling()
    neck = ImagePyramid(in_spec=SPEC, scales=(2.0, 1.0, 0.5), stride=8, out_channels=3)
    maps = neck(torch.rand(1, 3, 64, 96), backbone)
    assert backbone.seen == [(128, 192), (64, 96), (32, 48)]
    assert neck.out_spec == FeatureSpec((3, 3, 3), (4.0, 8.0, 16.0))
    assert [m.shape[2:] for m in maps] == [(16, 24), (8, 12), (4, 6)]


def test_levels_of_an_image_pyramid_lie_on_each_other():
    """On a ramp the cell (i, j) of every level has the value of the middle of its place in the image."""
    y, x = torch.meshgrid(torch.arange(64.0) + 0.5, torch.arange(96.0) + 0.5, indexing="ij")
    pixels = torch.stack([x, y, x + y])[None]
    neck = transparent(ImagePyramid(in_spec=SPEC, scales=(2.0, 1.0, 0.75, 0.5), stride=8, out_channels=3))
    for level, stride in zip(neck(pixels, Pooling()), neck.out_spec.strides, strict=True):
        columns = (torch.arange(level.shape[3]) + 0.5) * stride
        rows = (torch.arange(level.shape[2]) + 0.5) * stride
        inner = (slice(1, -1), slice(1, -1))
        torch.testing.assert_close(level[0, 0][inner], columns.expand(level.shape[2:])[inner], atol=0.05, rtol=1e-3)
        torch.testing.assert_close(
            level[0, 1][inner], rows[:, None].expand(level.shape[2:])[inner], atol=0.05, rtol=1e-3
        )


def test_shrinking_smooths_first():
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[..., ::2] = 1
    torch.testing.assert_close(scaled(stripes, 0.25)[..., 2:-2], torch.full((1, 3, 8, 4), 0.5), atol=0.02, rtol=0)
    lines = torch.zeros(1, 3, 32, 32)
    lines[..., ::4] = 1  # between the pixels that bilinear interpolation alone would read
    torch.testing.assert_close(scaled(lines, 0.25)[..., 2:-2], torch.full((1, 3, 8, 4), 0.25), atol=0.02, rtol=0)


def test_the_sum_is_one_map_of_all_scales():
    pixels, backbone = torch.full((1, 3, 64, 64), 2.0), Pooling()
    neck = transparent(ImagePyramid(in_spec=SPEC, scales=(1.0, 0.5), stride=8, out_channels=3, merge="sum"))
    (level,) = neck(pixels, backbone)
    torch.testing.assert_close(level[..., 1:-1, 1:-1], torch.full((1, 3, 6, 6), 4.0))
    assert neck.out_spec == FeatureSpec((3,), (8.0,))


def test_the_sum_lies_in_place_where_maps_are_not_whole():
    """72 px at half the size are 36, and those 4.5 cells of stride 8: the coarse map reaches beyond the image."""
    x = (torch.arange(72.0) + 0.5).expand(72, 72)
    pixels = torch.stack([x, x.T, x])[None]
    backbone = Padded()
    one = transparent(ImagePyramid(in_spec=SPEC, scales=(1.0,), stride=8, out_channels=3, merge="sum"))
    two = transparent(ImagePyramid(in_spec=SPEC, scales=(1.0, 0.5), stride=8, out_channels=3, merge="sum"))
    inner = (slice(None), slice(None), slice(2, -3), slice(2, -3))
    torch.testing.assert_close(two(pixels, backbone)[0][inner], 2 * one(pixels, backbone)[0][inner], atol=0.2, rtol=0)


class Padded(nn.Module):
    """Pooling whose last cell reaches over the border, as a strided convolution's does."""

    def forward(self, pixels):
        maps = []
        for stride in (int(s) for s in SPEC.strides):
            missing = [-side % stride for side in (pixels.shape[3], pixels.shape[2])]
            padded = nn.functional.pad(pixels, (0, missing[0], 0, missing[1]), mode="replicate")
            maps.append(nn.functional.avg_pool2d(padded, stride))
        return maps


def test_a_lateral_map_of_odd_size_joins_too():
    neck = Upsample(in_spec=SPEC, channels=(8,), lateral=True)
    maps = [torch.zeros(1, 3, 18, 18), torch.zeros(1, 3, 9, 9), torch.zeros(1, 3, 5, 5)]
    assert neck(torch.empty(0), lambda _: maps)[0].shape == (1, 8, 9, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": (0.5, 1.0)}, "largest"),
        ({"scales": ()}, "must be positive"),
        ({"stride": 32}, r"one of \[4, 8, 16\], not 32"),
    ],
)
def test_pyramids_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message.replace("largest", "fall, so that the finest")):
        ImagePyramid(in_spec=SPEC, **options)


def test_a_transposed_convolution_starts_as_bilinear_interpolation():
    layer = nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1, bias=False)
    start_as_bilinear(layer)
    x = torch.randn(1, 2, 5, 6)
    expected = nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    torch.testing.assert_close(layer(x)[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])


@pytest.mark.parametrize("mode", ["transposed", "bilinear"])
def test_lateral_maps_join_at_their_own_stride(mode):
    neck = Upsample(in_spec=SPEC, channels=(8, 4), mode=mode, lateral=True).eval()
    assert neck.out_spec == FeatureSpec((4,), (4.0,))
    assert neck.levels == [1, 0]
    fine, middle, coarse = torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 4, 4)
    quiet = neck(torch.empty(0), lambda _: [fine, middle, coarse])[0]
    fine[0, 0, 5, 9] = 1
    loud = neck(torch.empty(0), lambda _: [fine, middle, coarse])[0]
    assert (quiet != loud).any(dim=1).nonzero().tolist() == [[0, 5, 9]]
    assert Upsample(in_spec=SPEC, channels=(8, 4), mode=mode).levels == [None, None]


def test_fpn_begins_where_it_is_told():
    neck = FPN(in_spec=SPEC, out_channels=4, min_stride=8, num_extra=1, extra="conv_c5")
    assert neck.out_spec.strides == (8.0, 16.0, 32.0)
    maps = neck(torch.empty(0), lambda _: [torch.randn(1, 3, 64 // int(s), 64 // int(s)) for s in SPEC.strides])
    assert [m.shape[2] for m in maps] == [8, 4, 2]
    with pytest.raises(ValueError, match=r"min_stride must be one of \[4, 8, 16\], not 5"):
        FPN(in_spec=SPEC, min_stride=5)
    with pytest.raises(
        ValueError, match=r"one of \[16\], not 8; for a backbone of one map choose model/neck=single_level"
    ):
        FPN(in_spec=SPEC.select([2]), min_stride=8)


@pytest.mark.parametrize("extra", ["conv_p5", "conv_c5"])
def test_p6_and_p7_are_torchvisions(extra):
    """A ReLU stands between the two, and P6 itself has none."""
    torch.manual_seed(0)
    neck = FPN(in_spec=SPEC, out_channels=3, num_extra=2, extra=extra)
    theirs = LastLevelP6P7(3, 3)
    theirs.use_P5 = extra == "conv_p5"
    for ours, other in zip(neck.extra_convs, (theirs.p6, theirs.p7), strict=True):
        other.load_state_dict(ours.state_dict())
    maps = [torch.randn(1, 3, 64 // int(s), 64 // int(s)) for s in SPEC.strides]
    levels = neck(torch.empty(0), lambda _: maps)
    expected, _ = theirs([levels[2]], [maps[2]], [])
    assert (levels[3] < 0).any()
    for level, wanted in zip(levels[2:], expected, strict=True):
        torch.testing.assert_close(level, wanted)
