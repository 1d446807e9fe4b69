"""What a network of MTCNN learns from its samples (Zhang et al. 2016, equations 1 to 4)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.models.heads.common import mean_count
from detkit.models.mtcnn.crops import landmark_targets
from detkit.models.mtcnn.nets import Answers
from detkit.models.mtcnn.samples import LANDMARKS, NEGATIVE, PART, POSITIVE, Samples
from detkit.structures import Losses
from detkit.utils.transfer import sent


def box_targets(boxes: Tensor, objects: Tensor, extra: float) -> Tensor:
    """The deltas (N, 4) that move ``boxes`` (N, 4) px onto ``objects`` (N, 4) px: the inverse of ``crops.moved``."""
    return (objects - boxes) / (boxes[:, 2:] - boxes[:, :2] + extra).repeat(1, 2)


def hardest_mean(losses: Tensor, share: float) -> Tensor:
    """The mean of the greatest ``share`` of ``losses`` (N,), one at least; 0, with a gradient, where there is none.

    Each of several processes takes the greatest of its own, and the mean is over those of all.
    """
    return _mean(losses.topk(math.ceil(share * len(losses))).values)


def _mean(losses: Tensor) -> Tensor:
    """Of ``losses`` (N,), whose number is that of all processes on average; 0, with a gradient, where there is none."""
    return losses.sum() / mean_count(len(losses), losses)


def stage_loss(
    answers: Answers, samples: Samples, *, name: str, extra: float, hard_share: float, box_weight: float,
    landmark_weight: float = 1.0,
) -> Losses:  # fmt: skip
    """The terms ``name``_cls and ``name``_box, and of a network that answers with landmarks ``name``_landmarks.

    Cross entropy, as a mean over the hardest of negatives and positives (online hard mining); and the
    squared distance of the four deltas, as a mean over positives and parts; and see :func:`landmark_loss`.

    Args:
        answers: (N, O), (N, 4) and perhaps (N, 2 L), of N samples.
        samples: with kinds on the host, as :func:`~detkit.models.mtcnn.samples.sample` gives them.
        extra: px by which the network's sides count as longer.
        hard_share: which share of the samples, the hardest, enters the first term; the paper's 0.7.
        box_weight: times the second term; the paper's 0.5.
        landmark_weight: times the third; the paper's 1 for O-Net.
    """
    logits, deltas = answers.logits.float(), answers.deltas.float()
    positive = samples.kinds == POSITIVE
    classified = (positive | (samples.kinds == NEGATIVE)).nonzero().squeeze(1)
    placed = (positive | (samples.kinds == PART)).nonzero().squeeze(1)
    num_positive = int(positive.sum())
    index, is_positive = sent(classified, logits.device), sent(positive[classified], logits.device)
    classes = torch.where(is_positive, samples.labels[index] + 1, 0) if logits.shape[1] > 2 else is_positive.long()
    cls = hardest_mean(F.cross_entropy(logits[index], classes, reduction="none"), hard_share)
    index = sent(placed, logits.device)
    wanted = box_targets(samples.boxes[index], samples.objects[index], extra)
    box = _mean((deltas[index] - wanted).square().sum(dim=1))
    terms = {f"{name}_cls": cls + logits.sum() * 0, f"{name}_box": box_weight * box}
    if answers.landmarks is not None:
        terms[f"{name}_landmarks"] = landmark_weight * landmark_loss(answers.landmarks.float(), samples)
    counts = sent([num_positive, len(classified) - num_positive], logits.device, torch.float32)
    return Losses(terms, {f"{name}_num_pos": counts[0], f"{name}_num_neg": counts[1]})


def landmark_loss(landmarks: Tensor, samples: Samples) -> Tensor:
    """The squared distance of all labelled points, in shares of the crop, as a mean over samples of kind LANDMARKS.

    Points that nobody labelled count nothing. 0, with a gradient, where there is no sample.

    Args:
        landmarks: (N, 2 L), as O-Net gives them.
    """
    index = (samples.kinds == LANDMARKS).nonzero().squeeze(1)
    if samples.landmarks is None:
        return _mean(landmarks[:0].sum(dim=1))
    chosen = sent(index, landmarks.device)
    points = samples.landmarks[chosen]
    off = (landmarks[chosen] - landmark_targets(points[..., :2], samples.boxes[chosen])).unflatten(1, (2, -1))
    return _mean((off.square().sum(dim=1) * (points[..., 2] > 0)).sum(dim=1))
