"""What several heads do in the same way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.config import ConfigError
from detkit.losses import BoxLoss
from detkit.matching import Coder, Selector
from detkit.models.interfaces import AssigningHead, Head
from detkit.structures import Detections
from detkit.utils.dist import mean_over_processes


def regression_losses(loss: BoxLoss, coder: Coder, deltas: Tensor, references: Tensor, boxes: Tensor) -> Tensor:
    """``loss`` (N,) of each of N boxes, in the space that it compares: offsets, or decoded boxes in px."""
    if loss.space == "delta":
        return loss(deltas, coder.encode(boxes, references))
    return loss(coder.decode(deltas, references), boxes)


def assigning(inner: Head) -> AssigningHead:
    """``inner``, if it can say before any training which of its references answers for which object.

    Raises:
        ConfigError: it cannot.
    """
    if not isinstance(inner, AssigningHead):
        raise ConfigError(
            f"model.head.inner: {type(inner).__name__} assigns by what it predicts, not by where objects are: there is "
            "nothing to audit before training"
        )
    return inner


def select_of_views(selector: Selector, views: Sequence[Detections], size: tuple[int, int]) -> Detections:
    """What ``selector`` leaves of the detections of several views of one image of ``size`` (h, w), in its px."""
    boxes, scores, labels = (torch.cat([getattr(v, name) for v in views]) for name in ("boxes", "scores", "labels"))
    return selector.of_one_class(boxes, scores, labels, size)


def mean_count(count: int, like: Tensor) -> Tensor:
    """What a sum of losses is divided by: ``count`` averaged over processes, at least 1.

    Without gradients, as in an evaluation, it is this process's own: the others may have a batch less and would not
    answer, and the losses of a batch are then those that a single process finds.
    """
    own = like.new_tensor(float(count))
    return (mean_over_processes(own) if torch.is_grad_enabled() else own).clamp(min=1)


def per_anchor(x: Tensor, num_outputs: int) -> Tensor:
    """(B, A * O, H, W) to (B, H * W * A, O), in the anchors' order."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, num_outputs)
