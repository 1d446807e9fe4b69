"""Random scale and shift: the image seen through a window."""

from __future__ import annotations

import torch

from detkit.config import TRANSFORMS
from detkit.data.transforms.base import PlannedTransform
from detkit.data.transforms.plan import Plan, check_limits, check_scale, scaled
from detkit.utils.seed import generator


@TRANSFORMS
class RandomWindow(PlannedTransform):
    """What a window of random size and place shows of the image, resized to ``height`` x ``width`` px; grey beside it.

    With ``keep_aspect`` the window has the output's aspect and is ``scale`` times the smallest one around the image:
    the crop of CenterNet (Zhou et al., "Objects as Points", 2019). Without it the window is ``scale`` times the image,
    drawn for height and for width, and the image is stretched: the scaling and translation of YOLOv1 (Redmon et al.,
    2016, section 2.2). Either way the affine is exact.

    Boxes are cut at the border; one of which too little remains is left out.

    Args:
        height: of the output, px.
        width: of the output, px.
        scale: least and largest size of the window: 0.5 shows objects twice as large.
        shift: how far the window's centre may lie from the image's, as a share of the image's height and width.
        keep_aspect: whether the aspect of the image is kept.
        min_visibility: a box of which a smaller share of its area remains is left out.
        min_size: a box of which less than this remains (px, width or height) is left out.

    Raises:
        ValueError: a number is out of range.
    """

    training_only = True

    def __init__(
        self,
        *,
        height: int = 512,
        width: int = 512,
        scale: tuple[float, float] = (0.6, 1.4),
        shift: float = 0.1,
        keep_aspect: bool = True,
        min_visibility: float = 0.0,
        min_size: float = 1.0,
    ) -> None:
        if height < 1 or width < 1:
            raise ValueError(f"height {height} and width {width} must be positive")
        if not 0 <= shift <= 0.5:
            raise ValueError(f"shift must be in [0, 0.5], not {shift}")
        check_scale(scale)
        self.size = height, width
        self.scale = scale
        self.shift = shift
        self.keep_aspect = keep_aspect
        self.limits = check_limits(min_visibility, min_size)

    def plan(self, size: tuple[int, int], key: int) -> Plan:
        drawn = torch.rand(4, generator=generator(key), dtype=torch.float64).tolist()
        ratios = [whole / side for whole, side in zip(self.size, size, strict=True)]
        scales = [self.scale[0] + f * (self.scale[1] - self.scale[0]) for f in drawn[:2]]
        if self.keep_aspect:
            ratios, scales = [min(ratios)] * 2, scales[:1] * 2
        h, w = (scaled(side, ratio / scale) for side, ratio, scale in zip(size, ratios, scales, strict=True))
        centre_y, centre_x = (0.5 + self.shift * (2 * f - 1) for f in drawn[2:])
        corner = round(self.size[0] / 2 - centre_y * h), round(self.size[1] / 2 - centre_x * w)
        return Plan(size, self.size, (h, w), corner, limits=self.limits)
