"""Which references may answer for which objects, by the objects' sizes (SNIP: Singh and Davis, CVPR 2018, section 5).

A range belongs to an image (one scale of several, one branch of several) or to a level of a pyramid; where both have
one, both must hold. An object out of range is neither positive nor negative: a reference that overlaps one by more than
0.3 drops out of the loss, whatever else it overlaps (section 5; SNIPER's and simpledet's code do the same).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from detkit.matching.anchors import Anchors
from detkit.matching.assigners import Assigner, Assignment
from detkit.structures import Images, SizeRange, Target
from detkit.structures.boxes import clip, pairwise_iou

#: A reference that overlaps an object which it may not answer for by more than this is ignored.
FORBIDDEN_IOU = 0.3


def allowed_pairs(
    boxes: Tensor, of_image: SizeRange | None, of_levels: Sequence[SizeRange] | None, level: Tensor
) -> Tensor | None:
    """(N, M) bool: which of M references may answer for which of ``boxes`` (N, 4) px; None where all may.

    Args:
        of_image: the range of the image.
        of_levels: the range of each level.
        level: (M,) int64, of each reference.
    """
    held = _held(boxes, of_image, of_levels)
    return None if held is None else held[:, level if of_levels else torch.zeros_like(level)]


def in_own_range(
    boxes: Tensor, of_image: SizeRange | None, of_levels: Sequence[SizeRange] | None, level: Tensor
) -> Tensor | None:
    """(N,) bool: which of ``boxes`` (N, 4) px are of a size that their image and their own ``level`` (N,) hold."""
    held = _held(boxes, of_image, of_levels)
    if held is None:
        return None
    return held.gather(1, level[:, None])[:, 0] if of_levels else held[:, 0]


def _held(boxes: Tensor, of_image: SizeRange | None, of_levels: Sequence[SizeRange] | None) -> Tensor | None:
    """(N, L) bool: whether the range of the image and that of each level hold each size; L is 1 without levels."""
    if of_image is None and of_levels is None:
        return None
    image = of_image or SizeRange()
    ranges = [SizeRange(max(image.low, r.low), min(image.high, r.high)) for r in of_levels or (image,)]
    return torch.stack([r.holds(boxes) for r in ranges], dim=1)


def assign_allowed(assigner: Assigner, references: Tensor, target: Target, allowed: Tensor | None) -> Assignment:
    """What ``assigner`` says of ``references`` (M, 4) px, without those on an object that is forbidden to them.

    Args:
        allowed: (N, M), see :func:`allowed_pairs`.
    """
    assignment = assigner(references, target, allowed)
    if allowed is None or len(target) == 0 or len(references) == 0:
        return assignment
    overlap = pairwise_iou(target.boxes, references) > FORBIDDEN_IOU
    return assignment.without((overlap & ~allowed & ~target.ignore[:, None]).any(dim=0))


def found_in_range(boxes: Tensor, size: tuple[int, int], *ranges: SizeRange | None) -> Tensor | None:
    """(P,) bool: whether boxes (P, 4) px, clipped at an image of ``size``, are of a size that all ``ranges`` hold.

    What lies outside its range an image or a level has never learnt; SNIP drops it at test as well. None where there
    are no ranges.
    """
    given = [r for r in ranges if r is not None]
    if not given:
        return None
    clipped = clip(boxes, size)
    return torch.stack([r.holds(clipped) for r in given]).all(dim=0)


def only_in_range(target: Target, valid_range: SizeRange | None) -> Target:
    """``target`` with the objects out of range to be ignored, for heads whose references are cells and not boxes."""
    if valid_range is None:
        return target
    return replace(target, ignore=target.ignore | ~valid_range.holds(target.boxes))


@torch.no_grad()
def assign_anchors(
    anchors: Anchors,
    assigner: Assigner,
    shapes: Sequence[tuple[int, int]],
    images: Images,
    targets: Sequence[Target],
    valid_ranges: Sequence[SizeRange] | None = None,
) -> list[Assignment]:
    """Which anchor answers for which object in each image, level after level; anchors in the padding are ignored.

    Args:
        shapes: (h, w) of the map of each level.
        valid_ranges: the sizes that each level answers for; None for all.
    """
    device = images.pixels.device
    levels = anchors(shapes, device)
    boxes = torch.cat(levels)
    level = torch.cat([torch.full((len(a),), i, device=device) for i, a in enumerate(levels)])
    assignments = []
    for meta, target in zip(images.meta, targets, strict=True):
        inside = torch.cat(anchors.inside(shapes, meta.size, device))
        allowed = allowed_pairs(target.boxes, meta.valid_range, valid_ranges, level)
        # anchors in the padding become empty boxes first, so that none of them is the best of an object
        assignment = assign_allowed(assigner, boxes.masked_fill(~inside[:, None], 0), target, allowed)
        assignments.append(assignment.without(~inside))
    return assignments
