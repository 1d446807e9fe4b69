"""Matchers: of the boxes that a stage guesses, which are objects, and which box each should have been."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
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
    def __call__(self, guessed: Sequence[Guessed], coupled: Tensor, targets: Sequence[Target]) -> list[Matched]:
        """Match the guesses of each image to its objects; a batch in one call, so that a GPU is asked for all at once.

        Args:
            coupled: (B, N) the object that each box of noise goes to, -1 for none.
            targets: the objects of each image, with those to be ignored.
        """


@MATCHERS
class AsCoupled(Matcher):
    """Every box learns to become the object that its noise was coupled to; its class is that of what it lies on.

    Args:
        assigner: the object that a guess lies on.
    """

    def __init__(self, *, assigner: Assigner) -> None:
        self.assigner = assigner

    def __call__(self, guessed: Sequence[Guessed], coupled: Tensor, targets: Sequence[Target]) -> list[Matched]:
        pairs = zip(guessed, coupled, targets, strict=True)
        return [Matched(self.assigner(guess.boxes, target), objects) for guess, objects, target in pairs]


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

    def __call__(self, guessed: Sequence[Guessed], coupled: Tensor, targets: Sequence[Target]) -> list[Matched]:
        pairs = list(zip(guessed, targets, strict=True))
        candidates = [self._candidates(guess, target.wanted) for guess, target in pairs]
        # the one thing that the host must know, for all images together
        without = torch.cat([~taken.any(0) for _, taken in candidates]).tolist()
        matched = []
        for (guess, target), (cost, taken) in zip(pairs, candidates, strict=True):
            num = taken.shape[1]
            lacking, without = [k for k in range(num) if without[k]], without[num:]
            matched.append(self._matched(guess, target, _supplied(cost, taken, lacking)))
        return matched

    def _candidates(self, guessed: Guessed, target: Target) -> tuple[Tensor, Tensor]:
        """(N, M) twice: the costs, and which guesses each object takes; one that several take is the cheapest one's."""
        if not len(target):
            none = guessed.boxes.new_zeros(len(guessed.boxes), 0)
            return none, none.bool()
        cost, iou = self.costs(guessed, target), pairwise_iou(guessed.boxes, target.boxes)
        best = iou.topk(min(self.num_candidates, len(iou)), dim=0).values
        share = best.sum(0).int().clamp(min=1)
        rank = cost.argsort(dim=0, stable=True).argsort(dim=0)
        taken = rank < share
        several = taken.sum(1, keepdim=True) > 1
        return cost, torch.where(several, torch.zeros_like(taken).scatter(1, cost.argmin(1, keepdim=True), True), taken)

    def _matched(self, guessed: Guessed, target: Target, taken: Tensor) -> Matched:
        matched = torch.full((len(guessed.boxes),), NEGATIVE, device=guessed.boxes.device)
        wanted, ignored = target.kinds
        if len(wanted):
            matched = torch.where(taken.any(1), wanted[taken.int().argmax(1)], matched)
        if len(ignored):
            cover = pairwise_cover(guessed.boxes, target.boxes[ignored]).amax(1)
            matched = torch.where((matched == NEGATIVE) & (cover >= self.crowd_cover), IGNORED, matched)
        return Matched(Assignment(matched), matched)

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


def _supplied(cost: Tensor, taken: Tensor, lacking: Sequence[int]) -> Tensor:
    """``taken`` (N, M), where objects ``lacking`` a guess get the cheapest that no object has, one after another."""
    for k in lacking:
        free = ~taken.any(1)
        cheapest = torch.where(free, cost[:, k], torch.inf).argmin(0, keepdim=True)
        taken[:, k] |= torch.zeros_like(free).scatter(0, cheapest, True) & free
    return taken


def _focal_cost(scores: Tensor) -> Tensor:
    """What focal loss gains when a guess of ``scores`` (N, K) is a class rather than background."""
    p, rest = scores.clamp(min=1e-8), (1 - scores).clamp(min=1e-8)  # 1 - 1e-8 is 1 in float32, and log(1 - 1) infinite
    return -0.25 * rest**2 * p.log() + 0.75 * p**2 * rest.log()
