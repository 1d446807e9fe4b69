"""Classification losses: per sample, without weights of their own; the head normalises.

A head asks the loss how many outputs to make (K sigmoids, or K + 1 for a softmax with background last), how to turn
them into scores, and with which bias to start. Label K means background for every loss.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.config import LOSSES
from detkit.losses.checks import between_0_and_1, non_negative


class ClassificationLoss(ABC):
    """What a head needs to know of its classification loss.

    ``normalizer``: what the head divides the sum by, all samples or the positives among them.
    """

    normalizer: Literal["samples", "positives"] = "samples"

    @abstractmethod
    def num_outputs(self, num_classes: int) -> int:
        """Logits per sample for K = ``num_classes`` classes."""

    @abstractmethod
    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted loss (N,) of ``logits`` (N, ``num_outputs``) for ``labels`` (N,) in [0, K], K being background."""

    @abstractmethod
    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities (N, K) of the classes, background left out."""

    @abstractmethod
    def initial_bias(self, num_classes: int) -> Tensor:
        """Bias (``num_outputs``,) of the last layer before training."""


@LOSSES
class CrossEntropy(ClassificationLoss):
    """Softmax cross-entropy over K classes and background (Fast R-CNN, Girshick ICCV 2015, eq. 1).

    Args:
        weight: factor on the loss.
        prior_prob: probability that an untrained head gives to all object classes together; None leaves the bias at 0,
            where it is K / (K + 1).
    """

    def __init__(self, *, weight: float = 1.0, prior_prob: float | None = None) -> None:
        self.weight = non_negative("weight", weight)
        self.prior_prob = None if prior_prob is None else between_0_and_1("prior_prob", prior_prob)

    def num_outputs(self, num_classes: int) -> int:
        return num_classes + 1

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.weight * F.cross_entropy(logits, labels, reduction="none")

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1)[..., :-1]

    def initial_bias(self, num_classes: int) -> Tensor:
        bias = torch.zeros(num_classes + 1)
        if self.prior_prob is not None:  # K e^b / (K e^b + 1) = p
            bias[:-1] = math.log(self.prior_prob / (num_classes * (1 - self.prior_prob)))
        return bias


@LOSSES
class BCE(ClassificationLoss):
    """Binary cross-entropy of K independent sigmoids, summed over classes; a background sample is negative for all.

    Args:
        weight: factor on the loss.
        prior_prob: probability of each class before training (RetinaNet, Lin et al. ICCV 2017, section 4.1):
            bias = -log((1 - p) / p). None leaves it at 1/2.
    """

    def __init__(self, *, weight: float = 1.0, prior_prob: float | None = None) -> None:
        self.weight = non_negative("weight", weight)
        self.prior_prob = None if prior_prob is None else between_0_and_1("prior_prob", prior_prob)

    def num_outputs(self, num_classes: int) -> int:
        return num_classes

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        target = one_hot(labels, logits)
        return self.weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def initial_bias(self, num_classes: int) -> Tensor:
        return sigmoid_bias(self.prior_prob, num_classes)


@LOSSES
class Focal(ClassificationLoss):
    """Focal loss (Lin et al. ICCV 2017, eq. 5): ``-alpha_t (1 - p_t)^gamma log(p_t)``, summed over K sigmoids.

    The sum over samples is divided by the number of positives (section 4.1).

    Args:
        weight: factor on the loss.
        alpha: weight of positives; 1 - alpha that of negatives. -1 weighs both by 1, as in torchvision.
        gamma: how strongly easy samples are discounted; 0 is alpha-balanced BCE.
        prior_prob: as in :class:`BCE`; the paper's 0.01 by default.
    """

    normalizer = "positives"

    def __init__(
        self, *, weight: float = 1.0, alpha: float = 0.25, gamma: float = 2.0, prior_prob: float | None = 0.01
    ) -> None:
        self.weight = non_negative("weight", weight)
        if alpha != -1 and not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie between 0 and 1, or be -1 for no balancing, not {alpha}")
        self.alpha = alpha
        self.gamma = non_negative("gamma", gamma)
        self.prior_prob = None if prior_prob is None else between_0_and_1("prior_prob", prior_prob)

    def num_outputs(self, num_classes: int) -> int:
        return num_classes

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        target = one_hot(labels, logits)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")  # -log(p_t)
        p_t = torch.exp(-cross_entropy)
        alpha_t = 1.0 if self.alpha == -1 else self.alpha * target + (1 - self.alpha) * (1 - target)
        return self.weight * (alpha_t * focusing(1 - p_t, self.gamma) * cross_entropy).sum(-1)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def initial_bias(self, num_classes: int) -> Tensor:
        return sigmoid_bias(self.prior_prob, num_classes)


def one_hot(labels: Tensor, logits: Tensor) -> Tensor:
    """(N, K) of the logits' type; label K (background) gives a row of zeros."""
    return F.one_hot(labels, logits.shape[-1] + 1)[..., :-1].to(logits.dtype)


def focusing(p: Tensor, exponent: float) -> Tensor:
    """``p ** exponent`` (...) of probabilities, with a finite gradient everywhere.

    Below 1 the power's own gradient is infinite at 0, to which ``p`` is rounded from a logit of 18 on.
    """
    return p.clamp(min=torch.finfo(p.dtype).tiny) ** exponent if 0 < exponent < 1 else p**exponent


def sigmoid_bias(prior_prob: float | None, num_outputs: int) -> Tensor:
    """The bias (``num_outputs``,) at which a sigmoid gives ``prior_prob``: -log((1 - p) / p); 0 without a prior."""
    value = 0.0 if prior_prob is None else -math.log((1 - prior_prob) / prior_prob)
    return torch.full((num_outputs,), value)
