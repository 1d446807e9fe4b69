"""Feature pyramid network (Lin et al., CVPR 2017, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from detkit.config import NECKS, Count
from detkit.models.interfaces import Neck
from detkit.models.layers import Attention, NormName, conv_with_norm
from detkit.structures import FeatureSpec


@NECKS
class FPN(Neck):
    """Top-down pathway with lateral connections over the backbone's levels, and extra coarse levels on top.

    Args:
        out_channels: channels of every level.
        num_extra: levels beyond the backbone's coarsest, each at twice the stride of the one before.
        extra: how they are made: ``pool`` subsamples the coarsest output (Lin et al., footnote 2: for the RPN),
            ``conv_p5`` and ``conv_c5`` are 3x3 convolutions of stride 2 on the coarsest output or on the backbone's
            coarsest map (RetinaNet, Lin et al. ICCV 2017, section 4).
        extra_relu: a ReLU between two of those convolutions; false as mmdetection has it.
        norm: normalisation after each lateral and output convolution, in place of its bias (torchvision's second
            Faster R-CNN: bn); null for none. The extra levels have none.
        min_stride: finest backbone level to use, by its stride; null for all. RetinaNet starts at 8.
        attention: rescales every level of the result (``attention@model.neck.attention=SE``), one for each.
    """

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        out_channels: Count = 256,
        num_extra: int = 1,
        extra: Literal["pool", "conv_p5", "conv_c5"] = "pool",
        min_stride: int | None = None,
        extra_relu: bool = True,
        norm: NormName | None = None,
        attention: Callable[..., Attention] | None = None,
    ) -> None:
        super().__init__()
        if min_stride is not None and min_stride not in in_spec.strides:
            there = f"min_stride must be one of {[int(s) for s in in_spec.strides]}, not {min_stride}"
            one_map = "; for a backbone of one map choose model/neck=single_level" * (len(in_spec.strides) == 1)
            raise ValueError(there + one_map)
        self.first = 0 if min_stride is None else in_spec.strides.index(min_stride)
        in_spec = FeatureSpec(in_spec.channels[self.first :], in_spec.strides[self.first :])
        if num_extra < 0:
            raise ValueError(f"num_extra must not be negative, but is {num_extra}")
        self.extra, self.extra_relu = extra, extra_relu
        self.num_extra = num_extra
        self.lateral = nn.ModuleList(conv_with_norm(c, out_channels, 1, norm) for c in in_spec.channels)
        self.output = nn.ModuleList(conv_with_norm(out_channels, out_channels, 3, norm) for _ in in_spec.channels)
        self.extra_convs = nn.ModuleList()
        if extra != "pool":
            sources = [in_spec.channels[-1] if extra == "conv_c5" else out_channels]
            for c in (sources + [out_channels] * num_extra)[:num_extra]:
                self.extra_convs.append(nn.Conv2d(c, out_channels, 3, stride=2, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        coarse = tuple(in_spec.strides[-1] * 2 ** (i + 1) for i in range(num_extra))
        strides = in_spec.strides + coarse
        self.attention = nn.ModuleList([] if attention is None else [attention(channels=out_channels) for _ in strides])
        self.out_spec = FeatureSpec(channels=(out_channels,) * len(strides), strides=strides)

    def forward(self, pixels: Tensor, backbone: nn.Module) -> list[Tensor]:
        maps = backbone(pixels)[self.first :]
        inner = [lateral(m) for lateral, m in zip(self.lateral, maps, strict=True)]
        for i in range(len(inner) - 1, 0, -1):  # the top-down pathway: each level adds the coarser one, upsampled
            inner[i - 1] = inner[i - 1] + F.interpolate(inner[i], size=inner[i - 1].shape[-2:], mode="nearest")
        levels = [output(m) for output, m in zip(self.output, inner, strict=True)]
        levels += self._extra_levels(maps[-1], levels[-1])
        return [gate(m) for gate, m in zip(self.attention, levels, strict=True)] if self.attention else levels

    def _extra_levels(self, c5: Tensor, p5: Tensor) -> list[Tensor]:
        if self.extra == "pool":
            levels = [p5]
            for _ in range(self.num_extra):
                levels.append(F.max_pool2d(levels[-1], kernel_size=1, stride=2))
            return levels[1:]
        levels = []
        x = c5 if self.extra == "conv_c5" else p5
        for i, conv in enumerate(self.extra_convs):
            x = conv(x.relu() if i > 0 and self.extra_relu else x)
            levels.append(x)
        return levels
