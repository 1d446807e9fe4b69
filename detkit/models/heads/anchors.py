"""What heads with anchors have in common: raw outputs level by level, their last layers, and the way to candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detkit.losses import ClassificationLoss
from detkit.matching import Anchors, found_in_range
from detkit.structures import FeatureSpec, Images, SizeRange


class RawAnchors(NamedTuple):
    """What a network says of the N_l anchors of each level: ``logits`` (B, N_l, O) and ``deltas`` (B, N_l, 4)."""

    logits: list[Tensor]
    deltas: list[Tensor]
    shapes: list[tuple[int, int]]


class LevelAnchors(NamedTuple):
    """One level of one image: ``logits`` (N, O) and ``deltas`` (N, 4) of ``anchors`` (N, 4) px, and which of these are
    ``inside`` (N,) the image. Of a batch all but the anchors have B in front."""

    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    inside: Tensor


class Candidates(NamedTuple):
    """One image's: ``columns``, each of P rows, boxes (P, 4) px first; the ``level`` (P,) that each comes from; and
    which are of a ``valid`` (P,) size, None where all are."""

    columns: tuple[Tensor, ...]
    level: Tensor
    valid: Tensor | None


def equal_channels(in_spec: FeatureSpec, what: str) -> int:
    """The channels of every level.

    Raises:
        ValueError: they differ; ``what`` is shared by all levels.
    """
    if len(set(in_spec.channels)) != 1:
        raise ValueError(
            f"{what} is shared by all levels, which must have equal channels, not {list(in_spec.channels)}: choose a "
            "neck that makes them equal, such as model/neck=fpn"
        )
    return in_spec.channels[0]


def initialize_predictions(cls_logits: nn.Module, bbox_pred: nn.Conv2d, loss: ClassificationLoss, classes: int) -> None:
    """Small random weights, no bias but the class loss's own for each anchor (RetinaNet, section 4.1).

    A layer of the loss's own has drawn its weights itself.
    """
    bias = loss.initial_bias(classes)
    if isinstance(cls_logits, nn.Conv2d):
        _initialize(cls_logits, bias.repeat(cls_logits.out_channels // len(bias)))
    _initialize(bbox_pred, torch.zeros(bbox_pred.out_channels))


def _initialize(layer: nn.Conv2d, bias: Tensor) -> None:
    assert layer.bias is not None
    nn.init.normal_(layer.weight, std=0.01)
    with torch.no_grad():
        layer.bias.copy_(bias)


def candidates_of(
    raw: RawAnchors,
    grid: Anchors,
    anchors: Sequence[Tensor],
    images: Images,
    best: Callable[[LevelAnchors, tuple[int, int]], tuple[Tensor, ...]],
    valid_ranges: Sequence[SizeRange] | None = None,
) -> Iterator[Candidates]:
    """What ``best`` finds in every level of each image.

    Args:
        anchors: what ``grid`` makes of ``raw.shapes``.
        best: from a level and the image's size (h, w) to boxes (P, 4) px, scores (P,) and whatever else has P rows.
        valid_ranges: of the levels; what they found of another size is not valid.
    """
    device = raw.logits[0].device
    ranges = valid_ranges or [None] * len(anchors)
    for i, meta in enumerate(images.meta):
        inside = grid.inside(raw.shapes, meta.size, device)
        found, valid = [], []
        for logits, deltas, boxes, mask, own in zip(raw.logits, raw.deltas, anchors, inside, ranges, strict=True):
            found.append(best(LevelAnchors(logits[i], deltas[i], boxes, mask), meta.size))
            valid.append(found_in_range(found[-1][0], meta.size, own, meta.valid_range))
        level = torch.cat([torch.full((len(f[0]),), k, device=device) for k, f in enumerate(found)])
        columns = tuple(torch.cat(column) for column in zip(*found, strict=True))
        yield Candidates(columns, level, None if valid[0] is None else torch.cat(valid))


def inside_images(
    grid: Anchors, shapes: Sequence[tuple[int, int]], images: Images, device: torch.device
) -> list[Tensor]:
    """For each level (B, N_l) bool: which anchors have their centre in their image."""
    of_sizes = {size: grid.inside(shapes, size, device) for size in set(images.sizes)}
    return [torch.stack(level) for level in zip(*(of_sizes[size] for size in images.sizes), strict=True)]
