"""Branches of the same weights and different receptive fields (Li et al., TridentNet, ICCV 2019, section 4.1)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.models.layers.conv import DeformConv, OwnConv
from detkit.models.layers.dilation import set_dilation


class TridentConv(OwnConv):
    """A convolution that runs each part of the batch with holes of its own.

    Args:
        conv: whose weights, stride and groups it takes.
        dilations: of the parts, which are equal and follow each other on the batch axis.
    """

    def __init__(self, conv: nn.Conv2d, dilations: Sequence[int]) -> None:
        kernel_size = (conv.kernel_size[0], conv.kernel_size[1])
        super().__init__(
            conv.in_channels, conv.out_channels, kernel_size, groups=conv.groups, bias=conv.bias is not None
        )
        self.weight, self.bias, self.dilations = conv.weight, conv.bias, tuple(dilations)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        parts = zip(x.chunk(len(self.dilations)), self.dilations, strict=True)
        return torch.cat([F.conv2d(part, weight, bias, 1, self._padding(d), d, self.groups) for part, d in parts])

    def _padding(self, dilation: int) -> tuple[int, int]:
        return dilation * (self.kernel_size[0] // 2), dilation * (self.kernel_size[1] // 2)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dilations={self.dilations}"


class TridentStage(nn.Sequential):
    """A stage whose first block all branches share; the maps of its branches follow each other on the batch axis."""

    def __init__(self, blocks: Sequence[nn.Module], num_branches: int) -> None:
        super().__init__(*blocks)
        self.num_branches = num_branches

    def forward(self, input: Tensor) -> Tensor:
        first, *others = self
        x = for_branches(first(input), self.num_branches)
        for block in others:
            x = block(x)
        return x


def for_branches(x: Tensor, num: int) -> Tensor:
    """(num B, C, H, W): the batch (B, C, H, W) for each of so many branches in turn."""
    return x.repeat(num, 1, 1, 1) if num > 1 else x


def branched(stage: nn.Sequential, dilations: Sequence[int]) -> nn.Sequential:
    """``stage``, all but its first block, run by ``dilations``; weights keep their names.

    A single dilation makes no branches: that is the plain stage with holes.

    Raises:
        ValueError: the dilations are none, or a convolution is deformable and so has no holes to choose.
    """
    if not dilations or min(dilations) < 1 or len(set(dilations)) < len(dilations):
        raise ValueError(f"trident must be different dilations of at least 1, such as [1, 2, 3], not {list(dilations)}")
    first, *others = stage
    for block in others:
        for name, conv in list(block.named_modules()):
            if isinstance(conv, DeformConv):
                raise ValueError(
                    "trident gives plain convolutions branches, and those of the last stage are deformable"
                )
            if isinstance(conv, nn.Conv2d) and max(conv.kernel_size) > 1:
                _give_branches(block, name, conv, dilations)
    return stage if len(dilations) == 1 else TridentStage([first, *others], len(dilations))


def _give_branches(block: nn.Module, name: str, conv: nn.Conv2d, dilations: Sequence[int]) -> None:
    if len(dilations) == 1:
        set_dilation(conv, dilations[0])
        return
    parent, _, own = name.rpartition(".")
    setattr(block.get_submodule(parent), own, TridentConv(conv, dilations))


def one_branch(backbone: nn.Module, branch: int) -> nn.Module:
    """A copy of ``backbone`` with that branch alone, counted from 0; of one without branches just a copy."""
    alone = copy.deepcopy(backbone)
    for module in alone.modules():
        if isinstance(module, TridentConv):
            module.dilations = module.dilations[branch : branch + 1]
        elif hasattr(module, "num_branches"):
            vars(module)["num_branches"] = 1
    return alone
