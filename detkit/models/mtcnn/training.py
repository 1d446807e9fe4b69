"""From a batch to the losses of MTCNN's stages: which boxes each network is trained on, and their crops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detkit.models.mtcnn.cascade import CascadeSettings, first_stage, second_stage
from detkit.models.mtcnn.crops import area_crops, integral_image, pixel_ranges
from detkit.models.mtcnn.loss import stage_loss
from detkit.models.mtcnn.nets import Answers, ONet, PNet, RNet
from detkit.models.mtcnn.pyramid import normalized, seen_through
from detkit.models.mtcnn.samples import UNUSED, Samples, draw_squares, label, sample
from detkit.structures import Images, Losses, Target
from detkit.structures.target import on_host
from detkit.utils.seed import generator
from detkit.utils.transfer import sent_parts

Nets = tuple[PNet, RNet, ONet]

#: Of an image so many boxes go on from one stage to the next in training, the best.
_MAX_CANDIDATES = 300


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How the stages learn: see :class:`detkit.models.mtcnn.detector.MTCNN`, whose arguments these are."""

    stages: tuple[str, ...]
    samples_per_image: int
    hard_share: float
    box_weight: float
    landmark_weight: float
    as_squares: bool


def cascade_losses(
    nets: Nets, pixels: Sequence[Tensor], images: Images, targets: Sequence[Target], how: TrainingSettings,
    cascade: CascadeSettings,
) -> Losses:  # fmt: skip
    """The terms of every stage of ``how.stages``.

    Args:
        pixels: of each image (3, h, w) float, without the padding.
    """
    cascade = replace(cascade, max_candidates=min(_MAX_CANDIDATES, cascade.max_candidates or _MAX_CANDIDATES))
    sums, copies = [integral_image(p) for p in pixels], on_host(targets)
    boxes: list[Tensor] = [p.new_zeros(0, 4) for p in pixels]  # what the stage before lets through
    parts = []
    for stage, net in zip(("pnet", "rnet", "onet"), nets, strict=True):
        marked = stage == "onet" and nets[2].dense6_3 is not None and how.landmark_weight > 0
        if stage in how.stages:
            chosen = _chosen(stage, boxes, copies, images, targets, how, cascade.min_size, marked)
            parts.append(_loss_of(net, sums, chosen, stage, how, marked))
        if not any(later in how.stages for later in _AFTER[stage]):
            break
        hand_on = _HAND_ON[stage]
        with torch.no_grad():
            boxes = hand_on(nets, sums, boxes, cascade)
    return Losses.merge(*parts)


def _hand_on_first(nets: Nets, sums: Sequence[Tensor], _: Sequence[Tensor], how: CascadeSettings) -> list[Tensor]:
    return first_stage(nets[0], sums, how)


def _hand_on_second(nets: Nets, sums: Sequence[Tensor], boxes: Sequence[Tensor], how: CascadeSettings) -> list[Tensor]:
    return second_stage(nets[1], sums, boxes, how)


_AFTER = {"pnet": ("rnet", "onet"), "rnet": ("onet",), "onet": ()}
_HAND_ON: dict[str, Callable[..., list[Tensor]]] = {"pnet": _hand_on_first, "rnet": _hand_on_second}


def _chosen(
    stage: str, let_through: Sequence[Tensor], copies: Sequence[Target], images: Images, targets: Sequence[Target],
    how: TrainingSettings, least: float, with_landmarks: bool,
) -> list[Samples]:  # fmt: skip
    """The samples of each image, drawn by its key: of the boxes that the stage before let through, and of drawn ones.

    Args:
        copies: of the targets on the CPU.
    """
    chances = [generator(meta.key, f"mtcnn {stage}") for meta in images.meta]
    pairs = zip(copies, images.sizes, chances, strict=True)
    drawn = [draw_squares(copy, size, least, chance) for copy, size, chance in pairs]
    drawn = sent_parts(drawn, let_through[0].device)
    labelled = [
        _labelled(torch.cat(boxes), target, size, stage, how)
        for *boxes, target, size in zip(let_through, drawn, targets, images.sizes, strict=True)
    ]
    return sample(labelled, how.samples_per_image, [len(b) for b in let_through], chances, with_landmarks)


def _labelled(boxes: Tensor, target: Target, size: tuple[int, int], stage: str, how: TrainingSettings) -> Samples:
    """What ``boxes`` of one image are examples of; of nothing those that ``stage`` has no crop of."""
    labelled = label(boxes, target, how.as_squares)
    ranges, placed, (h, w) = _ranges(boxes, size, stage), _placed(boxes, stage), size
    unseen = (ranges[:, 2:] <= ranges[:, :2]).any(dim=1) | (placed[:, 2:] <= placed[:, :2]).any(dim=1)
    unseen |= (ranges[:, :2] < 0).any(dim=1) | (ranges[:, 2] > w) | (ranges[:, 3] > h)  # crops that are not clipped
    return labelled._replace(kinds=labelled.kinds.masked_fill(unseen, UNUSED))


def _placed(boxes: Tensor, stage: str) -> Tensor:
    """``boxes`` (N, 4) px as ``stage`` has them at test, where P-Net's windows stand on whole px."""
    return boxes.floor() if stage == "pnet" else boxes


def _ranges(boxes: Tensor, size: tuple[int, int], stage: str) -> Tensor:
    """The pixels (N, 4), half-open, that ``stage`` sees of ``boxes`` (N, 4) px in an image of ``size`` (h, w)."""
    return seen_through(boxes).round().long() if stage == "pnet" else pixel_ranges(boxes, size)


def _loss_of(
    net: PNet | RNet | ONet, sums: Sequence[Tensor], chosen: Sequence[Samples], stage: str, how: TrainingSettings,
    with_landmarks: bool,
) -> Losses:  # fmt: skip
    sizes = [(s.shape[0] - 1, s.shape[1] - 1) for s in sums]
    ranges = [_ranges(c.boxes, size, stage) for c, size in zip(chosen, sizes, strict=True)]
    crops = torch.cat([area_crops(s, r, net.window) for s, r in zip(sums, ranges, strict=True)])
    answers = net(normalized(crops))
    landmarks = answers.landmarks if with_landmarks else None
    # P-Net's are maps of one cell each
    answers = Answers(answers.logits.flatten(1), answers.deltas.flatten(1), landmarks)
    samples = Samples.join(chosen)
    samples = samples._replace(boxes=_placed(samples.boxes, stage))
    return stage_loss(
        answers, samples, name=stage, extra=net.extra, hard_share=how.hard_share,
        box_weight=how.box_weight, landmark_weight=how.landmark_weight,
    )  # fmt: skip
