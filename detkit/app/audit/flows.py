"""A detector whose boxes flow from noise, as one whose references can be asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detkit.models import AnsweringDetector, References, Wording
from detkit.models.heads import FlowHead
from detkit.models.heads.grid import targets_in_range
from detkit.structures import Images, Target


class FlowReferences(AnsweringDetector):
    """What the coupling of ``head`` gives its boxes to, drawn by each image's key as training draws it.

    Which guess is which object is not known before training; which objects no box is for is: those beyond the number
    of boxes, and those with a side that no box can be as short as.
    """

    def __init__(self, head: FlowHead) -> None:
        self.head = head

    @property
    def wording(self) -> Wording:
        return Wording(
            headline="What the flow can learn from", owner=type(self.head).__name__, noun="box", level="boxes",
            meaning="A reference is a box of noise that the coupling gives to an object. Where it ends is not settled "
            "before training.",
        )  # fmt: skip

    def references(self, images: Images, targets: Sequence[Target]) -> list[References]:
        coupled = self.head.start(targets_in_range(images, targets), images).coupled
        return [self._of(own, target) for own, target in zip(coupled, targets, strict=True)]

    def _of(self, coupled: Tensor, target: Target) -> References:
        if len(target):
            sides = (target.boxes[:, 2:] - target.boxes[:, :2]).amin(1)
            coupled = torch.where(sides[coupled.clamp(min=0)] < self.head.states.min_size, -1, coupled)
        return References(coupled, None, torch.zeros_like(coupled), 1)

    def level_value(self, level: int) -> float:
        """The number of boxes."""
        return self.head.num_boxes

    def why_none(self, box: Sequence[float], size: tuple[int, int]) -> str:
        side, least = min(box[2] - box[0], box[3] - box[1]), self.head.states.min_size
        return f"with a side below {least:g} px, which no box has (model.head.min_size)" if side < least else ""

    def alternatives(self, boxes: Tensor) -> Iterator[tuple[Mapping[str, Any], str]]:
        """More boxes, and boxes as small as the objects."""
        yield {"head.num_boxes": 2 * self.head.num_boxes}, "twice as many boxes"
        shortest = float((boxes[:, 2:] - boxes[:, :2]).min())
        if 0 < shortest < self.head.states.min_size:
            yield {"head.min_size": 0.9 * shortest}, "boxes as small as the smallest object"
