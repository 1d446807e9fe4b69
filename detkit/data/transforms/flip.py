"""Mirror images."""

from __future__ import annotations

import torch

from detkit.config import TRANSFORMS
from detkit.data.transforms.base import PlannedTransform
from detkit.data.transforms.plan import Plan
from detkit.utils.seed import generator


@TRANSFORMS
class HorizontalFlip(PlannedTransform):
    """Exchange left and right with probability ``p``.

    Args:
        p: share of the images that are mirrored.

    Raises:
        ValueError: ``p`` is no probability.
    """

    def __init__(self, *, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"p must be in [0, 1], not {p}")
        self.p = p

    def plan(self, size: tuple[int, int], key: int) -> Plan:
        mirrored = bool(torch.rand((), generator=generator(key)) < self.p)
        return Plan(size, size, size, mirrored=mirrored)
