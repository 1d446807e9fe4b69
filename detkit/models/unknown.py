"""Which detections are of no class that a detector of cosines knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detkit.matching.groups import nms_by_group
from detkit.models.cosine_regions import CosineRegions
from detkit.structures import Detections, Images

#: Of two unknown detections that overlap more, the better one stays: one thing may look a little like several classes.
_SAME_OBJECT = 0.5


class Recognised(NamedTuple):
    """D ``detections`` of an image, the best cosine (D,) of each with a class, and (D,) bool whether it is unknown."""

    detections: Detections
    cosines: Tensor
    unknown: Tensor


class Recogniser:
    """Says of detections whether they are known, by another look at their boxes: their features once more.

    Args:
        regions: of the detector.
        least: (K,), the cosine that an object nearest to each class has at least.
    """

    def __init__(self, regions: CosineRegions, least: np.ndarray) -> None:
        self.regions, self.least = regions, torch.from_numpy(least)

    def __call__(self, images: Images, found: Sequence[Detections]) -> list[Recognised]:
        """Of ``found`` in each of ``images``, boxes in px of the network input."""
        best = nearness(self.regions, images, found)
        return [self._of_image(one, *of_one) for one, of_one in zip(found, best, strict=True)]

    def _of_image(self, found: Detections, cosines: Tensor, nearest: Tensor) -> Recognised:
        found = found.to("cpu")
        unknown = cosines.double() < self.least[nearest]
        index = unknown.nonzero().squeeze(1)
        kept = nms_by_group(found.boxes[index], found.scores[index], torch.zeros_like(index), _SAME_OBJECT)
        stays = ~unknown
        stays[index[kept]] = True
        return Recognised(found.select(stays), cosines[stays], unknown[stays])


def nearness(regions: CosineRegions, images: Images, found: Sequence[Detections]) -> list[tuple[Tensor, Tensor]]:
    """For each image the best cosine (D,) of each detection, and (D,) int64 the class that it is with; on the CPU."""
    of_images = regions.cosines(images, [one.boxes for one in found])
    return [(best.values.cpu(), best.indices.cpu()) for best in (each.max(1) for each in of_images)]
