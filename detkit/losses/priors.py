"""With which biases a head starts: one prior for all classes, or each class's own by how often it comes."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: No class starts as likelier than this: a prior that is nearly 1 would be as hard to unlearn as none.
_MOST_LIKELY = 0.5


def class_shares(counts: Sequence[int] | None, num_classes: int) -> Tensor:
    """(K,) float64: the share of each class among all objects, as if each had one object more than ``counts``.

    Without counts (a detector that gets its weights from a checkpoint) all are as frequent.

    Raises:
        ValueError: the head has another number of classes than the data, as the first stage has.
    """
    if counts is None:
        return torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
    if len(counts) != num_classes:
        raise ValueError(
            f"frequency_bias is for the {len(counts)} classes of the data; this head tells {num_classes} apart"
        )
    each = torch.tensor(counts, dtype=torch.float64) + 1
    return each / each.sum()


class Frequencies:
    """What the logits of K classes are told of how often each comes, where that is ``wanted``."""

    def __init__(self, wanted: bool, counts: tuple[int, ...] | None) -> None:
        self._bias: Tensor | None = None
        if wanted and counts is not None:
            with torch.device("cpu"):  # also where layers are made without memory
                self._bias = (class_shares(counts, len(counts)) * len(counts)).log()

    def told(self, logits: Tensor) -> Tensor:
        """(N, K + 1): ``logits`` with log(K pi_k) beside that of class k; background's as it is."""
        if self._bias is None:
            return logits
        assert len(self._bias) == logits.shape[1] - 1, "a head that tells others apart, the RPN, has no such loss"
        return logits + F.pad(self._bias, (0, 1)).to(logits)

    def of_classes(self, classes: Tensor) -> Frequencies:
        """Of ``classes`` (K',) alone: each is told what it would be among all of them."""
        chosen = copy.copy(self)
        chosen._bias = None if self._bias is None else self._bias[classes.cpu()]
        return chosen


def softmax_bias(prior_prob: float | None, num_classes: int, shares: Tensor | None = None) -> Tensor:
    """(K + 1,): a softmax then gives all classes together ``prior_prob``, each its share of it; 0 without a prior."""
    bias = torch.zeros(num_classes + 1)
    if prior_prob is None:
        return bias
    bias[:-1] = math.log(prior_prob / (num_classes * (1 - prior_prob)))  # K e^b / (K e^b + 1) = p
    if shares is not None:
        bias[:-1] += (shares * num_classes).log()
    return bias


def sigmoid_bias(prior_prob: float | None, num_outputs: int, shares: Tensor | None = None) -> Tensor:
    """(``num_outputs``,): sigmoids then give ``prior_prob``, -log((1 - p) / p); 0 without a prior.

    With ``shares`` each gives ``prior_prob`` times K times its share, but at most one half.
    """
    value = 0.0 if prior_prob is None else -math.log((1 - prior_prob) / prior_prob)
    if prior_prob is None or shares is None:
        return torch.full((num_outputs,), value)
    p = (prior_prob * num_outputs * shares).clamp(max=_MOST_LIKELY)
    return (p / (1 - p)).log().float()


def checked_weights(weights: Sequence[float], num_classes: int) -> tuple[float, ...]:
    """``weights``, one for each class.

    Raises:
        ValueError: another count of numbers, or one that is negative or not finite.
    """
    if len(weights) != num_classes:
        raise ValueError(f"class_weights must have a number for each of the {num_classes} classes, not {len(weights)}")
    if not all(0 <= w < math.inf for w in weights):
        raise ValueError(f"class_weights must be numbers from 0 on, not {list(weights)}")
    return tuple(weights)
