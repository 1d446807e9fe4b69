"""Detectors that classify regions by cosines: what they see of given boxes, and weights for new classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.losses.cosine_layers import CosineClassLayer, CosineClassMap, cosines, directions
from detkit.models.detector import ComposedDetector, normalize
from detkit.models.heads.roi import RoIHead
from detkit.models.heads.two_stage import TwoStageHead
from detkit.models.interfaces import Detector
from detkit.structures import Images


@dataclass(frozen=True, slots=True)
class CosineRegions:
    """The parts of a ``detector`` of two stages whose last ``layer``, called ``name``, compares directions."""

    detector: ComposedDetector
    head: TwoStageHead
    roi: RoIHead
    layer: CosineClassLayer
    name: str

    @classmethod
    def of(cls, detector: Detector) -> CosineRegions:
        """The parts of ``detector``.

        Raises:
            ValueError: it classifies no regions, or not by cosines; the message says what does.
        """
        head = detector.head if isinstance(detector, ComposedDetector) else None
        roi = head.roi if isinstance(head, TwoStageHead) else None
        layers = [(n, m) for n, m in detector.named_modules() if isinstance(m, CosineClassLayer)]
        if not isinstance(roi, RoIHead) or not layers:
            what = type(detector if head is None else head).__name__
            loss = getattr(roi or head, "cls_loss", None)
            of = "" if loss is None else f" with {type(loss).__name__}"
            raise ValueError(
                f"{what}{of} {_why_not(detector)}: train a two-stage head with "
                "loss@model.head.roi.cls_loss=NormalizedSoftmax, CosFace, ArcFace or another loss on cosines"
            )
        assert isinstance(detector, ComposedDetector)
        assert isinstance(head, TwoStageHead)
        name, layer = layers[0]
        return cls(detector, head, roi, layer, name)

    @torch.no_grad()
    def features(self, images: Images, boxes: Sequence[Tensor]) -> list[Tensor]:
        """(R_i, C) float32 of each image: what the layer sees of ``boxes`` (R_i, 4) px of the network input."""
        return self._seen(self._maps(images), images, boxes)

    @torch.no_grad()
    def features_beside(self, images: Images, boxes: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """:meth:`features`, and those of what the first stage proposes in each image."""
        maps = self._maps(images)
        proposals = self.head.rpn.propose([maps[i] for i in self.head.rpn_levels], images)
        return self._seen(maps, images, boxes), self._seen(maps, images, proposals)

    @torch.no_grad()
    def cosines(self, images: Images, boxes: Sequence[Tensor]) -> list[Tensor]:
        """(R_i, K) of each image: how near ``boxes`` (R_i, 4) px of the network input are to each class."""
        return [cosines(x, self.layer.weight) for x in self.features(images, boxes)]

    def _maps(self, images: Images) -> list[Tensor]:
        d = self.detector
        return d.neck(normalize(images, d.pixel_mean, d.pixel_std), d.backbone)

    def _seen(self, maps: Sequence[Tensor], images: Images, boxes: Sequence[Tensor]) -> list[Tensor]:
        caught: list[Tensor] = []
        handle = self.layer.register_forward_pre_hook(lambda _, given: caught.append(given[0].float()))
        try:
            self.roi([maps[i] for i in self.head.roi_levels], boxes, images)
        finally:
            handle.remove()
        return list(caught[0].split([len(b) for b in boxes]))


def _why_not(detector: Detector) -> str:
    """What keeps a ``detector`` from having one direction for each class of regions."""
    if any(isinstance(part, CosineClassMap) for part in detector.modules()):
        return "has weights of a class for each anchor of a cell, which a few examples do not show"
    if any(isinstance(part, CosineClassLayer) for part in detector.modules()):
        return "has weights of a class for each of its stages, which look at boxes of their own and not at given ones"
    return "has no cosine layer for regions"


def prototype(examples: Tensor, common: Tensor, weight: Tensor, reserve: float) -> Tensor:
    """(C,): the weight of a new class, from the features of its ``examples`` (E, C).

    The mean of their directions (imprinting: Qi, Brown, Lowe, CVPR 2018), with one change. After a ReLU all features
    point the same way, more or less, which trained weights have learnt to allow for and a mean has not: it would be
    near to everything. Along ``common`` (C,), the mean direction of regions of any kind, the new weight is therefore
    given the least that one of the trained ones ``weight`` (K, C) has there, less ``reserve``, and what is left comes
    from the examples. All its cosines are lower by that, as by a threshold: it says its class more seldom than the most
    reserved of them, so that they keep their objects. Its length is their mean length.
    """
    axis = directions(common[None])[0]
    mean = directions(examples).mean(0)
    own = directions((mean - (mean @ axis) * axis)[None])[0]
    along = ((directions(weight) @ axis).min() - reserve).clamp(min=-1)
    return weight.norm(dim=1).mean() * ((1 - along**2).sqrt() * own + along * axis)
