"""Normalisation by name, and freezing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detkit.models.layers.conv import convolve

#: ``frozen_bn`` keeps statistics and affine of the pretrained weights: the field's choice for small detection batches.
#: ``gn`` (Wu & He, ECCV 2018; 32 groups) needs no batch statistics and trains from scratch.
NormName = Literal["bn", "frozen_bn", "gn", "sync_bn"]

_GROUPS = 32


def make_norm(name: NormName, channels: int, eps: float = 1e-5) -> nn.Module:
    """The layer that ``name`` means, for maps of ``channels``."""
    if not (eps > 0 or (eps == 0 and name == "frozen_bn")):
        raise ValueError(f"norm_eps={eps:g} goes with norm=frozen_bn alone; {name} needs one above 0, as 1e-5")
    if name == "bn":
        return nn.BatchNorm2d(channels, eps=eps)
    if name == "frozen_bn":
        return FrozenBatchNorm2d(channels, eps=eps)
    if name == "sync_bn":
        return nn.SyncBatchNorm(channels, eps=eps)
    groups = next(g for g in range(min(_GROUPS, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, eps=eps)


def freeze(module: nn.Module, stages: Sequence[Sequence[str]]) -> None:
    """Take the named children of ``module`` out of training: no gradients, and batch norms neither count nor learn."""
    for name in (name for stage in stages for name in stage):
        setattr(module, name, with_frozen_norms(getattr(module, name)))
        getattr(module, name).requires_grad_(False)


def with_frozen_norms(module: nn.Module) -> nn.Module:
    """``module`` with every batch norm replaced by its frozen form, which computes what ``eval()`` computes.

    Classes derived from batch norm are left alone: timm's hold an activation as well.
    """
    if type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm):
        assert isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm))
        frozen = FrozenBatchNorm2d(module.num_features, eps=module.eps)
        frozen.load_state_dict({k: v for k, v in module.state_dict().items() if k != "num_batches_tracked"})
        return frozen
    for name, child in module.named_children():
        setattr(module, name, with_frozen_norms(child))
    return module


def conv_norm(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    """``norm(conv(x))``; a frozen norm is folded into the convolution, which saves two passes over its output."""
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm(conv(x))
    assert isinstance(conv, nn.Conv2d)
    gain, shift, mean, variance = (norm.get_buffer(n) for n in ("weight", "bias", "running_mean", "running_var"))
    scale = gain * torch.rsqrt(variance + norm.eps)
    bias = shift - mean * scale
    weight = conv.weight * scale[:, None, None, None]
    return convolve(conv, x, weight, bias)


class ConvNorm(nn.Module):
    """A convolution without bias and the norm that follows it, run as :func:`conv_norm`."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """As :func:`conv_norm`; where ``mask`` (B, 1, H, W) is given, a group norm's statistics are those of its cells
        alone."""
        if mask is not None and isinstance(self.norm, nn.GroupNorm):
            return group_norm_inside(self.conv(x), self.norm, mask)
        return conv_norm(x, self.conv, self.norm)


def conv_with_norm(in_channels: int, channels: int, kernel_size: int, norm: NormName | None) -> nn.Conv2d | ConvNorm:
    """A convolution that keeps the size, with a bias, or with ``norm`` in its place."""
    conv = nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=norm is None)
    return conv if norm is None else ConvNorm(conv, make_norm(norm, channels))


def group_norm_inside(x: Tensor, norm: nn.GroupNorm, mask: Tensor) -> Tensor:
    """``norm(x)``, x (B, C, H, W), by the mean and variance of the cells where ``mask`` (B, 1, H, W) is True.

    So padding does not move what a norm makes of an image.
    """
    assert norm.weight is not None
    grouped, cells = x.float().unflatten(1, (norm.num_groups, -1)), mask[:, None]
    count = cells.sum(dim=(2, 3, 4), keepdim=True).clamp(min=1) * grouped.shape[2]
    mean = grouped.masked_fill(~cells, 0).sum(dim=(2, 3, 4), keepdim=True) / count
    centred = (grouped - mean).masked_fill(~cells, 0)
    variance = centred.square().sum(dim=(2, 3, 4), keepdim=True) / count
    scaled = (centred * torch.rsqrt(variance + norm.eps)).flatten(1, 2)
    return (scaled * norm.weight[:, None, None] + norm.bias[:, None, None]).to(x.dtype)


def fold_frozen_norms(module: nn.Module) -> None:
    """Join each convolution and the frozen norm after it to a ConvNorm, in every ``nn.Sequential`` below ``module``."""
    for child in module.modules():
        if not isinstance(child, nn.Sequential):
            continue
        for (name, first), (next_name, second) in pairwise(list(child.named_children())):
            if isinstance(first, nn.Conv2d) and first.bias is None and isinstance(second, FrozenBatchNorm2d):
                child.register_module(name, ConvNorm(first, second))
                child.register_module(next_name, nn.Identity())
