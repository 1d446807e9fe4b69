"""From a model's configuration to a detector: shapes flow from part to part, the number of classes from the data."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from detkit.config import ConfigError, build
from detkit.models.backbones.check import check_spec
from detkit.models.detector import ComposedDetector
from detkit.models.interfaces import Backbone, Detector, Head, Neck
from detkit.models.layers.norm import with_frozen_norms
from detkit.structures import Categories
from detkit.utils.log import logger


def build_detector(cfg: Any, categories: Categories, class_counts: Sequence[int] | None = None) -> Detector:
    """The detector that ``cfg`` (the ``model`` section) describes, for the classes of ``categories``.

    A section with ``_target_`` is a detector of its own; otherwise it has ``backbone``, ``neck`` and ``head``.

    Args:
        class_counts: the objects of each class that it will be trained on, for losses that ask for them.

    Raises:
        ConfigError: a part refuses its values, or the backbone's maps are not of the channels and strides it declares.
    """
    runtime: dict[str, Any] = {"num_classes": len(categories)}
    if class_counts is not None:
        runtime["class_counts"] = tuple(class_counts)
    if "_target_" in cfg:
        return build(cfg, key="model", **runtime)
    backbone = build(cfg["backbone"], key="model.backbone")
    _check_backbone(backbone, cfg["backbone"])
    neck = build(cfg["neck"], key="model.neck", in_spec=backbone.out_spec)
    head = build(cfg["head"], key="model.head", in_spec=neck.out_spec, **runtime)
    _check_branches(backbone, head)
    if head.reads is not None and len(head.reads) < len(neck.out_spec.strides):
        _leave_untrained(backbone, neck, head.reads)
    if not head.trains_features:
        for part in (backbone, neck):
            with_frozen_norms(part).requires_grad_(False)
    return ComposedDetector(backbone=backbone, neck=neck, head=head)


@torch.enable_grad()  # also where a detector is built to be used
def _leave_untrained(backbone: Backbone, neck: Neck, reads: Sequence[int]) -> None:
    """Freeze what only makes maps that the head does not read: it would have no gradient, for which others wait."""
    copies = nn.ModuleList(copy.deepcopy(module).to("meta") for module in (backbone, neck))
    side = 4 * int(max(neck.out_spec.strides))
    maps = copies[1](torch.empty(2, 3, side, side, device="meta"), copies[0])
    trained = {name: p for name, p in copies.named_parameters() if p.requires_grad}
    total = torch.stack([maps[i].sum() for i in reads]).sum()
    gradients = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    own = dict(nn.ModuleList((backbone, neck)).named_parameters())
    unread = [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]
    for name in unread:
        own[name].requires_grad_(False)
    if unread:
        strides = ", ".join(f"{neck.out_spec.strides[i]:g}" for i in reads)
        logger.info(
            "the head reads the neck's map of stride %s: %d tensors of others stay untrained", strides, len(unread)
        )


def _check_branches(backbone: Backbone, head: Head) -> None:
    """A backbone of one branch fits all: of what was trained with several, it may be one."""
    if backbone.num_branches in (1, head.num_branches) or head.num_branches is None:
        return
    what = "one" if head.num_branches == 1 else f"valid_ranges for {head.num_branches}"
    raise ConfigError(
        f"model.backbone: trident makes {backbone.num_branches} branches, but model.head ({type(head).__name__}) has "
        f"{what}: model/head=trident with a range for each, or model.backbone.trident=null"
    )


def _check_backbone(backbone: Backbone, node: Mapping[str, Any]) -> None:
    name = f"{node['_target_']} {node['name']}" if "name" in node else node["_target_"]
    if missing := [part for part in ("out_spec", "pixel_stats") if not hasattr(backbone, part)]:
        raise ConfigError(
            f"model.backbone: {name} has no {' and no '.join(missing)}, which a backbone must have: the channels and "
            "strides of its maps, and the mean and deviation of the pixels that its weights were trained with"
        )
    try:
        check_spec(backbone, backbone.out_spec, name, backbone.example_size)
    except ValueError as error:
        raise ConfigError(f"model.backbone: {error}") from error
