"""Margins that are a factor on the angle: L-Softmax and A-Softmax, see :mod:`detkit.losses.margins`."""

from __future__ import annotations

from torch import Tensor

from detkit.config import LOSSES, Count
from detkit.losses.angles import psi
from detkit.losses.checks import non_negative
from detkit.losses.cosine_layers import Lengths
from detkit.losses.margins import MarginSoftmax
from detkit.losses.priors import Frequencies
from detkit.utils.step import updates_done


class _AngleFactor(MarginSoftmax):
    """A factor m on the angle, mixed with the plain cosine by a lambda that shrinks from step to step."""

    def __init__(
        self, weight: float, prior_prob: float | None, frequencies: Frequencies, margin: int, annealing: _Annealing
    ) -> None:
        super().__init__(weight, prior_prob, frequencies)
        self.margin, self.annealing = margin, annealing

    def of_own_class(self, cosine: Tensor, length: Tensor) -> Tensor:
        mixed = self.annealing.now
        return length * (mixed * cosine + psi(cosine, self.margin)) / (1 + mixed)


class _Annealing:
    """lambda(t) = max(least, base (1 + gain t)^-power) after t updates (Liu et al., ICML 2016, section 5.1, and the
    authors' code); the least outside training."""

    def __init__(self, base: float, gain: float, power: float, least: float) -> None:
        names = ("lambda_base", "lambda_gain", "lambda_power", "lambda_min")
        for name, value in zip(names, (base, gain, power, least), strict=True):
            non_negative(name, value)
        self.base, self.gain, self.power, self.least = base, gain, power, least

    @property
    def now(self) -> float:
        done = updates_done()
        return self.least if done is None else max(self.least, self.base * (1 + self.gain * done) ** -self.power)


@LOSSES
class LSoftmax(_AngleFactor):
    """Large-margin softmax: ||W|| ||x|| psi(theta) (Liu et al., ICML 2016, equation 4).

    The logit of a region's own class is ``(lambda ||W|| ||x|| cos(theta) + ||W|| ||x|| psi(theta)) / (1 + lambda)``,
    with ``lambda = max(lambda_min, lambda_base (1 + lambda_gain t)^-lambda_power)`` after t updates.

    Args:
        weight: factor on the loss.
        margin: m, a whole number; 1 is softmax without class biases.
        lambda_base, lambda_gain, lambda_power, lambda_min: of the annealing.
        prior_prob, frequency_bias, class_counts: as of :class:`~detkit.losses.margins.NormalizedSoftmax`.
    """

    lengths: Lengths = "product"

    def __init__(
        self,
        *,
        weight: float = 1.0,
        margin: Count = 4,
        lambda_base: float = 1000.0,
        lambda_gain: float = 2.5e-5,
        lambda_power: float = 35.0,
        lambda_min: float = 5.0,
        prior_prob: float | None = 0.25,
        frequency_bias: bool = False,
        class_counts: tuple[int, ...] | None = None,
    ) -> None:
        annealing = _Annealing(lambda_base, lambda_gain, lambda_power, lambda_min)
        super().__init__(weight, prior_prob, Frequencies(frequency_bias, class_counts), margin, annealing)


@LOSSES
class ASoftmax(_AngleFactor):
    """Angular softmax of SphereFace: ||x|| psi(theta), weights of length 1 (Liu et al., CVPR 2017, equation 7).

    Annealed as :class:`LSoftmax` is.

    Args:
        weight: factor on the loss.
        margin: m, a whole number; the paper's is 4, 1 is its modified softmax.
        lambda_base, lambda_gain, lambda_power, lambda_min: of the annealing.
        prior_prob, frequency_bias, class_counts: as of :class:`~detkit.losses.margins.NormalizedSoftmax`.
    """

    lengths: Lengths = "feature"

    def __init__(
        self,
        *,
        weight: float = 1.0,
        margin: Count = 4,
        lambda_base: float = 1000.0,
        lambda_gain: float = 2.5e-5,
        lambda_power: float = 35.0,
        lambda_min: float = 5.0,
        prior_prob: float | None = 0.25,
        frequency_bias: bool = False,
        class_counts: tuple[int, ...] | None = None,
    ) -> None:
        annealing = _Annealing(lambda_base, lambda_gain, lambda_power, lambda_min)
        super().__init__(weight, prior_prob, Frequencies(frequency_bias, class_counts), margin, annealing)
