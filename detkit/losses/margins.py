"""Softmax over cosines, with a margin between classes: from normalised softmax to ArcFace.

Each brings its layer: class weights without biases, and for all but L-Softmax of length 1. With theta_k the angle
between a region's feature x and the weight of class k, the logits of a region of class y are

    NormalizedSoftmax   s cos(theta_k)
    LSoftmax            ||W_y|| ||x|| psi(theta_y)       against ||W_k|| ||x|| cos(theta_k)
    ASoftmax            ||x|| psi(theta_y)               against ||x|| cos(theta_k)
    CosFace             s (cos(theta_y) - m)             against s cos(theta_k)
    ArcFace             s cos(theta_y + m)               against s cos(theta_k)
    CombinedMargin      s (cos(m1 theta_y + m2) - m3)    against s cos(theta_k)

    psi(theta) = (-1)^j cos(m theta) - 2 j   for theta in [j pi / m, (j + 1) pi / m]

and the loss is their cross-entropy. The margin is the loss's alone: scores are the softmax without it.

**Background** has no direction of its own (it is all that is not an object), so a margin to it would mean nothing. Its
logit is a plain ``w x + b``, without margin and without normalisation, and is compared with cosines that are at most
s. Read ``(w x + b) / s`` as the cosine that a region must reach to be an object rather than nothing: a threshold, which
is learnt instead of chosen. Two numbers keep that comparison fair.

- *Scale.* With K classes of which none fits, the classes together weigh about ``log K`` (more, where s is large for
  the width C of the feature: random cosines deviate by 1 / sqrt(C)). So s must be well above ``log K + log (1-p)/p``,
  with p the first share of objects, or no cosine could make an object; less is refused.
- *First bias.* ``prior_prob`` sets b so that all classes together start at that probability (see ``start_of``). Without
  it, b = 0, K classes share K / (K + 1), and with thousands of them every region starts as an object.

**Frequencies.** A direction has no bias that could hold how often its class comes, and should have none: a class that
is added later has no frequency. With ``frequency_bias`` the loss adds log(K pi_k) to the logit of class k, pi_k being
its share of the training data's objects, and the scores do without it (logit adjustment: Menon et al., ICLR 2021,
equation 10). What the frequencies alone tell need not be learnt as angles then, and scores do not favour frequent
classes. It is 0 where all classes are as frequent, and leaves ``prior_prob`` as it is.

Gradients are finite everywhere, also at cosines of 1 and -1, and all is in float32 from the cosine on.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.config import LOSSES, Whole
from detkit.losses.angles import arccosine, falling_cosine, sine
from detkit.losses.checks import between_0_and_1, non_negative
from detkit.losses.classification import ClassificationLoss
from detkit.losses.cosine_layers import CosineClassLayer, CosineClassMap, Lengths
from detkit.losses.layers import ClassLayer
from detkit.losses.priors import Frequencies
from detkit.utils.precision import widened
from detkit.utils.step import updates_done


class MarginSoftmax(ClassificationLoss):
    """Cross-entropy of the logits of a :class:`~detkit.losses.layers.CosineClassLayer`."""

    lengths: Lengths = "scale"
    needs_own_layer = True

    def __init__(self, weight: float, prior_prob: float | None, frequencies: Frequencies) -> None:
        self.weight = non_negative("weight", weight)
        self.prior_prob = None if prior_prob is None else between_0_and_1("prior_prob", prior_prob)
        self.frequencies = frequencies

    def num_outputs(self, num_classes: int) -> int:
        return num_classes + 1 + {"scale": 0, "feature": 1, "product": num_classes}[self.lengths]

    def num_classes(self, num_outputs: int) -> int:
        """K of so many logits."""
        return (num_outputs - 1) // 2 if self.lengths == "product" else num_outputs - (2 - (self.lengths == "scale"))

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = self.for_all(self.frequencies.told(self.with_margin(widened(logits), labels)))
        return self.weight * F.cross_entropy(logits, labels, reduction="none")

    def with_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, K + 1): ``logits`` (N, O) with the margin in that of each region's own class; background has none."""
        num_classes = self.num_classes(logits.shape[1])
        plain = logits[:, : num_classes + 1]
        row = (labels < num_classes).nonzero().squeeze(1)
        own = plain[row, labels[row]]
        length = self._lengths(logits, row, labels[row], num_classes)
        known = length > 0
        cosine = torch.where(known, own / torch.where(known, length, 1.0), 0.0).clamp(-1, 1)
        return plain.index_put((row, labels[row]), self.of_own_class(cosine, length))

    def _lengths(self, logits: Tensor, row: Tensor, label: Tensor, num_classes: int) -> Tensor:
        """(P,): what the cosine of class ``label`` in ``row`` was multiplied by."""
        if self.lengths == "scale":
            return logits.new_full((len(row),), self.scale_of_cosines)
        return logits[row, num_classes + 1 + (label if self.lengths == "product" else 0)]

    @property
    def scale_of_cosines(self) -> float:
        """s; 1 where the feature's length takes its place."""
        return 1.0

    @abstractmethod
    def of_own_class(self, cosine: Tensor, length: Tensor) -> Tensor:
        """The logit (P,) of the class that a region is of, from its ``cosine`` (P,) and what that is multiplied by."""

    def scores(self, logits: Tensor) -> Tensor:
        num_classes = self.num_classes(logits.shape[-1])
        return logits[..., : num_classes + 1].softmax(dim=-1)[..., :-1]

    def initial_bias(self, num_classes: int) -> Tensor:
        bias = torch.zeros(self.num_outputs(num_classes))
        bias[num_classes] = self._start(num_classes)  # of background alone: classes have none
        return bias

    def _start(self, num_classes: int) -> float:
        """Background's first bias: classes whose logits are 0 then have ``prior_prob`` together."""
        return 0.0 if self.prior_prob is None else math.log(num_classes * (1 - self.prior_prob) / self.prior_prob)

    def make_layer(self, width: int, num_classes: int) -> ClassLayer:
        return CosineClassLayer(width, num_classes, **self._options(width, num_classes))

    def make_map(self, channels: int, num_anchors: int, num_classes: int) -> nn.Module:
        return CosineClassMap(channels, num_anchors, num_classes, **self._options(9 * channels, num_classes))

    def of_classes(self, classes: Tensor, stand_for: Tensor) -> Self:
        chosen = super().of_classes(classes, stand_for)
        chosen.frequencies = self.frequencies.of_classes(classes)
        return chosen

    def _options(self, width: int, num_classes: int) -> dict[str, Any]:
        """Of the layer."""
        return {"lengths": self.lengths, "background": self._start(num_classes)}


