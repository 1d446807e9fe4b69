"""Which candidates of a cascade go on from one stage to the next, told to the trace stage by stage.

Beside :mod:`detkit.matching.select` the one place where candidates are removed: boxes of a cascade are not clipped
between its stages, and one NMS compares by the smaller of two areas.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from detkit.matching.groups import nms_by_group, nms_over_smaller
from detkit.matching.trace import MOST_TRACED, NO_CLASS, Fate, Selection, active_trace, best_of, selection_of_nms
from detkit.structures import Detections
from detkit.structures.boxes import clip, is_larger
from detkit.utils.transfer import row_owners

#: Of a detection this much must lie inside the image, px.
LEAST_SIDE = 1e-2


def indices(masks: Sequence[Tensor]) -> list[Tensor]:
    """The indices (R,) at which each of ``masks`` (N,) is true; a GPU is asked twice, however many there are."""
    counts = torch.stack([mask.sum() for mask in masks]).tolist()
    found = torch.cat(list(masks)).nonzero().squeeze(1)
    return _apart(found, counts, [len(mask) for mask in masks])


def _apart(found: Tensor, counts: Sequence[int], lengths: Sequence[int]) -> list[Tensor]:
    """Of places ``found`` in parts of ``lengths`` that were joined, ``counts`` in each: the places in each part."""
    starts = itertools.accumulate(lengths, initial=0)
    return [places - start for places, start in zip(found.split(list(counts)), starts, strict=False)]


def let_through(
    boxes_of: Sequence[Callable[[Tensor], Tensor]], scores: Sequence[Tensor], passes: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]], stage: str,
) -> list[Tensor]:  # fmt: skip
    """The indices of the proposals that a stage's threshold lets through, in each of several sets.

    Args:
        boxes_of: the boxes (M, 4) px of candidates (M,), for the trace alone: of a map's cells few are worth a box.
        scores: (N,) of each set.
        passes: (N,) bool.
        sizes: (h, w) of the image that each set is of.
        stage: its name, for the trace.
    """
    if trace := active_trace():
        for boxes, values, mask, size in zip(boxes_of, scores, passes, sizes, strict=True):
            low = best_of(values, ~mask, MOST_TRACED)
            no_class = torch.full_like(low, NO_CLASS)
            trace.selections.append(
                Selection.removed(clip(boxes(low), size), values[low], no_class, Fate.LOW_SCORE, stage)
            )
    return indices(passes)


def unsuppressed(
    boxes: Sequence[Tensor], scores: Sequence[Tensor], sizes: Sequence[tuple[int, int]], iou_threshold: float,
    limit: int | None, stage: str,
) -> list[Tensor]:  # fmt: skip
    """The indices of the proposals that NMS leaves in each of several sets, best first, ``limit`` of each at most; see
    :func:`let_through`."""
    lengths = [len(part) for part in boxes]
    groups = row_owners(lengths, boxes[0].device)
    found = nms_by_group(torch.cat(list(boxes)), torch.cat(list(scores)), groups, iou_threshold)
    found = found[groups[found].argsort(stable=True)]
    counts = (groups[found] == torch.arange(len(lengths), device=groups.device)[:, None]).sum(dim=1).tolist()
    survivors = _apart(found, counts, lengths)
    if trace := active_trace():
        for part, values, size, left in zip(boxes, scores, sizes, survivors, strict=True):
            group = torch.zeros(len(part), dtype=torch.int64, device=part.device)
            trace.selections.append(
                selection_of_nms(
                    clip(part, size), values, group, group + NO_CLASS, large=torch.ones_like(group, dtype=torch.bool),
                    survivors=left, limit=len(left) if limit is None else limit, iou_threshold=iou_threshold,
                    stage=stage,
                )
            )  # fmt: skip
    return [left[:limit] for left in survivors]


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
