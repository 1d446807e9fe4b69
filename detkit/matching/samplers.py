"""Samplers: which of the assigned references enter the loss."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.config import SAMPLERS, Count
from detkit.matching.assigners import IGNORED, NEGATIVE, Assignment
from detkit.utils.transfer import constant, sent


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

    def of_batch(
        self,
        assignments: Sequence[Assignment],
        generators: Sequence[torch.Generator],
        losses: Sequence[Tensor] | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """What a call says of each image, its arguments image by image.

        A GPU's host waits for every call, unless a sampler looks at all images together.
        """
        of_images = [None] * len(assignments) if losses is None else losses
        return [self(*of_image) for of_image in zip(assignments, generators, of_images, strict=True)]


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
        return self.of_batch([assignment], [generator])[0]

    def of_batch(
        self,
        assignments: Sequence[Assignment],
        generators: Sequence[torch.Generator],
        losses: Sequence[Tensor] | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        matched = torch.cat([a.matched for a in assignments])
        first = [0, *itertools.accumulate(len(a.matched) for a in assignments)]
        # how many positives there are before each reference, and behind them negatives: a place is found by its number
        ranks = F.pad(torch.cat([matched >= 0, matched == NEGATIVE]).cumsum(0, dtype=torch.int32), (1, 0))
        ends = [*first, *(len(matched) + end for end in first)]
        of_ends = ranks[constant(tuple(ends), matched.device)].tolist()
        drawn = []
        for i, draws in enumerate(generators):
            chosen = _draw(of_ends[i], of_ends[i + 1], int(self.num * self.positive_share), draws)
            j = i + len(first)
            drawn += [chosen, _draw(of_ends[j], of_ends[j + 1], self.num - len(chosen), draws)]
        return _by_image(ranks, drawn, [start for i in range(len(generators)) for start in ends[i :: len(first)]])


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
        return self.of_batch([assignment], [generator], [losses])[0]

    def of_batch(
        self,
        assignments: Sequence[Assignment],
        generators: Sequence[torch.Generator],
        losses: Sequence[Tensor] | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        assert losses is not None
        usable = [a.matched != IGNORED for a in assignments]
        counts = torch.stack([mask.sum() for mask in usable]).tolist()
        hardest = []
        for mask, loss, count in zip(usable, losses, counts, strict=True):
            order = loss.masked_fill(~mask, -math.inf).argsort(descending=True, stable=True)
            hardest.append(order[: min(self.num, count)])
        positive = [a.matched[index] >= 0 for a, index in zip(assignments, hardest, strict=True)]
        counts = torch.stack([mask.sum() for mask in positive]).tolist()
        sorted_by_kind = [
            index[mask.byte().argsort(descending=True, stable=True)]
            for index, mask in zip(hardest, positive, strict=True)
        ]
        return [(index[:count], index[count:]) for index, count in zip(sorted_by_kind, counts, strict=True)]


def _draw(start: int, end: int, num: int, generator: torch.Generator) -> Tensor:
    """At most ``num`` of the numbers from ``start`` to ``end`` - 1, each equally likely; on the CPU."""
    count = end - start
    if count <= num:
        return torch.arange(start, end)
    return start + torch.randperm(count, generator=generator)[:num]


def _by_image(ranks: Tensor, drawn: Sequence[Tensor], starts: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """The places where ``ranks`` rise above the numbers ``drawn``, for positives and negatives of each image in turn.

    What is drawn goes to the device in one piece.

    Args:
        starts: the place from which those of each of ``drawn`` are counted.
    """
    counts = [len(numbers) for numbers in drawn]
    shifts = torch.tensor(starts).repeat_interleave(torch.tensor(counts))
    numbers, shift = sent(torch.stack([torch.cat(list(drawn)), shifts]), ranks.device)
    parts = (torch.searchsorted(ranks, numbers.int(), right=True) - 1 - shift).split(counts)
    return list(zip(parts[::2], parts[1::2], strict=True))
