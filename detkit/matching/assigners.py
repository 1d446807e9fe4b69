"""Assigners: which reference box answers for which object."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.config import ASSIGNERS
from detkit.structures import Target
from detkit.structures.boxes import pairwise_cover, pairwise_iou

NEGATIVE = -1
IGNORED = -2


@dataclass(frozen=True, slots=True)
class Assignment:
    """For M references: ``matched`` (M,) int64 is the index of its object in the Target, NEGATIVE or IGNORED."""

    matched: Tensor

    @property
    def positive(self) -> Tensor:
        """(M,) bool."""
        return self.matched >= 0

    @property
    def negative(self) -> Tensor:
        """(M,) bool."""
        return self.matched == NEGATIVE

    def labels(self, target: Target, num_classes: int) -> Tensor:
        """Class (M,) of each reference: that of its object, ``num_classes`` (background) without one."""
        if len(target) == 0:
            return torch.full_like(self.matched, num_classes)
        return torch.where(self.positive, target.labels[self.matched.clamp(min=0)], num_classes)

    def boxes(self, target: Target) -> Tensor:
        """Box (M, 4) px of each reference's object; of those without one any."""
        if len(target) == 0:
            return target.boxes.new_zeros(len(self.matched), 4)
        return target.boxes[self.matched.clamp(min=0)]

    def without(self, mask: Tensor) -> Assignment:
        """The same with the references in ``mask`` (M,) ignored."""
        return Assignment(torch.where(mask, IGNORED, self.matched))


class Assigner(ABC):
    """What a head needs to know of its assigner."""

    @abstractmethod
    def __call__(self, references: Tensor, target: Target, allowed: Tensor | None = None) -> Assignment:
        """Assign references to objects.

        Args:
            references: (M, 4) px.
            target: N objects in the same frame; those to be ignored answer for nothing.
            allowed: (N, M) bool, which reference may answer for which object; None allows all.
        """


@ASSIGNERS
class MaxIoUAssigner(Assigner):
    """Each reference goes to the object it overlaps most, if enough (Ren et al., NeurIPS 2015, section 3.1.2).

    References between the two thresholds, and those mostly inside a crowd or difficult region, are ignored.

    Args:
        positive: least IoU of a positive.
        negative: a reference whose best IoU is below this is negative.
        match_best: the best reference of each object is positive whatever its IoU, so that no object is left out.
        crowd_cover: share of a reference inside an ignored region from which it no longer counts as negative.
    """

    def __init__(
        self, *, positive: float = 0.7, negative: float = 0.3, match_best: bool = False, crowd_cover: float = 0.5
    ) -> None:
        if not 0 <= negative <= positive <= 1:
            raise ValueError(f"need 0 <= negative <= positive <= 1, not negative {negative} and positive {positive}")
        self.positive = positive
        self.negative = negative
        self.match_best = match_best
        self.crowd_cover = crowd_cover

    def __call__(self, references: Tensor, target: Target, allowed: Tensor | None = None) -> Assignment:
        matched = torch.full((len(references),), NEGATIVE, dtype=torch.int64, device=references.device)
        if len(references) == 0 or len(target) == 0:
            return Assignment(matched)
        wanted, ignored = target.kinds
        if len(wanted):
            matched = self._match(references, target.boxes[wanted], None if allowed is None else allowed[wanted])
            matched = torch.where(matched >= 0, wanted[matched.clamp(min=0)], matched)
        if len(ignored):
            cover = pairwise_cover(references, target.boxes[ignored]).amax(1)
            matched = torch.where((matched == NEGATIVE) & (cover >= self.crowd_cover), IGNORED, matched)
        return Assignment(matched)

    def _match(self, references: Tensor, boxes: Tensor, allowed: Tensor | None) -> Tensor:
        iou = pairwise_iou(boxes, references)
        if allowed is not None:
            iou = torch.where(allowed, iou, 0)
        best, index = iou.max(dim=0)
        matched = torch.where(best >= self.positive, index, IGNORED)
        matched = torch.where(best < self.negative, NEGATIVE, matched)
        if self.match_best:
            # Every reference that ties for an object's best IoU; it answers for the object it overlaps most itself.
            best_of_object = iou.max(dim=1, keepdim=True).values
            tied = ((iou == best_of_object) & (best_of_object > 0)).any(dim=0)
            matched = torch.where(tied, index, matched)
        return matched
