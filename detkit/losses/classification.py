"""Classification losses: per sample, without weights of their own; the head normalises.

A head asks the loss how many outputs to make (K sigmoids, or K + 1 for a softmax with background last), how to turn
them into scores, and with which bias to start. Label K means background for every loss.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.config import LOSSES
from detkit.losses.checks import between_0_and_1, non_negative
from detkit.losses.layers import ClassLayer, LinearClassLayer
from detkit.losses.priors import checked_weights, class_shares, sigmoid_bias, softmax_bias
from detkit.utils.transfer import constant


class ClassificationLoss(ABC):
    """What a head needs to know of its classification loss.

    ``normalizer``: what the head divides the sum by, all samples or the positives among them. ``needs_own_layer``: its
    logits are those of :meth:`make_layer` or :meth:`make_map`, and of no other layer. ``stand_for``: see
    :meth:`of_classes`; None where each class stands for itself.
    """

    normalizer: Literal["samples", "positives"] = "samples"
    needs_own_layer: bool = False
    stand_for: Tensor | None = None

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

    def make_layer(self, width: int, num_classes: int) -> ClassLayer:
        """The layer that turns features (N, ``width``) of regions into the logits that this loss compares.

        A loss owns no weights: what its logits need (normalised weights, a scale) is this layer's.
        """
        return LinearClassLayer(width, self.initial_bias(num_classes), num_classes)

    def make_map(self, channels: int, num_anchors: int, num_classes: int) -> nn.Module:
        """The layer from a map (B, ``channels``, H, W) to the logits (B, A * O, H, W) of each cell's anchors."""
        return nn.Conv2d(channels, num_anchors * self.num_outputs(num_classes), 3, padding=1)

    def of_classes(self, classes: Tensor, stand_for: Tensor) -> Self:
        """The loss of logits of ``classes`` (K',) alone, which are then numbered from 0.

        Args:
            stand_for: (K',) from 1 on: how many classes each stands for that was drawn from among others, which are
                left out. In what is added up over classes it counts so often; in scores it does not.
        """
        chosen = copy.copy(self)
        chosen.stand_for = stand_for
        return chosen

    def for_all(self, logits: Tensor) -> Tensor:
        """``logits`` (N, K' + ...) of a softmax, whose sum is then, in the mean over draws, that over all classes.

        What :attr:`stand_for` says adds its logarithm: sampled softmax (Jean et al., ACL 2015, section 3; Bengio and
        Senecal, IEEE Trans. Neural Networks 2008), with the chance by which each class is drawn.
        """
        if self.stand_for is None:
            return logits
        return logits + F.pad(self.stand_for.log(), (0, logits.shape[-1] - len(self.stand_for))).to(logits)


class _WithPrior(ClassificationLoss):
    """Classes may differ in weight, and in how likely they are before training.

    ``class_counts``: the objects of each class in the training data, which arrive at run time.
    """

    has_background: bool

    def __init__(
        self,
        weight: float,
        prior_prob: float | None,
        class_weights: tuple[float, ...] | None,
        frequency_bias: bool,
        class_counts: tuple[int, ...] | None,
    ) -> None:
        self.weight = non_negative("weight", weight)
        self.prior_prob = None if prior_prob is None else between_0_and_1("prior_prob", prior_prob)
        if frequency_bias and prior_prob is None:
            raise ValueError("frequency_bias shares prior_prob out among the classes: give that too")
        self.class_weights, self.frequency_bias, self.class_counts = class_weights, frequency_bias, class_counts

    def summed(self, losses: Tensor) -> Tensor:
        """(N,): the sum over classes of ``losses`` (N, K') of sigmoids; one counts as often as it stands for others."""
        return (losses if self.stand_for is None else losses * self.stand_for.to(losses)).sum(-1)

    def num_outputs(self, num_classes: int) -> int:
        if self.class_weights is not None:
            checked_weights(self.class_weights, num_classes)
        return num_classes + self.has_background

    def initial_bias(self, num_classes: int) -> Tensor:
        shares = class_shares(self.class_counts, num_classes) if self.frequency_bias else None
        return (softmax_bias if self.has_background else sigmoid_bias)(self.prior_prob, num_classes, shares)

    def of_classes(self, classes: Tensor, stand_for: Tensor) -> Self:
        chosen = super().of_classes(classes, stand_for)
        if self.class_weights is not None:
            chosen.class_weights = tuple(self.class_weights[k] for k in classes.tolist())
        return chosen


@LOSSES
class CrossEntropy(_WithPrior):
    """Softmax cross-entropy over K classes and background (Fast R-CNN, Girshick ICCV 2015, eq. 1).

    The head divides by the number of samples, whatever they weigh.

    Args:
        weight: factor on the loss.
        prior_prob: probability that an untrained head gives to all object classes together; None leaves the bias at 0,
            where it is K / (K + 1).
        class_weights: a factor on the loss of each class's samples, in the order of the classes; null for 1.
        background_weight: that of background's.
        frequency_bias: an untrained head gives each class its share of ``prior_prob`` by the objects of the training
            data, rather than the same to all.
        class_counts: those objects (run time).
    """

    has_background = True

    def __init__(
        self,
        *,
        weight: float = 1.0,
        prior_prob: float | None = None,
        class_weights: tuple[float, ...] | None = None,
        background_weight: float = 1.0,
        frequency_bias: bool = False,
        class_counts: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(weight, prior_prob, class_weights, frequency_bias, class_counts)
        self.background_weight = non_negative("background_weight", background_weight)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        weights = self._weights(logits)
        return self.weight * F.cross_entropy(self.for_all(logits), labels, weight=weights, reduction="none")

    def _weights(self, logits: Tensor) -> Tensor | None:
        """(K + 1,); None where all are 1."""
        if self.class_weights is None and self.background_weight == 1:
            return None
        of_classes = self.class_weights or (1.0,) * (logits.shape[-1] - 1)
        return constant((*of_classes, self.background_weight), logits.device, logits.dtype)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1)[..., :-1]


