"""Which candidates of a cascade go on from one stage to the next, told to the trace stage by stage.

Beside :mod:`detkit.matching.select` the one place where candidates are removed: boxes of a cascade are not clipped
between its stages, and one NMS compares by the smaller of two areas.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import nms

from detkit.matching.groups import nms_over_smaller
from detkit.matching.trace import MOST_TRACED, NO_CLASS, Fate, Selection, active_trace, best_of, selection_of_nms
from detkit.structures import Detections
from detkit.structures.boxes import clip, is_larger

#: Of a detection this much must lie inside the image, px.
LEAST_SIDE = 1e-2


def let_through(
    boxes_of: Callable[[Tensor], Tensor], scores: Tensor, passes: Tensor, size: tuple[int, int], stage: str
) -> Tensor:
    """The indices of the proposals that a stage's threshold lets through.

    Args:
        boxes_of: the boxes (M, 4) px of candidates (M,), for the trace alone: of a map's cells few are worth a box.
        scores: (N,).
        passes: (N,) bool.
        size: (h, w) of the image.
        stage: its name, for the trace.
    """
    if trace := active_trace():
        low = best_of(scores, ~passes, MOST_TRACED)
        no_class = torch.full_like(low, NO_CLASS)
        trace.selections.append(
            Selection.removed(clip(boxes_of(low), size), scores[low], no_class, Fate.LOW_SCORE, stage)
        )
    return passes.nonzero().squeeze(1)


def unsuppressed(
    boxes: Tensor, scores: Tensor, size: tuple[int, int], iou_threshold: float, limit: int | None, stage: str
) -> Tensor:
    """The indices of the proposals that NMS leaves, best first, ``limit`` at most; see :func:`let_through`."""
    groups = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    survivors = nms(boxes, scores, iou_threshold)
    limit = len(survivors) if limit is None else limit
    if trace := active_trace():
        clipped = clip(boxes, size)
        large = torch.ones_like(scores, dtype=torch.bool)
        trace.selections.append(
            selection_of_nms(
                clipped, scores, groups, groups + NO_CLASS, large=large, survivors=survivors, limit=limit,
                iou_threshold=iou_threshold, stage=stage,
            )
        )  # fmt: skip
    return survivors[:limit]


def last_candidates(boxes: Tensor, scores: Tensor, threshold: float, size: tuple[int, int], stage: str) -> Tensor:
    """The (candidate, class) pairs (M, 2) that score more than ``threshold``.

    Args:
        boxes: (N, 4) px.
        scores: (N, K).
    """
    passes = scores > threshold
    if trace := active_trace():
        low = best_of(scores.flatten(), ~passes.flatten(), MOST_TRACED)
        candidate, label = low // scores.shape[1], low % scores.shape[1]
        trace.selections.append(
            Selection.removed(clip(boxes[candidate], size), scores[candidate, label], label, Fate.LOW_SCORE, stage)
        )
    return passes.nonzero()


def last_detections(
    found: Detections, size: tuple[int, int], overlap: float, limit: int, stage: str, extra: float = 1.0
) -> Tensor:
    """The indices of the detections that stay, best first: NMS by the smaller area within each class, then ``limit``.

    Boxes that lie beside the image go.

    Args:
        found: not clipped.
        overlap: of two of a class that share more of the smaller one's area, the better one stays.
        extra: see :func:`detkit.matching.groups.nms_over_smaller`.
    """
    survivors = nms_over_smaller(found.boxes, found.scores, found.labels, overlap, extra)
    clipped = clip(found.boxes, size)
    inside = is_larger(clipped, LEAST_SIDE)
    survivors = survivors[inside[survivors]]
    if trace := active_trace():
        trace.selections.append(
            selection_of_nms(
                clipped, found.scores, found.labels, found.labels, large=inside, survivors=survivors, limit=limit,
                iou_threshold=overlap, stage=stage,
            )
        )  # fmt: skip
    return survivors[:limit]
