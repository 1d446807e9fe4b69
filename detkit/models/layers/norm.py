"""Normalisation by name, and freezing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

#: ``frozen_bn`` keeps statistics and affine of the pretrained weights: the field's choice for small detection batches.
#: ``gn`` (Wu & He, ECCV 2018; 32 groups) needs no batch statistics and trains from scratch.
NormName = Literal["bn", "frozen_bn", "gn", "sync_bn"]

_GROUPS = 32


def make_norm(name: NormName, channels: int, eps: float = 1e-5) -> nn.Module:
    """The layer that ``name`` means, for maps of ``channels``."""
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