class _ScaledCosines(MarginSoftmax):
    """Cosines times a constant ``scale``."""

    def __init__(
        self, weight: float, prior_prob: float | None, frequencies: Frequencies, scale: float, warmup_steps: int
    ) -> None:
        super().__init__(weight, prior_prob, frequencies)
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be above 0, not {scale}")
        self.scale, self.warmup_steps = scale, warmup_steps

    @property
    def scale_of_cosines(self) -> float:
        return self.scale

    @property
    def share(self) -> float:
        """Of the margin, now: from 0 at the first step to 1 after ``warmup_steps``; 1 outside training."""
        done = updates_done()
        return 1.0 if done is None or done >= self.warmup_steps else done / self.warmup_steps

    def _options(self, width: int, num_classes: int) -> dict[str, Any]:
        start = self.start_of(width, num_classes)
        if start >= self.scale:
            raise ValueError(
                f"scale must be above {start:.1f} for {num_classes} classes and prior_prob {self.prior_prob}, "
                f"not {self.scale:g}: background would win against a cosine of 1"
            )
        return {"lengths": self.lengths, "scale": self.scale, "background": start}

    def start_of(self, width: int, num_classes: int) -> float:
        """Background's bias before training: against it, what all classes together weigh is ``prior_prob``.

        Cosines of random directions are normal with a deviation of 1 / sqrt(C), nearly, so the classes' weight is
        ``log sum_k exp(s z_k / sqrt(C))``, with the K quantiles of the normal distribution for z.
        """
        if self.prior_prob is None:
            return 0.0
        middles = (torch.arange(num_classes, dtype=torch.float64, device="cpu") + 0.5) / num_classes
        weight = (self.scale / math.sqrt(width) * torch.special.ndtri(middles)).logsumexp(0)
        return float(weight) + math.log((1 - self.prior_prob) / self.prior_prob)


