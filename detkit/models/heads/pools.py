"""Region pools: which map of a pyramid a box is read from, and how its grid is read there.

The level rule is common to all (Lin et al., FPN, CVPR 2017, equation 1): k = floor(k0 + log2(sqrt(w h) / 224)).
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detkit.config import REGION_POOLS, Count
from detkit.models.interfaces import RegionPool
from detkit.ops import deform_roi_pool, multi_level_roi_align
from detkit.ops.region_pooling import pool_regions
from detkit.structures import FeatureSpec, Images
from detkit.structures.boxes import area
from detkit.utils.transfer import constant, row_owners


class Placed(NamedTuple):
    """All regions of a batch: ``boxes`` (R, 4) px, the ``image`` (R,) and the ``level`` (R,) that each is read from."""

    boxes: Tensor
    image: Tensor
    level: Tensor


class PyramidPool(RegionPool):
    """Everything but how a grid is read: what all pools are told, and the level rule."""

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        resolution: Count = 7,
        sampling_ratio: int = 2,
        num_levels: Count | None = 4,
        canonical_size: float = 224.0,
        canonical_stride: float = 16.0,
    ) -> None:
        super().__init__()
        if canonical_size <= 0 or canonical_stride <= 0:
            raise ValueError(
                f"canonical_size and canonical_stride must be positive, not {canonical_size} and {canonical_stride}"
            )
        channels, self.strides = in_spec.channels[:num_levels], in_spec.strides[:num_levels]
        if len(set(channels)) != 1:
            raise ValueError(
                f"regions are pooled from levels of equal channels, not {list(channels)}: choose a neck that makes "
                "them equal, such as model/neck=fpn"
            )
        self.resolution, self.sampling_ratio, self.num_levels = resolution, sampling_ratio, len(channels)
        self.canonical_size, self.canonical_stride = canonical_size, canonical_stride

    def levels(self, boxes: Tensor) -> Tensor:
        """The first level that is as coarse as equation 1 has it, or the last."""
        size = area(boxes).clamp(min=0).sqrt()
        octave = torch.floor(torch.log2(size / self.canonical_size + 1e-8) + 1e-6)
        stride = self.canonical_stride * torch.exp2(octave.nan_to_num())
        index = torch.bucketize(stride, constant(self.strides, stride.device, stride.dtype))
        return index.clamp(max=len(self.strides) - 1)

    def forward(self, features: Sequence[Tensor], regions: Sequence[Tensor], images: Images) -> Tensor:
        boxes = torch.cat(list(regions))
        image = row_owners([len(r) for r in regions], boxes.device)
        return self.read(
            features[: self.num_levels],
            Placed(boxes, image, self.levels(boxes)),
            output_size=(self.resolution, self.resolution),
            scales=[1 / stride for stride in self.strides],
            sampling_ratio=self.sampling_ratio,
            image_sizes=constant(tuple(images.sizes), boxes.device, torch.int64),
        )

    def out_channels(self, channels: int) -> int:
        return channels

    @abstractmethod
    def read(self, features: Sequence[Tensor], placed: Placed, **options: Any) -> Tensor:
        """The grids (R, C', resolution, resolution); ``options`` are those that the pooling ops share."""


def _beside_the_common(init: Callable[..., None]) -> Callable[..., None]:
    """A pool's constructor whose schema has, before its own arguments, those that it hands on as ``**common``."""
    shared, own = (inspect.signature(f).parameters for f in (PyramidPool.__init__, init))
    named = {**shared, **{name: p for name, p in own.items() if p.kind is not p.VAR_KEYWORD}}
    init.__annotations__ = {name: p.annotation for name, p in named.items() if p.annotation is not p.empty}
    init.__signature__ = inspect.Signature(list(named.values()))  # pyright: ignore[reportFunctionMemberAccess]
    return init


@REGION_POOLS
class RoIAlign(PyramidPool):
    """Bins that are means of bilinear samples (He et al., Mask R-CNN, ICCV 2017, section 3).

    Args:
        resolution: side of the grid.
        sampling_ratio: samples per bin and axis; 0 for one per feature cell.
        num_levels: the finest levels, from which regions are pooled (FPN leaves out P6); null for all.
        canonical_size: a region of this side (px) is pooled at ``canonical_stride`` (Lin et al., eq. 1: 224 at 16).
        canonical_stride: see there.
        aligned: the half-cell correction; false for torchvision's published weights.
        in_padding: read the maps as a whole, as torchvision does in padded batches; else a map ends where its image
            ends, and results for an image do not depend on the other images of its batch.
    """

    @_beside_the_common
    def __init__(self, *, in_spec: FeatureSpec, aligned: bool = True, in_padding: bool = False, **common: Any) -> None:
        super().__init__(in_spec=in_spec, **common)
        self.aligned, self.in_padding = aligned, in_padding

    def read(self, features: Sequence[Tensor], placed: Placed, **options: Any) -> Tensor:
        if self.in_padding:
            options["image_sizes"] = None
        return multi_level_roi_align(features, *placed, aligned=self.aligned, **options)


@REGION_POOLS
class PSRoIAlign(PyramidPool):
    """Position-sensitive: each bin reads channels of its own (Dai et al., R-FCN, NeurIPS 2016, equation 1).

    By RoIAlign's samples with the half-cell correction, and their mean. Of maps of k^2 D channels bin (i, j) reads D,
    from number (i k + j) D on: channels of a bin lie together.

    Args:
        resolution: side of the grid, k in the paper.
        sampling_ratio, num_levels, canonical_size, canonical_stride: as of :class:`RoIAlign`.
        deformable: bins move, for each of the D channels by offsets of its own, which are pooled in the same way from 2
            k^2 D further maps behind the others: dx and dy of a channel in turn (Dai et al., ICCV 2017, section 2.2).
    """

    @_beside_the_common
    def __init__(self, *, in_spec: FeatureSpec, deformable: bool = False, **common: Any) -> None:
        super().__init__(in_spec=in_spec, **common)
        self.num_moves = 2 if deformable else 0

    def out_channels(self, channels: int) -> int:
        sets = self.resolution**2 * (1 + self.num_moves)
        if channels % sets:
            raise ValueError(
                f"position-sensitive pooling to {self.resolution} x {self.resolution} bins needs maps of a multiple of "
                f"{sets} channels, not {channels}: change the resolution or the channels of the neck"
            )
        return channels // sets

    def read(self, features: Sequence[Tensor], placed: Placed, **options: Any) -> Tensor:
        if self.num_moves == 0:
            return pool_regions(features, *placed, aligned=True, position_sensitive=True, **options)
        end = self.out_channels(features[0].shape[1]) * self.resolution**2
        further = [f[:, end:] for f in features]
        moves = pool_regions(further, *placed, aligned=True, position_sensitive=True, **options)
        return deform_roi_pool([f[:, :end] for f in features], *placed, moves, position_sensitive=True, **options)


@REGION_POOLS
class DeformRoIPool(PyramidPool):
    """RoIAlign with bins that move by offsets, made of what RoIAlign sees (Dai et al., ICCV 2017, section 2.2).

    The layer starts at zero, so that a fresh pool is RoIAlign.

    Args:
        resolution, sampling_ratio, num_levels, canonical_size, canonical_stride: as of :class:`RoIAlign`.
    """

    @_beside_the_common
    def __init__(self, *, in_spec: FeatureSpec, **common: Any) -> None:
        super().__init__(in_spec=in_spec, **common)
        self.offset = _zero_linear(in_spec.channels[0] * self.resolution**2, 2 * self.resolution**2)

    def read(self, features: Sequence[Tensor], placed: Placed, **options: Any) -> Tensor:
        fixed = multi_level_roi_align(features, *placed, **options)
        moves = self.offset(fixed.flatten(1)).view(fixed.shape[0], 2, self.resolution, self.resolution)
        return deform_roi_pool(features, *placed, moves, **options)


@REGION_POOLS
class ModulatedDeformRoIPool(PyramidPool):
    """:class:`DeformRoIPool` whose bins are also scaled, each by a sigmoid (Zhu et al., CVPR 2019, section 3.2).

    The last of its layers starts at zero, so that a fresh pool is half of RoIAlign, as the paper has it.

    Args:
        resolution, sampling_ratio, num_levels, canonical_size, canonical_stride: as of :class:`RoIAlign`.
        hidden: width of the two layers before the last, 1024 in the paper.
    """

    @_beside_the_common
    def __init__(self, *, in_spec: FeatureSpec, hidden: Count = 1024, **common: Any) -> None:
        super().__init__(in_spec=in_spec, **common)
        layers: list[nn.Module] = []
        for inputs in (in_spec.channels[0] * self.resolution**2, hidden):
            layer = nn.Linear(inputs, hidden)
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU(inplace=True)]
        self.hidden = nn.Sequential(*layers)
        self.offset = _zero_linear(hidden, 3 * self.resolution**2)

    def read(self, features: Sequence[Tensor], placed: Placed, **options: Any) -> Tensor:
        fixed = multi_level_roi_align(features, *placed, **options)
        moves = self.offset(self.hidden(fixed.flatten(1))).view(fixed.shape[0], 3, self.resolution, self.resolution)
        return deform_roi_pool(features, *placed, moves[:, :2], mask=moves[:, 2:].sigmoid(), **options)


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
