"""Selection in tensors of fixed size, for programs that leave Python: the rules of :mod:`detkit.matching.select`.

There candidates are removed; here they stay in their place and are marked, so that no shape depends on what is in an
image. A batch is of images of one size. Equal scores may come out in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.matching.groups import nms_by_group
from detkit.matching.selector import Selector
from detkit.structures import SizeRange
from detkit.structures.boxes import clip

#: What a candidate scores that does not count; what does, scores 0 at least.
ABSENT = -1.0

#: Between the two.
LEAST = -0.5

#: The label of a row that holds no detection.
NO_DETECTION = -1


class Marked(NamedTuple):
    """P candidates of each of B images: ``boxes`` (B, P, 4) px, ``scores`` (B, P), ABSENT where there is none,
    ``labels`` (B, P) int64, and ``landmarks`` (B, P, L, 2) px of a detector that finds them."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    landmarks: Tensor | None = None


def top(scores: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The best ``num`` of ``scores`` (B, N) of each image, and their places (B, num); ABSENT where N is less."""
    values, index = F.pad(scores, (0, num), value=ABSENT).topk(num, dim=1)
    return values, torch.where(values > LEAST, index, 0)


def rows(values: Tensor, index: Tensor) -> Tensor:
    """Of ``values`` (B, N, D) the rows that ``index`` (B, Q) names: (B, Q, D)."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[2]))


def top_pairs(scores: Tensor, boxes_of: Callable[[Tensor], Tensor], *, score_threshold: float, num: int) -> Marked:
    """The best ``num`` (candidate, class) pairs of each image that score more than ``score_threshold``.

    Args:
        scores: (B, N, K) in [0, 1].
        boxes_of: the boxes (B, Q, 4) px of candidates (B, Q).
    """
    num_classes = scores.shape[2]
    flat = scores.flatten(1)
    values, index = top(torch.where(flat > score_threshold, flat, ABSENT), num)
    return Marked(boxes_of(index // num_classes), values, index % num_classes)


def peaks(scores: Tensor) -> Tensor:
    """``scores`` (B, K, H, W), 0 where a neighbour scores more, or the same and comes first."""
    around = F.pad(scores, (1, 1, 1, 1), value=ABSENT)
    above, below = around[:, :, :-2], around[:, :, 2:]
    before = torch.stack([above[..., :-2], above[..., 1:-1], above[..., 2:], around[:, :, 1:-1, :-2]]).amax(0)
    after = torch.stack([below[..., :-2], below[..., 1:-1], below[..., 2:], around[:, :, 1:-1, 2:]]).amax(0)
    return torch.where((scores > before) & (scores >= after), scores, 0.0)


def joined(parts: list[Marked]) -> Marked:
    """The candidates of all ``parts``, of levels or branches, which have no landmarks."""
    boxes, scores, labels = zip(*(part[:3] for part in parts), strict=True)
    return Marked(torch.cat(boxes, dim=1), torch.cat(scores, dim=1), torch.cat(labels, dim=1))


def only_of_size(found: Marked, size: tuple[int, int], *ranges: SizeRange | None) -> Marked:
    """``found`` without what is, clipped at an image of ``size``, of a size that one of ``ranges`` does not hold."""
    clipped = clip(found.boxes, size)
    scores = found.scores
    for one in ranges:
        if one is not None:
            held = one.holds(clipped.flatten(0, 1)).view(scores.shape)
            scores = torch.where(held, scores, ABSENT)
    return found._replace(scores=scores)


def select_marked(found: Marked, size: tuple[int, int], selector: Selector, num_classes: int) -> Marked:
    """What ``selector`` leaves of candidates of one class each: ``max_detections`` rows, best first.

    Rows without a detection have the score 0, the label NO_DETECTION and a box of zeros.
    """
    boxes = clip(found.boxes, size)
    scores = torch.where(is_large(boxes, selector.min_size), found.scores, ABSENT)
    if selector.sigma is not None or selector.nms_iou is not None:
        groups = 1 if selector.class_agnostic else num_classes
        scores = _left_by(selector, boxes, _of_group(scores, found.labels % groups, groups)).amax(dim=1)
    return best_rows(Marked(boxes, scores, found.labels), selector.max_detections)


def select_of_classes(
    boxes: Tensor,
    scores: Tensor,
    size: tuple[int, int],
    selector: Selector,
    valid_range: SizeRange | None = None,
) -> Marked:
    """:func:`select_marked` of candidates that may be of any class.

    Args:
        boxes: (B, P, K, 4) px, or (B, P, 1, 4), one for all classes.
        scores: (B, P, K).
    """
    batch, num, num_classes = scores.shape
    boxes = clip(boxes, size)
    enough = (scores > selector.score_threshold) & is_large(boxes, selector.min_size)
    if valid_range is not None:
        enough &= valid_range.holds(boxes.flatten(0, 2)).view(boxes.shape[:3])
    by_class = torch.where(enough, scores, ABSENT).transpose(1, 2)  # (B, K, P)
    own = boxes.transpose(1, 2).expand(-1, num_classes, -1, -1)
    if selector.class_agnostic:
        by_class = _left_by(selector, own.flatten(1, 2), by_class.flatten(1, 2)[:, None])
    else:
        by_class = _left_by(selector, own.flatten(0, 1), by_class.flatten(0, 1)[:, None])
    labels = torch.arange(num_classes, device=scores.device)[None, :, None].expand(batch, -1, num)
    return best_rows(
        Marked(own.flatten(1, 2), by_class.reshape(batch, -1), labels.flatten(1)), selector.max_detections
    )  # fmt: skip


def unsuppressed(boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, iou_threshold: float) -> Tensor:
    """``scores`` (B, P), ABSENT for those that NMS within their group removes."""
    marks = nms_marks(boxes, _of_group(scores, groups, num_groups), iou_threshold)
    return torch.where(marks.any(dim=1), scores, ABSENT)


def _of_group(scores: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """(B, G, P): ``scores`` (B, P) in the row of their group, ABSENT in the others."""
    numbers = torch.arange(num_groups, device=groups.device)[None, :, None]
    return torch.where(groups[:, None] == numbers, scores[:, None], ABSENT)


def _left_by(selector: Selector, boxes: Tensor, scores: Tensor) -> Tensor:
    """``scores`` (B, G, P) of ``boxes`` (B, P, 4) as NMS or soft-NMS in each group leaves them, ABSENT for the rest."""
    if selector.sigma is not None:
        return lowered(boxes, scores, selector.sigma, selector.score_threshold, selector.max_detections)
    if selector.nms_iou is not None:
        return torch.where(nms_marks(boxes, scores, selector.nms_iou), scores, ABSENT)
    return scores


def best_rows(found: Marked, num: int) -> Marked:
    """The best ``num`` of each image, rows without one emptied: score 0, label NO_DETECTION, box and points zeros."""
    scores, index = top(found.scores, num)
    there = scores > LEAST
    points = found.landmarks
    if points is not None:
        chosen = rows(points.flatten(2), index).unflatten(2, points.shape[2:])
        points = torch.where(there[:, :, None, None], chosen, 0.0)
    return Marked(
        torch.where(there[:, :, None], rows(found.boxes, index), 0.0),
        torch.where(there, scores, 0.0),
        torch.where(there, found.labels.gather(1, index), NO_DETECTION),
        points,
    )


def is_large(boxes: Tensor, min_size: float) -> Tensor:
    """:func:`~detkit.structures.boxes.is_larger` of (..., 4)."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return (sides >= min_size).all(dim=-1)


def nms_marks(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """(B, G, P) bool: which candidates of each of G groups NMS leaves.

    Args:
        boxes: (B, P, 4) px, shared by the groups.
        scores: (B, G, P), below LEAST for a candidate that is not of the group.
        iou_threshold: of two of one group that overlap more, the better one stays.
    """
    return torch.ops.detkit.nms_marks(boxes, scores, iou_threshold)


@torch.library.custom_op("detkit::nms_marks", mutates_args=())
def _nms_marks(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    marks = torch.zeros_like(scores, dtype=torch.bool)
    for image, own in enumerate(scores):
        group, place = (own > LEAST).nonzero().unbind(1)
        kept = nms_by_group(boxes[image, place], own[group, place], group, iou_threshold)
        marks[image, group[kept], place[kept]] = True
    return marks


@_nms_marks.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def over_smaller_marks(boxes: Tensor, scores: Tensor, threshold: float, extra: float) -> Tensor:
    """(G, P) bool: which candidates :func:`~detkit.matching.groups.nms_over_smaller` leaves in each of G groups.

    All are compared at once: who is beaten by none that stays, stays. That is asked again until nothing changes, which
    is the greedy choice, found after as many rounds as one beats another that beats another.

    Args:
        boxes: (P, 4) px, shared by the groups.
        scores: (G, P), below LEAST for a candidate that is not of the group.
    """
    there, boxes = scores > LEAST, boxes.double()
    corner = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    sides = (torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - corner + extra).clamp(min=0)
    areas = (boxes[:, 2:] - boxes[:, :2] + extra).prod(dim=1)
    share = sides.prod(dim=2) / torch.minimum(areas[:, None], areas[None])
    place = torch.arange(boxes.shape[0], device=boxes.device)
    better, equal = scores[:, :, None] > scores[:, None], scores[:, :, None] == scores[:, None]
    beats = (share > threshold) & (better | equal & (place[:, None] < place)) & there[:, :, None]

    def changes(kept: Tensor, before: Tensor) -> Tensor:
        return (kept != before).any()

    def asked(kept: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        return there & ~(beats & kept[:, :, None]).any(dim=1), kept.clone()

    kept = there.clone(), torch.zeros_like(there)
    if torch.compiler.is_compiling():  # a loop of the graph
        return torch.while_loop(changes, asked, kept)[0]
    while changes(*kept):
        kept = asked(*kept)
    return kept[0]


def lowered(boxes: Tensor, scores: Tensor, sigma: float, score_threshold: float, num: int) -> Tensor:
    """(B, G, P): ``scores`` after :func:`~detkit.matching.fusion.soft_nms` in each of G groups, ABSENT if not above
    ``score_threshold``; the best ``num`` of a group are right, which is what can be asked of it.

    Args:
        boxes: (B, P, 4) px, shared by the groups.
        scores: (B, G, P), ABSENT for a candidate that is not of the group.
    """
    kind, boxes, scores = scores.dtype, boxes.double(), scores.double()
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)[:, None]
    place = torch.arange(boxes.shape[1], device=boxes.device)

    def any_left(step: Tensor, scores: Tensor, taken: Tensor) -> Tensor:
        return (step < num) & (~taken & (scores > score_threshold)).any()

    def take_the_best(step: Tensor, scores: Tensor, taken: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        best = torch.where(taken, ABSENT, scores).argmax(dim=2, keepdim=True)  # (B, G, 1)
        box = boxes.gather(1, best.expand(-1, -1, 4))[:, :, None]
        corner = torch.maximum(box[..., :2], boxes[:, None, :, :2])
        sides = (torch.minimum(box[..., 2:], boxes[:, None, :, 2:]) - corner).clamp(min=0)
        inter = sides.prod(dim=-1)
        own = (box[..., 2:] - box[..., :2]).prod(dim=-1)
        iou = inter / (own + areas - inter).clamp(min=torch.finfo(inter.dtype).tiny)
        taken = taken | (place == best)
        return step + 1, torch.where(taken | (scores < LEAST), scores, scores * torch.exp(-(iou**2) / sigma)), taken

    state = torch.zeros((), dtype=torch.int64, device=boxes.device), scores, torch.zeros_like(scores, dtype=torch.bool)
    if torch.compiler.is_compiling():  # a loop of the graph
        scores = torch.while_loop(any_left, take_the_best, state)[1]
    else:
        while any_left(*state):
            state = take_the_best(*state)
        scores = state[1]
    scores = scores.to(kind)  # first: what rounds to the threshold is not above it
    return torch.where(scores > score_threshold, scores, ABSENT)
