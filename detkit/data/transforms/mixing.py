"""Several images in one: mosaic and mixup, with YOLOX's numbers."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from detkit.config import TRANSFORMS
from detkit.data.sample import Layout
from detkit.data.transforms.base import MixPlan, PlannedMixing
from detkit.data.transforms.plan import (
    Plan,
    blank,
    check_limits,
    check_scale,
    fitted,
    paint,
    render,
    scaled,
)
from detkit.utils.seed import generator


@TRANSFORMS
class Mosaic(PlannedMixing):
    """Four images that meet in one point, zoomed and shifted together.

    The mosaic of YOLOv4 (Bochkovskiy et al., 2020) with the numbers of YOLOX (Ge et al., 2021), whose affine step after
    it is a part of this one. Each image is resized until its longer side has z * size px, and laid with one corner at
    the meeting point C: the image itself above and left of it, its partners above right, below left, below right.

        C = size * (1/2 + t + z * u),   z ~ U(scale),   t ~ U(-translate, translate)^2,   u ~ U(-1/2, 1/2)^2

    Every image is resized once, straight to its place. Departures from YOLOX: it is not turned (there up to 10 degrees)
    nor sheared (2 degrees), which would loosen the boxes; YOLOv5 and YOLOv8 do neither. Nothing is cut at the border
    of a canvas of twice the size, so that small zooms show whole images. An image that is not mixed is resized to the
    longer side ``size``, as ResizeFit does.

    Args:
        size: height and width of the output, px.
        scale: least and largest zoom z.
        translate: how far the whole may be shifted, as a share of ``size``.
        min_visibility: a box of which a smaller share of its area remains is left out.
        min_size: a box of which less than this remains (px, width or height) is left out.
        p: share of the images that are mixed.
        num_epochs: mix in so many epochs from the start, and not in the last ones (YOLOX: 285 of 300); null: in all.

    Raises:
        ValueError: a number is out of range.
    """

    num_partners = 3

    def __init__(
        self,
        *,
        size: int = 640,
        scale: tuple[float, float] = (0.1, 2.0),
        translate: float = 0.1,
        min_visibility: float = 0.2,
        min_size: float = 2.0,
        p: float = 1.0,
        num_epochs: int | None = None,
    ) -> None:
        super().__init__(p=p, num_epochs=num_epochs)
        if size < 1:
            raise ValueError(f"size must be positive, not {size}")
        if not 0 <= translate <= 0.5:
            raise ValueError(f"translate must be in [0, 0.5], not {translate}")
        check_scale(scale)
        self.size = size
        self.scale = scale
        self.translate = translate
        self.limits = check_limits(min_visibility, min_size)

    def plan(self, layouts: Sequence[Layout], key: int) -> MixPlan:
        if len(layouts) == 1:
            alone = fitted(layouts[0].size, self.size)
            return MixPlan((alone,), alone.move(layouts[0]))
        zoom, *fractions = torch.rand(5, generator=generator(key, "mosaic"), dtype=torch.float64).tolist()
        z = self.scale[0] + zoom * (self.scale[1] - self.scale[0])
        t_y, t_x, u_y, u_x = (f - 0.5 for f in fractions)
        y = round(self.size * (0.5 + 2 * self.translate * t_y + z * u_y))
        x = round(self.size * (0.5 + 2 * self.translate * t_x + z * u_x))
        plans = assembly([layout.size for layout in layouts], self.size, z, y, x)
        moved = [plan.move(layout) for plan, layout in zip(plans, layouts, strict=True)]
        return MixPlan(plans, Layout.together(moved).clip(*self.limits))

    def render(self, images: Sequence[np.ndarray], plans: Sequence[Plan]) -> np.ndarray:
        canvas = blank(self.size, self.size)
        for image, plan in zip(images, plans, strict=True):
            paint(canvas, image, plan)
        return canvas


@TRANSFORMS
class MixUp(PlannedMixing):
    """The mean of two images, with the boxes of both.

    Mixup for detection (Zhang et al., "Bag of Freebies", 2019) with the numbers of YOLOX, where both images weigh one
    half and every box counts in full. The partner is fitted into the sample's size, zoomed, mirrored by chance, and cut
    where it is larger. Where none of its boxes remains, the sample is left as it was. Departures from YOLOX: no other
    partner is drawn in place of one without boxes, a sample without boxes is mixed too, and what the partner does not
    cover is mixed with grey, not partly with black.

    Args:
        scale: least and largest zoom of the partner.
        flip: probability with which the partner is mirrored.
        min_visibility: a box of the partner of which a smaller share of its area remains is left out.
        min_size: a box of the partner of which less than this remains (px, width or height) is left out.
        p: share of the images that are mixed.
        num_epochs: mix in so many epochs from the start, and not in the last ones (YOLOX: 285 of 300); null: in all.

    Raises:
        ValueError: a number is out of range.
    """

    num_partners = 1

    def __init__(
        self,
        *,
        scale: tuple[float, float] = (0.5, 1.5),
        flip: float = 0.5,
        min_visibility: float = 0.2,
        min_size: float = 5.0,
        p: float = 1.0,
        num_epochs: int | None = None,
    ) -> None:
        super().__init__(p=p, num_epochs=num_epochs)
        if not 0 <= flip <= 1:
            raise ValueError(f"flip must be in [0, 1], not {flip}")
        check_scale(scale)
        self.scale = scale
        self.flip = flip
        self.limits = check_limits(min_visibility, min_size)

    def plan(self, layouts: Sequence[Layout], key: int) -> MixPlan:
        first = layouts[0]
        alone = MixPlan((Plan.resized(first.size, first.size),), first)
        if len(layouts) == 1:
            return alone
        zoom, coin, *places = torch.rand(4, generator=generator(key, "mixup"), dtype=torch.float64).tolist()
        z = self.scale[0] + zoom * (self.scale[1] - self.scale[0])
        other = layouts[1].size
        # A zoom above 1 makes the frame that the partner was fitted into larger than the sample: it moves by the rest.
        top, left = (-round(place * max(0.0, z - 1) * side) for place, side in zip(places, first.size, strict=True))
        ratio = z * min(whole / side for whole, side in zip(first.size, other, strict=True))
        h, w = (scaled(side, ratio) for side in other)
        plan = Plan(other, first.size, (h, w), (top, left), mirrored=coin < self.flip, limits=self.limits)
        moved = plan.move(layouts[1])
        return MixPlan((*alone.plans, plan), Layout.together([first, moved])) if len(moved.boxes) else alone

    def render(self, images: Sequence[np.ndarray], plans: Sequence[Plan]) -> np.ndarray:
        return cv2.addWeighted(images[0], 0.5, render(images[1], plans[1]), 0.5, 0)


def assembly(sizes: Sequence[tuple[int, int]], size: int, zoom: float, y: int, x: int) -> tuple[Plan, ...]:
    """Four images of ``sizes`` (h, w) px on ``size`` x ``size`` px, with longer sides of ``zoom`` * ``size`` px.

    They meet in the point (``x``, ``y``) px: above left, above right, below left, below right. Boxes are not clipped.
    """
    plans = []
    for i, before in enumerate(sizes):
        h, w = (scaled(side, zoom * size / max(before)) for side in before)
        plans.append(Plan(before, (size, size), (h, w), (y - h if i < 2 else y, x - w if i % 2 == 0 else x)))
    return tuple(plans)
