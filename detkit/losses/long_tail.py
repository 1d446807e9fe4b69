"""Losses for classes of which most are rare."""

from __future__ import annotations

import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.config import LOSSES
from detkit.losses.checks import between_0_and_1, non_negative
from detkit.losses.classification import ClassificationLoss
from detkit.losses.cosine_layers import CosineClassLayer, CosineClassMap
from detkit.losses.layers import ClassLayer

#: Scores below it are taken for it: what they are divided by must not be 0.
_LEAST_SCORE = 1e-2


@LOSSES
class Seesaw(ClassificationLoss):
    """Seesaw loss (Wang et al., CVPR 2021): a frequent class pushes a rare one down less, unless it is taken for it.

    A sample of class i adds ``-log(e^z_i / sum_j S_ij e^z_j)`` over the K classes alone, with ``S_ij = M_ij C_ij``:

        M_ij = min(1, (N_j / N_i)^p)      mitigation: a class j that is rarer than i is punished less
        C_ij = max(1, (s_j / s_i)^q)      compensation: but more where its score is above the true one's

    for N objects of each class and the softmax scores s (equations 3 to 6). Object or background is told by a logit of
    its own under binary cross-entropy, as in the authors' code; a class scores its softmax times "object". The logits
    of the classes are cosines times ``scale`` (section 3.3).

    Departure: N are the training data's counts rather than running ones, so that a step depends on nothing before it.
    Without them, as where a detector comes from a checkpoint, all classes count as equally frequent.

    Args:
        weight: factor on the loss.
        p: exponent of the mitigation.
        q: exponent of the compensation.
        scale: of the cosines.
        prior_prob: probability of an object before training; null leaves it at 1/2.
        class_counts: the objects of each class (run time).
    """

    needs_own_layer = True

    def __init__(
        self,
        *,
        weight: float = 1.0,
        p: float = 0.8,
        q: float = 2.0,
        scale: float = 20.0,
        prior_prob: float | None = 0.25,
        class_counts: tuple[int, ...] | None = None,
    ) -> None:
        self.weight, self.p, self.q = non_negative("weight", weight), non_negative("p", p), non_negative("q", q)
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be above 0, not {scale}")
        self.scale = scale
        self.prior_prob = None if prior_prob is None else between_0_and_1("prior_prob", prior_prob)
        self.class_counts = class_counts

    def num_outputs(self, num_classes: int) -> int:
        return num_classes + 1

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        classes, background = logits[:, :-1], logits[:, -1]
        row = (labels < classes.shape[1]).nonzero().squeeze(1)
        is_background = (labels == classes.shape[1]).to(logits)
        losses = F.binary_cross_entropy_with_logits(background, is_background, reduction="none")
        return self.weight * losses.index_add(0, row, self._of_classes(classes[row], labels[row]))

    def _of_classes(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(P,) of P objects' ``logits`` (P, K)."""
        adjusted = self.for_all(logits + self.log_factors(logits.detach(), labels))
        return F.cross_entropy(adjusted, labels, reduction="none")

    def log_factors(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(P, K): log S_ij for each object's class i; 0 for i itself, whose factors are 1."""
        score = self.for_all(logits).softmax(1)  # of each class and those that it stands for
        if self.stand_for is not None:
            score = score / self.stand_for
        own = score.gather(1, labels[:, None]).clamp(min=_LEAST_SCORE)
        compensation = self.q * (score.clamp(min=_LEAST_SCORE) / own).log().clamp(min=0)
        if self.class_counts is None:
            return compensation
        counts = logits.new_tensor(self.class_counts).clamp(min=1).log()
        return compensation + self.p * (counts - counts[labels][:, None]).clamp(max=0)

    def scores(self, logits: Tensor) -> Tensor:
        return logits[..., :-1].softmax(dim=-1) * (-logits[..., -1:]).sigmoid()

    def initial_bias(self, num_classes: int) -> Tensor:
        bias = torch.zeros(num_classes + 1)
        bias[-1] = self._start
        return bias

    @property
    def _start(self) -> float:
        """Background's first bias."""
        return 0.0 if self.prior_prob is None else math.log((1 - self.prior_prob) / self.prior_prob)

    def make_layer(self, width: int, num_classes: int) -> ClassLayer:
        return CosineClassLayer(width, num_classes, scale=self.scale, background=self._start)

    def make_map(self, channels: int, num_anchors: int, num_classes: int) -> nn.Module:
        return CosineClassMap(channels, num_anchors, num_classes, scale=self.scale, background=self._start)

    def of_classes(self, classes: Tensor, stand_for: Tensor) -> Self:
        chosen = super().of_classes(classes, stand_for)
        if self.class_counts is not None:
            chosen.class_counts = tuple(self.class_counts[k] for k in classes.tolist())
        return chosen
