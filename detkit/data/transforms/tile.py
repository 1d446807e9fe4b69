"""A tile of a large image: what a detector that looks at tiles is trained on."""

from __future__ import annotations

from dataclasses import replace

import torch

from detkit.config import TRANSFORMS, Count, Share
from detkit.data.sample import Layout, Sample
from detkit.data.transforms.base import Transform
from detkit.data.transforms.plan import Plan, check_limits, render
from detkit.utils.seed import generator


@TRANSFORMS
class RandomTile(Transform):
    """A tile of the image in its own pixels, about an object or anywhere, for ``tta=tiles`` at test time.

    An object is drawn by lot, and the tile among those that hold all of it; of an object that is larger than the tile
    the tile shows a part. Objects cut at the tile's border stay objects if enough of them is seen. Of others nobody can
    say whether they should be found: they are ignored, neither object nor background. An image that is smaller than the
    tile, in height or width, is shown whole along that side.

    Args:
        size: side of a tile, px of the image.
        around: share of the tiles that are drawn about an object; the others lie anywhere.
        min_visibility: an object of which a smaller share of its area is seen is ignored.
        min_size: a box of which less than this is seen (px, width or height) is left out.

    Raises:
        ValueError: a number is out of range.
    """

    training_only = True
    has_plan = True

    def __init__(
        self, *, size: Count = 640, around: Share = 0.8, min_visibility: Share = 0.4, min_size: float = 1.0
    ) -> None:
        self.size, self.around = size, around
        self.limits = check_limits(min_visibility, min_size)

    def __call__(self, sample: Sample, key: int) -> Sample:
        plan = self.plan(sample.layout, key)
        return sample if plan.is_idle else Sample.of(render(sample.image, plan), self._cut(sample.layout, plan))

    def lay(self, layout: Layout, key: int) -> Layout:
        """Where the objects of ``layout`` are in the tile that ``key`` draws."""
        plan = self.plan(layout, key)
        return layout if plan.is_idle else self._cut(layout, plan)

    def plan(self, layout: Layout, key: int) -> Plan:
        """The tile of an image of which ``layout`` tells size and objects."""
        choice, number, *places = torch.rand(4, generator=generator(key), dtype=torch.float64).tolist()
        wanted = layout.boxes[~layout.ignore]
        box = wanted[int(number * len(wanted))] if len(wanted) and choice < self.around else None
        h, w = (min(side, self.size) for side in layout.size)
        top, left = (
            _start(place, length, side, None if box is None else (float(box[axis]), float(box[axis + 2])))
            for place, length, side, axis in zip(places, (h, w), layout.size, (1, 0), strict=True)
        )
        return Plan(layout.size, (h, w), layout.size, (-top, -left))

    def _cut(self, layout: Layout, plan: Plan) -> Layout:
        moved = plan.move(layout)
        hardly_seen = moved.visible < self.limits.min_visibility
        return replace(moved, ignore=moved.ignore | hardly_seen).clip(0.0, self.limits.min_size)


def _start(place: float, length: int, side: int, span: tuple[float, float] | None) -> int:
    """Where a tile of ``length`` px begins along a side of ``side`` px: ``place`` in [0, 1) of the way that it has.

    Args:
        span: from where to where an object lies that the tile should hold, or lie in.
    """
    low, high = 0.0, float(side - length)
    if span is not None:
        ends = sorted((span[1] - length, span[0]))
        low, high = (min(max(end, low), high) for end in ends)
    return min(round(low + place * (high - low)), side - length)
