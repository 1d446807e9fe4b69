"""What became of each candidate on its way to a detection: the why-missed report reads it, and no head knows of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch
from torch import Tensor

from detkit.structures import Affine, Detections
from detkit.structures.boxes import clip, pairwise_iou

#: Label of a candidate of a stage that knows no classes: a proposal.
NO_CLASS = -1

#: Of the candidates that one selection leaves behind so many are recorded, the best. 1000 proposals of 80 classes are
#: fewer; a dense head has millions, nearly all of which score nothing.
MOST_TRACED = 100_000


class Fate(IntEnum):
    """What became of a candidate; the greater, the further it came."""

    LOW_SCORE = 0  # not above the head's score threshold
    CUT = 1  # not among the best that enter NMS
    TOO_SMALL = 2  # or of a size that its level does not answer for
    SUPPRESSED = 3  # by a better one that it overlaps
    OVER_LIMIT = 4  # survived NMS, but too many were better
    MERGED = 5  # found in one of several views, and gone where these were merged
    KEPT = 6


@dataclass(frozen=True, slots=True)
class Selection:
    """C candidates of one image at one place where some of them were removed.

    ``boxes`` (C, 4) px of the network input, clipped to the image; ``scores`` (C,); ``labels`` (C,), NO_CLASS for
    proposals; ``fates`` (C,) uint8, values of :class:`Fate`; ``suppressors`` (C,): of a suppressed or merged one the
    candidate that took its place, an index into this selection, else -1. ``stage``: what the place is called, in a
    detector of many stages; else empty.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    fates: Tensor
    suppressors: Tensor
    stage: str = ""

    @classmethod
    def removed(cls, boxes: Tensor, scores: Tensor, labels: Tensor, fate: Fate, stage: str = "") -> Selection:
        """Candidates that all met the same ``fate``, and not by another candidate."""
        count = len(boxes)
        fates = torch.full((count,), int(fate), dtype=torch.uint8, device=boxes.device)
        nobody = torch.full((count,), -1, dtype=torch.int64, device=boxes.device)
        return cls(boxes, scores, labels, fates, nobody, stage)


@dataclass(slots=True)
class Trace:
    """The selections made inside a :func:`tracing` block, in their order."""

    selections: list[Selection] = field(default_factory=list)


_ACTIVE: ContextVar[Trace | None] = ContextVar("trace", default=None)


def active_trace() -> Trace | None:
    """The trace of the innermost :func:`tracing` block around the caller; None almost always."""
    return _ACTIVE.get()


@contextmanager
def tracing() -> Iterator[Trace]:
    """Record what :mod:`detkit.matching.select` removes inside the block.

    Run one image at a time in it: a selection does not say whose it is. It changes no detection, but costs time, and
    memory for every candidate.
    """
    trace = Trace()
    token = _ACTIVE.set(trace)
    try:
        yield trace
    finally:
        _ACTIVE.reset(token)


@contextmanager
def brought_back(there: Affine, size: tuple[int, int]) -> Iterator[None]:
    """What the block adds to the trace is of another view of the image: bring its boxes to px of the network input.

    Args:
        there: from the network input to the view.
        size: (h, w) of the image in the network input, at which boxes are clipped once more: a view's sides are
            rounded.
    """
    trace = active_trace()
    before = 0 if trace is None else len(trace.selections)
    yield
    if trace is not None:
        new = trace.selections[before:]
        trace.selections[before:] = [replace(s, boxes=clip(there.undo(s.boxes), size)) for s in new]


def record_removed(found: Detections, fate: Fate) -> None:
    """Add to the trace, if there is one, that all of ``found`` met the same ``fate``."""
    if (trace := active_trace()) is not None:
        trace.selections.append(Selection.removed(found.boxes, found.scores, found.labels, fate))


def best_of(scores: Tensor, mask: Tensor, num: int) -> Tensor:
    """The ``num`` best of ``scores`` (N,) where ``mask`` (N,) holds, as ascending indices."""
    index = mask.nonzero().squeeze(1)
    return index if len(index) <= num else index[scores[index].topk(num).indices.sort().values]


