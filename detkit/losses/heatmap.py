"""Losses on heatmaps: per cell and class, without normalisation; the head divides."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.config import LOSSES
from detkit.losses.checks import between_0_and_1, non_negative
from detkit.losses.classification import focusing


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
        self.weight = non_negative("weight", weight)
        self.alpha, self.beta = non_negative("alpha", alpha), non_negative("beta", beta)
        self.prior_prob = between_0_and_1("prior_prob", prior_prob)

    def __call__(self, logits: Tensor, heat: Tensor) -> Tensor:
        is_peak = heat == 1
        p = logits.sigmoid()
        right = torch.where(is_peak, logits, -logits)  # chosen before the logarithm, which is infinite on one side
        easiness = focusing(torch.where(is_peak, 1 - p, p), self.alpha)
        spared = torch.where(is_peak, 1.0, (1 - heat) ** self.beta)
        return self.weight * (-spared * easiness * F.logsigmoid(right))
