"""Samplers: which of the assigned references enter the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from detkit.config import SAMPLERS, Count
from detkit.matching.assigners import IGNORED, Assignment


class Sampler(ABC):
    """What a head needs to know of its sampler.

    ``needs_losses``: it chooses by the loss of each reference (Shrivastava et al., OHEM, CVPR 2016), which the head
    then computes for all of them.
    """

    needs_losses: bool = False

    @abstractmethod
    def __call__(
        self, assignment: Assignment, generator: torch.Generator, losses: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Indices of the positives and of the negatives that enter the loss.

        Args:
            assignment: of the M references of one image.
            generator: on the CPU, seeded by the image's key: the only source of chance.
            losses: (M,), where the sampler needs them; what is ignored has the loss of background.
        """


@SAMPLERS
class BalancedSampler(Sampler):
    """A fixed number of references per image, with at most a given share of positives (Fast R-CNN, section 2.3).

    Args:
        num: references per image.
        positive_share: largest share of positives; negatives fill up.
    """

    def __init__(self, *, num: int = 256, positive_share: float = 0.5) -> None:
        if num < 1 or not 0 < positive_share <= 1:
            raise ValueError(f"need num >= 1 and 0 < positive_share <= 1, not {num} and {positive_share}")
        self.num = num
        self.positive_share = positive_share

    def __call__(
        self, assignment: Assignment, generator: torch.Generator, losses: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        positive = assignment.positive.nonzero().squeeze(1)
        negative = assignment.negative.nonzero().squeeze(1)
        positive = _draw(positive, int(self.num * self.positive_share), generator)
        negative = _draw(negative, self.num - len(positive), generator)
        return positive, negative


@SAMPLERS
class HardExamples(Sampler):
    """Online hard example mining: the references of largest loss (Shrivastava et al., CVPR 2016; R-FCN, section 2.2).

    All compete, whatever their class; of equal losses the first wins. Nothing is drawn by lot.

    Args:
        num: references per image.
    """

    needs_losses = True

    def __init__(self, *, num: Count = 128) -> None:
        self.num = num

    def __call__(
        self, assignment: Assignment, generator: torch.Generator, losses: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        assert losses is not None
        usable = (assignment.matched != IGNORED).nonzero().squeeze(1)
        hardest = usable[losses[usable].argsort(descending=True, stable=True)[: self.num]]
        return hardest[assignment.positive[hardest]], hardest[assignment.negative[hardest]]


def _draw(index: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """At most ``num`` of ``index``, each equally likely."""
    if len(index) <= num:
        return index
    return index[torch.randperm(len(index), generator=generator)[:num].to(index.device)]
