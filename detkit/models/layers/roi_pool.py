"""Deformable RoI pooling as a layer (Dai et al., ICCV 2017, section 2.2 and figure 3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detkit.ops import deform_roi_pool, multi_level_roi_align


class DeformRoIPool(nn.Module):
    """RoIAlign, a fully connected layer that turns what it sees into offsets of the bins, and pooling at those.

    The layer starts at zero, so that a fresh one is RoIAlign.

    Args:
        channels: of the feature maps.
        resolution: side of the pooled grid.
        sampling_ratio: samples per bin and axis; 0 for one per feature cell.
    """

    def __init__(self, *, channels: int, resolution: int, sampling_ratio: int) -> None:
        super().__init__()
        self.resolution, self.sampling_ratio = resolution, sampling_ratio
        self.offset = nn.Linear(channels * resolution**2, 2 * resolution**2)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(
        self,
        features: Sequence[Tensor],
        boxes: Tensor,
        image_index: Tensor,
        levels: Tensor,
        *,
        scales: Sequence[float],
        image_sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """The grids (R, C, resolution, resolution); the arguments are those of ``multi_level_roi_align``."""
        side = self.resolution
        fixed = multi_level_roi_align(
            features, boxes, image_index, levels, output_size=(side, side), scales=scales,
            sampling_ratio=self.sampling_ratio, image_sizes=image_sizes,
        )  # fmt: skip
        offsets = self.offset(fixed.flatten(1)).view(-1, 2, side, side)
        return deform_roi_pool(
            features, boxes, image_index, levels, offsets, output_size=(side, side), scales=scales,
            sampling_ratio=self.sampling_ratio, image_sizes=image_sizes,
        )  # fmt: skip
