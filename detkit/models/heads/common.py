"""What several heads do in the same way."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.config import ConfigError
from detkit.losses import BoxLoss
from detkit.matching import Coder, Selector
from detkit.models.interfaces import AssigningHead, Head
from detkit.structures import Detections, Target
from detkit.utils.dist import mean_over_processes
from detkit.utils.transfer import sent


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


def matched_objects(targets: Sequence[Target], matched: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the references in ``matched`` (B, M) that have an object, image by image: their image (P,) and number (P,),
    and the objects' boxes (P, 4) px and labels (P,)."""
    image, reference = (matched >= 0).nonzero().unbind(1)
    first = sent([0, *itertools.accumulate(len(t) for t in targets)][:-1], matched.device)
    index = first[image] + matched[image, reference]
    boxes, labels = torch.cat([t.boxes for t in targets]), torch.cat([t.labels for t in targets])
    return image, reference, boxes[index], labels[index]


def mean_count(count: int | Tensor, like: Tensor) -> Tensor:
    """What a sum of losses is divided by: ``count`` averaged over processes, at least 1.

    Without gradients, as in an evaluation, it is this process's own: the others may have a batch less and would not
    answer, and the losses of a batch are then those that a single process finds.
    """
    own = count.to(like) if isinstance(count, Tensor) else like.new_full((), float(count))
    return (mean_over_processes(own) if torch.is_grad_enabled() else own).clamp(min=1)


def per_anchor(x: Tensor, num_outputs: int) -> Tensor:
    """(B, A * O, H, W) to (B, H * W * A, O), in the anchors' order."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, num_outputs)
