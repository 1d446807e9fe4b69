"""Which level of a pyramid may answer for an object, by its size (SNIP: Singh and Davis, CVPR 2018, section 5).

The size of an object is the square root of its area, in px of the network input. An object outside a level's range is
neither positive nor negative there: anchors that overlap it drop out of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.matching.anchors import AnchorGrid
from detkit.matching.assigners import Assignment, MaxIoUAssigner
from detkit.structures import Images, Target
from detkit.structures.boxes import area, clip

#: Least and largest size (px); None leaves the range open above.
SizeRange = tuple[float, float | None]


def check_ranges(ranges: Sequence[SizeRange] | None, num_levels: int) -> None:
    """Refuse ranges that do not fit a pyramid.

    Raises:
        ValueError: there is not one for each level, or one is empty.
    """
    if ranges is None:
        return
    if len(ranges) != num_levels:
        raise ValueError(f"valid_ranges needs one range for each of the {num_levels} levels, not {len(ranges)}")
    for low, high in ranges:
        if low < 0 or (high is not None and high <= low):
            raise ValueError(f"valid_ranges: [{low}, {high}] holds no size")


def in_range(boxes: Tensor, ranges: Sequence[SizeRange]) -> Tensor:
    """(N, L) bool: whether the size of each of ``boxes`` (N, 4) px lies in the range of each level."""
    size = area(boxes).sqrt()[:, None]
    low = size.new_tensor([low for low, _ in ranges])
    high = size.new_tensor([float("inf") if high is None else high for _, high in ranges])
    return (size >= low) & (size <= high)


def of_level(boxes: Tensor, size: tuple[int, int], ranges: Sequence[SizeRange] | None, level: int) -> Tensor | None:
    """(P,) bool: whether ``level`` answers for boxes (P, 4) px of that size, once they are clipped at the image.

    What lies outside its range a level has never learnt; SNIP drops it at test as well. None where there are no ranges.
    """
    return None if ranges is None else in_range(clip(boxes, size), [ranges[level]])[:, 0]


@torch.no_grad()
def assign_anchors(
    anchors: AnchorGrid,
    assigner: MaxIoUAssigner,
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
    assignments = []
    for size, target in zip(images.sizes, targets, strict=True):
        inside = torch.cat(anchors.inside(shapes, size, device))
        allowed = None
        if valid_ranges is not None:
            counts = torch.tensor([len(level) for level in levels], device=device)
            allowed = in_range(target.boxes, valid_ranges).repeat_interleave(counts, dim=1)
        # anchors in the padding become empty boxes first, so that none of them is the best of an object
        assignments.append(assigner(boxes.masked_fill(~inside[:, None], 0), target, allowed).without(~inside))
    return assignments
