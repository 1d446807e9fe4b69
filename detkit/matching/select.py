"""From scored candidates to detections: thresholds, non-maximum suppression, top-k.

Every head's candidates are removed here, proposals in :mod:`detkit.matching.proposals` and those of a cascade in
:mod:`detkit.matching.cascade`, so that :mod:`detkit.matching.trace` can tell what became of each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.matching.fusion import gaussian_decay, soft_nms
from detkit.matching.groups import nms_by_group
from detkit.matching.trace import (
    MOST_TRACED,
    Fate,
    Selection,
    active_trace,
    best_of,
    selection_of_nms,
    selection_of_soft_nms,
)
from detkit.structures import Detections
from detkit.structures.boxes import clip, is_larger


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    size: tuple[int, int],
    *,
    score_threshold: float,
    iou_threshold: float | None,
    max_detections: int,
    min_size: float = 0.0,
    valid: Tensor | None = None,
    class_agnostic: bool = False,
    sigma: float | None = None,
) -> Detections:
    """The detections of one image from its candidates.

    Args:
        boxes: (P, K, 4) px, a box for each candidate and class, or (P, 1, 4), one for all classes.
        scores: (P, K) in [0, 1].
        size: (h, w) of the image, at which boxes are clipped.
        score_threshold: candidates must score more.
        iou_threshold: of two candidates of one class that overlap more, the better one stays.
        max_detections: at most so many, the best.
        min_size: px; smaller boxes go.
        valid: (P, K) or (P, 1) bool, False for boxes of a size that does not count; None for none.
        class_agnostic: candidates of different classes suppress each other too.
        sigma: soft-NMS in place of NMS, see :func:`select_candidates`; ``iou_threshold`` is not read then.
    """
    high = scores > score_threshold
    if trace := active_trace():
        pairs = best_of(scores.flatten(), ~high.flatten(), MOST_TRACED)
        candidate, label = pairs // scores.shape[1], pairs % scores.shape[1]
        low = clip(boxes[candidate, label if boxes.shape[1] > 1 else 0], size)
        trace.selections.append(Selection.removed(low, scores[candidate, label], label, Fate.LOW_SCORE))
    candidate, label = high.nonzero().unbind(1)
    return select_candidates(
        boxes[candidate, label if boxes.shape[1] > 1 else 0], scores[candidate, label], label, size,
        iou_threshold=iou_threshold, max_detections=max_detections, min_size=min_size,
        valid=None if valid is None else valid[candidate, label if valid.shape[1] > 1 else 0],
        class_agnostic=class_agnostic, sigma=sigma, score_threshold=score_threshold,
    )  # fmt: skip


def select_candidates(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    size: tuple[int, int],
    *,
    iou_threshold: float | None,
    max_detections: int,
    min_size: float = 0.0,
    valid: Tensor | None = None,
    class_agnostic: bool = False,
    sigma: float | None = None,
    score_threshold: float = 0.0,
) -> Detections:
    """:func:`select_detections` for candidates that have one class each.

    Args:
        boxes: (P, 4) px.
        scores: (P,) in [0, 1].
        labels: (P,) int64 in [0, K).
        iou_threshold: None goes without NMS, for heads whose candidates are peaks already.
        valid: (P,) bool, False for candidates of a size that their image or level does not answer for; None for none.
        sigma: with it, no candidate goes because it overlaps a better one by an IoU of u, but its score is multiplied
            by exp(-u^2 / sigma) (soft-NMS, Bodla et al., ICCV 2017, equation 3).
        score_threshold: what scores no more after that, goes.
    """
    groups = torch.zeros_like(labels) if class_agnostic else labels
    boxes = clip(boxes, size)
    large = is_larger(boxes, min_size)
    large = large if valid is None else large & valid
    index = large.nonzero().squeeze(1)
    before = scores
    if sigma is not None:
        lowered = soft_nms(boxes[index], scores[index], groups[index], gaussian_decay(sigma), max_detections)
        scores = scores.index_put((index,), lowered)
        order = lowered.argsort(descending=True, stable=True)
        order = order[lowered[order] > score_threshold]
    elif iou_threshold is None:
        order = scores[index].argsort(descending=True, stable=True)
    else:
        order = nms_by_group(boxes[index], scores[index], groups[index], iou_threshold)
    survivors = index[order]
    if trace := active_trace():
        told = {"large": large, "survivors": survivors, "limit": max_detections}
        trace.selections.append(
            selection_of_nms(boxes, scores, groups, labels, iou_threshold=iou_threshold, **told)
            if sigma is None
            else selection_of_soft_nms(boxes, before, scores, groups, labels, **told)
        )
    keep = survivors[:max_detections]
    return Detections(boxes[keep], scores[keep], labels[keep])


def top_candidates(
    scores: Tensor,
    boxes_of: Callable[[Tensor], Tensor],
    size: tuple[int, int],
    *,
    score_threshold: float,
    num: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best ``num`` of all (candidate, class) pairs that score more than ``score_threshold``, best first.

    Args:
        scores: (P, K).
        boxes_of: the boxes (Q, 4) px of candidates (Q,): only those few are decoded.
        size: (h, w) of the image.

    Returns:
        the boxes (Q, 4), scores (Q,) and labels (Q,) of the pairs.
    """
    flat, num_classes = scores.flatten(), scores.shape[1]
    index = (flat > score_threshold).nonzero().squeeze(1)  # first: of millions few score enough
    index = index[flat[index].topk(min(num, len(index))).indices]
    if trace := active_trace():
        rest = best_of(flat, _without(index, flat.numel()), MOST_TRACED)
        rest_boxes = clip(boxes_of(rest // num_classes), size)
        selection = Selection.removed(rest_boxes, flat[rest], rest % num_classes, Fate.CUT)
        selection.fates[selection.scores <= score_threshold] = Fate.LOW_SCORE
        trace.selections.append(selection)
    return boxes_of(index // num_classes), flat[index], index % num_classes


def top_peaks(
    scores: Tensor,
    boxes_of: Callable[[Tensor], Tensor],
    size: tuple[int, int],
    *,
    score_threshold: float,
    num: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`top_candidates` among the peaks of heatmaps: cells of which no neighbour scores more.

    Of neighbours that score the same, the first is the peak: half types round whole plateaus to one value.

    Args:
        scores: (K, H, W); the candidates are the H * W cells, row by row.
    """
    _, where = F.max_pool2d(scores[None], 3, stride=1, padding=1, return_indices=True)
    is_peak = where[0] == torch.arange(scores[0].numel(), device=scores.device).view(scores.shape[1:])
    if trace := active_trace():
        slope = best_of(scores.flatten(), ~is_peak.flatten() & (scores.flatten() > score_threshold), MOST_TRACED)
        num_cells = scores[0].numel()
        cells = torch.cat([slope % num_cells, where.flatten()[slope]])
        labels = (slope // num_cells).repeat(2)
        selection = Selection.removed(
            clip(boxes_of(cells), size), scores.flatten(1)[labels, cells], labels, Fate.SUPPRESSED
        )
        selection.fates[len(slope) :] = Fate.KEPT  # the higher neighbours, here only as those that removed the others
        selection.suppressors[: len(slope)] = torch.arange(len(slope), len(cells), device=cells.device)
        trace.selections.append(selection)
    peaks = scores.masked_fill(~is_peak, 0).flatten(1).T
    return top_candidates(peaks, boxes_of, size, score_threshold=score_threshold, num=num)


def _without(index: Tensor, count: int) -> Tensor:
    """Mask (``count``,), False at ``index``."""
    mask = torch.ones(count, dtype=torch.bool, device=index.device)
    mask[index] = False
    return mask