def selection_of_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    labels: Tensor,
    *,
    large: Tensor,
    survivors: Tensor,
    limit: int,
    iou_threshold: float | None,
    stage: str = "",
) -> Selection:
    """What a size filter, NMS within ``groups``, and a limit did to C candidates.

    Args:
        boxes: (C, 4) px, clipped.
        scores: (C,).
        groups: (C,): only candidates of one group suppress each other (a class, a level).
        labels: (C,).
        large: (C,) bool, False for those that the size filter removed.
        survivors: indices into the C of those that NMS left, best first.
        limit: how many of the survivors were kept.
        iou_threshold: of the NMS; None where there was none.
        stage: see :class:`Selection`.
    """
    selection = Selection.removed(boxes, scores, labels, Fate.SUPPRESSED, stage)
    selection.fates[~large] = Fate.TOO_SMALL
    selection.fates[survivors] = Fate.OVER_LIMIT
    selection.fates[survivors[:limit]] = Fate.KEPT
    victims = (selection.fates == Fate.SUPPRESSED).nonzero().squeeze(1)
    if iou_threshold is not None and len(victims):
        iou = pairwise_iou(boxes[victims], boxes[survivors])
        iou = iou.masked_fill(groups[victims][:, None] != groups[survivors], -1.0)
        # The survivors stand best first: the first that overlaps enough is the one that did it. NMS moves groups apart
        # before it compares them, which rounds: where none overlaps enough by a hair, it was the nearest.
        enough = iou > iou_threshold
        first = torch.where(enough.any(1), enough.int().argmax(1), iou.argmax(1))
        selection.suppressors[victims] = survivors[first]
    return selection


def selection_of_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    lowered: Tensor,
    groups: Tensor,
    labels: Tensor,
    *,
    large: Tensor,
    survivors: Tensor,
    limit: int,
) -> Selection:
    """:func:`selection_of_nms` where candidates lower the ``scores`` of others, to ``lowered``, and do not remove them.

    Returns:
        the C candidates, survivors with their lowered score and the others with their own; behind them once more each
        survivor that was lowered, suppressed, with its own score. Who is suppressed is so by the better survivor that
        overlaps it most.
    """
    again = survivors[lowered[survivors] < scores[survivors]]
    told = scores.index_put((survivors,), lowered[survivors])
    selection = selection_of_nms(
        boxes, told, groups, labels, large=large, survivors=survivors, limit=limit, iou_threshold=None
    )
    victims = torch.cat([(selection.fates == Fate.SUPPRESSED).nonzero().squeeze(1), again])
    behind = Selection.removed(boxes[again], scores[again], labels[again], Fate.SUPPRESSED)
    columns = ("boxes", "scores", "labels", "fates", "suppressors")
    joined = {name: torch.cat([getattr(selection, name), getattr(behind, name)]) for name in columns}
    selection = replace(selection, **joined)
    if len(victims) and len(survivors):
        rank = torch.full_like(groups, len(survivors))
        rank[survivors] = torch.arange(len(survivors), device=rank.device)
        better = (groups[victims][:, None] == groups[survivors]) & (rank[survivors] < rank[victims][:, None])
        overlap, nearest = pairwise_iou(boxes[victims], boxes[survivors]).masked_fill(~better, -1.0).max(dim=1)
        selection.suppressors[selection.fates == Fate.SUPPRESSED] = survivors[nearest].masked_fill(overlap <= 0, -1)
    return selection


def selection_of_merge(found: Detections, merged: Detections, enough: Tensor, limit: int) -> Selection:
    """What became of detections of several views where they were merged, and then of what that left.

    Args:
        found: the detections of all views.
        merged: what the merge has made of them: some of them as they were, or others in their place.
        enough: indices into ``merged`` of those that score enough, the best first.
        limit: how many of these were kept.

    Returns:
        ``merged``, and behind it those of ``found`` that are not in it, each with the one of ``merged`` of its class
        that overlaps it most in its place.
    """
    rows = torch.cat([_as_rows(merged), _as_rows(found)])
    values = rows.unique(dim=0, return_inverse=True)[1]
    gone = found.select(~torch.isin(values[len(merged) :], values[: len(merged)]))
    selection = Selection.removed(
        torch.cat([merged.boxes, gone.boxes]), torch.cat([merged.scores, gone.scores]),
        torch.cat([merged.labels, gone.labels]), Fate.MERGED,
    )  # fmt: skip
    selection.fates[: len(merged)] = Fate.LOW_SCORE
    selection.fates[enough] = Fate.OVER_LIMIT
    selection.fates[enough[:limit]] = Fate.KEPT
    if len(gone) and len(merged):
        iou = pairwise_iou(gone.boxes, merged.boxes).masked_fill(gone.labels[:, None] != merged.labels, -1.0)
        overlap, nearest = iou.max(dim=1)
        selection.suppressors[len(merged) :] = nearest.masked_fill(overlap <= 0, -1)
    return selection


def _as_rows(found: Detections) -> Tensor:
    return torch.cat([found.boxes, found.scores[:, None], found.labels[:, None]], dim=1).double()
