"""Tiles of large images, cut out in their own size: what ``tta=tiles`` shows a detector later, it learns on."""

from __future__ import annotations

import math

import numpy as np
import torch

from detkit.config import TRANSFORMS, Share
from detkit.data.sample import Layout, Sample
from detkit.data.transforms.base import Transform
from detkit.data.transforms.plan import Plan, check_limits, render
from detkit.utils.seed import generator


@TRANSFORMS
class RandomTile(Transform):
    """One tile of the image, its pixels untouched: around an object drawn by chance, or anywhere.

    A tile around an object has it whole where it is not larger than the tile, at any place in it. Tiles lie inside the
    image; along a side on which the image is no longer than ``tile`` px they have all of it. Objects are cut at the
    tile's border; one of which less than ``min_visibility`` remains is kept, to be ignored: neither shown as an object
    nor as background (SNIPER, Singh, Najibi, Davis, NeurIPS 2018, keeps it as an object whatever remains).

    Args:
        tile: height and width of the output, px; less where the image has less.
        around: share of the tiles that are drawn around an object, of the images that have one to be found.
        min_visibility: a box of which a smaller share of its area remains is to be ignored.
        min_size: a box of which less than this remains (px, width or height) is left out.

    Raises:
        ValueError: a number is out of range.
    """

    training_only = True
    has_plan = True

    def __init__(
        self, *, tile: int = 640, around: Share = 0.8, min_visibility: Share = 0.3, min_size: float = 1.0
    ) -> None:
        if tile < 1:
            raise ValueError(f"tile must be positive, not {tile}")
        if not 0 <= around <= 1:
            raise ValueError(f"around must be in [0, 1], not {around}")
        self.tile = tile
        self.around = around
        self.limits = check_limits(min_visibility, min_size)._replace(ignore_rest=True)

    def plan(self, layout: Layout, key: int) -> Plan:
        """Where an image goes whose objects lie as in ``layout``. All that is random follows from ``key``."""
        coin, which, *places = torch.rand(4, generator=generator(key), dtype=torch.float64).tolist()
        wanted = layout.boxes[~layout.ignore]
        box = wanted[int(which * len(wanted))] if len(wanted) and coin < self.around else None
        h, w = layout.size
        frame = min(self.tile, h), min(self.tile, w)
        top, left = (
            _start(whole, side, None if box is None else (box[axis], box[axis + 2]), place)
            for whole, side, axis, place in zip((h, w), frame, (1, 0), places, strict=True)
        )
        return Plan((h, w), frame, (h, w), (-top, -left), limits=self.limits)

    def __call__(self, sample: Sample, key: int) -> Sample:
        plan = self.plan(sample.layout, key)
        return Sample.of(render(sample.image, plan), plan.move(sample.layout))

    def lay(self, layout: Layout, key: int) -> Layout:
        return self.plan(layout, key).move(layout)


def _start(whole: int, side: int, span: tuple[np.float32, np.float32] | None, place: float) -> int:
    """Where a tile of ``side`` px begins along an image of ``whole`` px, at ``place`` in [0, 1) of what is possible.

    Args:
        span: first and last px of what it shall have whole, or lie in; None for anywhere.
    """
    low, high = 0, whole - side
    if span is not None:
        first, last = sorted((math.ceil(span[1] - side), math.floor(span[0])))
        low, high = min(max(first, low), high), max(min(last, high), low)
    return low + int(place * (high - low + 1))
