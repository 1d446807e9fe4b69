"""Anchors: the reference boxes of a dense head, on every cell of every level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detkit.config import ANCHORS
from detkit.structures import FeatureSpec
from detkit.utils.transfer import constant

#: Objects differ in size by such a factor in themselves; anchors that do from all of them are a mistake.
_ORDER = 8.0


class Anchors(ABC):
    """What a head needs to know of its anchors.

    ``strides``: px of the network input per cell of each level; ``num_per_cell``: A, the same on all levels.
    """

    strides: tuple[float, ...]
    num_per_cell: int

    @abstractmethod
    def __call__(self, shapes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
        """Anchors (H_l * W_l * A, 4) px of the network input for each level, cell by cell in row-major order."""

    @abstractmethod
    def inside(self, shapes: Sequence[tuple[int, int]], size: tuple[int, int], device: torch.device) -> list[Tensor]:
        """Masks (H_l * W_l * A,) of the anchors whose centre lies in an image of ``size`` (h, w), not in the padding.

        What stands in the padding depends on the other images of the batch; leaving it out makes results independent
        of them.
        """


@ANCHORS
class AnchorGrid(Anchors):
    """Boxes of several scales and ratios at the cells of each level (Ren et al., NeurIPS 2015, section 3.1).

    Their centres are the top left corners of the cells, as in torchvision and detectron2, or moved by ``offset``.
    Sizes follow the level's stride, so that the same YAML fits every neck: scale 8 on strides 4..64 gives FPN's
    32..512 px (Lin et al., CVPR 2017, section 4.1).

    Args:
        scales: anchor side (square root of the area) in strides of the level.
        in_px: scales are px instead, and every level has the same anchors (torchvision's MobileNetV3 detectors).
        ratios: height / width.
        rounded: round the corners to whole px around the centre, as torchvision does.
        offset: from a cell's top left corner to the centres of its anchors, in cells; 0.5 is its middle.
        whole_sides: round the sides down to whole px, before the ratios, as torchvision's RetinaNet does.
        in_padding: keep the anchors in the padding, and lay the cells of each level out over the whole of the finest,
            a whole number of px apart: torchvision's behaviour in padded batches. Results for an image then depend on
            the other images of its batch.
    """

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        scales: tuple[float, ...] = (8.0,),
        ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        rounded: bool = False,
        offset: float = 0.0,
        in_padding: bool = False,
        whole_sides: bool = False,
        in_px: bool = False,
    ) -> None:
        for name, values in (("scales", scales), ("ratios", ratios)):
            if not values or min(values) <= 0:
                raise ValueError(f"{name} must be positive numbers, not {list(values)}")
        if not 0 <= offset < 1:
            raise ValueError(f"offset must lie in [0, 1), a place in the cell, not {offset}")
        self.strides, self.in_padding, self.offset = in_spec.strides, in_padding, offset
        self.in_px = in_px
        self.num_per_cell = len(scales) * len(ratios)
        units = [1.0 if in_px else stride for stride in self.strides]
        self._base = [_base_anchors(unit, scales, ratios, rounded, whole_sides) for unit in units]

    def __call__(self, shapes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
        return [
            (self._centres(shape, steps, device)[:, None].repeat(1, 1, 2) + base.to(device)).reshape(-1, 4)
            for shape, steps, base in zip(shapes, self._steps(shapes), self._base, strict=True)
        ]

    @property
    def sides(self) -> tuple[float, float]:
        """The least and the largest side (root of the area) in px of the network input."""
        sides = torch.cat([(base[:, 2:] - base[:, :2]).prod(dim=1).sqrt() for base in self._base])
        return float(sides.min()), float(sides.max())

    def inside(self, shapes: Sequence[tuple[int, int]], size: tuple[int, int], device: torch.device) -> list[Tensor]:
        h, w = size
        masks = []
        for shape, steps in zip(shapes, self._steps(shapes), strict=True):
            x, y = self._centres(shape, steps, device).unbind(1)
            masks.append((((x < w) & (y < h)) | self.in_padding)[:, None].expand(-1, self.num_per_cell).reshape(-1))
        return masks

    def _steps(self, shapes: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
        """Px from cell to cell of each level, down and across."""
        if not self.in_padding:
            return [(stride, stride) for stride in self.strides]
        height, width = (side * self.strides[0] for side in shapes[0])
        return [(height // h, width // w) for h, w in shapes]

    def _centres(self, shape: tuple[int, int], steps: tuple[float, float], device: torch.device) -> Tensor:
        """(H * W, 2) x, y in px."""
        origins = cell_origins(shape, steps, device)
        return origins + constant(steps[::-1], device, origins.dtype) * self.offset if self.offset else origins


def misfit(anchors: Anchors, sides: np.ndarray, long_side: float) -> str:
    """A line where all of ``anchors`` have another order of size than what they are for; empty else.

    Of anchors of another kind than :class:`AnchorGrid` nothing is known.

    Args:
        sides: (N,) of the objects, the root of their area, px of the network input.
        long_side: of the image, in the same px.
    """
    if not isinstance(anchors, AnchorGrid):
        return ""
    least, largest = anchors.sides
    scales = f"AnchorGrid's scales count {'px' if anchors.in_px else 'strides of the level, not px'}"
    if least > long_side:
        return f"every anchor ({_range(least, largest)} px) is larger than the image of {long_side:g} px: {scales}"
    if not len(sides):
        return ""
    small, large = np.quantile(sides, (0.05, 0.95))
    if least > _ORDER * large or largest < small / _ORDER:
        objects = f"nine of ten objects ({_range(small, large)} px)"
        which = "larger" if least > large else "smaller"
        return f"every anchor ({_range(least, largest)} px) is over {_ORDER:g} times {which} than {objects}: {scales}"
    return ""


def _range(low: float, high: float) -> str:
    shown = f"{round(low, 1):g}", f"{round(high, 1):g}"
    return shown[0] if shown[0] == shown[1] else "..".join(shown)


def cell_origins(shape: tuple[int, int], steps: tuple[float, float], device: torch.device) -> Tensor:
    """(H * W, 2) x, y in px of the top left corner of each cell, row-major, cells being ``steps`` px apart (y, x)."""
    y = torch.arange(shape[0], device=device, dtype=torch.float32) * steps[0]
    x = torch.arange(shape[1], device=device, dtype=torch.float32) * steps[1]
    return torch.stack([x.expand(shape[0], -1), y[:, None].expand(-1, shape[1])], dim=2).reshape(-1, 2)


def _base_anchors(
    unit: float, scales: Sequence[float], ratios: Sequence[float], rounded: bool, whole_sides: bool
) -> Tensor:
    """(A, 4) anchors around the origin, ratios outermost."""
    height = torch.tensor(ratios).sqrt()
    sides = torch.tensor(scales) * unit
    sides = sides.floor() if whole_sides else sides
    w = (sides[None, :] / height[:, None]).flatten()
    h = (sides[None, :] * height[:, None]).flatten()
    base = torch.stack([-w, -h, w, h], dim=1) / 2
    return base.round() if rounded else base