@LOSSES
class NormalizedSoftmax(_ScaledCosines):
    """Softmax over scaled cosines, without a margin (Wang et al., NormFace, ACM MM 2017): a cosine head.

    Args:
        weight: factor on the loss.
        scale: s; the reciprocal of a temperature. Detectors take about 20, face recognition 64.
        prior_prob: probability that an untrained head gives to all object classes together, by background's first
            bias; null leaves that at 0.
        frequency_bias: the loss counts with how often each class comes, see the head of this module.
        class_counts: the objects of each class in the training data (run time).
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        scale: float = 20.0,
        prior_prob: float | None = 0.25,
        frequency_bias: bool = False,
        class_counts: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(weight, prior_prob, Frequencies(frequency_bias, class_counts), scale, 0)

    def of_own_class(self, cosine: Tensor, length: Tensor) -> Tensor:
        return length * cosine


@LOSSES
class CosFace(_ScaledCosines):
    """An additive margin on the cosine: s (cos(theta) - m) (Wang et al., CVPR 2018, equation 4).

    Args:
        weight: factor on the loss.
        scale: s; the paper's is 64.
        margin: m; the paper's is 0.35.
        warmup_steps: the margin grows from 0 to m over so many updates.
        prior_prob, frequency_bias, class_counts: as of :class:`NormalizedSoftmax`.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        scale: float = 20.0,
        margin: float = 0.35,
        warmup_steps: Whole = 0,
        prior_prob: float | None = 0.25,
        frequency_bias: bool = False,
        class_counts: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(weight, prior_prob, Frequencies(frequency_bias, class_counts), scale, warmup_steps)
        self.margin = non_negative("margin", margin)

    def of_own_class(self, cosine: Tensor, length: Tensor) -> Tensor:
        return length * (cosine - self.share * self.margin)


@LOSSES
class ArcFace(_ScaledCosines):
    """An additive margin on the angle: s cos(theta + m) (Deng et al., CVPR 2019, equation 3).

    Past theta + m = pi, where that would rise again, s (cos(theta) - m sin(m)) takes its place, as in the authors'
    code.

    Args:
        weight: factor on the loss.
        scale: s; the paper's is 64.
        margin: m, radians; the paper's is 0.5.
        warmup_steps: the margin grows from 0 to m over so many updates.
        prior_prob, frequency_bias, class_counts: as of :class:`NormalizedSoftmax`.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        scale: float = 20.0,
        margin: float = 0.5,
        warmup_steps: Whole = 0,
        prior_prob: float | None = 0.25,
        frequency_bias: bool = False,
        class_counts: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(weight, prior_prob, Frequencies(frequency_bias, class_counts), scale, warmup_steps)
        self.margin = _angle_margin("margin", margin)

    def of_own_class(self, cosine: Tensor, length: Tensor) -> Tensor:
        m = self.share * self.margin
        moved = cosine * math.cos(m) - sine(cosine) * math.sin(m)
        return length * torch.where(cosine > math.cos(math.pi - m), moved, cosine - m * math.sin(m))


@LOSSES
class CombinedMargin(_ScaledCosines):
    """All three margins at once: s (cos(m1 theta + m2) - m3) (Deng et al., CVPR 2019, equation 4).

    Past m1 theta + m2 = pi the cosine goes on falling as that of :class:`ASoftmax` does.

    Args:
        weight: factor on the loss.
        scale: s.
        margins: m1 (a factor on the angle, from 1 on), m2 (added to it, radians) and m3 (taken from the cosine).
            [1, 0, 0] is :class:`NormalizedSoftmax`, [1, m, 0] :class:`ArcFace`, [1, 0, m] :class:`CosFace`.
        warmup_steps: the margins grow from [1, 0, 0] to these over so many updates.
        prior_prob, frequency_bias, class_counts: as of :class:`NormalizedSoftmax`.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        scale: float = 20.0,
        margins: tuple[float, float, float] = (1.0, 0.3, 0.2),
        warmup_steps: Whole = 0,
        prior_prob: float | None = 0.25,
        frequency_bias: bool = False,
        class_counts: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(weight, prior_prob, Frequencies(frequency_bias, class_counts), scale, warmup_steps)
        if not 1 <= margins[0] < math.inf:
            raise ValueError(f"the first of margins is a factor on the angle, from 1 on, not {margins[0]}")
        _angle_margin("the second of margins", margins[1])
        non_negative("the third of margins", margins[2])
        self.margins = margins

    def of_own_class(self, cosine: Tensor, length: Tensor) -> Tensor:
        factor, added, taken = self.margins
        angle = (1 + self.share * (factor - 1)) * arccosine(cosine) + self.share * added
        return length * (falling_cosine(angle) - self.share * taken)


def _angle_margin(name: str, value: float) -> float:
    if not 0 <= value < math.pi / 2:
        raise ValueError(f"{name} is an angle in radians, from 0 to below pi / 2, not {value}")
    return value
