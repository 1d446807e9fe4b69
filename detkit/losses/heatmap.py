"""Losses on heatmaps: per cell and class, without normalisation; the head divides."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.config import LOSSES


class HeatmapLoss(ABC):
    """What a head needs to know of its heatmap loss."""

    prior_prob: float

    @abstractmethod
    def __call__(self, logits: Tensor, heat: Tensor) -> Tensor:
        """Weighted loss (...) of ``logits`` (...) against targets ``heat`` (...) in [0, 1], 1 at the peaks alone."""


@LOSSES
class PenaltyReducedFocal(HeatmapLoss):
    """The pixel-wise logistic regression of CornerNet and CenterNet (Zhou et al. 2019, equation 1).

    ``-(1 - p)^alpha log(p)`` at a peak and ``-(1 - y)^beta p^alpha log(1 - p)`` elsewhere. From logits: nothing is
    clamped.

    Args:
        weight: factor on the loss.
        alpha: how strongly easy cells are discounted.
        beta: how strongly cells near a peak are spared.
        prior_prob: probability of a peak before training; the published bias of -2.19 is 0.1.
    """

    def __init__(self, *, weight: float = 1.0, alpha: float = 2.0, beta: float = 4.0, prior_prob: float = 0.1) -> None:
        if not 0 < prior_prob < 1:
            raise ValueError(f"prior_prob must lie between 0 and 1, not {prior_prob}")
        self.weight, self.alpha, self.beta, self.prior_prob = weight, alpha, beta, prior_prob

    def __call__(self, logits: Tensor, heat: Tensor) -> Tensor:
        p = logits.sigmoid()
        peak = -((1 - p) ** self.alpha) * F.logsigmoid(logits)
        other = -((1 - heat) ** self.beta) * p**self.alpha * F.logsigmoid(-logits)
        return self.weight * torch.where(heat == 1, peak, other)