@LOSSES
class SoftmaxFocal(_WithPrior):
    """Focal loss of a softmax over K classes and background: ``-alpha_y (1 - p_y)^gamma log(p_y)``.

    Lin et al. (ICCV 2017, section 3) have it with sigmoids, :class:`Focal`; with a softmax the classes compete. The sum
    over samples is divided by the number of positives.

    Args:
        weight: factor on the loss.
        alpha: weight of positives; 1 - alpha that of background. -1 weighs both by 1.
        gamma: how strongly easy samples are discounted; 0 is cross-entropy.
        prior_prob, class_weights, frequency_bias, class_counts: as of :class:`CrossEntropy`.
    """

    has_background = True
    normalizer = "positives"

    def __init__(
        self,
        *,
        weight: float = 1.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        prior_prob: float | None = 0.01,
        class_weights: tuple[float, ...] | None = None,
        frequency_bias: bool = False,
        class_counts: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(weight, prior_prob, class_weights, frequency_bias, class_counts)
        self.alpha, self.gamma = _alpha(alpha), non_negative("gamma", gamma)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        cross_entropy = F.cross_entropy(self.for_all(logits), labels, reduction="none")  # -log(p_y)
        of_classes, of_background = (1.0, 1.0) if self.alpha == -1 else (self.alpha, 1 - self.alpha)
        each = self.class_weights or (1.0,) * (logits.shape[-1] - 1)
        weights = (*(of_classes * w for w in each), of_background)
        factor = constant(weights, logits.device, logits.dtype)[labels]
        return self.weight * factor * focusing(1 - torch.exp(-cross_entropy), self.gamma) * cross_entropy

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1)[..., :-1]


@LOSSES
class BCE(_WithPrior):
    """Binary cross-entropy of K independent sigmoids, summed over classes; a background sample is negative for all.

    Args:
        weight: factor on the loss.
        prior_prob: probability of each class before training (RetinaNet, Lin et al. ICCV 2017, section 4.1):
            bias = -log((1 - p) / p). None leaves it at 1/2.
        class_weights: a factor on the loss of each class's sigmoid, in the order of the classes; null for 1.
        frequency_bias: the classes differ in their prior by the objects of the training data; their mean is
            ``prior_prob``, and none starts above 1/2.
        class_counts: those objects (run time).
    """

    has_background = False

    def __init__(
        self,
        *,
        weight: float = 1.0,
        prior_prob: float | None = None,
        class_weights: tuple[float, ...] | None = None,
        frequency_bias: bool = False,
        class_counts: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(weight, prior_prob, class_weights, frequency_bias, class_counts)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        target = one_hot(labels, logits)
        weights = None
        if self.class_weights is not None:
            weights = constant(self.class_weights, logits.device, logits.dtype)
        losses = F.binary_cross_entropy_with_logits(logits, target, weights, reduction="none")
        return self.weight * self.summed(losses)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


@LOSSES
class Focal(_WithPrior):
    """Focal loss (Lin et al. ICCV 2017, eq. 5): ``-alpha_t (1 - p_t)^gamma log(p_t)``, summed over K sigmoids.

    The sum over samples is divided by the number of positives (section 4.1).

    Args:
        weight: factor on the loss.
        alpha: weight of positives; 1 - alpha that of negatives. -1 weighs both by 1, as in torchvision.
        gamma: how strongly easy samples are discounted; 0 is alpha-balanced BCE.
        prior_prob: as in :class:`BCE`; the paper's 0.01 by default.
        frequency_bias, class_counts: as of :class:`BCE`.
    """

    has_background = False
    normalizer = "positives"

    def __init__(
        self,
        *,
        weight: float = 1.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        prior_prob: float | None = 0.01,
        frequency_bias: bool = False,
        class_counts: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(weight, prior_prob, None, frequency_bias, class_counts)
        self.alpha, self.gamma = _alpha(alpha), non_negative("gamma", gamma)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        target = one_hot(labels, logits)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")  # -log(p_t)
        p_t = torch.exp(-cross_entropy)
        alpha_t = 1.0 if self.alpha == -1 else self.alpha * target + (1 - self.alpha) * (1 - target)
        return self.weight * self.summed(alpha_t * focusing(1 - p_t, self.gamma) * cross_entropy)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


def _alpha(value: float) -> float:
    if value != -1 and not 0 <= value <= 1:
        raise ValueError(f"alpha must lie between 0 and 1, or be -1 for no balancing, not {value}")
    return value


def one_hot(labels: Tensor, logits: Tensor) -> Tensor:
    """(N, K) of the logits' type; label K (background) gives a row of zeros."""
    rows = logits.new_zeros(*labels.shape, logits.shape[-1] + 1)
    return rows.scatter_(-1, labels[..., None], 1.0)[..., :-1]


def focusing(p: Tensor, exponent: float) -> Tensor:
    """``p ** exponent`` (...) of probabilities, with a finite gradient everywhere.

    Below 1 the power's own gradient is infinite at 0, to which ``p`` is rounded from a logit of 18 on.
    """
    return p.clamp(min=torch.finfo(p.dtype).tiny) ** exponent if 0 < exponent < 1 else p**exponent
