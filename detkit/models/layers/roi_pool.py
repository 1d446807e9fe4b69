"""Deformable RoI pooling as a layer (Dai et al., ICCV 2017, section 2.2; v2: Zhu et al., CVPR 2019, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detkit.ops import deform_roi_pool, multi_level_roi_align


class DeformRoIPool(nn.Module):
    """RoIAlign, fully connected layers that turn what it sees into offsets of the bins, and pooling at those.

    v1 has one such layer; v2, which also scales each bin by a sigmoid, has two of ``hidden`` numbers before it. The
    last starts at zero, so that a fresh v1 is RoIAlign and a fresh v2 half of it, as the papers have it.

    Args:
        channels: of the feature maps.
        resolution: side of the pooled grid.
        sampling_ratio: samples per bin and axis; 0 for one per feature cell.
        modulated: v2.
        hidden: width of v2's two layers (1024 in the paper).
    """

    def __init__(
        self, *, channels: int, resolution: int, sampling_ratio: int, modulated: bool = False, hidden: int = 1024
    ) -> None:
        super().__init__()
        self.resolution, self.sampling_ratio, self.modulated = resolution, sampling_ratio, modulated
        bins, width = resolution**2, channels * resolution**2
        layers: list[nn.Module] = []
        if modulated:
            for inputs in (width, hidden):
                layers += [nn.Linear(inputs, hidden), nn.ReLU(inplace=True)]
                nn.init.normal_(layers[-2].weight, std=0.01)  # pyright: ignore
                nn.init.zeros_(layers[-2].bias)  # pyright: ignore
            width = hidden
        self.hidden = nn.Sequential(*layers)
        self.offset = nn.Linear(width, (3 if modulated else 2) * bins)
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
        image_sizes: Sequence[tuple[int, int]] | None,
    ) -> Tensor:
        """The grids (R, C, resolution, resolution); the arguments are those of ``multi_level_roi_align``."""
        side = self.resolution
        fixed = multi_level_roi_align(
            features, boxes, image_index, levels, output_size=(side, side), scales=scales,
            sampling_ratio=self.sampling_ratio, image_sizes=image_sizes,
        )  # fmt: skip
        moves = self.offset(self.hidden(fixed.flatten(1))).view(len(boxes), -1, side, side)
        return deform_roi_pool(
            features, boxes, image_index, levels, moves[:, :2], output_size=(side, side), scales=scales,
            sampling_ratio=self.sampling_ratio, image_sizes=image_sizes,
            mask=moves[:, 2:].sigmoid() if self.modulated else None,
        )  # fmt: skip
