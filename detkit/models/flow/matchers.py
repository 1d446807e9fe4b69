"""Matchers: of the boxes that a stage guesses, which are objects, and which box each should have been."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.config import MATCHERS, Count
from detkit.losses import GIoULoss
from detkit.matching import IGNORED, NEGATIVE, Assigner, Assignment
from detkit.structures import Target
from detkit.structures.boxes import pairwise_cover, pairwise_iou
from detkit.utils.transfer import constant


class Guessed(NamedTuple):
    """A stage's guesses for N boxes of one image of ``size`` (h, w): ``boxes`` (N, 4) px and ``scores`` (N, K)."""

    boxes: Tensor
    scores: Tensor
    size: tuple[int, int]


class Matched(NamedTuple):
    """``classes``: the object of each guess for the loss of the classes. ``objects`` (N,) int64: the one whose box each
    should have been, below 0 for a guess that is not in the loss of the boxes."""

    classes: Assignment
    objects: Tensor


class Matcher(ABC):
    """What a flow needs to know of its matcher."""

    @abstractmethod
    def __call__(self, guessed: Guessed, coupled: Tensor, target: Target) -> Matched:
        """Match guesses to objects.

        Args:
            coupled: (N,) the object that each box of noise goes to, -1 for none.
            target: the objects, with those to be ignored.
        """


@MATCHERS
class AsCoupled(Matcher):
    """Every box learns to become the object that its noise was coupled to; its class is that of what it lies on.

    Args:
        assigner: the object that a guess lies on.
    """

    def __init__(self, *, assigner: Assigner) -> None:
        self.assigner = assigner

    def __call__(self, guessed: Guessed, coupled: Tensor, target: Target) -> Matched:
        return Matched(self.assigner(guessed.boxes, target), coupled)


@MATCHERS
class SimOTA(Matcher):
    """DiffusionDet's: the cheapest guesses for an object are it, as many as there are of high IoU.

    Costs are of class (focal), of corners in units of the image, and of GIoU; a guess whose centre is not both in an
    object and near its middle is none for it as long as there are others (Ge et al., YOLOX, 2021, section 2.1).

    Args:
        num_candidates: an object gets as many guesses as the sum of its best IoUs, so many of them, at least one.
        centre_radius: a centre is near an object's middle within so many of its sides, along both axes.
        cls_weight, l1_weight, giou_weight: of the costs.
        crowd_cover: share of a guess inside an ignored region from which it is not background.
    """

    #: what is added for a guess that no object is near, and for one that is not near this object
    _OUTSIDE, _ELSEWHERE = 1e4, 1e2

    def __init__(
        self,
        *,
        num_candidates: Count = 5,
        centre_radius: float = 2.5,
        cls_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        crowd_cover: float = 0.5,
    ) -> None:
        self.num_candidates, self.centre_radius, self.crowd_cover = num_candidates, centre_radius, crowd_cover
        self.cls_weight, self.l1_weight, self.giou = cls_weight, l1_weight, GIoULoss(weight=giou_weight)

    def __call__(self, guessed: Guessed, coupled: Tensor, target: Target) -> Matched:
        matched = torch.full((len(guessed.boxes),), NEGATIVE, device=guessed.boxes.device)
        wanted, ignored = target.kinds
        if len(wanted):
            of_wanted = self._match(guessed, target.wanted)
            matched = torch.where(of_wanted >= 0, wanted[of_wanted.clamp(min=0)], matched)
        if len(ignored):
            cover = pairwise_cover(guessed.boxes, target.boxes[ignored]).amax(1)
            matched = torch.where((matched == NEGATIVE) & (cover >= self.crowd_cover), IGNORED, matched)
        return Matched(Assignment(matched), matched)

    def _match(self, guessed: Guessed, target: Target) -> Tensor:
        """(N,): the object of each guess, -1 for none."""
        cost, iou = self.costs(guessed, target), pairwise_iou(guessed.boxes, target.boxes)
        best = iou.topk(min(self.num_candidates, len(iou)), dim=0).values
        share = best.sum(0).int().clamp(min=1)
        rank = cost.argsort(dim=0, stable=True).argsort(dim=0)
        taken = rank < share
        # a guess that several objects take is the cheapest one's; an object without takes the cheapest of the rest
        several = taken.sum(1, keepdim=True) > 1
        taken = torch.where(several, torch.zeros_like(taken).scatter(1, cost.argmin(1, keepdim=True), True), taken)
        for k in (k for k, is_without in enumerate((taken.sum(0) == 0).tolist()) if is_without):
            free = ~taken.any(1)
            cheapest = torch.where(free, cost[:, k], torch.inf).argmin(0, keepdim=True)
            taken[:, k] |= torch.zeros_like(free).scatter(0, cheapest, True) & free
        return torch.where(taken.any(1), taken.int().argmax(1), NEGATIVE)

    def costs(self, guessed: Guessed, target: Target) -> Tensor:
        """(N, M): what it costs that each guess is each object."""
        boxes, scores, (h, w) = guessed
        num, objects = len(boxes), len(target)
        unit = constant((w, h, w, h), boxes.device, boxes.dtype)
        l1 = ((boxes[:, None] - target.boxes) / unit).abs().sum(-1)
        pairs = boxes.repeat_interleave(objects, 0), target.boxes.repeat(num, 1)
        giou = self.giou(*pairs).view(num, objects)
        inside, near = self._near(boxes, target.boxes, unit)
        cost = self.cls_weight * _focal_cost(scores)[:, target.labels] + self.l1_weight * l1 + giou
        cost = cost + self._ELSEWHERE * ~(inside & near)
        return cost + self._OUTSIDE * ~(inside | near).any(1, keepdim=True)

    def _near(self, boxes: Tensor, objects: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """(N, M) twice: whether a guess's centre is in an object, and whether it is near its middle."""
        centre = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
        inside = ((centre > objects[:, :2]) & (centre < objects[:, 2:])).all(-1)
        size = objects[:, 2:] - objects[:, :2]
        middle = (objects[:, :2] + objects[:, 2:]) / 2
        return inside, ((centre - middle).abs() < self.centre_radius * size).all(-1)


def _focal_cost(scores: Tensor) -> Tensor:
    """What focal loss gains when a guess of ``scores`` (N, K) is a class rather than background."""
    p = scores.clamp(1e-8, 1 - 1e-8)
    return -0.25 * (1 - p) ** 2 * p.log() + 0.75 * p**2 * (1 - p).log()
