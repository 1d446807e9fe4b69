"""ResNet (He et al., CVPR 2016), in torchvision's form, whose ImageNet state dicts load unchanged.

Departure from the paper, as in torchvision ("v1.5"): the stride of a bottleneck stands in its 3x3 convolution, not in
the first 1x1, unless ``stride_in_1x1``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torchvision
from torch import Tensor, nn

from detkit.config import BACKBONES, Count
from detkit.models.backbones.weights import load_backbone_weights
from detkit.models.interfaces import Backbone
from detkit.models.layers import (
    Attention,
    ConvName,
    NormName,
    OffsetConv,
    branched,
    conv_norm,
    dilate,
    for_branches,
    freeze,
    make_conv,
    make_norm,
)
from detkit.structures import FeatureSpec
from detkit.structures.feature_spec import IMAGENET_STATS, PixelStats


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., figure 5 left)."""

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, strides: tuple[int, int], norm: NormName, norm_eps: float, conv: ConvName
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, max(strides), padding=1, bias=False)
        self.bn1 = make_norm(norm, channels, norm_eps)
        self.conv2 = make_conv(conv, channels, channels, 3)
        self.bn2 = make_norm(norm, channels, norm_eps)
        self.relu = nn.ReLU(inplace=True)
        self.attention: nn.Module = nn.Identity()
        self.downsample = _projection(in_channels, channels, max(strides), norm, norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(conv_norm(x, self.conv1, self.bn1))
        out = self.attention(conv_norm(out, self.conv2, self.bn2))
        return self.relu(out + (x if self.downsample is None else conv_norm(x, *self.downsample)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut (He et al., figure 5 right)."""

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, strides: tuple[int, int], norm: NormName, norm_eps: float, conv: ConvName
    ) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, strides[0], bias=False)
        self.bn1 = make_norm(norm, channels, norm_eps)
        self.conv2 = make_conv(conv, channels, channels, 3, strides[1])
        self.bn2 = make_norm(norm, channels, norm_eps)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = make_norm(norm, out_channels, norm_eps)
        self.relu = nn.ReLU(inplace=True)
        self.attention: nn.Module = nn.Identity()
        self.downsample = _projection(in_channels, out_channels, max(strides), norm, norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(conv_norm(x, self.conv1, self.bn1))
        out = self.relu(conv_norm(out, self.conv2, self.bn2))
        out = self.attention(conv_norm(out, self.conv3, self.bn3))
        return self.relu(out + (x if self.downsample is None else conv_norm(x, *self.downsample)))


#: depth -> (block, blocks per stage, torchvision's ImageNet weights): He et al., table 1
_DEPTHS = {
    18: (BasicBlock, (2, 2, 2, 2), torchvision.models.ResNet18_Weights.IMAGENET1K_V1),
    34: (BasicBlock, (3, 4, 6, 3), torchvision.models.ResNet34_Weights.IMAGENET1K_V1),
    50: (Bottleneck, (3, 4, 6, 3), torchvision.models.ResNet50_Weights.IMAGENET1K_V1),
    101: (Bottleneck, (3, 4, 23, 3), torchvision.models.ResNet101_Weights.IMAGENET1K_V1),
}


@BACKBONES
class ResNet(Backbone):
    """ResNet-18, 34, 50 or 101: feature maps C2 to C5 at strides 4 to 32.

    Args:
        depth: which of them.
        weights: "imagenet" (torchvision's IMAGENET1K_V1), the path of a state dict, or null for random weights.
        norm: normalisation layers; ``frozen_bn`` needs pretrained weights to make sense.
        norm_eps: their epsilon; 0 for torchvision's published Faster R-CNN checkpoint.
        frozen_stages: leading stages that do not train: 1 is the stem, 2 the stem and the first residual stage.
        levels: which of C2..C5 to return.
        stage_conv: the convolutions of C2 to C5: ``deform`` (Dai et al., ICCV 2017) or ``modulated_deform`` (Zhu et
            al., CVPR 2019) makes the 3x3 convolution of each bottleneck deformable, or the second one of a basic block.
        dilate_last: let C5 keep C4's stride of 16, its convolutions with holes instead (R-FCN, section 2).
        trident: dilations of branches that share the weights of the last stage that is read, all but its first block
            (TridentNet): maps then hold the batch once for each branch. One dilation makes no branches.
        width: channels of the first stage; 64 is the paper's, less makes a narrow network without pretrained weights.
        stride_in_1x1: halve the map in a bottleneck's first 1x1 convolution, as the paper and weights of Caffe's do.
        pixel_std: deviation of R, G and B in 0..255 that the weights were trained with, [1, 1, 1] for those of Caffe's;
            null for ImageNet's.
        pixel_mean: their mean, likewise; null for ImageNet's.
        attention: rescales the residual of every block that trains (``attention@model.backbone.attention=SE``). It
            starts as the identity by default; with ``identity: false`` pretrained weights are hurt.
    """

    pixel_stats = IMAGENET_STATS

    def __init__(
        self,
        *,
        depth: Literal[18, 34, 50, 101] = 50,
        weights: str | None = "imagenet",
        norm: NormName = "frozen_bn",
        norm_eps: float = 1e-5,
        frozen_stages: Literal[0, 1, 2, 3, 4, 5] = 2,
        levels: tuple[Literal[2, 3, 4, 5], ...] = (2, 3, 4, 5),
        stage_conv: tuple[ConvName, ConvName, ConvName, ConvName] = ("conv", "conv", "conv", "conv"),
        dilate_last: bool = False,
        trident: tuple[Count, ...] | None = None,
        width: Count = 64,
        stride_in_1x1: bool = False,
        pixel_std: tuple[float, float, float] | None = None,
        pixel_mean: tuple[float, float, float] | None = None,
        attention: Callable[..., Attention] | None = None,
    ) -> None:
        super().__init__()
        _check_levels(levels, stage_conv, dilate_last)
        block, counts, imagenet = _DEPTHS[depth]
        if stride_in_1x1 and block is BasicBlock:
            raise ValueError(
                f"stride_in_1x1: the blocks of ResNet-{depth} have no 1x1 convolution to stride in: take depth 50 or "
                "101, or stride_in_1x1=false"
            )
        if pixel_std is not None and not min(pixel_std) > 0:
            raise ValueError(f"pixel_std must be positive, not {list(pixel_std)}")
        self.pixel_stats = PixelStats(pixel_mean or IMAGENET_STATS.mean, pixel_std or IMAGENET_STATS.std)
        self.levels = levels
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = make_norm(norm, width, norm_eps)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        in_channels = width
        channels = (width, 2 * width, 4 * width, 8 * width)
        for i, (planes, count) in enumerate(zip(channels, counts, strict=True)):
            blocks = []
            for j in range(count):
                step = 2 if i > 0 and j == 0 else 1
                strides = (step, 1) if stride_in_1x1 else (1, step)
                blocks.append(block(in_channels, planes, strides, norm, norm_eps, stage_conv[i]))
                in_channels = planes * block.expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        _initialize(self)
        if dilate_last:
            dilate(self.get_submodule("layer4"))
        if trident is not None:
            last = f"layer{levels[-1] - 1}"
            setattr(self, last, branched(getattr(self, last), trident))
            self.num_branches = len(trident)
        if attention is not None and frozen_stages >= levels[-1]:
            raise ValueError(
                f"attention is put into blocks that train, and frozen_stages={frozen_stages} with "
                f"levels={list(levels)} leaves none"
            )
        if attention is not None:
            _add_attention([getattr(self, f"layer{i}") for i in range(max(frozen_stages, 1), 5)], attention)
        load_backbone_weights(self, weights, imagenet)
        for unread in range(levels[-1], 5):  # after loading, which wants all of them; layer i makes C(i + 1)
            delattr(self, f"layer{unread}")
        names = [f"layer{i}" for i in range(1, levels[-1])]
        freeze(self, [["conv1", "bn1"], *([name] for name in names)][:frozen_stages])
        self.out_spec = FeatureSpec(
            channels=tuple(channels[i - 2] * block.expansion for i in levels),
            strides=tuple(16.0 if dilate_last and i == 5 else float(2**i) for i in levels),
        )

    @property
    def stages(self) -> list[nn.Module]:
        """The residual stages up to the coarsest level that is read."""
        return [getattr(self, f"layer{i}") for i in range(1, self.levels[-1])]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = self.maxpool(self.relu(conv_norm(pixels, self.conv1, self.bn1)))
        maps = []
        for level, stage in enumerate(self.stages, start=2):
            x = stage(x)
            if level in self.levels:
                maps.append(x)
        return [*(for_branches(m, self.num_branches) for m in maps[:-1]), maps[-1]]


def _projection(in_channels: int, out_channels: int, stride: int, norm: NormName, eps: float) -> nn.Sequential | None:
    """The shortcut where the shape changes (He et al., option B)."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), make_norm(norm, out_channels, eps)
    )


def _add_attention(stages: Sequence[nn.Module], attention: Callable[..., Attention]) -> None:
    """Put attention on the residual of every block."""
    for stage in stages:
        for block in stage.children():
            last = block.conv3 if isinstance(block, Bottleneck) else block.conv2
            assert isinstance(last, nn.Conv2d)
            block.attention = attention(channels=last.out_channels)


def _check_levels(levels: Sequence[int], stage_conv: Sequence[ConvName], dilate_last: bool) -> None:
    if not levels or list(levels) != sorted(set(levels)):
        raise ValueError(f"levels must be ascending and different, out of 2, 3, 4, 5; not {list(levels)}")
    moving = [i for i, conv in enumerate(stage_conv, start=2) if conv != "conv"]
    if moving and moving[0] > levels[-1]:
        raise ValueError(f"stage_conv changes C{moving[0]} and later stages, which levels={list(levels)} leave out")
    if dilate_last and levels[-1] < 5:
        raise ValueError(f"dilate_last changes the stride of C5, which levels={list(levels)} leave out")


def _initialize(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not isinstance(module, OffsetConv):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
