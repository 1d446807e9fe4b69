"""From scored anchors to proposals, all images of a batch together, so that a GPU's host does not wait for each.

The selections of :mod:`detkit.matching.select` for candidates without a class; :mod:`detkit.matching.trace` sees them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from detkit.matching.groups import nms_by_group
from detkit.matching.trace import MOST_TRACED, NO_CLASS, Fate, Selection, active_trace, best_of, selection_of_nms
from detkit.structures import SizeRange
from detkit.structures.boxes import clip, clip_each, is_larger
from detkit.utils.transfer import constant, row_owners

#: The score of what is no candidate: an anchor in the padding.
NO_SCORE = -math.inf


def top_proposals(
    scores: Tensor, boxes_of: Callable[[Tensor], Tensor], sizes: Sequence[tuple[int, int]], *, num: int
) -> tuple[Tensor, Tensor]:
    """The best ``num`` candidates of each image, best first.

    Args:
        scores: (B, N), NO_SCORE for what is no candidate.
        boxes_of: the boxes (B, Q, 4) px of candidates (B, Q): only those few are decoded.
        sizes: (h, w) of each image.

    Returns:
        their boxes (B, Q, 4) and scores (B, Q), Q being ``num`` at most; NO_SCORE where an image has fewer.
    """
    best, index = scores.topk(min(num, scores.shape[1]), dim=1)
    if trace := active_trace():
        left = (scores != NO_SCORE).scatter(1, index, False)
        trace.selections += [_cut(scores, left, boxes_of, i, size) for i, size in enumerate(sizes)]
    return boxes_of(index), best


def _cut(
    scores: Tensor, left: Tensor, boxes_of: Callable[[Tensor], Tensor], image: int, size: tuple[int, int]
) -> Selection:
    """The best that are ``left`` (B, N) behind in an ``image``."""
    rest = best_of(scores[image], left[image], MOST_TRACED)
    boxes = boxes_of(rest.expand(len(scores), -1))[image]
    return Selection.removed(clip(boxes, size), scores[image, rest], torch.full_like(rest, NO_CLASS), Fate.CUT)


def select_proposals(
    found: Sequence[tuple[Tensor, Tensor]],
    sizes: Sequence[tuple[int, int]],
    *,
    iou_threshold: float,
    max_proposals: int,
    min_size: float = 0.0,
    valid_ranges: Sequence[SizeRange] | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """The proposals of each image, best first: NMS within each pyramid level, then the best of all levels.

    Args:
        found: for each level boxes (B, Q_l, 4) px and scores (B, Q_l), see :func:`top_proposals`.
        sizes: (h, w) of each image.
        valid_ranges: the sizes that each level answers for; None for all.

    Returns:
        for each image boxes (R, 4), clipped to it, and their scores (R,).
    """
    boxes, scores = (torch.cat(part, dim=1) for part in zip(*found, strict=True))
    batch, num = scores.shape
    counts = [part.shape[1] for _, part in found]
    level = row_owners(counts, scores.device)
    image = torch.arange(batch, device=scores.device)[:, None]
    boxes = clip_each(boxes, constant(tuple(sizes), scores.device, boxes.dtype))
    fit = _are_fit(boxes, scores, counts, min_size, valid_ranges)
    boxes, scores = boxes.flatten(0, 1), scores.flatten()
    index = fit.flatten().nonzero().squeeze(1)
    groups = (image * len(counts) + level).flatten()
    survivors = index[nms_by_group(boxes[index], scores[index], groups[index], iou_threshold)]
    owner = survivors.div(num, rounding_mode="floor")
    parts = survivors[owner.argsort(stable=True)].split((owner == image).sum(1).tolist())
    if trace := active_trace():
        for i, part in enumerate(parts):
            rows = slice(i * num, (i + 1) * num)
            there = (scores[rows] != NO_SCORE).nonzero().squeeze(1)
            trace.selections.append(
                selection_of_nms(
                    boxes[rows][there], scores[rows][there], level[there], torch.full_like(there, NO_CLASS),
                    large=fit[i, there], survivors=torch.searchsorted(there, part - i * num), limit=max_proposals,
                    iou_threshold=iou_threshold,
                )
            )  # fmt: skip
    return [(boxes[part[:max_proposals]], scores[part[:max_proposals]]) for part in parts]


def _are_fit(
    boxes: Tensor, scores: Tensor, counts: Sequence[int], min_size: float, ranges: Sequence[SizeRange] | None
) -> Tensor:
    """(B, P) bool: candidates of ``boxes`` (B, P, 4) that are large enough and of a size that their level holds."""
    fit = is_larger(boxes.flatten(0, 1), min_size).view(scores.shape) & (scores != NO_SCORE)
    if ranges is None:
        return fit
    held = [
        own.holds(part.flatten(0, 1)).view(part.shape[:2])
        for own, part in zip(ranges, boxes.split(list(counts), dim=1), strict=True)
    ]
    return fit & torch.cat(held, dim=1)
